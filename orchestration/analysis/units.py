"""How a measure is written: its unit, its digits, and what a diverged training counts as."""

import math
from typing import NamedTuple

from orchestration.analysis import statistics


class Spread(NamedTuple):
    """Mean and sample standard deviation over n seeds."""

    mean: float
    deviation: float
    n: int


class Unit(NamedTuple):
    """How a measure is written: accuracies as per cent and their differences in points, others as they are."""

    name: str
    factor: float
    digits: int
    value: str
    difference: str
    lost: float
    higher_is_better: bool = False

    @classmethod
    def of(cls, metric: str) -> "Unit":
        name = metric.replace("papers_protocol/", "papers' protocol ").replace("/", " ").replace("_", " ")
        if metric.endswith("accuracy"):
            return cls(name, 100.0, 2, "%", "points", 0.0, True)
        if metric in _OF_COST:
            return _OF_COST[metric]
        return cls(name, 1.0, 4, "", "", math.inf)

    def write(self, value: float, signed: bool = False) -> str:
        if not math.isfinite(value):
            return "–" if math.isnan(value) else "∞"
        return f"{value * self.factor:{'+' if signed else ''}.{self.digits}f}".replace("-", "−")

    @property
    def lost_text(self) -> str:
        """The value that a diverged seed counts as."""
        return "∞" if math.isinf(self.lost) else f"{self.lost:g} {self.value}"

    def spread(self, spread: Spread) -> str:
        if not spread.n:
            return "–"
        deviation = f"\u00a0±\u00a0{self.write(spread.deviation)}" if math.isfinite(spread.deviation) else ""
        return self.write(spread.mean) + deviation

    def interval(self, interval: statistics.Interval) -> str:
        return f"[{self.write(interval.low, True)},\u00a0{self.write(interval.high, True)}]"

    def estimate(self, difference: float, interval: statistics.Interval | None) -> str:
        """A difference and its interval: `+0.58 [−1.04, +2.20]`."""
        return self.write(difference, True) + (f" {self.interval(interval)}" if interval else "")


_OF_COST = {
    "time/step": Unit("time of a step", 1e3, 1, "ms", "ms", math.inf),
    "memory/peak": Unit("peak memory", 1.0, 2, "MB", "MB", math.inf),
}
