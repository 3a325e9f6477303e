"""An ablation and a search by the real command, under the oldest and under the newest of the supported versions."""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
from environments import ROOT, Environment

sys.path.insert(0, str(ROOT / "tests" / "orchestration"))
import launches
import tiny_experiment

from orchestration.ledger.ledger import Ledger
from orchestration.ledger.study_records import StudyRecords

pytestmark = pytest.mark.versions
FSG = ("-m", "orchestration.cli")


def launched(environment: Environment, name: str) -> Ledger:
    """The ledger of an experiment that `python orchestration/launch.py` ran, once."""
    folder = environment.folder / name
    if not folder.exists():
        folder.mkdir()
        if name == "ablation":
            tiny_experiment.written(folder)
        else:
            launches.images(folder / "tiny.npz")
            (folder / "tiny.yaml").write_text(launches.SEARCH)
        launch = str(ROOT / "orchestration" / "launch.py")
        environment.run(launch, f"{name}/tiny.yaml", "--results", f"{name}/results")
    return Ledger(folder / "results" / "tiny")


def digests(ledger: Ledger) -> dict[str, str | None]:
    return {cell.id: ledger.outcome(cell.id).digest for cell in ledger.cells()}


def test_two_variants_are_trained_and_the_launch_says_by_which_versions(environment: Environment) -> None:
    ledger = launched(environment, "ablation")
    assert [ledger.outcome(cell.id).state for cell in ledger.cells()] == ["done"] * 3
    recorded = ledger.launches()[-1]["versions"]
    assert recorded | environment.versions() == recorded


def test_report_is_written_anew(environment: Environment) -> None:
    ledger = launched(environment, "ablation")
    page = ledger.folder / "report.html"
    page.unlink(missing_ok=True)
    said = environment.run(*FSG, "report", str(ledger.folder))
    assert {"fsg", "ste"} <= set(said.split())
    assert page.stat().st_size > 0


def test_sync_sends_every_cell_to_another_mlflow(environment: Environment, tmp_path: Path) -> None:
    ledger, database = launched(environment, "ablation"), tmp_path / "mlflow.db"
    said = environment.run(*FSG, "sync", str(ledger.folder), "--tracking-uri", f"sqlite:///{database}")
    assert said.startswith("sent 4 runs, "), said
    with closing(sqlite3.connect(database)) as connection:
        finished = connection.execute("SELECT count(*) FROM runs WHERE status = 'FINISHED'").fetchone()
    assert finished == (4,)


def test_search_of_four_trials_ends_with_its_best_trained(environment: Environment) -> None:
    ledger = launched(environment, "search")
    study = StudyRecords(ledger, "tuned")
    assert len(study.trials()) == 4
    assert {trial.state for trial in study.trials()} <= {"COMPLETE", "PRUNED"}
    assert len(study.choices()) == 1
    assert {ledger.outcome(cell.id).state for cell in ledger.cells()} <= {"done", "pruned"}


def test_queue_keeps_its_contract(environment: Environment) -> None:
    folder = ROOT / "tests" / "orchestration" / "scheduler"
    contract = [str(folder / name) for name in ("test_queue.py", "test_pool.py")]
    environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *contract)


def test_both_ends_give_the_same_bytes(oldest: Environment, newest: Environment) -> None:
    """What computes is torch alone."""
    found = digests(launched(oldest, "ablation"))
    assert len(found) == 3
    assert None not in found.values()
    assert found == digests(launched(newest, "ablation"))
