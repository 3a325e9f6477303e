"""The report of searches: trials, importances, how well rungs rank, the choice, and warnings."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestration.analysis.units import Unit
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.study_records import StudyRecords, TrialRecord
from orchestration.report.figures import Drawing
from orchestration.report.search_figures import SearchFigures, plain_value, settings_text
from orchestration.spec.search_config import MAXIMISED
from orchestration.spec.study import short_names

_SHOWN, _SHOWN_OF_A_FRONT = 10, 30
_BEST = "The best trials that were trained to the end."
_FRONT = (
    "The Pareto front: {n} trials that were trained to the end, and than which none is better in one objective without "
    "being worse in another."
)


@dataclass(frozen=True)
class RungCorrelation:
    """How well a rung ranks what came to the end: Spearman's ρ between the mean there and the final mean, over n."""

    epoch: int
    rho: float
    n: int
    pruned: int

    @property
    def text(self) -> str:
        rho = "too few to tell" if math.isnan(self.rho) else f"ρ = {self.rho:.2f}".replace("-", "−")
        return f"{rho} (n = {self.n}; {self.pruned} stopped there)"


@dataclass(frozen=True)
class StudySection:
    """One study, as the page shows it."""

    name: str
    summary: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    about_rows: str
    rungs: tuple[RungCorrelation, ...]
    choice: tuple[str, ...]
    warnings: tuple[str, ...]
    importances: tuple[tuple[str, float], ...]
    figures: SearchFigures

    @property
    def trials(self) -> Sequence[TrialRecord]:
        return self.figures.trials

    @property
    def complete(self) -> int:
        """Trials that were trained to the end."""
        return sum(trial.state == "COMPLETE" for trial in self.trials)

    def draw(self) -> dict[str, Drawing]:
        """The figures, by title."""
        return self.figures.draw()


def sections(ledger: Ledger, spec: Mapping[str, Any]) -> list[StudySection]:
    """One for each study of a recorded spec that has begun."""
    found = []
    for study in spec.get("studies", ()):
        records = StudyRecords(ledger, study["name"])
        trials = records.trials()
        if trials:
            found.append(_section(study, trials, records.choices()))
    return found


def _section(
    study: Mapping[str, Any], trials: Sequence[TrialRecord], choices: Sequence[Mapping[str, Any]]
) -> StudySection:
    from orchestration.search.optuna.importances import importances  # start-up time

    objectives = tuple(study["objectives"])
    best = _ranked(trials, objectives[0])
    front = pareto_front(best, objectives)
    shares = importances(trials, objectives)
    short = short_names(path for trial in trials for path in trial.params)
    return StudySection(
        name=study["name"],
        summary=_summary(study, trials),
        header=("trial", *(Unit.of(one).name for one in objectives), "settings"),
        rows=tuple(
            _row(trial, objectives, short)
            for trial in (best[:_SHOWN] if len(objectives) == 1 else front[:_SHOWN_OF_A_FRONT])
        ),
        about_rows=_BEST if len(objectives) == 1 else _FRONT.format(n=len(front)),
        rungs=tuple(rung_correlations(trials)),
        choice=tuple(_choice(choices, short)),
        warnings=tuple(_warnings(choices, trials, best)),
        importances=tuple((short[path], share) for path, share in shares.items()),
        figures=SearchFigures(study["name"], trials, objectives, study["space"], short, shares, front),
    )


def _summary(study: Mapping[str, Any], trials: Sequence[TrialRecord]) -> str:
    own = [trial for trial in trials if trial.origin is None]
    states = Counter(trial.state for trial in own)
    names = {"COMPLETE": "trained to the end", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "under way"}
    counted = ", ".join(f"{states[state]} {name}" for state, name in names.items() if states[state])
    taken = f"; {len(trials) - len(own)} more are taken over from an earlier search" if len(own) < len(trials) else ""
    seeds = ", ".join(map(str, study["seeds"]))
    judged = f"the mean over seeds {seeds}" if len(study["seeds"]) > 1 else f"seed {seeds} alone"
    sampler, pruner = study["sampler"]["name"].replace("_", " "), study["pruner"]["name"].replace("_", " ")
    return (
        f"{len(own)} of {study['trials']} trials: {counted}{taken}. Each is judged by {judged}, on validation images "
        f"or training figures; no trial has seen a test image. Sampler: {sampler}; pruning: {pruner}."
    )


def _ranked(trials: Iterable[TrialRecord], objective: str) -> list[TrialRecord]:
    complete = [trial for trial in trials if trial.state == "COMPLETE" and trial.end is not None]
    sign = -1 if objective in MAXIMISED else 1
    return sorted(complete, key=lambda trial: (sign * (trial.end or {})["values"][0], trial.number))


def pareto_front(trials: Iterable[TrialRecord], objectives: Sequence[str]) -> list[TrialRecord]:
    """Those of some complete trials that no other is better than in one objective and as good in the rest."""
    signs = [-1 if objective in MAXIMISED else 1 for objective in objectives]
    costs = [
        (trial, tuple(sign * value for sign, value in zip(signs, (trial.end or {})["values"], strict=True)))
        for trial in trials
    ]
    return [
        trial
        for trial, cost in costs
        if not any(other != cost and all(a <= b for a, b in zip(other, cost, strict=True)) for _, other in costs)
    ]


def _row(trial: TrialRecord, objectives: Sequence[str], short: Mapping[str, str]) -> tuple[str, ...]:
    values = (trial.end or {})["values"]
    written = [
        f"{Unit.of(objective).write(value)} {Unit.of(objective).value}".strip()
        for objective, value in zip(objectives, values, strict=True)
    ]
    return (str(trial.number), *written, settings_text(trial.params, short))


def rung_correlations(trials: Iterable[TrialRecord]) -> Iterable[RungCorrelation]:
    """For each rung, over the trials that were trained to the end."""
    from scipy import stats  # start-up time

    trials = list(trials)
    for epoch in sorted({epoch for trial in trials for epoch in trial.rungs}):
        pairs = [
            (trial.intermediate[epoch], trial.end["values"][0])
            for trial in trials
            if trial.state == "COMPLETE" and trial.end is not None and epoch in trial.rungs
        ]
        at, final = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
        ranks = len(pairs) > 2 and len(set(at)) > 1 and len(set(final)) > 1
        rho = float(stats.spearmanr(at, final).statistic) if ranks else math.nan
        pruned = sum(bool(trial.rungs[epoch]["pruned"]) for trial in trials if epoch in trial.rungs)
        yield RungCorrelation(epoch, rho, len(pairs), pruned)


def _choice(choices: Sequence[Mapping[str, Any]], short: Mapping[str, str]) -> Iterable[str]:
    if not choices:
        return
    last = choices[-1]
    unit = Unit.of(last["objective"])
    seeds = len(next(iter(last["candidates"].values())))
    means = {number: float(np.mean(list(by_seed.values()))) for number, by_seed in last["candidates"].items()}
    written = ", ".join(f"trial {number}: {unit.write(mean)} {unit.value}".rstrip() for number, mean in means.items())
    yield (
        f"Trained anew with {seeds} fresh seeds ({unit.name}, mean): {written}. "
        f"Chosen by that: trial {last['chosen']} ({settings_text(last['params'], short)}). "
        "The test images were then looked at, for it alone."
    )


def _warnings(
    choices: Sequence[Mapping[str, Any]], trials: Sequence[TrialRecord], best: Sequence[TrialRecord]
) -> Iterable[str]:
    if choices:
        for path, end in choices[-1]["at_bound"].items():
            value = plain_value(choices[-1]["params"][path])
            yield f"The chosen {path}, {value}, lies at the {end} end of its range: the best may lie beyond it."
    opened = list(dict.fromkeys(choice["chosen"] for choice in choices))
    if len(opened) > 1:
        yield (
            f"The test images were looked at {len(opened)} times, as the search was extended: first for trial "
            f"{opened[0]}, last for trial {opened[-1]}. The last is no longer an untouched estimate."
        )
    if choices and choices[-1]["trials"] < len(trials):
        then = choices[-1]["trials"]
        yield f"The choice was made after {then} trials; {len(trials) - then} came later."
    failed = [trial for trial in trials if trial.state == "FAIL"]
    if failed:
        reason = (failed[0].end or {})["reason"]
        yield f"{len(failed)} trials failed, and the sampler was told so, such as {failed[0].number}: {reason}"
    if trials and not best and all(trial.end for trial in trials):
        yield "No trial was trained to its end: there is nothing to choose from."
