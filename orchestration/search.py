"""Optuna as a servant: it suggests settings and says what to stop; the ledger remembers, Ray Tune only places cells.

A trial is one setting, trained once with each of the study's seeds: each is a cell of the ledger like any other, with
the test images closed (`test: never`). A rung is an epoch after which a trial may be stopped: its cells pause there,
and when all of them have come, the mean over the seeds is reported to Optuna, whose pruner says whether they go on. So
trials are compared at the same epoch, over the same seeds, and a trial that is stopped has trained to its rung exactly.

A trial that was stopped is told to Optuna as PRUNED with its values so far, one of which a seed failed as FAIL; a seed
that diverged counts as in a table: accuracy 0, an infinite loss. Every suggestion is drawn with a seed made of the
study's and the trial's number: one at a time, they are the same ones whether or not the driver died in between.
Optuna's study is kept in its own storage for others to look at; where that is lost, it is made anew from the ledger.

When the budget is spent, the `best` trials are trained anew with the table's seeds, test closed; the one with the best
mean validation is chosen, the choice written down, and only then are the test images looked at, for that one alone.
"""

import hashlib
import itertools
import json
import math
import socket
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna import distributions
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from fsg.trainer import TrainConfig
from orchestration import search_settings as settings
from orchestration.judgement import Unit
from orchestration.ledger import Ledger
from orchestration.passwords import without_password
from orchestration.peak_memory import METRIC as PEAK_MEMORY
from orchestration.plan import Cell, Leg, cells_of, steps_per_epoch
from orchestration.search_settings import Dimension, StudySpec, short_names, value_at, with_settings
from orchestration.specs import ExperimentSpec
from orchestration.study_records import SearchError, StudyRecords, TrialRecord, described, without

optuna.logging.set_verbosity(optuna.logging.ERROR)

_WARM_TRIED = 5  # of an earlier search that cannot be taken over, so many of its best settings are tried first


@dataclass
class _Running:
    """A trial under way."""

    record: TrialRecord
    cells: tuple[Cell, ...]
    reported: dict[int, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class Searches:
    """The studies of an experiment as one source of work: the one with the fewest trials so far asks next.

    `at_a_time` says how many cells may be out at once, `pruned` is told the cells of a trial that is stopped.
    """

    def __init__(
        self,
        spec: ExperimentSpec,
        ledger: Ledger,
        *,
        storage: str | None = None,
        at_a_time: int = 1,
        pruned: Callable[[Sequence[Cell]], None] = lambda cells: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._url = storage or spec.study_storage
        shared = _Shared(ledger, set(), {}, pruned, say)
        self.studies = [Study(one, spec.folder_name, shared, self._url, at_a_time > 1) for one in spec.studies]

    def more(self) -> Sequence[Leg]:
        """Work for a free place; none: wait, or nothing is left. Raises SearchError where the storage is lost."""
        with self._storage_is_there():
            for study in sorted(self.studies, key=lambda study: study.begun):
                legs = study.more()
                if legs:
                    return legs
        return []

    def ended(self, cell: Cell, state: str, reason: str) -> None:
        """A cell from here is no longer trained. Raises SearchError where the storage is lost."""
        with self._storage_is_there():
            for study in self.studies:
                study.ended(cell, state, reason)

    @contextmanager
    def _storage_is_there(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise _unkept(self._url or "", error.__cause__ or error) from error

    @property
    def finished(self) -> bool:
        return all(study.finished for study in self.studies)

    @property
    def unsettled(self) -> list[str]:
        """The studies that have not come to their end, and to a choice where one is to be made."""
        return [study.spec.name for study in self.studies if not study.settled]


@dataclass
class _Shared:
    """What the studies of an experiment have in common; `out` are the cells that were handed out."""

    ledger: Ledger
    out: set[str]
    failed: dict[str, str]
    pruned: Callable[[Sequence[Cell]], None]
    say: Callable[[str], None]


class Study:
    """One study. Opening it makes Optuna's record agree with the ledger's.

    Raises SearchError where the storage cannot be had.
    """

    def __init__(self, spec: StudySpec, experiment: str, shared: _Shared, url: str | None, concurrent: bool) -> None:
        self.spec, self._shared, self._ledger = spec, shared, shared.ledger
        self._concurrent = concurrent
        self.records = StudyRecords(self._ledger, spec.name)
        if self.records.description() is None:
            self.records.begin(described(spec))
        self._steps = steps_per_epoch(spec.train)
        self._trials = self.records.trials()
        self._budget = spec.trials
        if isinstance(spec.sampler, settings.Grid):
            self._budget = min(self._budget, math.prod(len(one.values()) for one in spec.dimensions))
        if not self._trials and spec.warm_start:
            self._take_over(Path(spec.warm_start))
        name = experiment + (f"/{spec.name}" if spec.name != "tuned" else "")
        self.study = _opened(name, spec, self.records, url, self._trials)
        self._first = self._to_try_first()
        self._running: dict[int, _Running] = {}
        self._stopped: dict[str, int] = {}  # cells that are out, by the epoch after which their trial was stopped
        self._ready: deque[Leg] = deque()
        self._confirmed = self._stuck = False
        self._news = True  # since it was last asked for what is to be confirmed
        for record in self._trials:
            if record.state == "PRUNED" and record.rungs:  # the driver may have died before all of its cells were told
                self._mark_pruned(record.cells.values(), max(record.rungs))
        for record in self._trials:
            if record.end is None:
                self._begin(record)

    # the queue's questions

    @property
    def begun(self) -> int:
        """Trials of its own that were begun."""
        return sum(record.origin is None for record in self._trials)

    @property
    def finished(self) -> bool:
        return self.settled or self._stuck

    @property
    def settled(self) -> bool:
        return self._confirmed and not self._ready

    def more(self) -> list[Leg]:
        if not self._ready and self.begun < self._budget:
            self._ask()
        searched = not self._running and self.begun >= self._budget
        if not self._ready and searched and self._news and not self._confirmed:
            self._news = False
            self._confirm()
        legs = list(self._ready)
        self._ready.clear()
        return legs

    def ended(self, cell: Cell, state: str, reason: str) -> None:
        self._shared.out.discard(cell.id)
        self._news = True
        if state == "failed":
            self._shared.failed[cell.id] = reason
        if cell.id in self._stopped:
            self._mark_pruned([cell.id], self._stopped.pop(cell.id))
        for running in list(self._running.values()):
            if any(cell.id == one.id for one in running.cells):
                self._advance(running)

    # asking

    def _ask(self) -> None:
        number = len(self._trials)
        self.study.sampler = _sampler(self.spec, number, self._concurrent)
        in_storage = self.study.get_trials(deepcopy=False)
        waiting = [trial for trial in in_storage if trial.state == TrialState.WAITING]
        if len(in_storage) > number and in_storage[number].state == TrialState.RUNNING:
            trial = Trial(self.study, in_storage[number]._trial_id)  # asked for, when the driver died
        else:
            if self.begun < len(self._first) and not waiting:
                self.study.enqueue_trial(self._first[self.begun])
            trial = self.study.ask()
        reason, train = "", self.spec.trial_train
        try:
            params, train = _suggested(trial, self.spec)
        except ValueError as error:
            params, reason = dict(trial.params), " ".join(str(error).split())[:300]
        made = [] if reason else self._cells(train, "trial", number, self.spec.seeds)
        frozen = self.study._storage.get_trial(trial._trial_id)
        record = TrialRecord(
            number=trial.number,
            params=params,
            distributions={name: distributions.distribution_to_json(one) for name, one in frozen.distributions.items()},
            cells={cell.seed: cell.id for _, cell in made},
            attributes=dict(frozen.system_attrs),
            origin=None,
        )
        self.records.add(record)
        self._trials.append(record)
        if reason:
            self._shared.say(f"{self.spec.name} · trial {number}: the settings exclude each other: {reason}")
            self._end(record, TrialState.FAIL, None, reason)
        else:
            self._begin(record)

    def _cells(
        self, train: TrainConfig, kind: Any, number: int, seeds: Iterable[int]
    ) -> list[tuple[Cell | None, Cell]]:
        """The cells of a setting, each with the pretraining that it waits for."""
        found = []
        for seed in seeds:
            pretraining, cell = cells_of(train, kind, self.spec.name, {"trial": number}, seed)
            shared, _ = cells_of(self.spec.trial_train, kind, self.spec.name, {}, seed)
            if pretraining is not None and shared is not None and pretraining.id != shared.id:
                pretraining = replace(pretraining, variant=f"pretrain for {self.spec.name}", grid={"trial": number})
            of_the_table, _ = cells_of(replace(train, test="end"), kind, self.spec.name, {}, seed)
            if of_the_table is not None and self._is_known(of_the_table):  # its weights are the same
                pretraining, cell = of_the_table, replace(cell, depends_on=of_the_table.id)
            found.append((pretraining, cell))
        return found

    def _begin(self, record: TrialRecord) -> None:
        train = with_settings(self.spec.trial_train, record.params)
        made = self._cells(train, "trial", record.number, record.cells)
        self._enter(made)
        cells = tuple(cell for _, cell in made)
        running = _Running(record, cells, dict(record.intermediate))
        self._running[record.number] = running
        self._advance(running)

    def _enter(self, made: Sequence[tuple[Cell | None, Cell]]) -> None:
        """Put cells into the ledger, and the pretrainings that are missing out."""
        for pretraining, cell in made:
            for one in (pretraining, cell):
                if one is not None and not self._is_known(one):
                    self._ledger.add(one)
            if pretraining is not None and self._ledger.outcome(pretraining.id).state not in ("done", "diverged"):
                self._hand_out(Leg(pretraining))

    def _is_known(self, cell: Cell) -> bool:
        with suppress(KeyError):
            self._ledger.cell(cell.id)
            return True
        return False

    def _hand_out(self, leg: Leg) -> None:
        if leg.cell.id not in self._shared.out:
            self._shared.out.add(leg.cell.id)
            self._ready.append(leg)

    # deciding

    def _advance(self, running: _Running) -> None:
        """Report what is known, decide what can be decided, and hand out what is left to be trained."""
        failed = next((cell for cell in running.cells if cell.id in self._shared.failed), None)
        if failed is not None:
            self._end(running.record, TrialState.FAIL, None, f"seed {failed.seed}: {self._shared.failed[failed.id]}")
            return
        for rung in self.spec.rungs:
            if rung not in running.reported:
                values = [self._value(cell, self.spec.objectives[0], rung) for cell in running.cells]
                if None in values and self._is_over(running):
                    self._end_without(running, self.spec.objectives[0])
                    return
                if None in values:
                    self._go_on(running, rung)
                    return
                if self._decide(running, rung, _mean(values)):
                    return
        if not self._is_over(running):
            self._go_on(running, None)
            return
        found = {
            objective: [self._value(cell, objective, self.spec.train.epochs) for cell in running.cells]
            for objective in self.spec.objectives
        }
        missing = next((objective for objective, values in found.items() if None in values), None)
        if missing is None:
            self._end(running.record, TrialState.COMPLETE, [_mean(values) for values in found.values()], "")
        else:
            self._end_without(running, missing)

    def _is_over(self, running: _Running) -> bool:
        return all(self._ledger.outcome(cell.id).state in ("done", "diverged") for cell in running.cells)

    def _end_without(self, running: _Running, objective: str) -> None:
        self._end(running.record, TrialState.FAIL, None, f"{objective} was not recorded of its cells")

    def _go_on(self, running: _Running, rung: int | None) -> None:
        until = None if rung is None else rung * self._steps
        for cell in running.cells:
            outcome = self._ledger.outcome(cell.id)
            there = until is not None and self._value(cell, self.spec.objectives[0], rung or 0) is not None
            if outcome.state not in ("done", "diverged") and not there:
                self._hand_out(Leg(cell, until))

    def _decide(self, running: _Running, rung: int, value: float) -> bool:
        """Whether the trial is stopped at a rung; then it is told so."""
        running.reported[rung] = value
        number = running.record.number
        pruned = _reported(self.study, self.spec, number, rung, value)
        attributes = _attributes(self.study, number)
        self.records.add_rung(number, rung, value, pruned, attributes)
        rungs = self._trials[number].rungs | {rung: {"value": value, "pruned": pruned, "attributes": attributes}}
        self._trials[number] = replace(self._trials[number], rungs=rungs)
        if pruned:
            self._stop(running, rung)
        return pruned

    def _stop(self, running: _Running, rung: int) -> None:
        """What a worker kept at the rung can be seen before it is heard of: its cell is out until it is."""
        self._stopped |= {cell.id: rung for cell in running.cells if cell.id in self._shared.out}
        self._mark_pruned([cell.id for cell in running.cells if cell.id not in self._stopped], rung)
        self._shared.pruned(running.cells)
        self._end(running.record, TrialState.PRUNED, None, f"after epoch {rung}")

    def _mark_pruned(self, cell_ids: Iterable[str], rung: int) -> None:
        for cell_id in cell_ids:
            if self._ledger.outcome(cell_id).state in ("waiting", "running", "interrupted"):
                with suppress(OSError):
                    attempt = self._ledger.claim(cell_id, {"device": "", "by": "driver"})
                    attempt.finish("pruned", f"pruned after epoch {rung}", seconds=0.0)

    def _end(self, record: TrialRecord, state: TrialState, values: Sequence[float] | None, reason: str) -> None:
        """The ledger first, then Optuna: what is told to the one alone is told to the other at the next opening."""
        self._running.pop(record.number, None)
        attributes = _attributes(self.study, record.number)
        self.records.end(record.number, state.name, values, reason, attributes)
        end = {"state": state.name, "values": values, "reason": reason, "attributes": attributes}
        self._trials[record.number] = replace(self._trials[record.number], end=end)
        _tell(self.study, record.number, state, values)

    def _value(self, cell: Cell, objective: str, epoch: int) -> float | None:
        return value_after(self._ledger, cell, objective, epoch, self._steps)

    # choosing

    def _confirm(self) -> None:
        """Train the best anew with fresh seeds, choose one by validation, then open its test images."""
        best = ranked(self.spec, self._trials)[: self.spec.best]
        if not best:
            self._confirmed = True
            return
        candidates: dict[int, list[Cell]] = {}
        left = False
        for record in best:
            train = with_settings(self.spec.trial_train, record.params)
            made = self._cells(train, "candidate", record.number, self.spec.table_seeds)
            self._enter(made)
            candidates[record.number] = [cell for _, cell in made]
            left = self._train(candidates[record.number]) or left
        if left or self._stuck:
            return
        chosen = self._choice(candidates)
        if chosen is None:
            self._stuck = True
            return
        finals = []
        for candidate in candidates[chosen]:
            train = replace(candidate.train, test="end")
            _, cell = cells_of(train, "train", self.spec.name, {}, candidate.seed)
            finals.append(replace(cell, depends_on=candidate.depends_on, continues=candidate.id))
        self._keep_choice(chosen, candidates, finals)
        for cell in finals:
            if not self._is_known(cell):  # where the chosen settings are the untuned ones, it is there already
                self._ledger.add(cell)
        if not self._train(finals):
            self._confirmed = not any(cell.id in self._shared.failed for cell in finals)

    def _train(self, cells: Sequence[Cell]) -> bool:
        """Hand out what is not over; whether anything is left to wait for."""
        left = False
        for cell in cells:
            if cell.id in self._shared.failed:
                self._stuck = True
            elif self._ledger.outcome(cell.id).state not in ("done", "diverged"):
                self._hand_out(Leg(cell))
                left = True
        return left

    def _choice(self, candidates: Mapping[int, Sequence[Cell]]) -> int | None:
        objective = self.spec.objectives[0]
        means: dict[int, float] = {}
        for number, cells in candidates.items():
            values = [self._value(cell, objective, self.spec.train.epochs) for cell in cells]
            if any(value is None for value in values):  # one of them failed: there is nothing to choose from
                return None
            means[number] = _mean(values)
        sign = -1 if objective in settings.MAXIMISED else 1
        return min(means, key=lambda number: (sign * means[number], number))

    def _keep_choice(self, chosen: int, candidates: Mapping[int, Sequence[Cell]], finals: Sequence[Cell]) -> None:
        objective, epochs = self.spec.objectives[0], self.spec.train.epochs
        record = {
            "trials": len(self._trials),
            "chosen": chosen,
            "params": self._trials[chosen].params,
            "objective": objective,
            "candidates": {
                str(number): {cell.seed: self._value(cell, objective, epochs) for cell in cells}
                for number, cells in candidates.items()
            },
            "candidate_cells": [cell.id for cells in candidates.values() for cell in cells],
            "cells": [cell.id for cell in finals],
            "at_bound": at_bounds(self.spec.dimensions, self._trials[chosen].params),
        }
        record = json.loads(json.dumps(record))
        if record not in self.records.choices()[-1:]:
            self.records.choose(record)

    # what comes first

    def _to_try_first(self) -> list[dict[str, Any]]:
        """The variant as it stands; then, of an earlier search that could not be taken over, its best settings."""
        if isinstance(self.spec.sampler, settings.Grid):
            return []
        first = [self.spec.defaults()]
        if self.spec.warm_start and not any(record.origin for record in self._trials):
            earlier = _earlier(Path(self.spec.warm_start), self.spec)
            best = ranked(self.spec, earlier[1])[:_WARM_TRIED] if earlier else []
            paths = {dimension.path for dimension in self.spec.dimensions}
            first += [{path: v for path, v in record.params.items() if path in paths} for record in best]
        return first

    def _take_over(self, folder: Path) -> None:
        """The complete trials of an earlier search, where they are comparable and lie in the space."""
        earlier = _earlier(folder, self.spec)
        if earlier is None:
            raise SearchError(f"search.warm_start: {folder} has no search (expected an experiment's folder of results)")
        before, trials = earlier
        now = json.loads(json.dumps(described(self.spec)))
        if any(before[key] != now[key] for key in ("objectives", "seeds", "data", "numerics")):
            return
        if without(before["train"], now["space"]) != without(now["train"], before["space"]):
            return
        for record in trials:
            spaces = distributions_of(self.spec)
            inside = all(path in spaces and _is_in(spaces[path], value) for path, value in record.params.items())
            if record.state == "COMPLETE" and inside and record.end is not None:
                number = len(self._trials)
                in_space = {path: distributions.distribution_to_json(spaces[path]) for path in record.params}
                origin = f"{folder}, trial {record.number}"
                mine = TrialRecord(number, record.params, in_space, record.cells, {}, origin)
                self.records.add(mine)
                for epoch, value in record.intermediate.items():
                    self.records.add_rung(number, epoch, value, False, record.rungs[epoch]["attributes"])
                self.records.end(number, "COMPLETE", record.end["values"], "", record.last_attributes)
                self._trials = self.records.trials()


def _earlier(folder: Path, spec: StudySpec) -> tuple[dict[str, Any], list[TrialRecord]] | None:
    """Description and trials of the study in another experiment's folder that goes by the same name."""
    records = StudyRecords(Ledger(folder), spec.name)
    description = records.description()
    return None if description is None else (description, records.trials())


def _is_in(distribution: distributions.BaseDistribution, value: Any) -> bool:
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except ValueError:
        return False


# Values


def value_after(ledger: Ledger, cell: Cell, objective: str, epoch: int, steps: int) -> float | None:
    """An objective of a cell after an epoch of so many steps; None where the cell has not come there.

    A cell that diverged before counts as a loss: accuracy 0, everything else infinite.
    """
    at = epoch * steps
    rows = [row for row in ledger.rows(cell.id) if row.step <= at]
    outcome = ledger.outcome(cell.id)
    reached = outcome.step >= at
    if objective == "time/step":
        times = [(row.step, row.values["time/train_seconds"]) for row in rows if "time/train_seconds" in row.values]
        found = times[-1][1] / times[-1][0] if times and times[-1][0] and reached else None
    elif objective == "memory/peak":
        peaks = [row.values[PEAK_MEMORY] for row in rows if PEAK_MEMORY in row.values]
        found = max(peaks) if peaks and reached else None
    elif objective == "train/loss":
        losses = [row.values[objective] for row in rows if objective in row.values]
        found = losses[-1] if losses and reached else None
    else:
        seen = [row.values[objective] for row in rows if row.step == at and objective in row.values]
        found = seen[-1] if seen else None
    if found is None and outcome.state == "diverged":
        return 0.0 if objective in settings.MAXIMISED else math.inf
    return found


def _mean(values: Sequence[float | None]) -> float:
    return float(np.mean([value for value in values if value is not None]))


def ranked(spec: StudySpec, trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The complete trials, best first by the first objective; of equal settings the first alone."""
    sign = -1 if spec.objectives[0] in settings.MAXIMISED else 1
    found: dict[str, TrialRecord] = {}
    complete = [record for record in trials if record.state == "COMPLETE" and record.end is not None]
    for record in sorted(complete, key=lambda one: (sign * (one.end or {})["values"][0], one.number)):
        found.setdefault(json.dumps(record.params, sort_keys=True), record)
    return list(found.values())


def at_bounds(dimensions: Iterable[Dimension], params: Mapping[str, Any]) -> dict[str, str]:
    """Which settings lie at an end of their range that the field itself does not set, and which end."""
    return {one.path: end for one in dimensions if one.path in params and (end := one.at_bound(params[one.path]))}


# Optuna


def distributions_of(spec: StudySpec) -> dict[str, distributions.BaseDistribution]:
    """Optuna's words for the space."""
    return {one.path: _distribution(one) for one in spec.dimensions}


def _distribution(one: Dimension) -> distributions.BaseDistribution:
    if one.kind == "choice":
        return distributions.CategoricalDistribution(one.choices)
    if one.kind == "int":
        return distributions.IntDistribution(int(one.low), int(one.high), log=one.log, step=int(one.step or 1))
    return distributions.FloatDistribution(float(one.low), float(one.high), log=one.log, step=one.step)


def _suggested(trial: Trial, spec: StudySpec) -> tuple[dict[str, Any], TrainConfig]:
    """Settings, entry by entry, each where its conditions hold and the components chosen have it.

    Raises ValueError for settings that exclude each other.
    """
    params: dict[str, Any] = {}
    train = spec.trial_train
    for dimension in spec.dimensions:
        if not all(condition.holds(params) for condition in dimension.when):
            continue
        if value_at(train, dimension.path) is settings.MISSING:
            continue
        params[dimension.path] = _suggest(trial, dimension)
        with suppress(ValueError):  # later entries may mend what this one breaks
            train = with_settings(spec.trial_train, params)
    return params, with_settings(spec.trial_train, params)


def _suggest(trial: Trial, one: Dimension) -> Any:
    if one.kind == "choice":
        return trial.suggest_categorical(one.path, one.choices)
    if one.kind == "int":
        return trial.suggest_int(one.path, int(one.low), int(one.high), log=one.log, step=int(one.step or 1))
    return trial.suggest_float(one.path, float(one.low), float(one.high), log=one.log, step=one.step)


def _seed_of(spec: StudySpec, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{spec.seed} {spec.name} {number}".encode()).digest()[:4])


def _sampler(spec: StudySpec, number: int, concurrent: bool) -> optuna.samplers.BaseSampler:
    """The sampler of one trial."""
    seed, chosen = _seed_of(spec, number), spec.sampler
    if isinstance(chosen, settings.TPE):
        conditional = any(one.when for one in spec.dimensions) or _has_components(spec)
        with warnings.catch_warnings():  # these three are called experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                n_startup_trials=chosen.startup,
                multivariate=True,
                group=conditional,
                constant_liar=concurrent,
                seed=seed,
            )
    if isinstance(chosen, settings.NSGA2):
        return optuna.samplers.NSGAIISampler(population_size=chosen.population, seed=seed)
    if isinstance(chosen, settings.Grid):
        return _Planned(_grid_point(spec, number))
    if isinstance(chosen, settings.QuasiRandom):
        return _Planned(_sobol_point(spec, number))
    return optuna.samplers.RandomSampler(seed=seed)


def _has_components(spec: StudySpec) -> bool:
    return any(isinstance(choice, str) for one in spec.dimensions for choice in one.choices)


class _Planned(optuna.samplers.BaseSampler):
    """Suggests a point that hangs on the trial's number alone."""

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
    from scipy.stats import qmc

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


def _pruner(spec: StudySpec) -> optuna.pruners.BasePruner:
    chosen = spec.pruner
    if isinstance(chosen, settings.Median):
        return optuna.pruners.MedianPruner(chosen.startup, chosen.first_epoch - 1)
    if isinstance(chosen, settings.SuccessiveHalving):
        return optuna.pruners.SuccessiveHalvingPruner(chosen.first_epoch, chosen.reduction)
    if isinstance(chosen, settings.Hyperband):
        return optuna.pruners.HyperbandPruner(chosen.first_epoch, spec.train.epochs, chosen.reduction)
    return optuna.pruners.NopPruner()


def _directions(spec: StudySpec) -> list[StudyDirection]:
    maximised = settings.MAXIMISED
    return [StudyDirection.MAXIMIZE if o in maximised else StudyDirection.MINIMIZE for o in spec.objectives]


def _opened(
    name: str, spec: StudySpec, records: StudyRecords, url: str | None, trials: Sequence[TrialRecord]
) -> optuna.Study:
    """Optuna's study, as it is where it agrees with the ledger, made anew where it does not."""
    try:
        storage: Any = _journal(records.journal) if url is None else optuna.storages.RDBStorage(_sqlalchemy(url))
        if url is not None:  # others may have an experiment of that name there
            owner = f"{socket.gethostname()} {records.folder.resolve()}"
            name = f"{name} ({hashlib.sha256(owner.encode()).hexdigest()[:6]})"
        study = _created(name, spec, storage)
        if not _agrees(study, trials):
            if url is None:
                _put_aside(records.journal)
                storage = _journal(records.journal)
            else:
                optuna.delete_study(study_name=name, storage=storage)
            study = _created(name, spec, storage)
    except Exception as error:
        raise _unkept(url or str(records.journal), error) from error
    _filled(study, spec, trials)
    return study


def _unkept(where: str, error: BaseException) -> SearchError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return SearchError(without_password(f"the study cannot be kept in {where}: {reason}"))


def _sqlalchemy(url: str) -> str:
    """psycopg2 is what is installed; SQLAlchemy would look for its successor."""
    return url.replace("postgresql://", "postgresql+psycopg2://", 1)


def _journal(path: Path) -> optuna.storages.JournalStorage:
    """The journal in the results, of which this process is the only writer; a damaged one is put aside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):
        _put_aside(path)  # cut short: what is appended to it would be lost
    for left in path.parent.glob(f"{path.name}.lock*"):  # a driver that was killed may have held it
        left.unlink(missing_ok=True)
    try:
        return optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    except Exception:
        _put_aside(path)
        return optuna.storages.JournalStorage(JournalFileBackend(str(path)))


def _put_aside(path: Path) -> None:
    taken = next(n for n in itertools.count(1) if not path.with_name(f"{path.name}.damaged-{n}").exists())
    with suppress(FileNotFoundError):
        path.rename(path.with_name(f"{path.name}.damaged-{taken}"))


def _created(name: str, spec: StudySpec, storage: Any) -> optuna.Study:
    study = optuna.create_study(
        study_name=name, storage=storage, directions=_directions(spec), pruner=_pruner(spec), load_if_exists=True
    )
    with warnings.catch_warnings():  # names for a dashboard are called experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if study.metric_names != list(spec.objectives):
            study.set_metric_names(list(spec.objectives))
    return study


def _agrees(study: optuna.Study, trials: Sequence[TrialRecord]) -> bool:
    """Whether every trial of the ledger is there as it was; one more may have been asked for when the driver died."""
    stored = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
    if not len(trials) <= len(stored) <= len(trials) + 1:
        return not stored and not trials
    for record, frozen in zip(trials, stored, strict=False):
        over = frozen.state.is_finished()
        if frozen.params != record.params or (over and frozen.state.name != record.state):
            return False
    return not any(frozen.state.is_finished() for frozen in stored[len(trials) :])


def _filled(study: optuna.Study, spec: StudySpec, trials: Sequence[TrialRecord]) -> None:
    """Tell Optuna what the ledger has and it lacks."""
    stored = study.get_trials(deepcopy=False)
    for record in trials[len(stored) :]:
        study.add_trial(frozen_of(record))
    for record in trials[: len(stored)]:
        frozen = stored[record.number]
        if frozen.state == TrialState.RUNNING:
            for epoch, value in record.intermediate.items():
                if epoch not in frozen.intermediate_values:
                    _reported(study, spec, record.number, epoch, value)
            if record.end is not None:
                _tell(study, record.number, TrialState[record.state], record.end["values"])


def frozen_of(record: TrialRecord) -> FrozenTrial:
    """A trial of the ledger as Optuna's."""
    state = TrialState[record.state]
    values = record.end["values"] if record.end is not None else None
    if state == TrialState.PRUNED and record.rungs:
        values = [record.intermediate[max(record.rungs)]]
    return optuna.trial.create_trial(
        state=state,
        values=values,
        params=record.params,
        distributions={path: distributions.json_to_distribution(text) for path, text in record.distributions.items()},
        user_attrs={"taken over from": record.origin} if record.origin else {},
        system_attrs=record.last_attributes,
        intermediate_values=record.intermediate,
    )


def _stored(study: optuna.Study, number: int) -> FrozenTrial:
    storage = study._storage
    return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study._study_id, number))


def _attributes(study: optuna.Study, number: int) -> dict[str, Any]:
    return dict(_stored(study, number).system_attrs)


def _reported(study: optuna.Study, spec: StudySpec, number: int, epoch: int, value: float) -> bool:
    """Report a value after an epoch; whether Optuna's pruner would stop the trial there."""
    trial_id = _stored(study, number)._trial_id
    study._storage.set_trial_intermediate_value(trial_id, epoch, value)
    return bool(study.pruner.prune(study, study._storage.get_trial(trial_id)))


def _tell(study: optuna.Study, number: int, state: TrialState, values: Sequence[float] | None) -> None:
    study.tell(number, values if state == TrialState.COMPLETE else None, state=state)


# What is drawn


def in_memory(trials: Iterable[TrialRecord], objectives: Sequence[str]) -> optuna.Study:
    """A study of what the ledger has, with names as short as can be."""
    maximised = settings.MAXIMISED
    directions = [StudyDirection.MAXIMIZE if one in maximised else StudyDirection.MINIMIZE for one in objectives]
    study = optuna.create_study(directions=directions)
    trials = [trial for trial in trials if trial.end is not None]
    short = short_names(path for trial in trials for path in trial.params)
    for trial in trials:
        named = replace(
            trial,
            params={short[path]: value for path, value in trial.params.items()},
            distributions={short[path]: text for path, text in trial.distributions.items()},
        )
        frozen = frozen_of(named)
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


def drawn(trials: Sequence[TrialRecord], objectives: Sequence[str], folder: Path, prefix: str) -> dict[str, Path]:
    """Optuna's pictures of a study, as PNG files by title."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter
    from optuna.visualization import matplotlib as pictures

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
