"""The preregistered plan: seeds and comparisons as they were declared before results could be seen.

What came first is told from the order of the launches, which the ends of attempts name; no clock is read.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from orchestration.analysis.comparisons import grid_text
from orchestration.spec.fields import Sequential

_CHANGED = "seeds, variants, settings, code or data"
T = TypeVar("T")
_LOST = {"done": "", "diverged": " (diverged)", "damaged": " (its end is damaged)", "missing": " (missing)"}


class Result(NamedTuple):
    """A training that came to its end at some time, under a name that it had in a table.

    `launch` is the number of the first launch in which it ended, `listed` of the last whose table has it by this name.
    It `counts` in the table of today by this name, or is `gone`: neither its name nor its cell is there. `before` says
    what other result an earlier attempt at it had.
    """

    cell: str
    variant: str
    name: str
    seed: int
    state: str
    launch: int
    listed: int
    counts: bool = True
    gone: bool = False
    before: str = ""


@dataclass(frozen=True)
class SeedPlan:
    """The planned seeds in their order, those added and those dropped since, and the rule for looks in force, if any.

    A seed that was dropped stays in the plan, so what it was to be part of is never complete. `late_rule` says that the
    spec's rule came, changed or went when it was too late. `late_variants` and `late_reach` were added then: they are
    compared, and no test has them. `breaches` say, each in a sentence, why nothing is claimed.
    """

    seeds: tuple[int, ...]
    added: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    rule: Sequential | None = None
    late_rule: bool = False
    late_variants: tuple[str, ...] = ()
    late_reach: tuple[float, ...] = ()
    breaches: tuple[str, ...] = ()

    @property
    def late(self) -> str:
        """What is compared without a test, as it was added when results could be seen: `b, reach 50 %`; or nothing."""
        return ", ".join([*self.late_variants, *(f"reach {100 * target:g}\u00a0%" for target in self.late_reach)])


def seed_plan(
    launches: Sequence[Mapping[str, Any]], results: Sequence[Result], problems: Sequence[str] = ()
) -> SeedPlan:
    """The plan of the launch in which results could first be seen; before that, of the last.

    Results count as seen once two variants have each a training that came to its end, whether or not anybody looked: a
    ledger cannot prove that nobody did. A group-sequential rule declared by then plans all of its seeds. `problems` are
    the launches whose records do not hold.
    """
    seen = _first_comparison(launches, results)
    before = [one for one in launches if seen is None or one["number"] <= seen]
    then, now = (before or launches[:1])[-1]["spec"], launches[-1]["spec"]
    rule, rule_now = then["report"].get("sequential"), now["report"].get("sequential")
    more = now["seeds"] if rule is not None and rule == rule_now and before else ()
    early = {one.seed for one in results if seen is not None and one.launch <= seen}
    declared = [seed for seed in then["seeds"] if before or seed in early]  # without its record, what had come in
    planned = dict.fromkeys([*declared, *more])  # whatever order they have by now
    return SeedPlan(
        seeds=tuple(planned),
        added=tuple(seed for seed in now["seeds"] if seed not in planned),
        dropped=tuple(seed for seed in then["seeds"] if seed not in now["seeds"]),
        rule=None if rule is None else Sequential(**rule),
        late_rule=rule != rule_now,
        late_variants=_added(then.get("variants", ()), now.get("variants", ())),
        late_reach=_added(then["report"].get("reach", ()), now["report"].get("reach", ())),
        breaches=tuple(_breaches(then, now, results, seen, problems)),
    )


def _first_comparison(launches: Sequence[Mapping[str, Any]], results: Sequence[Result]) -> int | None:
    """The number of the first launch by whose end two variants had results.

    A launch that ended as done had them all, even where the ledger has lost them.
    """
    variants = {one.cell: one.variant for one in reversed(results)}  # a variant that was renamed is no second one
    first: dict[str, int] = {}
    for one in results:
        variant = variants[one.cell]
        first[variant] = min(first.get(variant, one.launch), one.launch)
    ends = sorted(first.values())[1:2]
    ends += [
        one["number"] for one in launches if one.get("exit_status") == 0 and len(one["spec"].get("variants", ())) > 1
    ]
    return min(ends, default=None)


def _breaches(
    then: Mapping[str, Any],
    now: Mapping[str, Any],
    results: Sequence[Result],
    seen: int | None,
    problems: Sequence[str],
) -> Iterable[str]:
    if problems:
        yield f"What was declared cannot be known, as {', '.join(problems)}."
    if late := list(_late(then, now)):
        yield f"What is compared was changed when results could be seen: {'; '.join(late)}."
    lost = [one for one in results if one.gone or (not one.counts and seen is not None and one.listed >= seen)]
    if lost:
        yield f"Results that could be seen were dropped, as {_CHANGED} changed: {_named(lost)}."
    replaced = [f"{one.name} · seed {one.seed} ({one.before})" for one in results if one.before]
    if replaced:
        yield f"Trainings that had ended were trained again, and ended otherwise: {', '.join(replaced)}."


def _late(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterable[str]:
    """What changed about the comparisons after they were declared."""
    for field in ("baseline", "primary", "metric", "family", "equivalence_margin"):
        was, is_now = (spec["report"].get(field) for spec in (then, now))
        if was != is_now:
            yield f"{field} was {_text(was)}, is {_text(is_now)}"
    if gone := _added(now.get("variants", ()), then.get("variants", ())):
        yield f"{_text(gone)} left out"
    was, is_now = _grid_points(then), _grid_points(now)
    for variant in was:
        if more := _added(was[variant], is_now.get(variant, ())):
            yield f"grid points of {variant} added: {'; '.join(more)}"


def _added(was: Iterable[T], is_now: Iterable[T]) -> tuple[T, ...]:
    """What was not there, in its order."""
    before = tuple(was)
    return tuple(one for one in is_now if one not in before)


def _grid_points(spec: Mapping[str, Any]) -> dict[str, list[str]]:
    """By variant, each of its grid points in words."""
    found: dict[str, list[str]] = {}
    for point in spec.get("points", ()):
        found.setdefault(point["variant"], []).append(grid_text(point["grid"]) or "none")
    return found


def _text(value: str | float | Sequence[str] | None) -> str:
    if value is None:
        return "not said"
    return ", ".join(value) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)


def _named(results: Sequence[Result]) -> str:
    """`fsg · seeds 0, 1 (diverged); ste · seed 0`."""
    by_name: dict[str, dict[int, str]] = {}
    for one in results:
        by_name.setdefault(one.name, {})[one.seed] = f"{one.seed}{_LOST[one.state]}"
    return "; ".join(
        f"{name} · seed{'s' * (len(seeds) > 1)} {', '.join(seeds[seed] for seed in sorted(seeds))}"
        for name, seeds in sorted(by_name.items())
    )
