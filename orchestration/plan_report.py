"""What a plan said beside what came of it: time and memory by variant; and pairs that no one device has trained."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestration.duration import duration
from orchestration.judgement import Trial
from orchestration.ledger import Ledger
from orchestration.statistics import mean

_MEMORY = ("system/gpu_memory_megabytes", "system/memory_megabytes")
_NAMED = 3


@dataclass(frozen=True)
class Foretold:
    """A variant's cells that are done: seconds and megabytes of one, as the plan said and as it was, means."""

    variant: str
    cells: int
    seconds: tuple[float, float]
    megabytes: tuple[float, float]

    @property
    def row(self) -> tuple[str, ...]:
        (said, took), (thought, held) = self.seconds, self.megabytes
        memory = [f"{value:.0f} MB" if math.isfinite(value) else "–" for value in (thought, held)]
        return (self.variant, str(self.cells), duration(said), duration(took), f"{said / took:.2f}", *memory)


HEADER = ("variant", "cells", "planned time", "actual time", "planned / actual", "planned memory", "actual memory")


def foretold(ledger: Ledger, trials: Sequence[Trial]) -> list[Foretold]:
    """Of every variant, the cells that are done and that a plan spoke of before they began."""
    plans = ledger.plans()
    pairs: dict[str, list[tuple[Trial, Mapping[str, Any]]]] = {}
    for trial in trials:
        said = _said(plans, trial)
        if said is not None and trial.state == "done" and trial.outcome.seconds and trial.cell.continues is None:
            pairs.setdefault(trial.cell.variant, []).append((trial, said))
    return [
        Foretold(
            variant,
            len(found),
            (mean([said["seconds"] for _, said in found]), mean([trial.outcome.seconds for trial, _ in found])),
            (mean([said["megabytes"] or math.nan for _, said in found]), mean([_held(trial) for trial, _ in found])),
        )
        for variant, found in pairs.items()
    ]


def _said(plans: Sequence[Mapping[str, Any]], trial: Trial) -> Mapping[str, Any] | None:
    """The last word on a cell before it began."""
    before = [plan for plan in plans if plan["made"] <= (trial.outcome.started_ms or 0)]
    return next((plan["cells"][trial.cell.id] for plan in reversed(before) if trial.cell.id in plan["cells"]), None)


def _held(trial: Trial) -> float:
    for name in _MEMORY:
        values = [row.values[name] for row in trial.rows if name in row.values]
        if values:
            return max(values)
    return math.nan


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
