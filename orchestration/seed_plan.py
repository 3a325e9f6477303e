"""Which seeds were the plan: those of the launches before anybody could have seen a result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestration.judgement import Trial
from orchestration.spec_fields import Sequential


@dataclass(frozen=True)
class SeedPlan:
    """The planned seeds in their order, those added and those dropped since, and the rule for looks in force, if any.

    `late_rule` says that a rule was declared, or changed, when it was too late: it is not in force.
    """

    seeds: tuple[int, ...]
    added: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()
    rule: Sequential | None = None
    late_rule: bool = False


def seed_plan(launches: Sequence[Mapping[str, Any]], trials: Sequence[Trial], baseline: str) -> SeedPlan:
    """The plan of the last launch that began before the first comparison was there to be seen.

    A comparison is there once a seed of the baseline and of another variant is over, whether or not anybody looked:
    a ledger cannot prove that nobody did. A group-sequential rule that was declared by then plans all of its seeds.
    """
    seen = _first_comparison(trials, baseline)
    before = [one for one in launches if seen is None or one["started"] <= seen]
    then, now = (before or launches[:1])[-1]["spec"], launches[-1]["spec"]
    rule = now["report"].get("sequential")
    in_force = rule is not None and rule == then["report"].get("sequential")
    planned = now["seeds"] if in_force else then["seeds"]
    return SeedPlan(
        seeds=tuple(seed for seed in now["seeds"] if seed in planned),
        added=tuple(seed for seed in now["seeds"] if seed not in planned),
        dropped=tuple(seed for seed in then["seeds"] if seed not in now["seeds"]),
        rule=Sequential(**rule) if in_force else None,
        late_rule=rule is not None and not in_force,
    )


def _first_comparison(trials: Sequence[Trial], baseline: str) -> int | None:
    """When the first seed of the baseline and of another variant were both over, in milliseconds."""
    over: dict[int, dict[bool, int]] = {}
    for trial in trials:
        if trial.state in ("done", "diverged") and trial.outcome.finished_ms is not None:
            ends = over.setdefault(trial.cell.seed, {})
            which = trial.cell.variant == baseline
            ends[which] = min(ends.get(which, trial.outcome.finished_ms), trial.outcome.finished_ms)
    return min((max(ends.values()) for ends in over.values() if len(ends) == 2), default=None)
