"""What two experiments differ in."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats
from synthetic_experiment import RECORD, cells_of, finish, launched, spec_of

from orchestration.commands.diff import Change, differences, render
from orchestration.ledger.ledger import Ledger
from orchestration.spec.experiment import ExperimentSpec


def trained(folder: Path, spec: ExperimentSpec, accuracies: dict[str, list[float]], numerics: int = 1) -> Ledger:
    cells = cells_of(spec, numerics=numerics)
    ledger = launched(folder, spec, cells)
    for cell in cells:
        finish(ledger, cell, accuracies[cell.variant][spec.seeds.index(cell.seed)])
    return ledger


OLD = {"fsg": [0.80, 0.82, 0.84], "ste": [0.79, 0.80, 0.83]}
NEW = {"fsg": [0.81, 0.84, 0.85], "ste": [0.79, 0.80, 0.83]}


def test_moves_are_paired_by_seed_where_both_have_it(tmp_path: Path) -> None:
    a = trained(tmp_path / "a", spec_of(), OLD)
    b = trained(tmp_path / "b", spec_of(), NEW, numerics=2)
    fsg, ste = differences(a, b).metric_changes
    expected = stats.ttest_rel(NEW["fsg"], OLD["fsg"]).confidence_interval(0.95)
    assert (fsg.paired, fsg.same_cells) == (3, 0)
    assert fsg.difference == pytest.approx(np.mean(NEW["fsg"]) - np.mean(OLD["fsg"]))
    assert fsg.interval == pytest.approx((expected.low, expected.high))
    assert ste.difference == 0.0


def test_moves_without_common_seeds_are_not_paired(tmp_path: Path) -> None:
    a = trained(tmp_path / "a", spec_of(seeds=(0, 1, 2)), OLD)
    b = trained(tmp_path / "b", spec_of(seeds=(5, 6, 7)), NEW)
    fsg = differences(a, b).metric_changes[0]
    expected = stats.ttest_ind(NEW["fsg"], OLD["fsg"], equal_var=False).confidence_interval(0.95)
    assert fsg.paired == 0
    assert fsg.interval == pytest.approx((expected.low, expected.high))


def test_a_change_of_all_variants_is_told_once_and_others_by_variant(tmp_path: Path) -> None:
    before = spec_of(epochs=4)
    after = spec_of(epochs=6)
    own = [replace(p, train=replace(p.train, batch_size=32)) if p.variant == "ste" else p for p in after.points]
    after = replace(after, points=tuple(own), question="Another?")
    found = differences(trained(tmp_path / "a", before, OLD), trained(tmp_path / "b", after, NEW)).changes
    assert found["Spec"] == [
        Change("question", before.question, "Another?"),
        Change("train.epochs", 4, 6),
        Change("variants.ste: batch_size", 100, 32),
    ]


def test_code_and_environment_are_told_by_field(tmp_path: Path) -> None:
    a, b = trained(tmp_path / "a", spec_of(), OLD), trained(tmp_path / "b", spec_of(), NEW)
    b.record_launch(b.launches()[0] | {"git_commit": "b" * 40, "versions": {"python": "3.11.7", "torch": "2.15.0"}})
    found = differences(a, b).changes
    assert found["Code"] == [Change("git_commit", RECORD["git_commit"], "b" * 40)]
    assert found["Environment"] == [Change("versions.torch", "2.14.1", "2.15.0")]
    assert found["Spec"] == found["Data"] == []


def test_settings_that_have_come_since_are_no_difference(tmp_path: Path) -> None:
    a, b = trained(tmp_path / "a", spec_of(), OLD), trained(tmp_path / "b", spec_of(), NEW)
    record = a.launches()[0]
    report = {key: record["spec"]["report"][key] for key in ("baseline", "primary", "metric")}
    a.record_launch(record | {"spec": record["spec"] | {"report": report}})
    assert differences(a, b).changes["Spec"] == []


def test_the_same_twice_is_told_to_be_the_same_in_80_columns(tmp_path: Path) -> None:
    a, b = trained(tmp_path / "a", spec_of(), OLD), trained(tmp_path / "b", spec_of(), OLD)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(render(differences(a, b)))
    text = capture.get()
    assert all(f"{heading}: the same" in text for heading in ("Spec", "Code", "Data", "Environment"))
    assert "3 paired, 3 same cells" in text
    assert max(map(len, text.splitlines())) <= 80


def test_an_experiment_that_was_never_launched_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no launch is recorded"):
        differences(Ledger(tmp_path / "x"), trained(tmp_path / "b", spec_of(), NEW))
