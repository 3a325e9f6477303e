"""What the seeds say: pure functions of numbers, each with its formula.

Seeds are paired: two variants with the same seed saw the same batches, so a variant is judged by its
differences to the baseline, d_s = x_s − b_s, and not by two means.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

_EXHAUSTIVE = 16  # seeds up to which every flip of signs is tried: 2^16 sums
_SAMPLED = 100_000


class Interval(NamedTuple):
    """The two ends of an interval."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def mean(values: Sequence[float] | Floats) -> float:
    """x̄ = Σx / n; not a number where there is none."""
    return float(np.mean(values)) if len(values) else float("nan")


def standard_deviation(values: Sequence[float] | Floats) -> float:
    """s = √(Σ(x − x̄)² / (n − 1)), the sample's; not a number below two values, or where one is infinite."""
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan")
    return float(np.std(values, ddof=1))


def paired_differences(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Floats:
    """d_s = ours_s − baseline_s over the seeds that both have, in the seeds' order, [n]."""
    return np.array([ours[seed] - baseline[seed] for seed in sorted(ours.keys() & baseline.keys())], dtype=np.float64)


def t_interval(differences: Sequence[float] | Floats, level: float = 0.95) -> Interval | None:
    """d̄ ± t(n − 1; (1 + level)/2)·s/√n, the paired-t interval of the mean difference.

    None below two differences, or where one is infinite.
    It takes the differences to be normal and independent. Student, Biometrika 6, 1908.
    """
    n = len(differences)
    if n < 2 or not np.isfinite(differences).all():
        return None
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * standard_deviation(differences) / n**0.5
    return Interval(mean(differences) - half, mean(differences) + half)


def sign_flip_p(differences: Sequence[float] | Floats) -> float:
    """p = #{s ∈ {−1, +1}ⁿ : |Σ sᵢdᵢ| ≥ |Σ dᵢ|} / 2ⁿ, two-sided: were the labels exchangeable, how rare is this sum?

    Every flip is tried up to 16 differences; beyond, 100,000 are drawn with a fixed seed and
    p = (1 + #) / (1 + 100,000). 1 where there is no difference at all. Fisher, The Design of Experiments, 1935.
    """
    d = np.asarray(differences, dtype=np.float64)
    least = abs(d.sum()) - 1e-12 * np.abs(d).sum()  # sums in another order differ in the last bits: still a tie
    if is_exact(len(d)):
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(d)))).reshape(2 ** len(d), len(d))
        return float(np.mean(np.abs(signs @ d) >= least))
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(_SAMPLED, len(d)))
    return float((1 + np.count_nonzero(np.abs(signs @ d) >= least)) / (1 + _SAMPLED))


def is_exact(n: int) -> bool:
    """Whether `sign_flip_p` tries every flip of n differences."""
    return n <= _EXHAUSTIVE


def smallest_p(n: int) -> float:
    """2 / 2ⁿ: what `sign_flip_p` gives when all n differences have one sign, and so the least it can give."""
    return min(1.0, 2.0 / 2.0**n)


def seeds_to_reject(significance: float = 0.05) -> int:
    """The least n with smallest_p(n) ≤ significance: 6 at 5 %."""
    return next(n for n in itertools.count(1) if smallest_p(n) <= significance)
