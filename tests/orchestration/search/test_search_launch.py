"""Searches as a user starts them: real trainings on Ray, a driver that is killed for real."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from launches import SEARCH, Launched, ledger_of, until

from orchestration.commands.launch import launch
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


@pytest.mark.slow
def test_search_whose_driver_is_killed_goes_on_as_if_nothing_had_been(
    folder: Path,
    launch: Callable[..., Launched],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "tiny.yaml").write_text(SEARCH)
    undisturbed = launch("--results", "undisturbed")
    assert undisturbed.wait(480) == 0, undisturbed.text
    expected = StudyRecords(Ledger(folder / "undisturbed" / "tiny"), "tuned")

    ledger = ledger_of(folder)
    records = StudyRecords(ledger, "tuned")
    for trials in (2, 3):
        one = launch()
        until(lambda count=trials: len(records.trials()) >= count, one, 480)  # type: ignore[misc]
        one.process.kill()
        one.wait(480)
    last = launch()
    assert last.wait(480) == 0, last.text

    def told(study: StudyRecords) -> list[Any]:
        return [(trial.params, trial.state, trial.intermediate) for trial in study.trials()]

    assert told(records) == told(expected)
    assert len(records.trials()) == 4
    assert [choice["chosen"] for choice in records.choices()] == [expected.choices()[-1]["chosen"]]
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

    assert launch(LaunchRequest(Path("tiny.yaml"))) == 0
    assert "all done, in results/tiny" in capsys.readouterr().out
    other = LaunchRequest(Path("tiny.yaml"), sets=["search.space.optimizer.lr={low: 1.0e-3, high: 0.1, log: true}"])
    assert launch(other) == 2
    refused = capsys.readouterr().err
    assert (
        "search.space.optimizer.lr: the study in results/tiny has {low: 0.0001, high: 0.1, log: True} here" in refused
    )


@pytest.mark.slow
def test_tuned_ablation_compares_what_each_variants_own_search_found(
    folder: Path,
    launch: Callable[..., Launched],
) -> None:
    (folder / "tiny.yaml").write_text(TUNING.replace("max_concurrent: 1", "max_concurrent: 2"))
    one = launch()
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
        assert launch(LaunchRequest(Path("tiny.yaml"), sets=[change])) == 2
        assert line in capsys.readouterr().err
