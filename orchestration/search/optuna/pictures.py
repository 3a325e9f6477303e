"""What a study shows: which settings matter, and Optuna's pictures of it, all from what the ledger has."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
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
    from matplotlib.ticker import NullFormatter  # start-up time
    from optuna.visualization import matplotlib as pictures  # start-up time

    study, first = in_memory(trials, objectives), objectives[0]
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    if len(complete) < 2:
        return {}
    numeric = {
        name: complete
        for trial in complete
        for name, one in trial.distributions.items()
        if not isinstance(one, distributions.CategoricalDistribution)
    }
    shares = list(importances(trials, objectives))
    short = short_names(path for trial in trials for path in trial.params)
    two = [name for name in (short[path] for path in shares) if name in numeric][:2]
    two += [name for name in numeric if name not in two][: 2 - len(two)]

    only: dict[str, Any] = {"target": _first_value if len(objectives) > 1 else None, "target_name": first}
    wanted: dict[str, Callable[[], Any]] = {
        "History": lambda: pictures.plot_optimization_history(study, **only),
        "Slices": lambda: pictures.plot_slice(study, **only),
    }
    if shares:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        wanted["Importances"] = lambda: pictures.plot_param_importances(study, evaluator=evaluator, **only)
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
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for title, draw in wanted.items():
        with pyplot.rc_context(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                axes = draw()
            except (ValueError, RuntimeError):  # too few trials for this one
                pyplot.close("all")
                continue
            figure = np.ravel(axes)[0].figure
            for one in np.ravel(axes):
                one.xaxis.set_minor_formatter(NullFormatter())
                if title in ("Rungs", "Importances") and one.get_legend() is not None:
                    one.get_legend().remove()
                if title == "Rungs":
                    one.set_title("Means at the rungs")
                    one.set_xlabel("epoch")
                    one.set_ylabel(first)
            figure.set_size_inches(6.4, 4.2)
            if title == "Slices":
                figure.set_size_inches(min(3.2 * np.size(axes), 18), 3.6)
            path = folder / f"{prefix}-{title.lower().replace(' ', '-')}.png"
            figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
            pyplot.close("all")
            found[title] = path
    return found
