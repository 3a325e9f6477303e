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

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fsg.trainer import TrainConfig
from orchestration import search_settings as settings
from orchestration import study_storage
from orchestration.ledger import Ledger
from orchestration.peak_memory import METRIC as PEAK_MEMORY
from orchestration.plan import Cell, Leg, cells_of, steps_per_epoch
from orchestration.search_settings import Dimension, StudySpec, with_settings
from orchestration.specs import ExperimentSpec
from orchestration.study_records import SearchError, StudyRecords, TrialRecord, described, without
from orchestration.suggesting import in_space

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
        with study_storage.there(self._url):
            for study in sorted(self.studies, key=lambda study: study.begun):
                legs = study.more()
                if legs:
                    return legs
        return []

    def ended(self, cell: Cell, state: str, reason: str) -> None:
        """A cell from here is no longer trained. Raises SearchError where the storage is lost."""
        with study_storage.there(self._url):
            for study in self.studies:
                study.ended(cell, state, reason)

    @property
    def finished(self) -> bool:
        return all(study.finished for study in self.studies)

    @property
    def unsettled(self) -> list[str]:
        """The studies that have not come to their end, and to a choice where one is to be made."""
        return [study.spec.name for study in self.studies if not study.settled]


class Guarded:
    """Searches as Tune can stand them: it would take what they raise for the death of a worker, and say so.

    `broken` is what they have raised; then they are asked nothing more, and what is being trained ends.
    """

    def __init__(self, searches: Searches) -> None:
        self.searches = searches
        self.broken: Exception | None = None

    def more(self) -> Sequence[Leg]:
        """Work for a free place; none: wait, or nothing is left."""
        with self._keeping_what_breaks():
            return self.searches.more() if self.broken is None else []
        return []

    def ended(self, cell: Cell, state: str, reason: str) -> None:
        """A cell from here is no longer trained."""
        with self._keeping_what_breaks():
            if self.broken is None:
                self.searches.ended(cell, state, reason)

    @property
    def finished(self) -> bool:
        return self.broken is not None or self.searches.finished

    @contextmanager
    def _keeping_what_breaks(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.broken = self.broken or error


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
        self.study = study_storage.opened(name, spec, self.records, url, self._trials)
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
        first = self._first[self.begun] if self.begun < len(self._first) else None
        asked = study_storage.asked(self.study, self.spec, number, self._concurrent, first)
        cells: dict[int, str] = {}
        if not asked.reason:
            train = with_settings(self.spec.trial_train, asked.params)
            cells = {cell.seed: cell.id for _, cell in self._cells(train, "trial", number, self.spec.seeds)}
        record = TrialRecord(asked.number, asked.params, asked.distributions, cells, asked.attributes, None)
        self.records.add(record)
        self._trials.append(record)
        if asked.reason:
            self._shared.say(f"{self.spec.name} · trial {number}: the settings exclude each other: {asked.reason}")
            self._end(record, "FAIL", None, asked.reason)
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
            self._end(running.record, "FAIL", None, f"seed {failed.seed}: {self._shared.failed[failed.id]}")
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
            self._end(running.record, "COMPLETE", [_mean(values) for values in found.values()], "")
        else:
            self._end_without(running, missing)

    def _is_over(self, running: _Running) -> bool:
        return all(self._ledger.outcome(cell.id).state in ("done", "diverged") for cell in running.cells)

    def _end_without(self, running: _Running, objective: str) -> None:
        self._end(running.record, "FAIL", None, f"{objective} was not recorded of its cells")

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
        pruned = study_storage.reported(self.study, self.spec, number, rung, value)
        attributes = study_storage.attributes_of(self.study, number)
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
        self._end(running.record, "PRUNED", None, f"after epoch {rung}")

    def _mark_pruned(self, cell_ids: Iterable[str], rung: int) -> None:
        for cell_id in cell_ids:
            if self._ledger.outcome(cell_id).state in ("waiting", "running", "interrupted"):
                with suppress(OSError):
                    attempt = self._ledger.claim(cell_id, {"device": "", "by": "driver"})
                    attempt.finish("pruned", f"pruned after epoch {rung}", seconds=0.0)

    def _end(self, record: TrialRecord, state: str, values: Sequence[float] | None, reason: str) -> None:
        """The ledger first, then Optuna: what is told to the one alone is told to the other at the next opening."""
        self._running.pop(record.number, None)
        attributes = study_storage.attributes_of(self.study, record.number)
        self.records.end(record.number, state, values, reason, attributes)
        end = {"state": state, "values": values, "reason": reason, "attributes": attributes}
        self._trials[record.number] = replace(self._trials[record.number], end=end)
        study_storage.tell(self.study, record.number, state, values)

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
            inside = in_space(self.spec, record.params)
            if record.state == "COMPLETE" and inside is not None and record.end is not None:
                number = len(self._trials)
                origin = f"{folder}, trial {record.number}"
                mine = TrialRecord(number, record.params, inside, record.cells, {}, origin)
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
