"""The tests of an experiment: the primary one and its looks, the family of the others, the best line; the verdict."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from orchestration.analysis import statistics
from orchestration.analysis.comparisons import SIGNIFICANCE, Comparison, Line, counterpart
from orchestration.analysis.preregistration import SeedPlan
from orchestration.analysis.units import Unit
from orchestration.spec.fields import Report

Role = Literal["primary", "family", "untested"]


class Look(NamedTuple):
    """One of the looks of a group-sequential rule."""

    number: int
    of: int
    seeds: int
    level: float


@dataclass(frozen=True)
class Contrast:
    """A variant's comparison with the baseline; `adjusted` is what p is after correction, None where nothing is tested.

    `level` is what it is held to, and its interval's is one minus that. `planned` is the number of pairs that it waits
    for; it is not `declared` where the plan was not kept. `same` says that both are the same trainings, where a search
    has come back to the settings that it began with.
    """

    variant: str
    role: Role
    comparison: Comparison
    points: int
    adjusted: float | None = None
    level: float = SIGNIFICANCE
    look: Look | None = None
    planned: int = 0
    declared: bool = True
    infinite: tuple[str, ...] = ()
    same: bool = False

    @property
    def complete(self) -> bool:
        return self.comparison.n >= self.planned

    @property
    def p(self) -> float | None:
        return self.comparison.p if self.adjusted is not None else None

    @property
    def interval(self) -> statistics.Interval | None:
        return statistics.t_interval(self.comparison.differences, 1 - self.level)

    def equivalent(self, margin: float) -> bool:
        """Whether a difference as large as the margin is ruled out: by both one-sided tests and their interval."""
        interval = self.equivalence_interval
        return (
            self.declared
            and self.complete
            and self.adjusted is not None
            and interval is not None
            and -margin < interval.low <= interval.high < margin
            and statistics.equivalence_p(self.comparison.differences, margin) <= self.level
        )

    @property
    def equivalence_interval(self) -> statistics.Interval | None:
        """Of 1 − 2·level: each of its ends belongs to a one-sided test."""
        return statistics.t_interval(self.comparison.differences, 1 - 2 * self.level)

    @property
    def shown(self) -> bool:
        """Whether a difference is: by the test and by the interval, as declared, of all pairs that were planned."""
        interval = self.interval
        return (
            self.declared
            and self.complete
            and self.adjusted is not None
            and self.adjusted <= self.level
            and interval is not None
            and interval.excludes_zero
        )


@dataclass(frozen=True)
class Family:
    """The comparisons that are corrected together, each held to 5 % of what remains (Holm)."""

    tests: tuple[Contrast, ...]

    @property
    def size(self) -> int:
        return len(self.tests)

    @property
    def seeds(self) -> int:
        """The fewest that any of its comparisons has."""
        return min((test.comparison.n for test in self.tests), default=0)

    @property
    def seeds_to_reject(self) -> int:
        """The fewest at which its strictest step could reject."""
        return statistics.seeds_to_reject(SIGNIFICANCE / max(1, self.size))


class Best(NamedTuple):
    """The line with the best mean, and the others that the test does not tell apart from it: none, and it is marked."""

    line: Line
    not_told_apart: tuple[Line, ...]

    @property
    def marked(self) -> bool:
        return not self.not_told_apart


class Verdict(NamedTuple):
    """What the primary comparison shows: in few words, in a sentence, and why it shows no more."""

    headline: str
    sentence: str
    consequence: str
    shown: bool = False

    @property
    def text(self) -> str:
        return f"{self.headline}. {self.sentence} {self.consequence}".strip()


def contrasts_of(
    lines: Sequence[Line], asked: Report, plan: SeedPlan, primary: str | None, tested: bool = True
) -> list[Contrast]:
    """Every variant's comparison with the baseline, in the order of the lines.

    `primary` stands alone; the variants of `asked.family`, or else all others, are the family. Under a rule for looks
    the primary one is tested at each look, and the family once, at the last. Nothing is claimed of a part of the plan:
    to stop where it looks good is to look more than once. A variant that came late is in no test, and a
    measure that did is not `tested`.
    """
    found, planned, declared = [], len(plan.seeds), not plan.breaches
    for variant in dict.fromkeys(line.variant for line in lines if line.variant != asked.baseline):
        points = [line for line in lines if line.variant == variant and line.comparison is not None]
        comparison = _averaged(lines, points, asked.baseline)
        chosen = asked.family is None or variant in asked.family or variant == asked.primary
        inside = tested and chosen and variant not in plan.late_variants
        role: Role = "primary" if variant == primary else "family" if inside else "untested"
        test = Contrast(variant, role, comparison, len(points), planned=planned, declared=declared)
        infinite, same = _infinite_in(lines, test, asked.baseline), _are_the_same(lines, points, asked.baseline)
        test = replace(test, infinite=tuple(infinite), same=same)
        found.append(_primary(test, plan) if role == "primary" else test)
    return _corrected(found, plan)


def _are_the_same(lines: Sequence[Line], points: Sequence[Line], baseline: str) -> bool:
    """Whether every training of a variant is the baseline's of the same grid point, under another name."""
    by_point = {(line.variant, line.grid): {trial.cell.id for trial in line.trials} for line in lines}
    ours = [(by_point[line.variant, line.grid], counterpart(by_point, baseline, line.grid)) for line in points]
    return bool(ours) and all(ids and ids == theirs for ids, theirs in ours)


def _infinite_in(lines: Sequence[Line], test: Contrast, baseline: str) -> Iterable[str]:
    """The cells that make a comparison infinite, by name."""
    for line in lines:
        if line.variant in (test.variant, baseline):
            lost = [seed for seed in test.comparison.seeds if not math.isfinite(line.values.get(seed, 0.0))]
            yield from (f"{line.label} · seed {seed}" for seed in lost)


def _averaged(lines: Sequence[Line], points: Sequence[Line], baseline: str) -> Comparison:
    """Of each seed, the mean of its differences over the grid points; only seeds that are complete in all of them."""
    if not points or not all(point.comparison and point.comparison.n for point in points):
        return Comparison(())
    values = {(line.variant, line.grid): line.values for line in lines}
    differences = {}
    for seed in sorted(set.intersection(*(set(point.values) for point in points))):
        against = [counterpart(values, baseline, point.grid) or {} for point in points]
        if all(seed in theirs for theirs in against):
            pairs = zip(points, against, strict=True)
            differences[seed] = statistics.mean([point.values[seed] - theirs[seed] for point, theirs in pairs])
    return Comparison(tuple(differences.values()), tuple(differences))


def _primary(test: Contrast, plan: SeedPlan) -> Contrast:
    if plan.rule is None:
        return replace(test, adjusted=test.comparison.p if test.comparison.finite else None)
    reached = None
    looks = tuple(plan.rule.looks)
    levels = statistics.looks_levels(looks, plan.rule.boundary, SIGNIFICANCE)
    for number, (seeds, level) in enumerate(zip(looks, levels, strict=True), start=1):
        comparison = test.comparison.first(plan.seeds[:seeds])
        if comparison.n < seeds or not comparison.finite:
            break
        look = Look(number, len(looks), seeds, level)
        reached = replace(
            test, comparison=comparison, adjusted=comparison.p, level=level, look=look, planned=look.seeds
        )
        if reached.shown:
            break
    return reached or test


def _corrected(tests: Iterable[Contrast], plan: SeedPlan) -> list[Contrast]:
    found = list(tests)
    last = plan.rule.looks[-1] if plan.rule else 0
    inside = [t for t in found if t.role == "family" and t.comparison.finite and t.comparison.n >= last]
    # A member that cannot be tested yet still counts: the family is what was declared, not what has come in.
    waiting = sum(test.role == "family" for test in found) - len(inside)
    adjusted = statistics.holm([test.comparison.p for test in inside] + [1.0] * waiting)
    corrected = {test.variant: p for test, p in zip(inside, adjusted, strict=False)}
    return [replace(t, adjusted=corrected[t.variant]) if t.variant in corrected else t for t in found]


def best_of(lines: Sequence[Line], unit: Unit, plan: SeedPlan) -> Best | None:
    """The line with the best mean, held against each other line by the test and the interval.

    None before all lines have all planned seeds, so that it is looked for once, or where the plan was not kept. A line
    that came late is not one of them.

    Telling the best of many from the runner-up at 5 % calls a wrong one best with 5 % at most, without a correction:
    Gutmann and Maymin, Annals of Statistics 15, 1987.
    """
    planned = [line for line in lines if line.variant not in plan.late_variants]
    whole = [line for line in planned if len(line.values) >= len(plan.seeds) and math.isfinite(line.metric.mean)]
    if len(whole) < max(2, len(planned)) or plan.breaches:
        return None
    best = max(whole, key=lambda line: line.metric.mean * (1 if unit.higher_is_better else -1))
    others = [line for line in whole if line is not best]
    return Best(best, tuple(line for line in others if not _apart(best, line)))


def _apart(ours: Line, theirs: Line) -> bool:
    found = Comparison(tuple(float(d) for d in statistics.paired_differences(ours.values, theirs.values)))
    interval = found.interval
    return interval is not None and interval.excludes_zero and found.p <= SIGNIFICANCE


def judge(tests: Sequence[Contrast], unit: Unit, asked: Report, plan: SeedPlan) -> Verdict:
    """What the primary comparison shows: no more than its interval and its test do, and nothing of a broken plan."""
    found = _judged(tests, unit, asked, plan)
    if not plan.breaches:
        return found
    why = " ".join([*plan.breaches, "A new experiment can test it."])
    return Verdict("Exploratory: nothing is claimed", found.sentence, why)


def _judged(tests: Sequence[Contrast], unit: Unit, asked: Report, plan: SeedPlan) -> Verdict:
    primary, baseline = asked.primary, asked.baseline
    pairs = f"{primary} and {baseline}"
    test = next((one for one in tests if one.role == "primary"), None)
    if test is None or test.comparison.n == 0:
        which = "planned seed" if plan.added else "seed"
        return Verdict("No verdict yet", f"No {which} has finished both {pairs}.", "")
    if test.same:
        both = f"{primary} has the settings of {baseline}: they are the same trainings under two names"
        return Verdict("Nothing to compare", f"{both}, and no difference was measured.", "")
    comparison, points = test.comparison, test.points
    seeds = f"{comparison.n} paired seeds" if comparison.n > 1 else "one seed"
    planned = len(plan.seeds)
    seeds += f" of {planned} planned" if comparison.n < planned and test.look is None else ""
    seeds += f" (look {test.look.number} of {test.look.of})" if test.look else ""
    over = f"over {seeds}" + (f", averaged over {points} grid points" if points > 1 else "")
    if not comparison.finite:
        return Verdict("Not comparable", f"{_infinite(test, unit)} ({over}).", "")
    size = f"{unit.write(abs(comparison.mean))} {unit.difference}".strip()
    side = "higher" if comparison.mean > 0 else "lower"
    sentence = f"{primary} has {size} {side} {unit.name} than {baseline} {over}"
    if comparison.mean == 0:
        sentence = f"{primary} and {baseline} have the same mean {unit.name} {over}"
    if plan.rule is not None and test.look is None:
        first = f"The first look that the rule allows is at {plan.rule.looks[0]} seeds."
        return Verdict("No look yet", f"{sentence}.", first)
    interval = test.interval
    if interval is None:
        why_not = "An interval takes two paired seeds, a test at 5\u00a0% six."
        return Verdict("One seed shows nothing", f"{sentence}.", why_not)
    ends = f"{unit.write(interval.low, True)} to {unit.write(interval.high, True)}"
    exact = f"{'exact ' if statistics.is_exact(comparison.n) else ''}sign-flip p\u00a0=\u00a0{p_text(comparison.p)}"
    held = f", held to {p_text(test.level)} at this look" if test.look else ""
    zero = "excludes" if interval.excludes_zero else "includes"
    confidence = f"{100 * (1 - test.level):.3g}\u00a0%"
    sentence += f" ({confidence} interval {ends}, {exact}{held}): the interval {zero} zero."
    if not test.complete:
        part = f"{comparison.n} of {planned} planned pairs are over, and a difference is claimed of all or not at all:"
        return Verdict("No verdict yet", sentence, f"{part} to stop where it looks good errs in more than 5\u00a0%.")
    equivalence = _equivalence(test, unit, asked)
    if test.shown:
        return Verdict(f"{primary}: {side} {unit.name}, significant at 5\u00a0%", sentence, equivalence, True)
    if asked.equivalence_margin and test.equivalent(asked.equivalence_margin):
        margin = f"{unit.write(asked.equivalence_margin)} {unit.difference}".strip()
        return Verdict(f"{pairs} are equivalent to within {margin}", sentence, equivalence)
    why = (_why_not(test, interval), equivalence, _seeds_needed(test, unit, asked))
    return Verdict("No difference shown", sentence, " ".join(filter(None, why)))


def _equivalence(test: Contrast, unit: Unit, asked: Report) -> str:
    """What the declared margin says; nothing where none was declared."""
    margin, interval = asked.equivalence_margin, test.equivalence_interval
    if margin is None or interval is None:
        return ""
    size = f"{unit.write(margin)} {unit.difference}".strip()
    ends = f"{unit.write(interval.low, True)} to {unit.write(interval.high, True)}"
    p = p_text(statistics.equivalence_p(test.comparison.differences, margin))
    ruled = "is" if test.equivalent(margin) else "is not"
    confidence = f"{100 * (1 - 2 * test.level):.3g}\u00a0%"
    return (
        f"A difference of {size}, the margin declared before, {ruled} ruled out "
        f"({confidence} interval {ends}, two one-sided sign-flip tests p\u00a0=\u00a0{p})."
    )


def _infinite(test: Contrast, unit: Unit) -> str:
    """Which seeds diverged, of the variant or the baseline or both."""
    names = " and ".join(test.infinite)
    return f"{names} diverged, and {'its' if len(test.infinite) == 1 else 'their'} {unit.name} is infinite"


def _why_not(test: Contrast, interval: statistics.Interval) -> str:
    """What follows from a difference that is not shown, and what does not."""
    n = test.comparison.n
    least, needed = statistics.smallest_p(n), statistics.seeds_to_reject(test.level)
    if least > test.level:
        few = (
            f"With {n} seeds the sign-flip test cannot give less than p\u00a0=\u00a0{p_text(least)}, so it cannot "
            f"reject at {100 * test.level:.3g}\u00a0% whatever the numbers: {needed} seeds are the fewest that could."
        )
        normal = " The interval rests on the differences being normal, which so few cannot show."
        return few + normal * interval.excludes_zero
    if test.look and test.look.number < test.look.of:
        return "The next look is still to come."
    if test.comparison.p <= test.level or interval.excludes_zero:
        return "Interval and test disagree, so no difference is claimed."
    return "That is no proof that there is none: the interval says how large it could be."


def _seeds_needed(test: Contrast, unit: Unit, asked: Report) -> str:
    """How many seeds it would take, at the scatter seen, to show the smallest difference that matters or this one."""
    effect = asked.smallest_effect or test.comparison.mean
    found = test.comparison.seeds_for(effect)
    if test.comparison.n < 2 or not effect:
        return ""
    size = f"{unit.write(abs(effect))} {unit.difference}".strip()
    what = f"the smallest difference that matters, {size}" if asked.smallest_effect else f"a true difference of {size}"
    many = f"about {found} seeds" if found else "more than 10,000 seeds"
    return f"At the scatter seen here, {many} would show {what} four times out of five."


def p_text(p: float) -> str:
    """Three significant digits: 0.25, 0.0313, 0.00195."""
    return f"{p:.3g}"
