"""Parameter importances of a study and Optuna's figures of it, from the ledger's records."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna import distributions
from optuna.trial import FrozenTrial, TrialState

from orchestration.analysis.units import Unit
from orchestration.ledger.study_records import TrialRecord
from orchestration.search.optuna.sampling import directions_of
from orchestration.search.optuna.storage import to_frozen_trial
from orchestration.spec.study import short_names


def in_memory(trials: Iterable[TrialRecord], objectives: Sequence[str]) -> optuna.Study:
    """A study of what the ledger has, with names as short as can be."""
    study = optuna.create_study(directions=directions_of(objectives))
    trials = [trial for trial in trials if trial.end is not None]
    short = short_names(path for trial in trials for path in trial.params)
    for trial in trials:
        named = replace(
            trial,
            params={short[path]: value for path, value in trial.params.items()},
            distributions={short[path]: text for path, text in trial.distributions.items()},
        )
        frozen = to_frozen_trial(named)
        if all(math.isfinite(value) for value in frozen.values or ()):
            study.add_trial(frozen)
    return study


def importances(trials: Iterable[TrialRecord], objectives: Sequence[str]) -> dict[str, float]:
    """How much of the variance of the first objective each setting explains (fANOVA), by path, largest first.

    Nothing where there are too few trials, or settings that no two trials share.
    """
    trials = [trial for trial in trials if trial.state == "COMPLETE"]
    if len(trials) < 4:
        return {}
    paths = {short: path for path, short in short_names(path for trial in trials for path in trial.params).items()}
    study = in_memory(trials, objectives)
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(
            study, evaluator=evaluator, target=lambda trial: trial.values[0]
        )
    except (ValueError, RuntimeError):
        return {}
    return {paths[name]: float(share) for name, share in found.items()}


def _first_value(trial: FrozenTrial) -> float:
    return float(trial.values[0])


def draw_study(trials: Sequence[TrialRecord], objectives: Sequence[str], folder: Path, prefix: str) -> dict[str, Path]:
    """Optuna's pictures of a study, as PNG files by title."""
    import matplotlib  # start-up time

    matplotlib.use("Agg")
    from matplotlib import pyplot  # start-up time

    study = in_memory(trials, objectives)
    if sum(trial.state == TrialState.COMPLETE for trial in study.get_trials(deepcopy=False)) < 2:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for title, draw in _pictures(study, trials, objectives).items():
        with pyplot.rc_context({"text.parse_math": False}), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                axes = np.ravel(draw())
            except (ValueError, RuntimeError):  # too few trials for this one
                pyplot.close("all")
                continue
            _styled(axes, title, objectives[0])
            path = folder / f"{prefix}-{title.lower().replace(' ', '-')}.png"
            axes[0].figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
            pyplot.close("all")
            found[title] = path
    return found


def _pictures(
    study: optuna.Study, trials: Sequence[TrialRecord], objectives: Sequence[str]
) -> dict[str, Callable[[], Any]]:
    """What draws each picture that the study has enough trials and settings for, by title."""
    from optuna.visualization import matplotlib as pictures  # start-up time

    only: dict[str, Any] = {"target": _first_value if len(objectives) > 1 else None, "target_name": objectives[0]}
    wanted: dict[str, Callable[[], Any]] = {
        "History": lambda: pictures.plot_optimization_history(study, **only),
        "Slices": lambda: pictures.plot_slice(study, **only),
    }
    shares = list(importances(trials, objectives))
    if shares:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        wanted["Importances"] = lambda: pictures.plot_param_importances(study, evaluator=evaluator, **only)
    two = _two_settings(study, trials, shares)
    if len(two) == 2:
        wanted["Contour"] = lambda: pictures.plot_contour(study, params=two, **only)
    if any(len(trial.intermediate_values) > 1 for trial in study.get_trials(deepcopy=False)):
        wanted["Rungs"] = lambda: pictures.plot_intermediate_values(study)
    if len(objectives) in (2, 3):
        units = [Unit.of(one) for one in objectives]
        wanted["Pareto front"] = lambda: pictures.plot_pareto_front(
            study,
            target_names=[f"{unit.name} ({unit.value})" if unit.value else unit.name for unit in units],
            targets=lambda trial: [value * unit.factor for value, unit in zip(trial.values, units, strict=True)],
        )
    return wanted


def _two_settings(study: optuna.Study, trials: Sequence[TrialRecord], shares: Sequence[str]) -> list[str]:
    """The short names of two numeric settings, those that explain most first."""
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    numeric = [
        name
        for trial in complete
        for name, one in trial.distributions.items()
        if not isinstance(one, distributions.CategoricalDistribution)
    ]
    short = short_names(path for trial in trials for path in trial.params)
    explaining = [short[path] for path in shares if short[path] in numeric]
    return list(dict.fromkeys([*explaining, *numeric]))[:2]


def _styled(axes: NDArray[Any], title: str, objective: str) -> None:
    from matplotlib.ticker import LogFormatter, NullFormatter  # start-up time

    for one in axes:
        for axis in (one.xaxis, one.yaxis):
            if axis.get_scale() == "log":
                axis.set_major_formatter(LogFormatter())  # without formulas: a `$` in a setting's value begins none
        one.xaxis.set_minor_formatter(NullFormatter())
        if title in ("Rungs", "Importances") and one.get_legend() is not None:
            one.get_legend().remove()
        if title == "Rungs":
            one.set_title("Means at the rungs")
            one.set_xlabel("epoch")
            one.set_ylabel(objective)
    width, height = (min(3.2 * np.size(axes), 18), 3.6) if title == "Slices" else (6.4, 4.2)
    axes[0].figure.set_size_inches(width, height)
