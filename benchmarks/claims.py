"""How often a report is wrong, and what it can find: `python -m benchmarks.claims`.

Simulated experiments go the way of real ones, from cells to verdict. All variants share a seed's luck and have noise of
their own; effects are in standard deviations of the paired difference. With `--reports N`, so many experiments more are
written to real ledgers on the disk, and their reports are built from there.
"""

import argparse
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from fsg.train_config import TrainConfig
from orchestration.analysis import statistics
from orchestration.analysis.comparisons import Measure, Trial, lines_of
from orchestration.analysis.preregistration import SeedPlan
from orchestration.analysis.units import Unit
from orchestration.analysis.verdict import best_of, contrasts_of, judge
from orchestration.ledger.history import LedgerRow
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.outcome import Outcome
from orchestration.report.data import build
from orchestration.spec.cells import Cell
from orchestration.spec.fields import Report, Sequential

Values = NDArray[np.float64]
TRAIN, METRIC = TrainConfig(), "test/accuracy"
SCATTER = 0.01


class Claims(NamedTuple):
    """What a report says: a difference of the primary comparison, of one of the others, a best line."""

    primary: bool
    other: bool
    best: bool


def names(variants: int) -> list[str]:
    return ["fsg", *(f"other_{place}" for place in range(variants - 2)), "ste"]


def experiments(variants: int, seeds: int, effect: float, count: int) -> Iterator[Values]:
    """Accuracies [variants, seeds]; the first variant is better by `effect`, the last is the baseline."""
    draw = np.random.default_rng([variants, seeds, round(100 * effect)])
    for _ in range(count):
        luck, own = draw.normal(0, SCATTER, seeds), draw.normal(0, SCATTER, (variants, seeds))
        own[0] += effect * SCATTER * 2**0.5  # of a difference of two
        yield 0.7 + luck + own


def claimed(values: Values, rule: Sequential | None = None) -> Claims:
    """What the report of an experiment claims; values [variants, seeds], as `experiments` gives them."""
    trials = [
        Trial(cell(variant, seed), Outcome("done"), (LedgerRow(1, 0, {METRIC: float(value)}),))
        for variant, row in zip(names(len(values)), values, strict=True)
        for seed, value in enumerate(row)
    ]
    lines = lines_of(trials, Measure.metric(METRIC), "ste")
    asked, plan = Report(baseline="ste", primary="fsg"), SeedPlan(tuple(range(values.shape[1])), rule=rule)
    contrasts = contrasts_of(lines, asked, plan, "fsg")
    best = best_of(lines, Unit.of(METRIC), plan)
    return Claims(
        judge(contrasts, Unit.of(METRIC), asked, plan).shown,
        any(one.shown for one in contrasts if one.role == "family"),
        best is not None and best.marked,
    )


def cell(variant: str, seed: int) -> Cell:
    return Cell(f"{variant}-{seed}", "train", variant, {}, seed, TRAIN)


def from_disk(values: Values, folder: Path) -> bool:
    """Whether the verdict of the report that is built from a real ledger claims a difference."""
    ledger = Ledger(folder)
    variants, seeds = names(len(values)), list(range(values.shape[1]))
    asked = {"baseline": "ste", "primary": "fsg", "metric": METRIC}
    spec: Mapping[str, Any] = {"name": "simulated", "question": "", "profile": None, "seeds": seeds, "report": asked}
    cells = [(cell(variant, seed), values[place, seed]) for place, variant in enumerate(variants) for seed in seeds]
    for one, _ in cells:
        ledger.add(one)
    ledger.record_launch(
        {"started": 0, "spec": spec, "cells": [one.id for one, _ in cells], "command": "", "spec_text": "",
         "git_commit": None, "git_diff_sha256": None, "fsg_source_sha256": "", "spec_source": "", "spec_sha256": "",
         "versions": {}, "hardware": {}}
    )  # fmt: skip
    for one, value in cells:
        attempt = ledger.claim(one.id, {})
        attempt.record([LedgerRow(1, 0, {METRIC: float(value)})])
        attempt.weights("final.pt", b"")
        attempt.finish("done")
    return build(ledger).verdict.shown


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=2000, help="for each line of the table")
    parser.add_argument("--reports", type=int, default=0, help="experiments that go through ledgers on the disk")
    parser.add_argument("--json", type=Path, help="also keep the figures in this file")
    asked = parser.parse_args(arguments)
    rule = Sequential(looks=[6, 8, 10], boundary="obrien_fleming")
    table = Table(title=f"{asked.experiments} simulated experiments a line: share of reports that claim", box=None)
    for name in ("variants", "seeds", "effect (sd)", "primary", "any other", "a best line", "t-test's power"):
        table.add_column(name, justify="right")
    kept = []
    plans: list[tuple[int, int, float, Sequential | None]] = [
        (variants, seeds, effect, None) for variants in (2, 8) for seeds in (5, 10) for effect in (0.0, 1.0, 2.0)
    ]
    plans += [(2, 10, effect, rule) for effect in (0.0, 1.0, 2.0)]
    for variants, seeds, effect, looks in plans:
        found = [claimed(values, looks) for values in experiments(variants, seeds, effect, asked.experiments)]
        primary, other, best = (float(share) for share in np.mean(found, axis=0))
        power = statistics.power(seeds, effect)
        at = f", looks at {looks.looks}" if looks else ""
        table.add_row(str(variants), f"{seeds}{at}", f"{effect:g}",
                      f"{primary:.3f}", f"{other:.3f}" if variants > 2 else "", f"{best:.3f}",
                      f"{power:.3f}")  # fmt: skip
        kept.append({"variants": variants, "seeds": seeds, "effect": effect, "looks": looks and looks.looks,
                     "primary": primary, "other": other, "best": best, "power_of_t": power})  # fmt: skip
    console = Console(width=110)
    console.print(table)
    if asked.reports:
        shown = 0
        for values in experiments(2, 10, 0.0, asked.reports):
            with TemporaryDirectory() as folder:
                shown += from_disk(values, Path(folder))
        console.print(f"{asked.reports} reports from ledgers, no true difference: {shown} claim one")
        kept.append({"reports": asked.reports, "claims": shown})
    if asked.json:
        asked.json.write_text(json.dumps({"python": platform.python_version(), "lines": kept}, indent=1) + "\n")


if __name__ == "__main__":
    main()
