"""How good a plan's forecast was: expected and actual time and memory, by variant. Pairs from different devices."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestration.analysis.comparisons import Trial
from orchestration.analysis.statistics import mean
from orchestration.ledger.ledger import Ledger
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
    """A warning where a seed of a variant and that of the baseline were trained on different devices."""
    devices = {(trial.cell.variant, trial.cell.seed): _device(ledger, trial) for trial in trials}
    unlike = [
        f"{variant} · seed {seed} ({device}, {baseline}: {other})"
        for (variant, seed), device in devices.items()
        if variant != baseline and device and (other := devices.get((baseline, seed), "")) and device != other
    ]
    if unlike:
        more = f" and {len(unlike) - _NAMED} more" if len(unlike) > _NAMED else ""
        yield f"{len(unlike)} pairs compare different devices: {'; '.join(unlike[:_NAMED])}{more}."


def _device(ledger: Ledger, trial: Trial) -> str:
    """What trained a cell, all of it: nothing where several did, or none."""
    found = {str(attempt["device"]) for attempt in ledger.attempts(trial.cell.id) if attempt.get("device")}
    return " and ".join(sorted(found))
