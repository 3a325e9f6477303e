"""How much each setting of a search explains, from the ledger's records."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import optuna

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
