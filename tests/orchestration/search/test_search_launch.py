"""Searches as a user starts them: real trainings on Ray, a driver that is killed for real, results in a bucket."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
from launches import NO_MLFLOW, SEARCH, Launched, assert_same, compared, images, ledger_of, until

from orchestration.commands.launch import launch as launch_here
from orchestration.commands.request import LaunchRequest
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.study_records import StudyRecords

TUNING = SEARCH.replace("search:", "tuning:").replace("trials: 4", "budget: 2").replace(
    "    optimizer.lr: {low: 1.0e-4, high: 0.1, log: true}\n", ""
) + ("variants: {fsg: {estimator: {name: fsg, chunk_size: 8}}, ste: {}}\nreport: {baseline: ste, primary: fsg}\n")


def looked_at(ledger: Ledger) -> dict[str, list[str]]:
    """The cells that looked at test images, by kind."""
    found: dict[str, list[str]] = {}
    for cell in ledger.cells():
        if any("test/accuracy" in row.values for row in ledger.rows(cell.id)):
            found.setdefault(cell.kind, []).append(cell.label)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """The same search, launched once, in peace."""
    folder = tmp_path_factory.mktemp("undisturbed")
    images(folder / "tiny.npz")
    (folder / "tiny.yaml").write_text(SEARCH)
    one = Launched(folder, *NO_MLFLOW)
    try:
        assert one.wait(480) == 0, one.text
    finally:
        one.kill()
    return ledger_of(folder)


def assert_as_undisturbed(ledger: Ledger, expected: Ledger) -> None:
    """Every suggestion, what became of it, the choice, and every training to the last byte."""
    told, wanted = (StudyRecords(one, "tuned") for one in (ledger, expected))
    assert [(trial.params, trial.state, trial.intermediate) for trial in told.trials()] == [
        (trial.params, trial.state, trial.intermediate) for trial in wanted.trials()
    ]
    assert len(told.trials()) == 4
    assert [choice["chosen"] for choice in told.choices()] == [wanted.choices()[-1]["chosen"]]
    assert [cell.id for cell in ledger.cells()] == [cell.id for cell in expected.cells()]
    assert_same(ledger, expected, expected.cells())
    assert any(len(ledger.attempts(cell.id)) > 1 for cell in ledger.cells())


@pytest.mark.slow(minutes=1)
@pytest.mark.usefixtures("mlflow_gives_up")
def test_search_whose_driver_is_killed_goes_on_as_if_nothing_had_been(
    folder: Path, undisturbed: Ledger, launch: Callable[..., Launched], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tiny.yaml").write_text(SEARCH)
    ledger = ledger_of(folder)
    records = StudyRecords(ledger, "tuned")
    one = launch(*NO_MLFLOW)
    until(lambda: len(records.trials()) >= 2, one, 480)
    one.process.kill()
    one.wait(480)
    last = launch(*NO_MLFLOW)
    assert last.wait(480) == 0, last.text

    assert_as_undisturbed(ledger, undisturbed)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(records.journal)))
    (study,) = optuna.get_all_study_summaries(storage)
    assert study.n_trials == 4
    looked = looked_at(ledger)
    assert sorted(looked["train"]) == ["default · seed 0", "tuned · seed 0"]
    assert set(looked) == {"train", "pretrain"}
    assert all(label.endswith("seed 0") for label in looked["pretrain"])
    states = Counter(ledger.outcome(cell.id).state for cell in ledger.cells() if cell.kind == "trial")
    assert set(states) <= {"done", "pruned"}
    assert states["pruned"]
    assert "Search: tuned" in (ledger.folder / "report.html").read_text()

    assert launch_here(LaunchRequest(Path("tiny.yaml"), tracking_uri=NO_MLFLOW[1])) == 0
    assert "all done, in results/tiny" in capsys.readouterr().out
    other = LaunchRequest(Path("tiny.yaml"), sets=["search.space.optimizer.lr={low: 1.0e-3, high: 0.1, log: true}"])
    assert launch_here(other) == 2
    refused = capsys.readouterr().err
    assert (
        "search.space.optimizer.lr: the study in results/tiny has {low: 0.0001, high: 0.1, log: True} here" in refused
    )


@pytest.mark.slow(minutes=1)
@pytest.mark.usefixtures("mlflow_gives_up")
def test_search_into_a_bucket_that_is_killed_goes_on_and_ends_exactly_and_is_sent_to_mlflow_later(
    folder: Path, bucket: str, undisturbed: Ledger, launch: Callable[..., Launched]
) -> None:
    (folder / "tiny.yaml").write_text(SEARCH)
    (folder / "studies").mkdir()
    ledger, database = Ledger(f"{bucket}/results/tiny"), folder / "studies" / "mlflow.db"
    words = ("--results", f"{bucket}/results", *NO_MLFLOW)
    words += ("--study-storage", f"sqlite:///{folder}/studies/study.db")
    first = launch(*words)
    until(lambda: len(StudyRecords(ledger, "tuned").trials()) >= 2, first, 480)
    os.killpg(first.process.pid, signal.SIGKILL)
    first.wait()
    second = launch(*words)
    assert second.wait(480) == 0, second.text
    assert_as_undisturbed(ledger, undisturbed)
    assert f"report   {bucket}/results/tiny/report.html" in second.text
    assert b"Search: tuned" in (ledger.folder / "report.html").read_bytes()
    for name in ("report.md", "report.csv"):
        assert (ledger.folder / name).read_bytes()

    fsg = [sys.executable, "-m", "orchestration.cli"]
    for sent_again in (False, True):
        sync = [*fsg, "sync", f"{bucket}/results/tiny", "--tracking-uri", f"sqlite:///{database}"]
        said = subprocess.run(sync, capture_output=True, text=True, check=True).stdout
        assert ("sent 0 runs" in said) is sent_again, said
    assert compared(ledger, database) == (0, 0)
    report = subprocess.run([*fsg, "report", f"{bucket}/results/tiny"], capture_output=True, text=True, check=True)
    assert "tuned" in report.stdout
    assert not (folder / "results").exists()
    everything = [path for path in [*folder.rglob("*"), *ledger.folder.glob("**/*")] if path.is_file()]
    assert len(everything) > 40
    assert [path for path in everything if b"planted-secret" in path.read_bytes()] == []


@pytest.mark.slow(minutes=1)
@pytest.mark.usefixtures("mlflow_gives_up")
def test_tuned_ablation_compares_what_each_variants_own_search_found(
    folder: Path,
    launch: Callable[..., Launched],
) -> None:
    (folder / "tiny.yaml").write_text(TUNING.replace("max_concurrent: 1", "max_concurrent: 2"))
    one = launch(*NO_MLFLOW)
    assert one.wait(480) == 0, one.text
    ledger = ledger_of(folder)
    for name in ("fsg", "ste"):
        records = StudyRecords(ledger, name)
        assert len(records.trials()) == 2
        assert len(records.choices()) == 1
        assert {"optimizer.lr", "optimizer.weight_decay"} <= set(records.trials()[0].params)
    assert looked_at(ledger) == {"train": [cell.label for cell in ledger.cells() if cell.kind == "train"]}
    assert sorted(looked_at(ledger)["train"]) == ["fsg · seed 0", "ste · seed 0"]
    report = json.dumps((ledger.folder / "report.md").read_text())
    assert "Search: fsg" in report
    assert "Search: ste" in report


def test_validation_that_the_start_has_seen_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(folder / "start.npz", weight=np.zeros(1))
    for change, line in (
        ("train.data.validation=0", "train.data: validation is 0, and a search is judged by validation images"),
        ("train.init={name: file, path: start.npz}", "train.init: its weights may have been trained on the validation"),
    ):
        (folder / "tiny.yaml").write_text(SEARCH)
        assert launch_here(LaunchRequest(Path("tiny.yaml"), sets=[change])) == 2
        assert line in capsys.readouterr().err
