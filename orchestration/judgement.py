"""What the seeds of an experiment show: a line of the table for each variant, and the verdict on the primary one."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestration import statistics
from orchestration.ledger import LedgerRow, Outcome
from orchestration.plan import Cell

PAPERS_PROTOCOL = "papers_protocol/test_accuracy"
_SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Trial:
    """A cell, where it stands, and its rows."""

    cell: Cell
    outcome: Outcome
    rows: tuple[LedgerRow, ...]

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


class Spread(NamedTuple):
    """Mean and sample standard deviation over n seeds."""

    mean: float
    deviation: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """A variant's differences to the baseline over the seeds that both have."""

    differences: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.differences)

    @property
    def mean(self) -> float:
        return statistics.mean(self.differences)

    @property
    def interval(self) -> statistics.Interval | None:
        return statistics.t_interval(self.differences)

    @property
    def p(self) -> float:
        return statistics.sign_flip_p(self.differences)


@dataclass(frozen=True)
class Line:
    """One line of the table: a variant at a grid point.

    `values` has the metric by seed, a diverged seed counted as a loss.
    """

    variant: str
    grid: str
    trials: tuple[Trial, ...]
    values: dict[int, float]
    comparison: Comparison | None
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
        return sum(trial.state == state for trial in self.trials)


class Unit(NamedTuple):
    """How a metric is written: accuracies as per cent and their differences in points, others as they are."""

    name: str
    factor: float
    digits: int
    value: str
    difference: str
    lost: float

    @classmethod
    def of(cls, metric: str) -> "Unit":
        name = metric.replace("papers_protocol/", "papers' protocol ").replace("/", " ").replace("_", " ")
        if metric.endswith("accuracy"):
            return cls(name, 100.0, 2, "%", "points", 0.0)
        return cls(name, 1.0, 4, "", "", math.inf)

    def write(self, value: float, signed: bool = False) -> str:
        if not math.isfinite(value):
            return "–" if math.isnan(value) else "∞"
        return f"{value * self.factor:{'+' if signed else ''}.{self.digits}f}".replace("-", "−")

    @property
    def lost_text(self) -> str:
        """What a diverged seed counts as."""
        return "∞" if math.isinf(self.lost) else f"{self.lost:g} {self.value}"

    def spread(self, spread: Spread) -> str:
        if not spread.n:
            return "–"
        deviation = f"\u00a0±\u00a0{self.write(spread.deviation)}" if math.isfinite(spread.deviation) else ""
        return self.write(spread.mean) + deviation

    def interval(self, interval: statistics.Interval) -> str:
        return f"[{self.write(interval.low, True)},\u00a0{self.write(interval.high, True)}]"

    def comparison(self, comparison: Comparison) -> str:
        interval = comparison.interval
        return self.write(comparison.mean, True) + (f" {self.interval(interval)}" if interval else "")


class Verdict(NamedTuple):
    """What the primary comparison shows: in few words, in a sentence, and why it shows no more."""

    headline: str
    sentence: str
    consequence: str
    shown: bool = False


def lines_of(trials: list[Trial], metric: str, baseline: str) -> list[Line]:
    points: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        points.setdefault((trial.cell.variant, grid_text(trial.cell.grid)), []).append(trial)
    values = {point: _by_seed(group, metric) for point, group in points.items()}
    lines = []
    for (variant, grid), group in points.items():
        against = _counterpart(values, baseline, grid)
        same = variant == baseline
        lines.append(
            Line(
                variant,
                grid,
                tuple(sorted(group, key=lambda trial: trial.cell.seed)),
                values[variant, grid],
                None if same or against is None else Comparison(_differences(values[variant, grid], against)),
                _spread(loss for trial in group if trial.state == "done" and (loss := final_loss(trial)) is not None),
                statistics.mean([trial.outcome.seconds for trial in group if trial.state == "done"]),
                _spread(value for trial in group if (value := papers_protocol(trial)) is not None),
            )
        )
    return lines


def _counterpart(
    values: Mapping[tuple[str, str], dict[int, float]], baseline: str, grid: str
) -> dict[int, float] | None:
    """The baseline at the same grid point; where the grid does not touch the baseline, at its only one."""
    own = [seeds for (variant, _), seeds in values.items() if variant == baseline]
    return values.get((baseline, grid), own[0] if len(own) == 1 else None)


def _differences(ours: Mapping[int, float], baseline: Mapping[int, float]) -> tuple[float, ...]:
    return tuple(float(d) for d in statistics.paired_differences(ours, baseline))


def _by_seed(trials: Iterable[Trial], metric: str) -> dict[int, float]:
    """The metric of each seed that is done; a seed that diverged counts as a loss: accuracy 0, or an infinite loss."""
    found = {trial.cell.seed: _value(trial, metric) for trial in trials if trial.state == "done"}
    found |= {trial.cell.seed: Unit.of(metric).lost for trial in trials if trial.state == "diverged"}
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


def judge(lines: Sequence[Line], metric: str, primary: str, baseline: str) -> Verdict:
    """What the primary comparison shows, never more than its interval and its test do.

    Over several grid points a seed's difference is its mean over them: one comparison, chosen by nobody.
    """
    unit = Unit.of(metric)
    pairs = f"{primary} and {baseline}"
    points = [line for line in lines if line.variant == primary and line.comparison is not None]
    planned = {trial.cell.seed for line in points for trial in line.trials}
    comparison = _averaged(lines, points, baseline)
    if comparison is None or comparison.n == 0:
        return Verdict("No verdict yet", f"No seed has finished both {pairs}.", "")
    seeds = f"{comparison.n} paired seeds" if comparison.n > 1 else "one seed"
    seeds += f" of {len(planned)} planned" if comparison.n < len(planned) else ""
    over = f"over {seeds}" + (f", averaged over {len(points)} grid points" if len(points) > 1 else "")
    if not all(map(math.isfinite, comparison.differences)):
        return Verdict("Not comparable", f"A seed of {pairs} diverged, and its {unit.name} is infinite ({over}).", "")
    size = f"{unit.write(abs(comparison.mean))} {unit.difference}".strip()
    side = "higher" if comparison.mean > 0 else "lower"
    sentence = f"{primary} has {size} {side} {unit.name} than {baseline} {over}"
    if comparison.mean == 0:
        sentence = f"{primary} and {baseline} have the same mean {unit.name} {over}"
    interval = comparison.interval
    if interval is None:
        why_not = "An interval takes two paired seeds, a test at 5\u00a0% six."
        return Verdict("One seed shows nothing", f"{sentence}.", why_not)
    ends = f"{unit.write(interval.low, True)} to {unit.write(interval.high, True)}"
    test = f"{'exact ' if statistics.is_exact(comparison.n) else ''}sign-flip p\u00a0=\u00a0{p_text(comparison.p)}"
    zero = "excludes" if interval.excludes_zero else "includes"
    sentence += f" (95\u00a0% interval {ends}, {test}): the interval {zero} zero."
    shown, why_not = _conclusion(comparison, interval)
    headline = f"{primary}: {side} {unit.name}, significant at 5\u00a0%" if shown else "No difference shown"
    return Verdict(headline, sentence, why_not, shown)


def _averaged(lines: Sequence[Line], points: Sequence[Line], baseline: str) -> Comparison | None:
    """Of each seed, the mean of its differences over the grid points; only seeds that are complete in all of them."""
    if not points:
        return None
    values = {(line.variant, line.grid): line.values for line in lines}
    differences = []
    for seed in sorted(set.intersection(*(set(point.values) for point in points))):
        against = [_counterpart(values, baseline, point.grid) or {} for point in points]
        if all(seed in theirs for theirs in against):
            pairs = zip(points, against, strict=True)
            differences.append(statistics.mean([point.values[seed] - theirs[seed] for point, theirs in pairs]))
    return Comparison(tuple(differences))


def _conclusion(comparison: Comparison, interval: statistics.Interval) -> tuple[bool, str]:
    """Whether a difference is shown, by the test and by the interval, and if not, what follows and what does not."""
    least, needed = statistics.smallest_p(comparison.n), statistics.seeds_to_reject(_SIGNIFICANCE)
    if least > _SIGNIFICANCE:
        few = (
            f"With {comparison.n} seeds the sign-flip test cannot give less than p\u00a0=\u00a0{p_text(least)}, so it "
            f"cannot reject at 5\u00a0% whatever the numbers: {needed} seeds are the fewest that could."
        )
        normal = " The interval rests on the differences being normal, which so few cannot show."
        return False, few + normal * interval.excludes_zero
    rejected = comparison.p <= _SIGNIFICANCE
    if rejected and interval.excludes_zero:
        return True, ""
    if rejected or interval.excludes_zero:
        return False, "Interval and test disagree, so no difference is claimed."
    return False, "That is no proof that there is none: the interval says how large it could be."


def p_text(p: float) -> str:
    """Three significant digits: 0.25, 0.0313, 0.00195."""
    return f"{p:.3g}"
