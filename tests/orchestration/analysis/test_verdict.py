"""What is tested and what is claimed: the primary comparison, looks, the family, the best line, seeds added late."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.claims import claimed, experiments
from fsg.train_config import TrainConfig
from orchestration.analysis import statistics
from orchestration.analysis.comparisons import Line, Measure, Trial, lines_of
from orchestration.analysis.preregistration import Result, SeedPlan, seed_plan
from orchestration.analysis.units import Unit
from orchestration.analysis.verdict import Contrast, Family, best_of, contrasts_of, judge
from orchestration.ledger.history import LedgerRow
from orchestration.ledger.outcome import Outcome
from orchestration.spec.cells import Cell
from orchestration.spec.fields import Report, Sequential

TRAIN = TrainConfig()
ACCURACY, LOSS = Unit.of("test/accuracy"), Unit.of("test/loss")


def trial(variant: str, seed: int, value: float | None, metric: str = "test/accuracy", **outcome: Any) -> Trial:
    """A cell that is over: with a value, or diverged."""
    cell = Cell(f"{variant}-{seed}", "train", variant, {}, seed, TRAIN)
    state = "done" if value is not None else "diverged"
    rows = () if value is None else (LedgerRow(1, 0, {metric: value}),)
    return Trial(cell, Outcome(state, **outcome), rows)  # type: ignore[arg-type]


def lines(values: Mapping[str, Sequence[float | None]], metric: str = "test/accuracy") -> list[Line]:
    trials = [trial(name, seed, value, metric) for name, own in values.items() for seed, value in enumerate(own)]
    return lines_of(trials, Measure.metric(metric), "ste")


def contrasts(
    values: Mapping[str, Sequence[float | None]],
    rule: Sequential | None = None,
    planned: int | None = None,
    **asked: Any,
) -> dict[str, Contrast]:
    seeds = planned or len(next(iter(values.values())))
    plan = SeedPlan(tuple(range(seeds if rule is None else rule.looks[-1])), rule=rule)
    report = Report(baseline="ste", primary="fsg", **asked)
    return {test.variant: test for test in contrasts_of(lines(values), report, plan, "fsg")}


def alike(count: int, gain: float, noise: float = 0.001) -> list[float]:
    """Seeds that all gain about as much."""
    return [0.7 + gain + noise * (-1) ** seed for seed in range(count)]


def test_the_primary_stands_alone_and_the_others_are_corrected_together() -> None:
    found = contrasts(
        {"fsg": alike(8, 0.01), "a": alike(8, 0.01), "b": alike(8, 0.02), "c": alike(8, 0), "ste": [0.7] * 8}
    )
    assert (found["fsg"].role, found["fsg"].adjusted) == ("primary", 2 / 256)
    assert found["fsg"].shown
    assert [found[name].adjusted for name in ("a", "b", "c")] == [3 * 2 / 256, 3 * 2 / 256, 1.0]
    assert [found[name].shown for name in ("a", "b", "c")] == [True, True, False]


@pytest.mark.parametrize("shared", [8, 7])
def test_one_training_of_two_names_is_compared_with_nothing(shared: int) -> None:
    """A search that comes back to the settings it began with; with one training of its own it is another line."""
    of_ste = [trial("ste", seed, 0.7 + 0.01 * seed) for seed in range(8)]
    tuned = [replace(one.cell, variant="fsg") for one in of_ste[:shared]]
    tuned += [Cell("another", "train", "fsg", {}, 7, TRAIN)] * (8 - shared)
    found = [*of_ste, *(replace(one, cell=cell) for one, cell in zip(of_ste, tuned, strict=True))]
    plan, report = SeedPlan(tuple(range(8))), Report(baseline="ste", primary="fsg", equivalence_margin=0.01)
    tests = contrasts_of(lines_of(found, Measure.metric("test/accuracy"), "ste"), report, plan, "fsg")
    verdict = judge(tests, ACCURACY, report, plan)
    assert (verdict.headline == "Nothing to compare") is (shared == 8)
    if shared == 8:
        said = (
            "fsg has the settings of ste: they are the same trainings under two names, and no difference was measured."
        )
        assert (verdict.sentence, verdict.consequence, verdict.shown) == (said, "", False)


def test_seven_others_need_nine_seeds() -> None:
    def family(seeds: int) -> Family:
        values = {name: alike(seeds, 0.01) for name in ("fsg", *"abcdefg")} | {"ste": [0.7] * seeds}
        return Family(tuple(test for test in contrasts(values).values() if test.role == "family"))

    assert (family(8).size, family(8).seeds_to_reject) == (7, 9)
    assert not any(test.shown for test in family(8).tests)
    assert all(test.shown for test in family(9).tests)


def test_a_declared_family_is_corrected_for_itself_alone() -> None:
    values = {"fsg": alike(7, 0.01), "a": alike(7, 0.01), "b": alike(7, 0.02), "ste": [0.7] * 7}
    found = contrasts(values, family=["a"])
    assert (found["a"].role, found["a"].adjusted) == ("family", 2 / 128)
    assert (found["b"].role, found["b"].adjusted, found["b"].shown) == ("untested", None, False)


def test_a_member_without_results_still_counts_in_the_family() -> None:
    values: dict[str, Any] = {"fsg": alike(8, 0.01), "a": alike(8, 0.01), "b": [], "ste": [0.7] * 8}
    assert contrasts(values)["a"].adjusted == 2 / 256  # without a cell, it is no line at all
    trials = [trial(name, seed, v) for name in ("fsg", "a", "ste") for seed, v in enumerate(values[name])]
    waiting = Trial(Cell("b-0", "train", "b", {}, 0, TRAIN), Outcome("waiting"), ())
    report = Report(baseline="ste", primary="fsg")
    made = lines_of([*trials, waiting], Measure.metric("test/accuracy"), "ste")
    found = {test.variant: test for test in contrasts_of(made, report, SeedPlan(tuple(range(8))), "fsg")}
    assert found["a"].adjusted == 2 * 2 / 256
    assert found["b"].adjusted is None


def test_part_of_the_planned_seeds_claims_nothing_however_clear_it_is() -> None:
    values = {"fsg": alike(8, 0.1), "a": alike(8, 0.1), "ste": [0.7] * 8}
    found = contrasts(values, planned=9)
    assert [(test.p, test.shown) for test in found.values()] == [(2 / 256, False)] * 2
    plan = SeedPlan(tuple(range(9)))
    verdict = judge(list(found.values()), ACCURACY, Report(baseline="ste", primary="fsg"), plan)
    assert (verdict.headline, verdict.shown) == ("No verdict yet", False)
    assert "8 of 9 planned pairs" in verdict.consequence
    assert all(test.shown for test in contrasts(values).values())


def test_a_loss_that_is_infinite_is_in_no_test() -> None:
    made = lines({"fsg": [0.5, None, 0.6], "ste": [0.7, 0.7, 0.7]}, "test/loss")
    report = Report(baseline="ste", primary="fsg", metric="test/loss")
    (test,) = contrasts_of(made, report, SeedPlan((0, 1, 2)), "fsg")
    assert (test.adjusted, test.shown) == (None, False)
    verdict = judge([test], LOSS, report, SeedPlan((0, 1, 2)))
    assert verdict[:2] == (
        "Not comparable",
        "fsg · seed 1 diverged, and its test loss is infinite (over 3 paired seeds).",
    )


def test_of_an_infinite_loss_each_training_that_diverged_is_named_and_no_other() -> None:
    made = lines({"fsg": [0.5, 0.4, None], "a": [None, 0.4, 0.4], "ste": [0.7, None, 0.7]}, "test/loss")
    report = Report(baseline="ste", primary="fsg", metric="test/loss")
    tests = contrasts_of(made, report, SeedPlan((0, 1, 2)), "fsg")
    told = judge(tests, LOSS, report, SeedPlan((0, 1, 2))).sentence
    assert told == "fsg · seed 2 and ste · seed 1 diverged, and their test loss is infinite (over 3 paired seeds)."


# Equivalence


def told_of(values: Sequence[float], margin: float | None, planned: int | None = None) -> Any:
    found = contrasts({"fsg": values, "ste": [0.7] * len(values)}, planned=planned)
    report = Report(baseline="ste", primary="fsg", equivalence_margin=margin)
    return judge(list(found.values()), ACCURACY, report, SeedPlan(tuple(range(planned or len(values)))))


def test_a_difference_that_is_ruled_out_is_called_equivalence_only_within_a_declared_margin() -> None:
    near = alike(8, 0.0002, 0.004)
    assert told_of(near, None).headline == "No difference shown"
    verdict = told_of(near, 0.005)
    assert verdict.headline == "fsg and ste are equivalent to within 0.50 points"
    assert not verdict.shown
    low, high = stats.ttest_1samp([100 * (v - 0.7) for v in near], 0).confidence_interval(0.90)
    assert f"is ruled out (90\u00a0% interval {low:+.2f} to {high:+.2f}" in verdict.consequence.replace("−", "-")
    apart = [0.7049, 0.7049, 0.7049, 0.7, 0.7]  # the tests reject, at 1/32; the interval reaches beyond
    for wide in (alike(8, 0.0002, 0.008), alike(8, 0.004, 0.002), alike(4, 0.0, 0.001), apart):  # noisy, far, too few
        verdict = told_of(wide, 0.005)
        assert verdict.headline != "fsg and ste are equivalent to within 0.50 points"
        assert "A difference of 0.50 points, the margin declared before, is not ruled out" in verdict.consequence


def test_a_difference_may_be_shown_and_still_be_below_the_margin() -> None:
    verdict = told_of(alike(8, 0.002), 0.005)
    assert (verdict.headline, verdict.shown) == ("fsg: higher test accuracy, significant at 5\u00a0%", True)
    assert "A difference of 0.50 points, the margin declared before, is ruled out" in verdict.consequence


def test_part_of_the_planned_seeds_is_no_equivalence() -> None:
    assert told_of(alike(8, 0.0002), 0.005, planned=9).headline == "No verdict yet"


# Looks


RULE = Sequential(looks=[6, 10], boundary="pocock")


def test_before_the_first_look_nothing_is_tested() -> None:
    values = {"fsg": alike(5, 0.1), "ste": [0.7] * 5}
    found = contrasts(values, RULE)["fsg"]
    assert (found.adjusted, found.shown) == (None, False)
    report, plan = Report(baseline="ste", primary="fsg"), SeedPlan(tuple(range(10)), rule=RULE)
    verdict = judge([found], ACCURACY, report, plan)
    assert verdict.headline == "No look yet"
    assert "p\u00a0=" not in verdict.sentence


def test_a_look_is_held_to_its_own_level_and_its_interval_is_wider() -> None:
    six = contrasts({"fsg": alike(6, 0.01), "ste": [0.7] * 6}, RULE)["fsg"]
    assert six.look is not None
    assert (six.look.number, six.look.seeds, six.comparison.n) == (1, 6, 6)
    assert six.p == 2 / 64
    assert six.level < 2 / 64  # Pocock's at the first of two looks is 0.03 or less
    assert not six.shown
    plain, wider = six.comparison.interval, six.interval
    assert plain is not None
    assert wider is not None
    assert wider.low < plain.low


def test_seeds_between_two_looks_wait_for_the_second() -> None:
    eight = contrasts({"fsg": alike(8, 0.01), "ste": [0.7] * 8}, RULE)["fsg"]
    assert eight.comparison.seeds == (0, 1, 2, 3, 4, 5)
    ten = contrasts({"fsg": alike(10, 0.01), "a": alike(10, 0.01), "ste": [0.7] * 10}, RULE)
    assert ten["fsg"].shown
    assert ten["fsg"].comparison.n == 10
    assert ten["a"].adjusted == 2 / 1024


def test_the_family_waits_for_the_last_look() -> None:
    found = contrasts({"fsg": alike(8, 0.01), "a": alike(8, 0.01), "ste": [0.7] * 8}, RULE)
    assert found["a"].adjusted is None


def test_what_was_shown_at_a_look_stays_shown() -> None:
    rule = Sequential(looks=[8, 10], boundary="pocock")
    ours = [*alike(8, 0.02), 0.1, 0.1]
    found = contrasts({"fsg": ours, "ste": [0.7] * 10}, rule)["fsg"]
    assert found.shown
    assert found.look is not None
    assert (found.look.number, found.comparison.n) == (1, 8)


# The best line


SIX = SeedPlan(tuple(range(6)))


def test_the_best_is_marked_where_it_is_told_apart_from_every_other() -> None:
    made = lines({"fsg": alike(6, 0.05), "a": alike(6, 0.01), "ste": [0.7] * 6})
    best = best_of(made, ACCURACY, SIX)
    assert best is not None
    assert (best.line.variant, best.marked) == ("fsg", True)


def test_the_best_is_not_marked_where_one_is_as_good() -> None:
    made = lines({"fsg": alike(6, 0.05), "a": [0.749, 0.752] * 3, "ste": [0.7] * 6})
    best = best_of(made, ACCURACY, SIX)
    assert best is not None
    assert [line.variant for line in best.not_told_apart] == ["fsg"]
    assert best.line.variant == "a"
    assert not best.marked


def test_of_losses_the_lowest_is_best() -> None:
    made = lines({"fsg": alike(6, 0.05), "ste": [0.7] * 6}, "test/loss")
    best = best_of(made, LOSS, SIX)
    assert best is not None
    assert best.line.variant == "ste"


@pytest.mark.parametrize(
    "ours",
    [
        [0.701, 0.701, 0.701, 0.701, 0.701, 0.79],  # all flips are lower, and the interval includes zero
        [0.7031, 0.7028, 0.7021, 0.6993, 0.7016, 0.7022],  # the interval excludes it, and one flip in 16 is as high
    ],
    ids=["the interval does not", "the test does not"],
)
def test_the_best_is_not_marked_where_test_and_interval_disagree(ours: list[float]) -> None:
    made = lines({"fsg": ours, "ste": [0.7] * 6})
    differences = np.array(ours) - 0.7
    by_test = stats.permutation_test((differences,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    by_interval = stats.ttest_1samp(differences, 0).pvalue
    assert (by_test <= 0.05) != (by_interval <= 0.05)
    best = best_of(made, ACCURACY, SIX)
    assert best is not None
    assert not best.marked


def test_none_is_best_before_every_line_has_all_of_its_seeds_and_a_finite_mean() -> None:
    late = lines({"fsg": alike(6, 0.05), "a": alike(5, 0.01), "ste": [0.7] * 6})
    assert best_of(late, ACCURACY, SIX) is None
    early = lines({"fsg": alike(6, 0.05), "ste": [0.7] * 6})
    assert best_of(early, ACCURACY, SeedPlan(tuple(range(10)), rule=RULE)) is None  # the last look is at ten
    lost = lines({"fsg": [0.2] * 6, "a": [*[0.3] * 5, None], "ste": [0.7] * 6}, "test/loss")
    assert best_of(lost, LOSS, SIX) is None
    assert best_of(lines({"ste": [0.7] * 6}), ACCURACY, SIX) is None


def test_pairs_of_which_neither_came_to_its_end_measure_nothing() -> None:
    """Accuracies of 0 % differ by 0, and nobody has seen that."""
    found = contrasts({"fsg": [None, None], "a": [None, 0.5], "ste": [None, None]})
    assert [found[name].comparison.n for name in ("fsg", "a")] == [0, 2]
    told = judge(list(found.values()), ACCURACY, Report(baseline="ste", primary="fsg"), SeedPlan((0, 1)))
    assert told[:2] == ("No verdict yet", "No seed has finished both fsg and ste.")


def test_of_accuracies_a_line_that_diverged_is_a_loser() -> None:
    best = best_of(lines({"fsg": alike(6, 0.05), "a": [None] * 6, "ste": [0.7] * 6}), ACCURACY, SIX)
    assert best is not None
    assert (best.line.variant, best.marked) == ("fsg", True)


# Seeds


def launch(
    number: int, seeds: Sequence[int], rule: Sequential | None = None, variants: str = "fsg ste", **report: Any
) -> dict[str, Any]:
    sequential = None if rule is None else {"looks": rule.looks, "boundary": rule.boundary}
    spec = {"seeds": list(seeds), "variants": variants.split(), "report": {"sequential": sequential} | report}
    return {"number": number, "spec": spec}


def result(variant: str, seed: int, ended: int, **more: Any) -> Result:
    cell = f"{variant}-{seed}"
    return Result(cell, variant, variant, seed, **{"state": "done", "launch": ended, "listed": ended} | more)


def over(seeds: Sequence[int], ended: int) -> list[Result]:
    return [result(name, seed, ended) for name in ("fsg", "ste") for seed in seeds]


def test_seeds_added_after_a_comparison_was_there_are_exploratory() -> None:
    plan = seed_plan([launch(1, [0, 1]), launch(2, [0, 1, 2, 3])], over([0, 1], 1) + over([2, 3], 2))
    assert (plan.seeds, plan.added, plan.breaches) == ((0, 1), (2, 3), ())


def test_seeds_added_before_any_comparison_are_planned() -> None:
    plan = seed_plan([launch(1, [0, 1]), launch(2, [0, 1, 2])], over([0, 1, 2], 2))
    assert (plan.seeds, plan.added) == ((0, 1, 2), ())
    baseline_alone = [result("ste", 0, 1)]
    plan = seed_plan([launch(1, [0, 1]), launch(2, [0, 1, 2])], baseline_alone + over([1, 2], 2))
    assert plan.added == ()


def test_two_variants_are_seen_together_also_with_other_seeds_and_whichever_is_the_baseline() -> None:
    first = [result("a", 0, 1), result("fsg", 1, 1)]
    plan = seed_plan([launch(1, [0, 1]), launch(2, [0, 1, 2])], first + over([1, 2], 2))
    assert plan.added == (2,)


def test_a_cell_that_was_renamed_is_no_second_variant() -> None:
    renamed = [result("ste", 0, 1), result("ste", 0, 1)._replace(variant="baseline", name="baseline")]
    assert seed_plan([launch(1, [0]), launch(2, [0, 1])], renamed).added == ()


def test_a_launch_that_was_done_had_all_its_results_even_where_they_are_lost() -> None:
    done = launch(1, [0]) | {"exit_status": 0}
    assert seed_plan([done, launch(2, [0, 1])], []).added == (1,)
    alone = launch(1, [0], variants="ste") | {"exit_status": 0}
    assert seed_plan([alone, launch(2, [0, 1])], []).added == ()
    stopped = launch(1, [0]) | {"exit_status": 130}
    assert seed_plan([stopped, launch(2, [0, 1])], []).added == ()


def test_launching_the_same_again_plans_the_same() -> None:
    plan = seed_plan([launch(1, [0, 1]), launch(2, [0, 1])], over([0, 1], 1))
    assert (plan.seeds, plan.added, plan.dropped) == ((0, 1), (), ())


def test_seeds_left_out_after_a_comparison_are_told_and_stay_in_the_plan() -> None:
    plan = seed_plan([launch(1, [0, 1, 2]), launch(2, [0, 2])], over([0, 1, 2], 1))
    assert (plan.seeds, plan.dropped) == ((0, 1, 2), (1,))


def test_a_rule_for_looks_that_was_declared_in_time_plans_all_its_seeds() -> None:
    plan = seed_plan([launch(1, range(6), RULE), launch(2, range(10), RULE)], over(range(10), 1))
    assert (plan.seeds, plan.added, plan.rule) == (tuple(range(10)), (), RULE)


def test_a_rule_declared_too_late_is_not_in_force() -> None:
    plan = seed_plan([launch(1, range(6)), launch(2, range(10), RULE)], over(range(10), 1))
    assert (plan.seeds, plan.added, plan.rule, plan.late_rule) == (tuple(range(6)), (6, 7, 8, 9), None, True)


def test_a_rule_stays_in_force_where_it_is_taken_out_after_a_look() -> None:
    plan = seed_plan([launch(1, range(6), RULE), launch(2, range(6))], over(range(6), 1))
    assert (plan.rule, plan.late_rule) == (RULE, True)


def test_looks_are_at_the_seeds_that_were_planned_first_whatever_order_they_have_by_now() -> None:
    plan = seed_plan([launch(1, [0, 1, 2], RULE), launch(2, [9, 2, 1, 0], RULE)], over([0, 1, 2], 1))
    assert plan.seeds == (0, 1, 2, 9)


@pytest.mark.parametrize(
    ("later", "said"),
    [
        ({"primary": "a"}, "primary was fsg, is a"),
        ({"baseline": "a"}, "baseline was ste, is a"),
        ({"metric": "test/loss"}, "metric was test/accuracy, is test/loss"),
        ({"family": ["a"]}, "family was not said, is a"),
        ({"variants": "fsg ste"}, "a left out"),
    ],
)
def test_a_comparison_that_was_chosen_when_results_could_be_seen_claims_nothing(
    later: dict[str, Any], said: str
) -> None:
    declared: dict[str, Any] = {
        "baseline": "ste", "primary": "fsg", "metric": "test/accuracy", "variants": "fsg a ste"
    }  # fmt: skip
    before = [launch(1, range(8), **declared), launch(2, range(8), **declared | later)]
    assert seed_plan(before, over(range(8), 2)).breaches == ()
    plan = seed_plan(before, over(range(8), 1))
    assert plan.breaches == (f"What is compared was changed when results could be seen: {said}.",)
    made = lines({"fsg": alike(8, 0.1), "ste": [0.7] * 8})
    report = Report(baseline="ste", primary="fsg")
    tests = contrasts_of(made, report, plan, "fsg")
    assert not tests[0].shown
    verdict = judge(tests, ACCURACY, report, plan)
    assert (verdict.headline, verdict.shown) == ("Exploratory: nothing is claimed", False)
    assert said in verdict.consequence
    assert best_of(made, ACCURACY, plan) is None


def test_results_that_were_dropped_are_named_by_variant_and_seed() -> None:
    gone = [result("fsg", 1, 1, state="diverged", counts=False, gone=True), result("fsg", 0, 1, counts=False)]
    plan = seed_plan([launch(1, [0, 1]), launch(2, [0, 2])], [*over([0, 2], 1), *gone])
    assert plan.breaches == (
        "Results that could be seen were dropped, as seeds, variants, settings, code or data changed: fsg · seeds 0, "
        "1 (diverged).",
    )


def test_what_was_trained_with_other_settings_before_any_comparison_is_no_breach() -> None:
    orphan = result("ste", 0, 1, counts=False)
    assert seed_plan([launch(1, [0]), launch(2, [0])], [orphan, *over([0], 2)]).breaches == ()


def test_exploratory_seeds_are_in_no_number_of_the_plan() -> None:
    trials = [trial(name, seed, 0.7 + 0.1 * seed * (name == "fsg")) for name in ("fsg", "ste") for seed in range(4)]
    marked = [one.marked(one.cell.seed >= 2) for one in trials]
    made = lines_of(marked, Measure.metric("test/accuracy"), "ste")
    assert made[0].values == pytest.approx({0: 0.7, 1: 0.8})
    assert made[0].added == pytest.approx({2: 0.9, 3: 1.0})
    assert made[0].comparison is not None
    assert made[0].comparison.seeds == (0, 1)
    assert made[0].explored is not None
    assert made[0].explored.seeds == (0, 1, 2, 3)
    assert made[0].done == 2


# How often it is wrong


@pytest.fixture
def told_no_number_of_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """That a verdict names takes most of its time, and claims nothing."""
    monkeypatch.setattr(statistics, "seeds_for_power", lambda *asked: None)


def rates(variants: int, seeds: int, count: int, rule: Sequential | None = None) -> np.ndarray:
    """How often the verdict, the family, and a mark for the best claim something, where all variants are equal."""
    return np.mean([claimed(values, rule) for values in experiments(variants, seeds, 0.0, count)], axis=0)


def test_under_no_difference_at_most_one_report_in_twenty_claims_one(told_no_number_of_seeds: None) -> None:
    count = 200
    limit = 0.05 + 2 * (0.05 * 0.95 / count) ** 0.5
    verdict, family, best = rates(variants=4, seeds=8, count=count)
    assert 0.02 < verdict < limit
    assert family < limit
    assert best < limit
    assert 0.02 < rates(variants=2, seeds=8, count=count)[2] < limit  # of two, the best is the significant one


def test_with_five_seeds_nothing_is_ever_claimed(told_no_number_of_seeds: None) -> None:
    assert rates(variants=3, seeds=5, count=60).tolist() == [0, 0, 0]


def test_looks_beforehand_keep_the_error(told_no_number_of_seeds: None) -> None:
    count = 200
    rule = Sequential(looks=[8, 10, 12], boundary="pocock")
    verdict = rates(variants=2, seeds=12, count=count, rule=rule)[0]
    assert 0.02 < verdict < 0.05 + 2 * (0.05 * 0.95 / count) ** 0.5
