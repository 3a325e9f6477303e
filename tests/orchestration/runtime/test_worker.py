import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration.runtime import worker
from orchestration.runtime.worker import Worker, WorkerConfig, WorkerReport


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
        self.interrupted = reason


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
    before, here, path = signal.getsignal(signal.SIGTERM), os.getcwd(), list(worker.sys.path)
    stop_file = tmp_path / "stop"
    yield Worker(WorkerConfig(str(tmp_path), str(stop_file), str(tmp_path), ["/own"], "cpu", 60.0, 3.0, {"launch": 7}))
    signal.signal(signal.SIGTERM, before)
    os.chdir(here)
    worker.sys.path[:] = path


def test_a_trial_goes_on_and_another_one_begins_anew(ours: Worker, taken: list[ATraining]) -> None:
    first = WorkerReport(*ours.step("1", "a", None))
    assert first == WorkerReport("running", "", "a note", "", 1, 9, {"train/loss": 0.1})
    assert WorkerReport(*ours.step("1", "a", None)).state == "done"
    assert WorkerReport(*ours.step("2", "a", 5)).step == 1, "the same cell under another trial id: what the ledger has"
    assert [(one.cell, one.settings["until"]) for one in taken] == [("a", None), ("a", 5)]
    assert taken[0].settings["record"] == {"launch": 7}
    assert [one.interrupted for one in taken] == ["stopped", ""]


def test_a_worker_that_is_stopped_keeps_its_training(ours: Worker, taken: list[ATraining]) -> None:
    ours.stop()
    ours.step("1", "a", None)
    ours.stop()
    ours.stop()
    assert taken[0].interrupted == "stopped"


def test_a_trial_that_cannot_begin_leaves_nothing_of_the_one_before(
    ours: Worker, taken: list[ATraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours.step("1", "a", None)
    monkeypatch.setattr("orchestration.runtime.worker.Ledger.cell", lambda self, cell: {}[cell])
    for _ in range(2):
        with pytest.raises(KeyError):
            ours.step("2", "b", None)
    assert len(taken) == 1


def test_a_training_is_asked_to_stop_by_the_stop_file_and_by_a_signal(
    ours: Worker, taken: list[ATraining], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours.step("1", "a", None)
    stop = taken[0].settings["stop"]
    assert not stop()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop()
    with pytest.raises(SystemExit) as ended:
        ours.step("1", "a", None)
    assert ended.value.code == 143
    assert taken[0].interrupted == "stopped", "what it trains is kept, also where the signal came in the last step"
    ours._terminated = False
    (tmp_path / "stop").touch()
    ours._stop_file._next = 0.0
    assert stop()


def test_a_worker_is_where_the_launch_was_made(ours: Worker, tmp_path: Path) -> None:
    assert Path.cwd() == tmp_path
    assert worker.sys.path[0] == "/own"
