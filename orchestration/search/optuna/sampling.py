"""A study's space, sampler and pruner as Optuna's objects.

Every suggestion is drawn with a seed made from the study's seed and the trial's number.
"""

import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import optuna
from optuna import distributions
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from scipy.stats import qmc

from orchestration.spec import search_config as settings
from orchestration.spec.study import MISSING, Dimension, StudySpec, value_at, with_settings


def distributions_of(spec: StudySpec) -> dict[str, distributions.BaseDistribution]:
    """The space as Optuna's distributions, by path."""
    return {one.path: _distribution(one) for one in spec.dimensions}


def _distribution(one: Dimension) -> distributions.BaseDistribution:
    if one.kind == "choice":
        return distributions.CategoricalDistribution(one.choices)
    if one.kind == "int":
        return distributions.IntDistribution(int(one.low), int(one.high), log=one.log, step=int(one.step or 1))
    return distributions.FloatDistribution(float(one.low), float(one.high), log=one.log, step=one.step)


def in_space(spec: StudySpec, params: Mapping[str, Any]) -> dict[str, str] | None:
    """The distributions of some settings, as the ledger has them; None where one of them lies outside."""
    spaces = {path: space for path, space in distributions_of(spec).items() if path in params}
    try:
        optuna.trial.create_trial(state=TrialState.WAITING, params=dict(params), distributions=spaces)
    except ValueError:
        return None
    return {path: distributions.distribution_to_json(spaces[path]) for path in params}


def suggest_settings(trial: Trial, spec: StudySpec) -> dict[str, Any]:
    """Suggest settings, entry by entry, where the entry's conditions hold and the chosen components have it.

    Raises ValueError for settings that exclude each other.
    """
    params: dict[str, Any] = {}
    train = spec.trial_train
    for dimension in spec.dimensions:
        if not all(condition.holds(params) for condition in dimension.when):
            continue
        if value_at(train, dimension.path) is MISSING:
            continue
        params[dimension.path] = _suggest(trial, dimension)
        with suppress(ValueError):  # later entries may mend what this one breaks
            train = with_settings(spec.trial_train, params)
    with_settings(spec.trial_train, params)
    return params


def _suggest(trial: Trial, one: Dimension) -> Any:
    if one.kind == "choice":
        return trial.suggest_categorical(one.path, one.choices)
    if one.kind == "int":
        return trial.suggest_int(one.path, int(one.low), int(one.high), log=one.log, step=int(one.step or 1))
    return trial.suggest_float(one.path, float(one.low), float(one.high), log=one.log, step=one.step)


def _seed_of(spec: StudySpec, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{spec.seed} {spec.name} {number}".encode()).digest()[:4])


def sampler_of(spec: StudySpec, number: int, concurrent: bool) -> optuna.samplers.BaseSampler:
    """The sampler of one trial; `concurrent` says that others run beside it."""
    return _SAMPLERS[type(spec.sampler)](spec, number, concurrent)


def _tpe(spec: StudySpec, number: int, concurrent: bool) -> optuna.samplers.BaseSampler:
    assert isinstance(spec.sampler, settings.TPE)
    with warnings.catch_warnings():  # these three are called experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=spec.sampler.startup,
            multivariate=True,
            group=any(one.when for one in spec.dimensions) or _has_components(spec),
            constant_liar=concurrent,
            seed=_seed_of(spec, number),
        )


def _nsga2(spec: StudySpec, number: int, concurrent: bool) -> optuna.samplers.BaseSampler:
    assert isinstance(spec.sampler, settings.NSGA2)
    return optuna.samplers.NSGAIISampler(population_size=spec.sampler.population, seed=_seed_of(spec, number))


# By the class of a sampler's config: what makes the sampler of one trial.
_SAMPLERS: dict[type, Callable[[StudySpec, int, bool], optuna.samplers.BaseSampler]] = {
    settings.TPE: _tpe,
    settings.NSGA2: _nsga2,
    settings.Random: lambda spec, number, _: optuna.samplers.RandomSampler(seed=_seed_of(spec, number)),
    settings.Grid: lambda spec, number, _: _Planned(_grid_point(spec, number)),
    settings.QuasiRandom: lambda spec, number, _: _Planned(_sobol_point(spec, number)),
}


def _has_components(spec: StudySpec) -> bool:
    return any(isinstance(choice, str) for one in spec.dimensions for choice in one.choices)


class _Planned(optuna.samplers.BaseSampler):
    """Suggests a point that depends on the trial's number alone."""

    def __init__(self, point: Mapping[str, Any]) -> None:
        self._point = point

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, distributions.BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, distributions.BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: distributions.BaseDistribution
    ) -> Any:
        return self._point[name]


def _grid_point(spec: StudySpec, number: int) -> dict[str, Any]:
    """The combination with a number, in an order that the study's seed shuffles."""
    values = [one.values() for one in spec.dimensions]
    size = math.prod(map(len, values))
    place = int(np.random.default_rng(spec.seed).permutation(size)[number % size])
    point = {}
    for dimension, choices in zip(spec.dimensions, values, strict=True):
        place, at = divmod(place, len(choices))
        point[dimension.path] = choices[at]
    return point


def _sobol_point(spec: StudySpec, number: int) -> dict[str, Any]:
    sequence = qmc.Sobol(len(spec.dimensions), scramble=True, rng=np.random.default_rng(_seed_of(spec, -1)))
    if number:
        sequence.fast_forward(number)
    place = sequence.random(1)[0]
    return {one.path: _at_place(one, float(u)) for one, u in zip(spec.dimensions, place, strict=True)}


def _at_place(one: Dimension, u: float) -> Any:
    """The value at a place in [0, 1) of a dimension: equal parts have equal chances."""
    if one.countable and not one.log:
        values = one.values()
        return values[min(int(u * len(values)), len(values) - 1)]
    half = 0.5 if one.kind == "int" else 0.0
    low, high = one.low - half, one.high + half
    value = math.exp(math.log(low) + u * math.log(high / low)) if one.log else low + u * (high - low)
    if one.kind == "int":
        return min(max(round(value), int(one.low)), int(one.high))
    return min(max(value, float(one.low)), float(one.high))


def pruner_of(spec: StudySpec) -> optuna.pruners.BasePruner:
    """The pruner of a study."""
    return _PRUNERS[type(spec.pruner)](spec.pruner, spec.train.epochs)


# By the class of a pruner's config: what makes the pruner, given the epochs of a training.
_PRUNERS: dict[type, Callable[[Any, int], optuna.pruners.BasePruner]] = {
    settings.NoPruning: lambda _, epochs: optuna.pruners.NopPruner(),
    settings.Median: lambda one, epochs: optuna.pruners.MedianPruner(one.startup, one.first_epoch - 1),
    settings.SuccessiveHalving: lambda one, epochs: optuna.pruners.SuccessiveHalvingPruner(
        one.first_epoch, one.reduction
    ),
    settings.Hyperband: lambda one, epochs: optuna.pruners.HyperbandPruner(one.first_epoch, epochs, one.reduction),
}


def directions_of(objectives: Iterable[str]) -> list[StudyDirection]:
    """Maximize or minimize, for each objective."""
    maximised = settings.MAXIMISED
    return [StudyDirection.MAXIMIZE if one in maximised else StudyDirection.MINIMIZE for one in objectives]
