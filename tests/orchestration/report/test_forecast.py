"""What a plan said beside what came of it."""

from pathlib import Path

from synthetic_experiment import cells_of, finish, launched, spec_of

from orchestration.analysis.comparisons import Trial
from orchestration.ledger.ledger import Ledger
from orchestration.report.data import build
from orchestration.report.forecast import forecast_accuracy, unlike_pairs
from orchestration.report.write import write
from orchestration.spec.cells import Cell


def trials_of(ledger: Ledger, cells: list[Cell]) -> list[Trial]:
    return [Trial(cell, ledger.outcome(cell.id), tuple(ledger.rows(cell.id))) for cell in cells]


def plan(seconds: float, cells: list[Cell], made: int = 0) -> dict[str, object]:
    return {"made": made, "cells": {cell.id: {"seconds": seconds, "peak_megabytes": 300.0} for cell in cells}}


def test_last_plan_before_a_cell_began_stands_beside_what_it_took(tmp_path: Path) -> None:
    spec = spec_of()
    cells = cells_of(spec)
    ledger = launched(tmp_path / "experiment", spec, cells)
    ledger.record_plan(plan(30.0, cells))
    ledger.record_plan(plan(60.0, cells))
    ledger.record_plan(plan(1.0, cells, made=10**15))
    for cell in cells[:-1]:
        finish(ledger, cell, peak=None if cell.variant == "ste" else 400.0)  # 75 seconds
    lines = {line.variant: line for line in forecast_accuracy(ledger, trials_of(ledger, cells))}
    assert lines["fsg"].cells == 3
    assert lines["ste"].cells == 2
    assert lines["fsg"].seconds == (60.0, 75.0)
    assert lines["fsg"].row == ("fsg", "3", "1 min", "1 min 15 s", "0.80", "300.0 MB", "400.0 MB", "0.75")
    assert lines["ste"].row[-3:] == ("300.0 MB", "–", "–")
    assert lines["all"].cells == len(cells) - 1
    assert lines["all"].seconds == (60.0, 75.0)
    built = build(ledger)
    write(built)
    for name in ("report.html", "report.md"):
        text = (ledger.folder / name).read_text()
        assert "What the plan said" in text
        assert "0.80" in text


def test_without_a_plan_nothing_is_said(tmp_path: Path) -> None:
    spec = spec_of()
    cells = cells_of(spec)
    ledger = launched(tmp_path / "experiment", spec, cells)
    finish(ledger, cells[0])
    assert forecast_accuracy(ledger, trials_of(ledger, cells)) == []
    write(build(ledger))
    assert "What the plan said" not in (ledger.folder / "report.html").read_text()


def test_pairs_of_different_devices_are_named(tmp_path: Path) -> None:
    spec = spec_of(seeds=(0, 1))
    cells = cells_of(spec)
    for device, expected in (
        ("A GPU", []),
        ("another GPU", ["1 pairs compare different devices: fsg · seed 1 (A GPU, ste: another GPU)."]),
    ):
        ledger = launched(tmp_path / device, spec, cells)
        for cell in cells:
            finish(ledger, cell, device=device if (cell.variant, cell.seed) == ("ste", 1) else "A GPU")
        assert list(unlike_pairs(ledger, trials_of(ledger, cells), "ste")) == expected
        assert set(expected) <= set(build(ledger).warnings)
