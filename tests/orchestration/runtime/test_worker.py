import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration.runtime import worker
from orchestration.runtime.messages import Order, WorkerReport
from orchestration.runtime.worker import Worker, WorkerConfig


class ATraining:
    """In place of a `CellTraining`: goes on for as many calls as `ends_after`, then it is done."""

    ends_after = 2

    def __init__(self, ledger: Any, cell: str, **settings: Any) -> None:
        self.cell, self.settings = cell, settings
        self.ended: str | None = None
        self.reason, self.note, self.log, self.step, self.total_steps = "", "a note", None, 0, 9
        self.last = {"train/loss": 0.1}
        self.interrupted = ""

    def run_for(self, seconds: float) -> None:
        assert seconds == 3.0
        self.step += 1
        self.ended = "done" if self.step == self.ends_after else None

    def interrupt(self, reason: str) -> None:
        self.interrupted, self.ended = reason, "interrupted"


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[ATraining]:
    """The trainings that a worker has begun, in order."""
    found: list[ATraining] = []

    def begin(*arguments: Any, **settings: Any) -> ATraining:
        found.append(ATraining(*arguments, **settings))
        return found[-1]

    monkeypatch.setattr(worker, "CellTraining", begin)
    monkeypatch.setattr("orchestration.runtime.worker.Ledger.cell", lambda self, cell: cell)
    return found


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    before, here, path = signal.getsignal(signal.SIGTERM), os.getcwd(), list(sys.path)
    stop_file = tmp_path / "stop"
    yield Worker(WorkerConfig(str(tmp_path), str(stop_file), str(tmp_path), ["/own"], "cpu", 60.0, 3.0, {"launch": 7}))
    signal.signal(signal.SIGTERM, before)
    os.chdir(here)
    sys.path[:] = path


def test_a_worker_trains_one_cell_after_another_and_reports_on_the_way(ours: Worker, taken: list[ATraining]) -> None:
    heard: list[WorkerReport] = []

    def hear(report: WorkerReport) -> bool:
        heard.append(report)
        return True

    assert ours.train(Order("a", None), hear) == WorkerReport("done", "", "a note", "", 2, 9, {"train/loss": 0.1})
    assert heard == [WorkerReport("running", "", "a note", "", 1, 9, {"train/loss": 0.1})]
    assert ours.train(Order("a", 5), hear).step == 2
    assert [(one.cell, one.settings["until"]) for one in taken] == [("a", None), ("a", 5)]
    assert taken[0].settings["record"] == {"launch": 7}
    ours.stop()
    assert [one.interrupted for one in taken] == ["", ""], "both were over"


def test_a_worker_that_is_not_to_go_on_stops_at_a_checkpoint(ours: Worker, taken: list[ATraining]) -> None:
    report = ours.train(Order("a", None), lambda report: False)
    assert (report.state, report.step) == ("interrupted", 1)
    assert taken[0].interrupted == "stopped"


def test_a_worker_that_is_stopped_keeps_its_training(ours: Worker, taken: list[ATraining]) -> None:
    ours.stop()

    def breaks(report: WorkerReport) -> bool:
        raise ConnectionError("the driver is gone")

    with pytest.raises(ConnectionError):
        ours.train(Order("a", None), breaks)
    ours.stop()
    ours.stop()
    assert taken[0].interrupted == "stopped"


def test_a_training_is_asked_to_stop_by_the_stop_file(ours: Worker, taken: list[ATraining], tmp_path: Path) -> None:
    ours.train(Order("a", None), lambda report: True)
    stop = taken[0].settings["stop"]
    assert not stop()
    (tmp_path / "stop").touch()
    ours._stop_file._next = 0.0
    assert stop()


def test_a_signal_ends_a_training_at_a_checkpoint(ours: Worker, taken: list[ATraining]) -> None:
    def signalled(report: WorkerReport) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        assert taken[0].settings["stop"]()
        return True

    with pytest.raises(SystemExit) as ended:
        ours.train(Order("a", None), signalled)
    assert ended.value.code == 143
    assert taken[0].interrupted == "stopped", "what it trains is kept, also where the signal came in the last step"


def test_a_signal_ends_a_worker_that_waits(ours: Worker) -> None:
    with pytest.raises(SystemExit) as ended:
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143


def test_a_worker_is_where_the_launch_was_made(ours: Worker, tmp_path: Path) -> None:
    assert Path.cwd() == tmp_path
    assert sys.path[-1] == "/own", "behind what is installed"
