"""The `search:` and `tuning:` sections of a spec: samplers, pruners, budgets and the entries of a search space.

An entry is a path below `train` and its values: a range (`{low: 1e-4, high: 0.1, log: true}`; whole numbers where the
field is one) or choices (`[8, 64, 200]`). With `when`, the entry exists only where earlier entries have certain values.
An entry below a component that was not chosen is left out automatically.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field as Constraint

from fsg.config import Settings, choice, setting

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
