"""What a search is: its space, sampler, pruning and budget, as a spec says it and as it is then carried out.

An entry of a space is a path below `train` and its values: a range (`{low: 1e-4, high: 0.1, log: true}`; whole
numbers where the field wants them) or choices (`[8, 64, 200]`). With `when`, it is there only where earlier entries
have certain values; an entry below a component that is not chosen is left out by itself.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_args

from pydantic import Field as Constraint

from fsg.config import Settings, choice, setting, to_dict
from fsg.imported import Imported
from fsg.trainer import TrainConfig

MAX_SEED = 2**32 - 1
Seed = Annotated[int, Constraint(ge=0, le=MAX_SEED, strict=True, description=f"a whole number from 0 to {MAX_SEED}")]
Seeds = Annotated[list[Seed], Constraint(min_length=1, description="a list of one or more seeds")]
Space = Annotated[dict[str, Any], Constraint(min_length=1, description="a mapping of one or more paths to values")]
Number = int | float
Written = Annotated[int, Constraint(strict=True)] | Annotated[float, Constraint(strict=True)]
Scalar = bool | int | float | str | None

Objective = Literal["validation/accuracy", "validation/loss", "train/loss", "time/step", "memory/peak"]
MAXIMISED = ("validation/accuracy",)


@dataclass(frozen=True, kw_only=True)
class TPE(Settings):
    """Tree-structured Parzen estimator over all parameters together, grouped where the space is conditional."""

    name: Literal["tpe"] = "tpe"
    startup: int = setting(10, "Trials drawn at random before it learns from them.", ge=1)


@dataclass(frozen=True, kw_only=True)
class Random(Settings):
    """Independent draws."""

    name: Literal["random"] = "random"


@dataclass(frozen=True, kw_only=True)
class QuasiRandom(Settings):
    """A scrambled Sobol sequence: draws that leave no gaps."""

    name: Literal["quasi_random"] = "quasi_random"


@dataclass(frozen=True, kw_only=True)
class Grid(Settings):
    """Every combination, in a shuffled order; ranges need a step or whole numbers."""

    name: Literal["grid"] = "grid"


@dataclass(frozen=True, kw_only=True)
class NSGA2(Settings):
    """A genetic algorithm, for several objectives."""

    name: Literal["nsga2"] = "nsga2"
    population: int = setting(20, "Trials of a generation.", ge=2)


SamplerConfig = TPE | Random | QuasiRandom | Grid | NSGA2


@dataclass(frozen=True, kw_only=True)
class NoPruning(Settings):
    """Every trial is trained to its end."""

    name: Literal["none"] = "none"

    def rungs(self, epochs: int) -> tuple[int, ...]:
        return ()


@dataclass(frozen=True, kw_only=True)
class Median(Settings):
    """A trial that is worse than the median of the earlier ones at the same epoch is stopped."""

    name: Literal["median"] = "median"
    first_epoch: int = setting(1, "The first epoch after which a trial may be stopped.", ge=1)
    every: int = setting(1, "Epochs between two such looks.", ge=1)
    startup: int = setting(5, "Trials that have to be complete before any is stopped.", ge=0)

    def rungs(self, epochs: int) -> tuple[int, ...]:
        return tuple(range(self.first_epoch, epochs, self.every))


@dataclass(frozen=True, kw_only=True)
class SuccessiveHalving(Settings):
    """At each rung, the best of those that came there goes on: one in `reduction`."""

    name: Literal["successive_halving"] = "successive_halving"
    first_epoch: int = setting(1, "The epoch of the first rung; each further one is `reduction` times as far.", ge=1)
    reduction: int = setting(3, "One in so many goes on.", ge=2)

    def rungs(self, epochs: int) -> tuple[int, ...]:
        return _powers(self.first_epoch, self.reduction, epochs)


@dataclass(frozen=True, kw_only=True)
class Hyperband(Settings):
    """Successive halving in brackets, which begin at different rungs, since an early rung may rank noise."""

    name: Literal["hyperband"] = "hyperband"
    first_epoch: int = setting(1, "The epoch of the first rung; each further one is `reduction` times as far.", ge=1)
    reduction: int = setting(3, "One in so many goes on.", ge=2)

    def rungs(self, epochs: int) -> tuple[int, ...]:
        return _powers(self.first_epoch, self.reduction, epochs)


PrunerConfig = NoPruning | Median | SuccessiveHalving | Hyperband


def _powers(first: int, factor: int, below: int) -> tuple[int, ...]:
    found = []
    while first < below:
        found.append(first)
        first *= factor
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class _Searching(Settings):
    sampler: SamplerConfig = choice(TPE, "What suggests settings.", discriminator="name")
    pruner: PrunerConfig = choice(NoPruning, "What stops trials early.", discriminator="name")
    seeds: Seeds = choice(
        lambda: [1000], "Each trial is trained once with each, and judged by the mean; none is a seed of the table."
    )
    seed: Seed = choice(0, "Of the sampler: the same one suggests the same.")
    best: int = setting(
        3, "How many of the best settings are trained anew with the table's seeds, for validation to choose one.", ge=0
    )
    storage: str | None = setting(
        None, "Where Optuna keeps the study: a URL such as postgresql://…; a journal in the results unless given."
    )


@dataclass(frozen=True, kw_only=True)
class Search(_Searching):
    """A search over settings of `train`; then `default`, as it stands, is compared with `tuned`."""

    space: Space = choice(description="Paths below `train`, each with a range or choices.")
    trials: int = setting(description="Settings that are tried.", ge=1)
    objectives: tuple[Objective, ...] = choice(
        ("validation/accuracy",),
        "What is looked for: the highest accuracy, the lowest loss, time of a step or peak of memory.",
    )
    warm_start: str | None = setting(
        None, "The results of an earlier search: its trials are taken over, or where they are not alike, tried first."
    )


@dataclass(frozen=True, kw_only=True)
class Tuning(_Searching):
    """A search for every variant, each with the same budget; only what comes out of it enters the table."""

    budget: int = setting(description="Settings that are tried for each variant.", ge=1)
    space: Space | None = choice(
        None, "Paths below `train`, as in a search; optimizer.lr and optimizer.weight_decay are always among them."
    )
    objective: Objective = choice("validation/accuracy", "What is looked for.")


ALWAYS_TUNED: dict[str, dict[str, Any]] = {
    "optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True},
    "optimizer.weight_decay": {"low": 1e-6, "high": 1e-2, "log": True},
}


@dataclass(frozen=True, kw_only=True)
class Entry(Settings):
    """An entry of a space: a range, or choices."""

    low: Written | None = choice(None, "The lowest value.")
    high: Written | None = choice(None, "The highest value.")
    log: bool = setting(False, "Whether equal ratios count as equal distances.")
    step: Written | None = choice(None, "The distance of neighbouring values.")
    choices: list[Any] | None = choice(None, "The values, where they are no range.")
    when: dict[str, Any] | None = choice(
        None, "Earlier entries and their values: one, a list of them, or {above: …} or {below: …}."
    )


# What is searched, once it is resolved

MISSING = object()


@dataclass(frozen=True)
class Condition:
    """An earlier entry has one of some values, or one beyond a limit."""

    path: str
    values: tuple[Scalar, ...] | None = None
    above: float | None = None
    below: float | None = None

    def holds(self, settings: Mapping[str, Any]) -> bool:
        if self.path not in settings:
            return False
        value = settings[self.path]
        if self.values is not None:
            return any(type(value) is type(one) and value == one for one in self.values)
        return (self.above is None or value > self.above) and (self.below is None or value < self.below)


@dataclass(frozen=True)
class Dimension:
    """A path and its values; `open_low` and `open_high` say whether the field would allow values beyond."""

    path: str
    kind: Literal["float", "int", "choice"]
    low: Number = 0
    high: Number = 0
    log: bool = False
    step: Number | None = None
    choices: tuple[Scalar, ...] = ()
    when: tuple[Condition, ...] = ()
    open_low: bool = True
    open_high: bool = True

    def values(self) -> list[Scalar]:
        """All of them, where they can be counted."""
        if self.kind == "choice":
            return list(self.choices)
        step = self.step or 1
        count = int((self.high - self.low) / step + 1e-9) + 1
        found = [self.low + step * index for index in range(count)]
        return [round(value, 12) for value in found] if self.kind == "float" else list(found)

    def nearest(self, value: Any) -> Any:
        """The value of the dimension that is nearest; MISSING where none is."""
        if self.kind == "choice":
            return next((one for one in self.choices if type(one) is type(value) and one == value), MISSING)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return MISSING
        inside = min(max(value, self.low), self.high)
        if self.step is None:
            return inside
        return self.low + round((inside - self.low) / self.step) * self.step

    @property
    def countable(self) -> bool:
        return self.kind != "float" or self.step is not None

    def at_bound(self, value: Any) -> Literal["", "low", "high"]:
        """Which end of the range a value lies at (within a hundredth of it) though the field would allow more."""
        if self.kind == "choice" or self.low == self.high:
            return ""
        from math import log

        place = float(value - self.low) / float(self.high - self.low)
        if self.log:
            place = log(value / self.low) / log(self.high / self.low)
        if place <= 0.01 and self.open_low:
            return "low"
        return "high" if place >= 0.99 and self.open_high else ""


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """One search: `train` as it stands without it, and everything that decides what is tried."""

    name: str
    train: TrainConfig
    dimensions: tuple[Dimension, ...]
    trials: int
    seeds: tuple[int, ...]
    objectives: tuple[Objective, ...]
    sampler: SamplerConfig
    pruner: PrunerConfig
    seed: int
    best: int
    table_seeds: tuple[int, ...]
    warm_start: str | None = None

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs after which a trial may be stopped."""
        return self.pruner.rungs(self.train.epochs)

    @property
    def trial_train(self) -> TrainConfig:
        """`train` as a trial sees it: the test images stay closed."""
        return replace(self.train, test="never")

    def defaults(self) -> dict[str, Any]:
        """The settings that `train` has already, moved into the space where they lie outside."""
        found: dict[str, Any] = {}
        for dimension in self.dimensions:
            if all(condition.holds(found) for condition in dimension.when):
                value = dimension.nearest(value_at(self.train, dimension.path))
                found |= {} if value is MISSING else {dimension.path: value}
        return found

    def resolved(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "name": self.name,
            "train": to_dict(self.train),
            "space": {one.path: dimension_dict(one) for one in self.dimensions},
            "trials": self.trials,
            "seeds": list(self.seeds),
            "objectives": list(self.objectives),
            "sampler": to_dict(self.sampler),
            "pruner": to_dict(self.pruner),
            "seed": self.seed,
            "best": self.best,
            "warm_start": self.warm_start,
        }


def dimension_dict(dimension: Dimension) -> dict[str, Any]:
    """A dimension as a spec would write it."""
    found: dict[str, Any] = {}
    if dimension.kind == "choice":
        found["choices"] = list(dimension.choices)
    else:
        found |= {"low": dimension.low, "high": dimension.high}
        found |= {"log": True} if dimension.log else {}
        found |= {"step": dimension.step} if dimension.step is not None else {}
    if dimension.when:
        found["when"] = {one.path: _condition_dict(one) for one in dimension.when}
    return found


def _condition_dict(condition: Condition) -> Any:
    if condition.values is not None:
        return list(condition.values)
    limits = {"above": condition.above, "below": condition.below}
    return {name: limit for name, limit in limits.items() if limit is not None}


# Settings and configs


def value_at(config: Settings, path: str) -> Any:
    """What a config has at a path, a component as its name; MISSING where there is no such path."""
    head, _, rest = path.partition(".")
    if isinstance(config, Imported):
        config = config.resolve()
    value = getattr(config, head, MISSING) if head in _names(config) else MISSING
    if rest and rest != "name":
        return value_at(value, rest) if isinstance(value, Settings) else MISSING
    return getattr(value, "name", MISSING) if isinstance(value, Settings) else value


def with_settings(config: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """The config with values put at paths, components before their fields. Raises KeyError, ValueError."""
    for path in sorted(settings, key=lambda path: path.removesuffix(".name").count(".")):
        changed = _put(config, path.removesuffix(".name"), settings[path])
        assert isinstance(changed, TrainConfig)
        config = changed
    return config


def _put(config: Settings, path: str, value: Any) -> Settings:
    if isinstance(config, Imported):
        return replace(config, settings=to_dict(_put(config.resolve(), path, value)))
    from orchestration.spec_fields import adapter, fields

    head, _, rest = path.partition(".")
    field = fields(type(config)).get(head)
    if field is None:
        raise KeyError(path)
    if rest:
        child = getattr(config, head)
        if not isinstance(child, Settings):
            raise KeyError(path)
        return replace(config, **{head: _put(child, rest, value)})
    if field.chosen:
        value = adapter(field.options[value]).validate_python({"name": value})
    elif isinstance(value, int) and not isinstance(value, bool) and _is_float(field.hint):
        value = float(value)
    return replace(config, **{head: value})


def _is_float(hint: Any) -> bool:
    kinds = get_args(hint) or (hint,)
    return float in kinds and int not in kinds


def _names(config: Settings) -> set[str]:
    from orchestration.spec_fields import fields

    return set(fields(type(config)))


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """The last parts of paths, as many as tell them apart."""
    whole = list(dict.fromkeys(paths))
    found = {}
    for path in whole:
        parts = path.split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[-count:])
            if sum(other == name or other.endswith(f".{name}") for other in whole) == 1:
                break
        found[path] = name
    return found
