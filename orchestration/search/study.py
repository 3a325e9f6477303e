"""One Optuna study: Optuna suggests and prunes, the ledger remembers, the scheduler trains.

A trial is one setting, trained once with each seed of the study. Each training is an ordinary cell of the ledger, with
the test images closed (`test: never`). A rung is an epoch after which a trial may be stopped. The cells of a trial
pause there; when all of them have arrived, their mean is reported to Optuna, whose pruner decides whether they resume.
So trials are compared at the same epoch and over the same seeds, and a stopped trial was trained exactly to its rung.

Stopped trials are reported as PRUNED with their intermediate values; trials with a failed seed as FAIL. A diverged seed
counts as in a table: accuracy 0, an infinite loss. Each suggestion is drawn with a seed made from the study's and the
trial's number, so a restarted driver suggests the same. If Optuna's storage is lost, it is rebuilt from the ledger.

When the budget is spent, the `best` settings are trained again with the seeds of the table, test closed. The one with
the best mean validation is chosen, the choice is written down, and only then are the test images opened, for it alone.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fsg.trainer import TrainConfig
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.study_records import StudyRecords, TrialRecord
from orchestration.search.compatibility import compatibility_key, without
from orchestration.search.optuna import storage
from orchestration.search.optuna.errors import SearchError
from orchestration.search.optuna.sampling import in_space
from orchestration.search.values import at_bounds, mean_of, ranked, value_after
from orchestration.spec import search_config as settings
from orchestration.spec.cells import Cell, WorkItem, cells_of, steps_per_epoch
from orchestration.spec.study import StudySpec, with_settings

_WARM_TRIED = 5  # of an earlier search that cannot be taken over, so many of its best settings are tried first


@dataclass
class ActiveTrial:
    """A trial under way."""

    record: TrialRecord
    cells: tuple[Cell, ...]
    reported: dict[int, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass
class SearchContext:
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

    def __init__(
        self, spec: StudySpec, experiment: str, shared: SearchContext, url: str | None, concurrent: bool
    ) -> None:
        self.spec, self._shared, self._ledger = spec, shared, shared.ledger
        self._concurrent = concurrent
        self.records = StudyRecords(self._ledger, spec.name)
        if self.records.description() is None:
            self.records.begin(compatibility_key(spec))
        self._steps = steps_per_epoch(spec.train)
        self._trials = self.records.trials()
        self._budget = spec.trials
        if isinstance(spec.sampler, settings.Grid):
            self._budget = min(self._budget, math.prod(len(one.values()) for one in spec.dimensions))
        if not self._trials and spec.warm_start:
            self._take_over(Path(spec.warm_start))
        name = experiment + (f"/{spec.name}" if spec.name != "tuned" else "")
        self.study = storage.open_study(name, spec, self.records, url, self._trials)
        self._first = self._to_try_first()
        self._running: dict[int, ActiveTrial] = {}
        self._stopped: dict[str, int] = {}  # cells that are out, by the epoch after which their trial was stopped
        self._ready: deque[WorkItem] = deque()
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

    def more(self) -> list[WorkItem]:
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
        asked = storage.ask(self.study, self.spec, number, self._concurrent, first)
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
        running = ActiveTrial(record, cells, dict(record.intermediate))
        self._running[record.number] = running
        self._advance(running)

    def _enter(self, made: Sequence[tuple[Cell | None, Cell]]) -> None:
        """Put cells into the ledger, and the pretrainings that are missing out."""
        for pretraining, cell in made:
            for one in (pretraining, cell):
                if one is not None and not self._is_known(one):
                    self._ledger.add(one)
            if pretraining is not None and self._ledger.outcome(pretraining.id).state not in ("done", "diverged"):
                self._hand_out(WorkItem(pretraining))

    def _is_known(self, cell: Cell) -> bool:
        return self._ledger.find(cell.id) is not None

    def _hand_out(self, leg: WorkItem) -> None:
        if leg.cell.id not in self._shared.out:
            self._shared.out.add(leg.cell.id)
            self._ready.append(leg)

    # deciding

    def _advance(self, running: ActiveTrial) -> None:
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
                    self._resume(running, rung)
                    return
                if self._decide(running, rung, mean_of(values)):
                    return
        if not self._is_over(running):
            self._resume(running, None)
            return
        found = {
            objective: [self._value(cell, objective, self.spec.train.epochs) for cell in running.cells]
            for objective in self.spec.objectives
        }
        missing = next((objective for objective, values in found.items() if None in values), None)
        if missing is None:
            self._end(running.record, "COMPLETE", [mean_of(values) for values in found.values()], "")
        else:
            self._end_without(running, missing)

    def _is_over(self, running: ActiveTrial) -> bool:
        return all(self._ledger.outcome(cell.id).state in ("done", "diverged") for cell in running.cells)

    def _end_without(self, running: ActiveTrial, objective: str) -> None:
        self._end(running.record, "FAIL", None, f"{objective} was not recorded of its cells")

    def _resume(self, running: ActiveTrial, rung: int | None) -> None:
        until = None if rung is None else rung * self._steps
        for cell in running.cells:
            outcome = self._ledger.outcome(cell.id)
            there = until is not None and self._value(cell, self.spec.objectives[0], rung or 0) is not None
            if outcome.state not in ("done", "diverged") and not there:
                self._hand_out(WorkItem(cell, until))

    def _decide(self, running: ActiveTrial, rung: int, value: float) -> bool:
        """Whether the trial is stopped at a rung; then it is told so."""
        running.reported[rung] = value
        number = running.record.number
        pruned = storage.report_value(self.study, self.spec, number, rung, value)
        attributes = storage.trial_attributes(self.study, number)
        self.records.add_rung(number, rung, value, pruned, attributes)
        rungs = self._trials[number].rungs | {rung: {"value": value, "pruned": pruned, "attributes": attributes}}
        self._trials[number] = replace(self._trials[number], rungs=rungs)
        if pruned:
            self._stop(running, rung)
        return pruned

    def _stop(self, running: ActiveTrial, rung: int) -> None:
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
        attributes = storage.trial_attributes(self.study, record.number)
        self.records.end(record.number, state, values, reason, attributes)
        end = {"state": state, "values": values, "reason": reason, "attributes": attributes}
        self._trials[record.number] = replace(self._trials[record.number], end=end)
        storage.tell(self.study, record.number, state, values)

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
                self._hand_out(WorkItem(cell))
                left = True
        return left

    def _choice(self, candidates: Mapping[int, Sequence[Cell]]) -> int | None:
        objective = self.spec.objectives[0]
        means: dict[int, float] = {}
        for number, cells in candidates.items():
            values = [self._value(cell, objective, self.spec.train.epochs) for cell in cells]
            if any(value is None for value in values):  # one of them failed: there is nothing to choose from
                return None
            means[number] = mean_of(values)
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
        now = json.loads(json.dumps(compatibility_key(self.spec)))
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
