"""What the seeds say: pure functions of numbers, each with its formula.

Seeds are paired: two variants with the same seed saw the same batches, so a variant is judged by its
differences to the baseline, d_s = x_s − b_s, and not by two means.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
    from scipy import special  # start-up time

    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * standard_deviation(differences) / n**0.5
    return Interval(mean(differences) - half, mean(differences) + half)


def sign_flip_p(differences: Sequence[float] | Floats) -> float:
    """p = #{s ∈ {−1, +1}ⁿ : |Σ sᵢdᵢ| ≥ |Σ dᵢ|} / 2ⁿ, two-sided: were the labels exchangeable, how rare is this sum?

    Every flip is tried up to 16 differences; beyond, 100,000 are drawn with a fixed seed and
    p = (1 + #) / (1 + 100,000), or `smallest_p` where that is more. 1 where there is no difference at all.
    Fisher, The Design of Experiments, 1935.
    """
    d = np.asarray(differences, dtype=np.float64)
    least = abs(d.sum()) - 1e-12 * np.abs(d).sum()  # sums in another order differ in the last bits: still a tie
    return max(_share_of_flips(d, lambda sums: np.abs(sums) >= least), smallest_p(len(d)))


def equivalence_p(differences: Sequence[float] | Floats, margin: float) -> float:
    """p = max(p₊(d + m), p₊(m − d)), p₊(x) = #{s ∈ {−1, +1}ⁿ : Σ sᵢxᵢ ≥ Σ xᵢ} / 2ⁿ: two one-sided sign-flip tests.

    Rejecting both |true difference| ≥ m hypotheses at α errs with α at most. Flips as in `sign_flip_p`; the least that
    it can give is 1 / 2ⁿ. Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987.
    """
    d = np.asarray(differences, dtype=np.float64)
    return max(_one_sided_p(d + margin), _one_sided_p(margin - d))


def _one_sided_p(x: Floats) -> float:
    least = x.sum() - 1e-12 * np.abs(x).sum()
    return _share_of_flips(x, lambda sums: sums >= least)


def _share_of_flips(x: Floats, extreme: Callable[[Floats], NDArray[np.bool_]]) -> float:
    """The share of all flips of the signs of x [n] whose sum is extreme; beyond 16, of those drawn and of x itself."""
    if is_exact(len(x)):
        return float(np.mean(extreme(_every_flip(len(x)) @ x)))
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(_SAMPLED, len(x)))
    return float((1 + np.count_nonzero(extreme(signs @ x))) / (1 + _SAMPLED))


@cache
def _every_flip(n: int) -> Floats:
    """All rows of n signs, [2ⁿ, n]."""
    return np.where(np.arange(2**n)[:, None] >> np.arange(n) & 1, -1.0, 1.0)


def is_exact(n: int) -> bool:
    """Whether `sign_flip_p` tries every flip of n differences."""
    return n <= _EXHAUSTIVE


def smallest_p(n: int) -> float:
    """2 / 2ⁿ: what `sign_flip_p` gives when all n differences have one sign, and so the least it can give."""
    return min(1.0, 2.0 / 2.0**n)


def seeds_to_reject(significance: float = 0.05) -> int:
    """The least n with smallest_p(n) ≤ significance: 6 at 5 %."""
    return next(n for n in itertools.count(1) if smallest_p(n) <= significance)


def holm(ps: Sequence[float]) -> list[float]:
    """p̃₍ᵢ₎ = max over j ≤ i of min(1, (m − j + 1)·p₍ⱼ₎), in the order given.

    Rejecting where p̃ ≤ α errs once or more in a family of m with probability α at most, whatever hangs on what.
    Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    adjusted, highest = [0.0] * len(ps), 0.0
    for place, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - place) * ps[index]))
        adjusted[index] = highest
    return adjusted


def welch_interval(
    ours: Sequence[float] | Floats, theirs: Sequence[float] | Floats, level: float = 0.95
) -> Interval | None:
    """x̄ − ȳ ± t(ν; (1 + level)/2)·√(s²ₓ/n + s²ᵧ/m), for values that are not paired; ν after Welch and Satterthwaite.

    None below two values on either side, where one is infinite, or where neither side varies.
    """
    x, y = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if min(len(x), len(y)) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    a, b = x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)
    if a + b == 0:
        return None
    freedom = (a + b) ** 2 / (a**2 / (len(x) - 1) + b**2 / (len(y) - 1))
    from scipy import special  # start-up time

    half = float(special.stdtrit(freedom, (1 + level) / 2) * (a + b) ** 0.5)
    centre = float(x.mean() - y.mean())
    return Interval(centre - half, centre + half)


# How many seeds


def power(n: int, effect: float, significance: float = 0.05) -> float:
    """P(|T| > t(n − 1; 1 − α/2)), T noncentral t with n − 1 degrees of freedom and noncentrality δ√n.

    `effect` is δ, the true mean difference over the standard deviation of the differences. It is the paired-t test's;
    the sign-flip test's is the same but for what its few values of p make it lose.
    """
    if n < 2:
        return 0.0
    from scipy import special  # start-up time

    bound, shift = float(special.stdtrit(n - 1, 1 - significance / 2)), effect * n**0.5
    found = float(special.nctdtr(n - 1, -shift, -bound) + special.nctdtr(n - 1, shift, -bound))
    return float(special.ndtr(abs(shift) - bound)) if np.isnan(found) else found  # far out, scipy's is not a number


def seeds_for_power(effect: float, significance: float = 0.05, wanted: float = 0.8, most: int = 10_000) -> int | None:
    """The least n at which the test could reject at all and has the power wanted; None beyond `most`."""
    first = seeds_to_reject(significance)
    if not np.isfinite(effect):
        return first
    if power(most, effect, significance) < wanted:
        return None
    low, high = first - 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, effect, significance) >= wanted else (middle, high)
    return high


# Looks before the last seed

Boundary = Literal["obrien_fleming", "pocock"]
_POINTS = 201  # of the grid that a density is kept on: the levels are right to six digits


@cache
def looks_levels(looks: tuple[int, ...], boundary: Boundary, significance: float = 0.05) -> tuple[float, ...]:
    """The level at each look that errs `significance` over all of them: reject at look k where p ≤ level k.

    Wald statistics of looks at n₁ < … < n_K seeds have correlation √(nᵢ/nⱼ). Pocock: |Z_k| ≥ c at each. O'Brien and
    Fleming: |Z_k| ≥ c·√(n_K/n_k). c by Armitage, McPherson and Rowe's recursion: the density of those that have not
    crossed is carried from look to look. Jennison and Turnbull, Group Sequential Methods, 2000.
    """
    steepness = 0.5 if boundary == "obrien_fleming" else 0.0
    shape = (looks[-1] / np.asarray(looks, dtype=np.float64)) ** steepness
    from scipy import optimize, special  # start-up time

    constant = float(optimize.brentq(lambda c: _crossing(looks, c * shape) - significance, 1.0, 8.0))
    return tuple(float(2 * special.ndtr(-bound)) for bound in constant * shape)


def _crossing(looks: Sequence[int], bounds: Floats) -> float:
    """P(|Z_k| ≥ bounds[k] at some look), under no difference."""
    information = np.asarray(looks, dtype=np.float64) / looks[-1]
    edge = bounds[0] * information[0] ** 0.5  # of the score S = Z·√t, a Brownian motion
    at = np.linspace(-edge, edge, _POINTS)
    density = _normal(at / information[0] ** 0.5) / information[0] ** 0.5
    for step, before in enumerate(information[:-1], start=1):
        spread = (information[step] - before) ** 0.5
        edge = bounds[step] * information[step] ** 0.5
        after = np.linspace(-edge, edge, _POINTS)
        weights = density * _simpson(at)
        density = _normal((after[:, None] - at[None, :]) / spread) @ weights / spread
        at = after
    return 1.0 - float(density @ _simpson(at))


def _simpson(at: Floats) -> Floats:
    """Weights of Simpson's rule on an odd number of equidistant points."""
    weights = np.where(np.arange(len(at)) % 2 == 1, 4.0, 2.0)
    weights[[0, -1]] = 1.0
    return weights * (at[1] - at[0]) / 3


def _normal(at: Floats) -> Floats:
    """exp(−x²/2)/√(2π)."""
    density: Floats = np.exp(-(at**2) / 2) / (2 * np.pi) ** 0.5
    return density
