"""How good a plan's forecast was: expected and actual time and memory, by variant. Unlike pairs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestration.analysis.comparisons import Trial
from orchestration.analysis.statistics import mean
from orchestration.ledger.ledger import Ledger
from orchestration.util import provenance
from orchestration.util.duration import duration
from orchestration.util.metric_names import PEAK_MEMORY

_NAMED = 3


@dataclass(frozen=True)
class ForecastAccuracy:
    """A variant's cells that are done: seconds of one and its peak of memory, as the plan said and as it was, means."""

    variant: str
    cells: int
    seconds: tuple[float, float]
    megabytes: tuple[float, float]

    @property
    def row(self) -> tuple[str, ...]:
        (said, took), (thought, held) = self.seconds, self.megabytes
        memory = [f"{value:.1f} MB" if math.isfinite(value) else "–" for value in (thought, held)]
        ratio = f"{thought / held:.2f}" if math.isfinite(thought / held) else "–"
        return (self.variant, str(self.cells), duration(said), duration(took), f"{said / took:.2f}", *memory, ratio)


_OF = ("planned", "actual", "planned / actual")
HEADER = ("variant", "cells", *(f"{one} time" for one in _OF), *(f"{one} memory" for one in _OF))


def forecast_accuracy(ledger: Ledger, trials: Sequence[Trial]) -> list[ForecastAccuracy]:
    """Of every variant, and of all, the cells that are done and that a plan spoke of before they began."""
    plans = ledger.plans()
    pairs: dict[str, list[tuple[Trial, Mapping[str, Any]]]] = {}
    for trial in trials:
        said = _said(plans, trial)
        if said is not None and trial.state == "done" and trial.outcome.seconds and trial.cell.continues is None:
            pairs.setdefault(trial.cell.variant, []).append((trial, said))
    if len(pairs) > 1:
        pairs["all"] = [pair for found in pairs.values() for pair in found]
    return [
        ForecastAccuracy(
            variant,
            len(found),
            (mean([said["seconds"] for _, said in found]), mean([trial.outcome.seconds for trial, _ in found])),
            (
                mean([said.get("peak_megabytes") or math.nan for _, said in found]),
                mean([trial.last(PEAK_MEMORY) or math.nan for trial, _ in found]),
            ),
        )
        for variant, found in pairs.items()
    ]


def _said(plans: Sequence[Mapping[str, Any]], trial: Trial) -> Mapping[str, Any] | None:
    """The last word on a cell before it began."""
    before = [plan for plan in plans if plan["made"] <= (trial.outcome.started_ms or 0)]
    return next((plan["cells"][trial.cell.id] for plan in reversed(before) if trial.cell.id in plan["cells"]), None)


def unlike_pairs(ledger: Ledger, trials: Sequence[Trial], baseline: str) -> Iterable[str]:
    """Warnings where a seed of a variant and that of the baseline were trained under what gives different bits."""
    of_baseline = {(str(t.cell.grid), t.cell.seed): t for t in trials if t.cell.variant == baseline}
    alone = {t.cell.seed: t for t in of_baseline.values()} if len({grid for grid, _ in of_baseline}) == 1 else {}
    pairs = [
        (trial, other)
        for trial in trials
        if trial.cell.variant != baseline
        and (other := of_baseline.get((str(trial.cell.grid), trial.cell.seed), alone.get(trial.cell.seed)))
    ]
    attempts = {trial.cell.id: ledger.attempts(trial.cell.id) for trial in trials}
    for key, what in {"device": "devices", **provenance.DETERMINANTS}.items():
        told = {cell: _recorded(found, key) for cell, found in attempts.items()}
        unlike = [
            f"{trial.cell.label} ({ours}, {baseline}: {theirs})"
            for trial, other in pairs
            if (ours := told[trial.cell.id]) and (theirs := told[other.cell.id]) and ours != theirs
        ]
        if unlike:
            more = f" and {len(unlike) - _NAMED} more" if len(unlike) > _NAMED else ""
            yield f"{len(unlike)} pairs compare different {what}: {'; '.join(unlike[:_NAMED])}{more}."


def _recorded(attempts: Sequence[Mapping[str, Any]], key: str) -> str:
    """What the attempts at a cell say, all of them; empty where none does."""
    return " and ".join(sorted({str(attempt[key]) for attempt in attempts if attempt.get(key)}))
