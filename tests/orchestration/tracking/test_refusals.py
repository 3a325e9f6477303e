"""What MLflow refuses keeps nothing else from it, and the end of a launch from nobody."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic_experiment import cells_of, finish, launched, spec_of, trained

from fsg.imported import Imported
from orchestration.commands.sync import sync
from orchestration.ledger.ledger import Ledger
from orchestration.tracking.cell_run import CellRunSender
from orchestration.tracking.names import LONGEST, mlflow_name, original_name
from orchestration.tracking.sync import Patience, SyncReport, Tracker, background

ODD = [
    "layer1.*", "*", "a%b", "a:b", "a:2a:b", "", ".", "..", "../a", "/a", "a//b", "a/./b", "a/", "a\nb", "a\tb", "a\0b",
    "ünï.実験", "🙂", 'quote"s', "a=b", "[0]", "{k}", "a,b", "a\\b", "::", ":", "train/loss", "plain.name-1 x",
    "a" * 300, "*" * 200,
]  # fmt: skip


def test_names_are_escaped_so_that_they_lead_back() -> None:
    written = {name: mlflow_name(name) for name in [*ODD, "\ud800"]}
    assert len(set(written.values())) == len(ODD) + 1
    for name, one in written.items():
        assert len(one) <= LONGEST
        if len(name) < 50:
            assert original_name(one) == name
    assert written["train/loss"] == "train/loss"
    assert written["plain.name-1 x"] == "plain.name-1 x"
    assert written["layer1.*"] == "layer1.:2a:"


def with_settings(settings: dict[str, Any]) -> Any:
    spec = spec_of(seeds=(0,))
    points = [
        replace(p, train=replace(p.train, estimator=Imported(path="own_state:Kept", settings=settings)))
        if p.variant == spec.variants[0]
        else p
        for p in spec.points
    ]
    return replace(spec, points=tuple(points))


def runs_of(tracker: Tracker) -> dict[str, Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracker.uri)
    (one,) = [one for one in client.search_experiments() if one.name == tracker._spec.folder_name]
    return {run.info.run_name: run for run in client.search_runs([one.experiment_id])}


@pytest.mark.usefixtures("with_a_database")
def test_keys_of_a_setting_arrive_whatever_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a setting by the layer's pattern, in the first cell of all."""
    spec = with_settings({"scales": dict.fromkeys(ODD, 0.5), "note": "a\0b"})
    monkeypatch.setattr(Imported, "identity", lambda self: {"name": "import"})
    ledger = trained(tmp_path / spec.name, spec)
    tracker = Tracker(ledger, spec)
    assert tracker.sync().refused == ()
    run = runs_of(tracker)[ledger.cells()[0].label]
    params, client = run.data.params, tracker.runs.client()
    for name in ODD:  # of a setting or a metric that begins with it
        client.log_param(run.info.run_id, mlflow_name(name), name)
        client.log_metric(run.info.run_id, mlflow_name(name), 1.0)
    names = {original_name(name) for name in params}
    assert {f"estimator.settings.scales.{name}" for name in ODD if len(name) < 50} <= names
    assert params["estimator.settings.note"] == r"a\x00b"


@contextmanager
def poisoned(label: str) -> Iterator[None]:
    """Within, MLflow refuses a cell."""
    real = CellRunSender._describe

    def describe(self: CellRunSender, run: str, cell: Any) -> None:
        real(self, run, cell)
        if cell.label == label:
            self._runs.client().log_param(run, "no*such", "name")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CellRunSender, "_describe", describe)
        yield


@pytest.mark.usefixtures("with_a_database")
def test_a_refused_cell_is_told_skipped_and_retried_and_all_after_it_arrive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = spec_of(seeds=(0,))
    ledger = trained(tmp_path / spec.name, spec)
    first, *others = [cell.label for cell in ledger.cells()]
    tracker, lines = Tracker(ledger, spec), []
    with poisoned(first):
        with background(tracker, every=0.05, warn=lines.append):
            time.sleep(1)
        assert tracker.reached
        assert tracker.behind is not None
        assert tracker.behind.startswith(f"refused: {first}: ")
        assert len(lines) == 1, "however often it is tried"
        assert lines[0].startswith(f"MLflow refused {first}: ")
        found = runs_of(tracker)
        assert {found[label].info.status for label in [*others, spec.folder_name]} == {"FINISHED"}
        assert sync(ledger.folder) == 1
        said = capsys.readouterr()
        assert said.err.startswith(f"MLflow refused {first}: ")
        assert len(said.err.splitlines()) == 1
    assert sync(ledger.folder) == 0
    found = runs_of(tracker)
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert len(found) == len(others) + 2


@pytest.mark.usefixtures("with_a_database")
@pytest.mark.parametrize("error", [ConnectionError("it is gone"), KeyError("it is gone"), OSError("it is gone")])
def test_where_mlflow_is_gone_nothing_more_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    spec = spec_of(seeds=(0,))
    tracker = Tracker(trained(tmp_path / spec.name, spec), spec)
    tracker.runs.client()
    tried = []

    def gone(self: CellRunSender, cell: Any, outcome: Any) -> tuple[int, int]:
        tried.append(cell.label)
        raise error

    monkeypatch.setattr(CellRunSender, "send", gone)
    monkeypatch.setattr(type(tracker.runs.client()), "get_experiment", lambda *arguments: 1 / 0)
    with pytest.raises(type(error), match="it is gone"):
        tracker.sync()
    assert len(tried) == 1
    assert not tracker.reached
    assert "it is gone" in str(tracker.behind)


def test_the_end_waits_for_a_while_and_says_so() -> None:
    said: list[str] = []
    never = threading.Event()
    patience = Patience(2.5, said.append)
    assert patience.run(lambda: None)
    assert said == []
    assert not patience.run(lambda: never.wait(60) and None)
    assert said == ["MLflow is being updated: it is waited for, 2 s at most"] or re.search(
        "waited for, [23] s", said[0]
    )
    began = time.monotonic()
    assert not patience.run(lambda: never.wait(60) and None), "there is none left"
    assert time.monotonic() - began < 1
    never.set()
    with pytest.raises(ZeroDivisionError):
        Patience(5, said.append).run(lambda: 1 / 0)


class Silent:
    """A tracker whose server does not answer."""

    def __init__(self) -> None:
        self.never, self.given_up = threading.Event(), 0.0

    def level(self) -> SyncReport:
        self.never.wait(60)
        return SyncReport(0, 0, 0)

    def give_up(self, seconds: float) -> None:
        self.given_up = seconds


def test_a_server_that_does_not_answer_is_given_up() -> None:
    silent, said = Silent(), []
    with background(silent, 60, Patience(2.2, said.append)):  # type: ignore[arg-type]
        pass
    assert silent.given_up == 2.2
    assert len(said) == 1
    silent.never.set()


@pytest.mark.usefixtures("with_a_database")
@pytest.mark.parametrize("left", ["interrupted", "never begun"])
def test_a_run_ends_as_the_experiment_does_whatever_lies_beside_it(tmp_path: Path, left: str) -> None:
    """Cells of an earlier launch, which the last one wants no more."""
    spec = spec_of(seeds=(0, 1))
    cells = cells_of(spec)
    ledger = launched(tmp_path / spec.name, spec, cells, finished=1)
    fewer = replace(spec, seeds=(0,))
    wanted = [cell for cell in cells if cell.seed == 0]
    for cell in wanted:
        finish(ledger, cell)
    if left == "interrupted":
        for cell in cells:
            if cell.seed == 1:
                ledger.claim(cell.id, {"device": "cpu"}).finish("interrupted", "stopped")
    tracker = Tracker(ledger, spec)
    tracker.sync()
    assert runs_of(tracker)[spec.folder_name].info.status == "KILLED"
    launched(tmp_path / spec.name, fewer, wanted, finished=2)
    tracker = Tracker(Ledger(ledger.folder), fewer)
    tracker.sync()
    assert runs_of(tracker)[spec.folder_name].info.status == "FINISHED"
