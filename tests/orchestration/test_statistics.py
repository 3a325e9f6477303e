"""The statistics against scipy, exhaustive enumerations and published worked examples."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from orchestration import statistics

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


@pytest.mark.parametrize("n", [3, 5, 10])
def test_interval_covers_the_true_difference_at_its_level(n: int) -> None:
    draws = np.random.default_rng(n).normal(0.7, 2.0, size=(4000, n))
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
