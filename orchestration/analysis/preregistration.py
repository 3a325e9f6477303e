"""The preregistered plan: seeds and comparisons as they were declared before results could be seen."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestration.analysis.comparisons import Trial
from orchestration.spec.fields import Sequential


@dataclass(frozen=True)
class SeedPlan:
    """The planned seeds in their order, those added and those dropped since, and the rule for looks in force, if any.

    A seed that was dropped stays in the plan, so what it was to be part of is never complete. `late_rule` says that the
    spec's rule came, changed or went when it was too late; `late` says so of what is compared, in words.
    """

    seeds: tuple[int, ...]
    added: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    rule: Sequential | None = None
    late_rule: bool = False
    late: tuple[str, ...] = ()


def seed_plan(launches: Sequence[Mapping[str, Any]], trials: Sequence[Trial], baseline: str) -> SeedPlan:
    """The plan of the last launch that began before results could be seen.

    Results count as seen once the baseline and another variant have finished the same seed, whether or not anybody
    looked: a ledger cannot prove that nobody did. A group-sequential rule declared by then plans all of its seeds.
    """
    seen = _first_comparison(trials, baseline)
    before = [one for one in launches if seen is None or one["started"] <= seen]
    then, now = (before or launches[:1])[-1]["spec"], launches[-1]["spec"]
    rule, rule_now = then["report"].get("sequential"), now["report"].get("sequential")
    more = now["seeds"] if rule is not None and rule == rule_now else ()
    planned = dict.fromkeys([*then["seeds"], *more])  # whatever order they have by now
    return SeedPlan(
        seeds=tuple(planned),
        added=tuple(seed for seed in now["seeds"] if seed not in planned),
        dropped=tuple(seed for seed in then["seeds"] if seed not in now["seeds"]),
        rule=None if rule is None else Sequential(**rule),
        late_rule=rule != rule_now,
        late=tuple(_late(then, now)),
    )


def _late(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterable[str]:
    """What changed about the comparisons after they were declared."""
    for field in ("baseline", "primary", "metric", "family"):
        was, is_now = (spec["report"].get(field) for spec in (then, now))
        if was != is_now:
            yield f"{field} was {_text(was)}, is {_text(is_now)}"
    gone = [name for name in then.get("variants", ()) if name not in now.get("variants", ())]
    if gone:
        yield f"{_text(gone)} left out"


def _text(value: str | Sequence[str] | None) -> str:
    return value if isinstance(value, str) else "not said" if value is None else ", ".join(value)


def _first_comparison(trials: Sequence[Trial], baseline: str) -> int | None:
    """When the first seed of the baseline and of another variant were both over, in milliseconds."""
    over: dict[int, dict[bool, int]] = {}
    for trial in trials:
        if trial.state in ("done", "diverged") and trial.outcome.finished_ms is not None:
            ends = over.setdefault(trial.cell.seed, {})
            which = trial.cell.variant == baseline
            ends[which] = min(ends.get(which, trial.outcome.finished_ms), trial.outcome.finished_ms)
    return min((max(ends.values()) for ends in over.values() if len(ends) == 2), default=None)
