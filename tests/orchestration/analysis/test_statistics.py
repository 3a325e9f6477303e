"""The statistics against scipy, exhaustive enumerations and published worked examples."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from orchestration.analysis import statistics

# Student's own example (Cushny and Peebles, 1905; Student 1908): hours of sleep gained under two drugs, ten patients.
FIRST_DRUG = (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)
SECOND_DRUG = (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)
# Darwin's maize (Fisher 1935): crossed minus self-fertilised, eighths of an inch, fifteen pairs.
DARWIN = (49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48)


def sleep() -> np.ndarray:
    return statistics.paired_differences(dict(enumerate(SECOND_DRUG)), dict(enumerate(FIRST_DRUG)))


def test_mean_and_standard_deviation_are_those_of_student() -> None:
    assert statistics.mean(sleep()) == pytest.approx(1.58, abs=1e-12)
    assert statistics.standard_deviation(sleep()) == pytest.approx(1.229995, abs=1e-6)


def test_standard_deviation_divides_by_n_minus_one() -> None:
    values = [Fraction(7), Fraction(9), Fraction(14)]
    centre = sum(values) / 3
    assert statistics.standard_deviation([7.0, 9.0, 14.0]) == pytest.approx(
        math.sqrt(sum((v - centre) ** 2 for v in values) / 2), rel=1e-14
    )


def test_one_value_has_a_mean_and_no_deviation() -> None:
    assert statistics.mean([3.0]) == 3.0
    assert math.isnan(statistics.standard_deviation([3.0]))
    assert math.isnan(statistics.mean([]))


@pytest.mark.filterwarnings("error")
def test_infinite_value_leaves_no_deviation_and_no_interval() -> None:
    assert statistics.mean([1.0, math.inf]) == math.inf
    assert math.isnan(statistics.standard_deviation([1.0, math.inf]))
    assert statistics.t_interval([1.0, math.inf]) is None


def test_pairs_are_formed_by_seed_not_by_position() -> None:
    differences = statistics.paired_differences({2: 5.0, 0: 1.0, 7: 9.0}, {0: 0.5, 1: 100.0, 2: 4.0})
    np.testing.assert_array_equal(differences, [0.5, 1.0])


def test_interval_is_that_of_scipys_paired_t_test() -> None:
    expected = stats.ttest_rel(SECOND_DRUG, FIRST_DRUG).confidence_interval(0.95)
    interval = statistics.t_interval(sleep())
    assert interval is not None
    assert interval == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert interval == pytest.approx((0.7001, 2.4599), abs=1e-4)  # as published
    assert interval.excludes_zero


def test_interval_of_three_seeds_from_the_printed_t_table() -> None:
    interval = statistics.t_interval([1.0, 2.0, 3.0])
    assert interval == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), abs=1e-6)
    assert interval is not None
    assert not interval.excludes_zero


def test_interval_takes_two_differences_at_least() -> None:
    assert statistics.t_interval([1.0]) is None
    assert statistics.t_interval([1.0, 2.0]) is not None


def test_interval_that_only_touches_zero_includes_it() -> None:
    assert not statistics.Interval(0.0, 1.0).excludes_zero
    assert statistics.Interval(-2.0, -0.1).excludes_zero


def test_interval_covers_the_true_difference_at_its_level() -> None:
    for n in (3, 10):
        draws = np.random.default_rng(n).normal(0.7, 2.0, size=(1500, n))
        intervals = [statistics.t_interval(row) for row in draws]
        covered = np.mean([i is not None and i.low <= 0.7 <= i.high for i in intervals])
        assert abs(covered - 0.95) < 3 * math.sqrt(0.95 * 0.05 / len(draws))


def test_sign_flip_p_of_darwins_maize_is_fishers() -> None:
    assert statistics.sign_flip_p(DARWIN) == pytest.approx(1726 / 2**15, abs=1e-15)  # 863 of each tail


@pytest.mark.parametrize("n", [1, 2, 3, 6, 9])
def test_sign_flip_p_counts_every_flip(n: int) -> None:
    integers = [int(v) for v in np.random.default_rng(n).integers(-20, 30, size=n)]
    extreme = sum(
        abs(sum(s * d for s, d in zip(signs, integers, strict=True))) >= abs(sum(integers))
        for signs in itertools.product((-1, 1), repeat=n)
    )
    assert statistics.sign_flip_p(integers) == extreme / 2**n


def test_sign_flip_p_agrees_with_scipys_permutation_test() -> None:
    expected = stats.permutation_test(
        (sleep(), np.zeros(10)), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    )
    assert statistics.sign_flip_p(sleep()) == pytest.approx(expected.pvalue, abs=1e-15)


def test_ties_broken_by_rounding_still_count() -> None:
    assert statistics.sign_flip_p([0.7, 0.4, 0.2, -0.2]) == statistics.sign_flip_p([7, 4, 2, -2]) == 6 / 16


def test_no_difference_has_p_of_one() -> None:
    assert statistics.sign_flip_p([0.0, 0.0, 0.0]) == 1.0


def test_many_seeds_are_sampled_the_same_way_every_time() -> None:
    differences = np.random.default_rng(0).normal(0.4, 1.0, size=20)
    exact = np.zeros(1)
    for d in differences:
        exact = np.concatenate([exact + d, exact - d])
    p = np.mean(np.abs(exact) >= abs(differences.sum()) - 1e-9)
    assert statistics.sign_flip_p(differences) == pytest.approx(p, abs=4 * math.sqrt(p / 100_000))
    assert statistics.sign_flip_p(differences) == statistics.sign_flip_p(differences)


@pytest.mark.parametrize(("n", "p"), [(1, 1.0), (3, 0.25), (5, 0.0625), (6, 0.03125)])
def test_smallest_p_is_reached_when_every_seed_agrees(n: int, p: float) -> None:
    assert statistics.smallest_p(n) == p
    assert statistics.sign_flip_p([1.0] * n) == p


def test_no_pairs_cannot_reject() -> None:
    assert statistics.smallest_p(0) == 1.0


def test_six_seeds_are_needed_to_reject_at_five_percent() -> None:
    assert statistics.seeds_to_reject(0.05) == 6
    assert statistics.seeds_to_reject(0.01) == 8


# Holm


def test_holm_of_a_published_example() -> None:
    """The five p-values of the manual of R's p.adjust, and Holm's own table."""
    assert statistics.holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert statistics.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


def test_holm_is_the_closure_of_bonferronis_test() -> None:
    """A hypothesis falls where every intersection that holds it falls, each tested by Bonferroni."""
    draw = np.random.default_rng(0)
    for m in (1, 2, 3, 5):
        ps = [float(p) for p in draw.uniform(0, 0.2, m)]
        closed = [
            max(
                min(1.0, len(group) * min(ps[j] for j in group))
                for size in range(1, m + 1)
                for group in itertools.combinations(range(m), size)
                if i in group
            )
            for i in range(m)
        ]
        assert statistics.holm(ps) == pytest.approx(closed, rel=1e-12)


def test_holm_of_nothing_is_nothing() -> None:
    assert statistics.holm([]) == []


# Unpaired


def test_welch_interval_is_scipys() -> None:
    expected = stats.ttest_ind(SECOND_DRUG, FIRST_DRUG[:7], equal_var=False).confidence_interval(0.95)
    assert statistics.welch_interval(SECOND_DRUG, FIRST_DRUG[:7]) == pytest.approx((expected.low, expected.high))
    assert statistics.welch_interval([1.0], [1.0, 2.0]) is None
    assert statistics.welch_interval([1.0, 1.0], [2.0, 2.0]) is None


# How many seeds


@pytest.mark.parametrize(("effect", "n"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_for_power_are_those_of_the_published_tables(effect: float, n: int) -> None:
    """Two-sided paired t, 5 %, power 0.8: Cohen's small, medium and large effects, as G*Power gives them."""
    assert statistics.seeds_for_power(effect) == n


@pytest.mark.parametrize(("n", "effect", "level"), [(6, 1.0, 0.05), (10, 0.5, 0.05), (10, 1.0, 0.01), (30, 0.3, 0.05)])
def test_power_is_how_often_the_t_test_rejects(n: int, effect: float, level: float) -> None:
    draws = np.random.default_rng(n).normal(effect, 1.0, (20_000, n))
    rejected = np.mean(stats.ttest_1samp(draws, 0.0, axis=1).pvalue <= level)
    assert statistics.power(n, effect, level) == pytest.approx(rejected, abs=4 * math.sqrt(0.25 / len(draws)))


def test_the_sign_flip_test_has_nearly_that_power() -> None:
    draws = np.random.default_rng(0).normal(1.0, 1.0, (1000, 10))
    rejected = np.mean([statistics.sign_flip_p(row) <= 0.05 for row in draws])
    assert rejected == pytest.approx(statistics.power(10, 1.0), abs=0.04)


def test_power_is_a_probability_and_grows_with_seeds_wherever_scipy_gives_up() -> None:
    for effect in (0.02, 0.5, 2.0, 5.0):
        found = [statistics.power(n, effect) for n in (2, 6, 20, 100, 400, 500, 1000, 5000, 10_000)]
        assert all(0 <= p <= 1 + 1e-9 for p in found)
        assert all(b >= a - 1e-3 for a, b in itertools.pairwise(found))


def test_seeds_for_power_are_at_least_those_that_can_reject() -> None:
    assert statistics.seeds_for_power(50.0) == 6
    assert statistics.seeds_for_power(math.inf, 0.05 / 7) == 9
    assert statistics.seeds_for_power(0.0) is None
    assert statistics.power(1, 5.0) == 0.0


# Looks


@pytest.mark.parametrize(
    ("boundary", "looks", "constant"),
    [
        ("pocock", 2, 2.178), ("pocock", 3, 2.289), ("pocock", 4, 2.361), ("pocock", 5, 2.413),
        ("obrien_fleming", 2, 1.977), ("obrien_fleming", 3, 2.004),
        ("obrien_fleming", 4, 2.024), ("obrien_fleming", 5, 2.040),
    ],
)  # fmt: skip
def test_boundaries_are_the_published_ones(boundary: statistics.Boundary, looks: int, constant: float) -> None:
    """Jennison and Turnbull (2000), tables 2.1 and 2.3, two-sided 5 %, equally spaced looks."""
    levels = statistics.looks_levels(tuple(range(3, 3 * looks + 1, 3)), boundary)
    at_last = float(stats.norm.isf(levels[-1] / 2))
    assert at_last == pytest.approx(constant, abs=6e-4)
    steepness = 0.5 if boundary == "obrien_fleming" else 0.0
    bounds = [float(stats.norm.isf(level / 2)) for level in levels]
    assert bounds == pytest.approx([at_last * (looks / k) ** steepness for k in range(1, looks + 1)])


@pytest.mark.parametrize("boundary", ["pocock", "obrien_fleming"])
def test_looks_that_are_not_equally_spaced_err_as_often_as_they_may(boundary: statistics.Boundary) -> None:
    looks = (6, 7, 12, 20)
    levels = np.array(statistics.looks_levels(looks, boundary))
    sums = np.random.default_rng(1).normal(size=(200_000, 20)).cumsum(axis=1)[:, np.array(looks) - 1]
    p = 2 * stats.norm.sf(np.abs(sums) / np.sqrt(looks))
    assert np.mean((p <= levels).any(axis=1)) == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 200_000))


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.5, 4.0])
def test_equivalence_is_two_one_sided_permutation_tests_of_scipy(margin: float) -> None:
    def one_sided(x: np.ndarray) -> float:
        found = stats.permutation_test(
            (x,), np.sum, permutation_type="samples", alternative="greater", n_resamples=np.inf
        )
        return float(found.pvalue)

    for d in (sleep(), np.array(DARWIN[:10]) / 20):
        expected = max(one_sided(d + margin), one_sided(margin - d))
        assert statistics.equivalence_p(d, margin) == pytest.approx(expected, abs=1e-12)


def test_equivalence_errs_in_five_per_cent_where_the_truth_is_the_margin() -> None:
    """Beyond sixteen differences flips are drawn, and it still does."""
    draw = np.random.default_rng(1)
    for n, runs in ((8, 2000), (17, 40)):
        ps = [statistics.equivalence_p(draw.normal(1.0, 0.3, n), 1.0) for _ in range(runs)]
        wrong = sum(p <= 0.05 for p in ps)
        assert wrong <= stats.binom.ppf(0.9999, runs, 0.05)
        assert wrong >= stats.binom.ppf(0.0001, runs, 0.04)
    assert statistics.equivalence_p([0.0] * 5, 1.0) == 1 / 32
