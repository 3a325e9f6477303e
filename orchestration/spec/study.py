"""A resolved search: its space, its conditions, and settings put into the config of a training."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from fsg.config import Settings, to_dict
from fsg.imported import Imported
from fsg.train_config import TrainConfig
from orchestration.spec.fields import adapter, fields
from orchestration.spec.search_config import Number, Objective, PrunerConfig, SamplerConfig, Scalar

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
        place = float(value - self.low) / float(self.high - self.low)
        if self.log:
            place = math.log(value / self.low) / math.log(self.high / self.low)
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
