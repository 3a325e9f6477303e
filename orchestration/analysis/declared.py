"""What the comparisons that a spec declares cannot show, whatever its trainings give."""

from collections.abc import Iterator, Sequence

from orchestration.analysis import statistics
from orchestration.analysis.comparisons import SIGNIFICANCE
from orchestration.spec.experiment import ExperimentSpec

_TUNED = ("optimizer.lr", "optimizer.weight_decay")


def weaknesses(spec: ExperimentSpec) -> list[str]:
    """A line for each: seeds too few for a test, variants with a learning rate of their own beside others without."""
    return [*_too_few_seeds(spec), *_tuned_beside_untuned(spec)]


def _too_few_seeds(spec: ExperimentSpec) -> Iterator[str]:
    asked, rule = spec.report, spec.report.sequential
    others = [variant for variant in spec.variants if variant not in (asked.baseline, asked.primary)]
    family = [variant for variant in others if asked.family is None or variant in asked.family]
    looks = tuple(rule.looks) if rule else (len(spec.seeds),)
    levels = statistics.looks_levels(looks, rule.boundary) if rule else (SIGNIFICANCE,)
    if asked.primary != asked.baseline:
        for seeds, level in zip(looks, levels, strict=True):
            whose = f"{'a look at ' if rule else ''}{_seeds(seeds)}"
            yield from _cannot(whose, seeds, [asked.primary], asked.baseline, level, _percent(level))
    if family:
        level = SIGNIFICANCE / len(family)
        step = f"{_percent(SIGNIFICANCE)}/{len(family)} = {_percent(level)}" if len(family) > 1 else _percent(level)
        yield from _cannot(_seeds(looks[-1]), looks[-1], family, asked.baseline, level, step)


def _cannot(whose: str, seeds: int, variants: Sequence[str], baseline: str, level: float, step: str) -> Iterator[str]:
    wanted = statistics.seeds_to_reject(level)
    if seeds < wanted:
        what = f"a difference of {_listed(variants)} to {baseline}"
        yield f"{whose} cannot show {what}, whatever comes out: the test takes {wanted} at {step}"


def _tuned_beside_untuned(spec: ExperimentSpec) -> Iterator[str]:
    if spec.studies:  # a tuning searches the same for every variant
        return
    groups: dict[tuple[str, ...], list[str]] = {}
    for path in _TUNED:
        set_itself = {point.variant for point in spec.points if path in point.own and path not in point.grid}
        own = tuple(variant for variant in spec.variants if variant in set_itself)
        groups.setdefault(own, []).append(path)
    for own, paths in groups.items():
        if own and (shared := [variant for variant in spec.variants if variant not in own]):
            whose = "has its own" if len(own) == 1 else "have their own"
            yield (
                f"{_listed(paths)}: {_listed(own)} {whose}, {_listed(shared)} the shared one: where a search found it, "
                "tuned stands beside untuned (expected a value in each variant, or tuning)"
            )


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def _percent(level: float) -> str:
    return f"{100 * level:.3g}\u00a0%"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
