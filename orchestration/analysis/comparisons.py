"""What the seeds of an experiment show: one line of the table for each variant, compared with the baseline.

A comparison is a variant's with the baseline, over the seeds that both have. Seeds that were added when results could
be seen are exploratory: they are shown, and no test uses them.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from orchestration.analysis import statistics
from orchestration.analysis.units import Spread, Unit
from orchestration.ledger.history import LedgerRow
from orchestration.ledger.outcome import Outcome
from orchestration.spec.cells import Cell

PAPERS_PROTOCOL = "papers_protocol/test_accuracy"
SIGNIFICANCE = 0.05
POWER = 0.8
T = TypeVar("T")


@dataclass(frozen=True)
class Trial:
    """A cell, its outcome and its rows; exploratory if its seed was added when results could be seen."""

    cell: Cell
    outcome: Outcome
    rows: tuple[LedgerRow, ...]
    exploratory: bool = False

    def marked(self, exploratory: bool) -> "Trial":
        return replace(self, exploratory=exploratory)

    @property
    def state(self) -> str:
        return self.outcome.state

    def series(self, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Steps and finite values of a metric, [n] each."""
        pairs = [(row.step, row.values[metric]) for row in self.rows if math.isfinite(row.values.get(metric, math.nan))]
        steps, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
        return steps, values

    def last(self, metric: str) -> float | None:
        """The last value recorded of a metric, if any."""
        return next((row.values[metric] for row in reversed(self.rows) if metric in row.values), None)


@dataclass(frozen=True)
class Comparison:
    """A variant's differences to the baseline over the seeds that both have."""

    differences: tuple[float, ...]
    seeds: tuple[int, ...] = ()

    @property
    def n(self) -> int:
        return len(self.differences)

    @property
    def finite(self) -> bool:
        return bool(self.differences) and all(map(math.isfinite, self.differences))

    @property
    def mean(self) -> float:
        return statistics.mean(self.differences)

    @property
    def deviation(self) -> float:
        return statistics.standard_deviation(self.differences)

    @property
    def interval(self) -> statistics.Interval | None:
        return statistics.t_interval(self.differences)

    def first(self, seeds: Sequence[int]) -> "Comparison":
        """Over some of the seeds alone."""
        pairs = [(d, s) for d, s in zip(self.differences, self.seeds, strict=True) if s in seeds]
        return Comparison(tuple(d for d, _ in pairs), tuple(s for _, s in pairs))

    def seeds_for(self, effect: float, significance: float = SIGNIFICANCE) -> int | None:
        """Seeds that 80 % power takes if the truth is such a difference and the scatter is the one seen here."""
        if self.n < 2 or not self.finite or not effect:
            return None
        effect = abs(effect) / self.deviation if self.deviation else math.inf
        return statistics.seeds_for_power(effect, significance, POWER)

    @property
    def p(self) -> float:
        return statistics.sign_flip_p(self.differences)


@dataclass(frozen=True)
class Line:
    """One line of the table: a variant at a grid point.

    `values` has what is measured by planned seed, a diverged one counted as declared, `added` the exploratory seeds.
    `explored` compares over all of them, where there are such.
    """

    variant: str
    grid: str
    trials: tuple[Trial, ...]
    values: dict[int, float]
    added: dict[int, float]
    comparison: Comparison | None
    explored: Comparison | None
    loss: Spread
    seconds: float
    papers_protocol: Spread

    @property
    def label(self) -> str:
        return f"{self.variant} · {self.grid}" if self.grid else self.variant

    @property
    def short_label(self) -> str:
        """The label with the last word of each grid path: `fsg · lr=0.01`."""
        return re.sub(r"[\w.]*\.(\w+)=", r"\1=", self.label)

    @property
    def planned(self) -> tuple[Trial, ...]:
        return tuple(trial for trial in self.trials if not trial.exploratory)

    @property
    def done(self) -> int:
        return self._count("done")

    @property
    def diverged(self) -> int:
        return self._count("diverged")

    @property
    def metric(self) -> Spread:
        return _spread(self.values.values())

    @property
    def contaminated(self) -> bool:
        return any(trial.cell.contaminated for trial in self.trials)

    def _count(self, state: str) -> int:
        return sum(trial.state == state for trial in self.planned)


class Measure(NamedTuple):
    """Something measured of a trial that is over; None where it says nothing of it."""

    unit: Unit
    of: Callable[[Trial], float | None]

    @classmethod
    def metric(cls, metric: str) -> "Measure":
        """A metric at the end; of a training that diverged, what that counts as: accuracy 0, or an infinite loss."""
        unit = Unit.of(metric)
        return cls(unit, lambda trial: unit.lost if trial.state == "diverged" else _value(trial, metric))


def lines_of(trials: Iterable[Trial], measure: Measure, baseline: str) -> list[Line]:
    points: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        points.setdefault((trial.cell.variant, grid_text(trial.cell.grid)), []).append(trial)
    planned = {point: _by_seed((t for t in group if not t.exploratory), measure) for point, group in points.items()}
    added = {point: _by_seed((t for t in group if t.exploratory), measure) for point, group in points.items()}
    every = {point: planned[point] | added[point] for point in points}
    trained = {point: {t.cell.seed for t in group if t.state == "done"} for point, group in points.items()}
    lines = []
    for point, group in points.items():
        variant, grid = point
        against, against_all = (counterpart(values, baseline, grid) for values in (planned, every))
        same, either = variant == baseline, trained[point] | (counterpart(trained, baseline, grid) or set())
        more = None if same or not added[point] else against_all
        lines.append(
            Line(
                variant,
                grid,
                tuple(sorted(group, key=lambda trial: trial.cell.seed)),
                planned[point],
                added[point],
                None if same or against is None else _comparison(planned[point], against, either),
                None if more is None else _comparison(every[point], more, either),
                _spread(loss for trial in group if trial.state == "done" and (loss := final_loss(trial)) is not None),
                statistics.mean([trial.outcome.seconds for trial in group if trial.state == "done"]),
                _spread(
                    value for trial in group if not trial.exploratory and (value := papers_protocol(trial)) is not None
                ),
            )
        )
    return lines


def counterpart(values: Mapping[tuple[str, str], T], baseline: str, grid: str) -> T | None:
    """The baseline at the same grid point; where the grid does not touch the baseline, at its only one."""
    own = [seeds for (variant, _), seeds in values.items() if variant == baseline]
    return values.get((baseline, grid), own[0] if len(own) == 1 else None)


def _comparison(ours: Mapping[int, float], baseline: Mapping[int, float], trained: set[int]) -> Comparison:
    """`trained` are the seeds of which either was trained to its end: without one, nothing is measured."""
    pairs = ours.keys() & baseline.keys()
    if not pairs & trained:
        return Comparison(())
    found = statistics.paired_differences(ours, baseline)
    return Comparison(tuple(float(d) for d in found), tuple(sorted(pairs)))


def _by_seed(trials: Iterable[Trial], measure: Measure) -> dict[int, float]:
    """What is measured of each seed that is over; one that diverged counts, and never vanishes."""
    found = {trial.cell.seed: measure.of(trial) for trial in trials if trial.state in ("done", "diverged")}
    return {seed: value for seed, value in found.items() if value is not None}


def final_loss(trial: Trial) -> float | None:
    """The training loss's mean over the last epoch."""
    steps, losses = trial.series("train/loss")
    if not len(steps):
        return None
    epoch = max(row.step for row in trial.rows) / max(1, trial.cell.train.epochs)
    return float(losses[steps > trial.rows[-1].step - epoch].mean())


def papers_protocol(trial: Trial) -> float | None:
    """Test accuracy, mean over the last ten epochs, as MetaQuant and FSG report it; diverged: 0."""
    _, values = trial.series(PAPERS_PROTOCOL)
    if trial.cell.train.data.validation == 0 and trial.state == "diverged":
        return 0.0
    return float(values[-10:].mean()) if trial.state == "done" and len(values) else None


_SUMMARIES: dict[str, Callable[[Trial], float | None]] = {"train/loss": final_loss, PAPERS_PROTOCOL: papers_protocol}


def _value(trial: Trial, metric: str) -> float | None:
    summary = _SUMMARIES.get(metric)
    return summary(trial) if summary else trial.last(metric)


def _spread(values: Iterable[float]) -> Spread:
    found = list(values)
    return Spread(statistics.mean(found), statistics.standard_deviation(found), len(found))


def grid_text(grid: Mapping[str, Any]) -> str:
    """`optimizer.lr=0.01 · estimator.slow_weight=0.5`."""
    return " · ".join(f"{path}={value}" for path, value in grid.items())
