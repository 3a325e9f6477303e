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

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from orchestration.ledger.study_records import StudyRecords, TrialRecord
from orchestration.search.choice import FinalChoice
from orchestration.search.compatibility import compatibility_key
from orchestration.search.dispatch import Dispatcher, SearchContext
from orchestration.search.optuna.storage import OptunaStudy
from orchestration.search.values import mean_of, value_after
from orchestration.search.warm_start import settings_to_try_first, take_over
from orchestration.spec.cells import Cell, WorkItem, steps_per_epoch
from orchestration.spec.search_config import Grid
from orchestration.spec.study import StudySpec, with_settings


@dataclass
class ActiveTrial:
    """A trial under way; `reported` has the means that Optuna was told, by epoch."""

    record: TrialRecord
    cells: tuple[Cell, ...]
    reported: dict[int, float] = field(default_factory=dict)


class Study:
    """One study. Opening it makes Optuna's record agree with the ledger's.

    Raises SearchError where the storage cannot be had.
    """

    def __init__(
        self, spec: StudySpec, experiment: str, context: SearchContext, url: str | None, concurrent: bool
    ) -> None:
        self.spec, self._context, self._ledger = spec, context, context.ledger
        self._concurrent = concurrent
        self.records = StudyRecords(self._ledger, spec.name)
        if self.records.description() is None:
            self.records.begin(compatibility_key(spec))
        self._steps = steps_per_epoch(spec.train)
        self._trials = self.records.trials()
        self._budget = spec.trials
        if isinstance(spec.sampler, Grid):
            self._budget = min(self._budget, math.prod(len(one.values()) for one in spec.dimensions))
        if not self._trials and spec.warm_start:
            self._trials = take_over(spec, self.records)
        name = experiment + (f"/{spec.name}" if spec.name != "tuned" else "")
        self.optuna = OptunaStudy(name, spec, self.records, url, self._trials)
        self._first = settings_to_try_first(spec, self._trials)
        self._dispatcher = Dispatcher(spec, context)
        self._choice = FinalChoice(spec, self.records, self._dispatcher, self._final_value, context.say)
        self._active: dict[int, ActiveTrial] = {}
        self._stopped: dict[str, int] = {}  # cells that are out, by the epoch after which their trial was stopped
        self._news = True  # since the choice was last advanced
        for record in self._trials:
            if record.state == "PRUNED" and record.rungs:  # the driver may have died before all of its cells were told
                self._mark_pruned(record.cells.values(), max(record.rungs))
        for record in self._trials:
            if record.end is None:
                self._begin(record)

    # The queue's questions

    @property
    def begun(self) -> int:
        """Trials of its own that were begun."""
        return sum(record.origin is None for record in self._trials)

    @property
    def finished(self) -> bool:
        return self.settled or self._choice.stuck

    @property
    def settled(self) -> bool:
        """Whether the choice stands, and nothing is left to hand out."""
        return self._choice.made and not self._dispatcher.has_work

    def more(self) -> list[WorkItem]:
        """Work for a free place: a new trial while there is budget, then the final choice."""
        if not self._dispatcher.has_work and self.begun < self._budget:
            self._ask()
        searched = not self._active and self.begun >= self._budget
        if not self._dispatcher.has_work and searched and self._news and not self._choice.made:
            self._news = False
            self._choice.advance(self._trials)
        return self._dispatcher.take()

    def ended(self, cell: Cell, state: str, reason: str) -> None:
        """A cell is no longer trained: as ended, or `paused` at a rung."""
        self._news = True
        if state == "failed":
            self._context.failed[cell.id] = reason
        if cell.id in self._stopped:
            self._mark_pruned([cell.id], self._stopped.pop(cell.id))
        for active in list(self._active.values()):
            if any(cell.id == one.id for one in active.cells):
                self._advance(active)

    # Asking

    def _ask(self) -> None:
        number = len(self._trials)
        first = self._first[self.begun] if self.begun < len(self._first) else None
        asked = self.optuna.ask(number, self._concurrent, first)
        cells: dict[int, str] = {}
        if not asked.reason:
            train = with_settings(self.spec.trial_train, asked.params)
            pairs = self._dispatcher.cells(train, "trial", number, self.spec.seeds)
            cells = {cell.seed: cell.id for _, cell in pairs}
        record = TrialRecord(asked.number, asked.params, asked.distributions, cells, asked.attributes, None)
        self.records.add(record)
        self._trials.append(record)
        if asked.reason:
            self._context.say(f"{self.spec.name} · trial {number}: the settings exclude each other: {asked.reason}")
            self._end(record, "FAIL", None, asked.reason)
        else:
            self._begin(record)

    def _begin(self, record: TrialRecord) -> None:
        train = with_settings(self.spec.trial_train, record.params)
        pairs = self._dispatcher.cells(train, "trial", record.number, record.cells)
        self._dispatcher.enter(pairs)
        active = ActiveTrial(record, tuple(cell for _, cell in pairs), dict(record.intermediate))
        self._active[record.number] = active
        self._advance(active)

    # Deciding

    def _advance(self, active: ActiveTrial) -> None:
        """Report what is known, decide what can be decided, and hand out what is left to be trained."""
        failed = next((cell for cell in active.cells if cell.id in self._context.failed), None)
        if failed is not None:
            self._end(active.record, "FAIL", None, f"seed {failed.seed}: {self._context.failed[failed.id]}")
            return
        over = all(self._dispatcher.is_over(cell) for cell in active.cells)
        for rung in self.spec.rungs:
            if rung not in active.reported:
                values = [self._value(cell, self.spec.objectives[0], rung) for cell in active.cells]
                if None in values and over:
                    self._end_without(active, self.spec.objectives[0])
                    return
                if None in values:
                    self._resume(active, rung)
                    return
                if self._is_pruned(active, rung, mean_of(values)):
                    self._stop(active, rung)
                    return
        if not over:
            self._resume(active, None)
            return
        found = {
            objective: [self._value(cell, objective, self.spec.train.epochs) for cell in active.cells]
            for objective in self.spec.objectives
        }
        missing = next((objective for objective, values in found.items() if None in values), None)
        if missing is None:
            self._end(active.record, "COMPLETE", [mean_of(values) for values in found.values()], "")
        else:
            self._end_without(active, missing)

    def _end_without(self, active: ActiveTrial, objective: str) -> None:
        self._end(active.record, "FAIL", None, f"{objective} was not recorded of its cells")

    def _resume(self, active: ActiveTrial, rung: int | None) -> None:
        """Hand out the cells that have not arrived at a rung, or at their end."""
        until = None if rung is None else rung * self._steps
        for cell in active.cells:
            arrived = rung is not None and self._value(cell, self.spec.objectives[0], rung) is not None
            if not arrived and not self._dispatcher.is_over(cell):
                self._dispatcher.hand_out(WorkItem(cell, until))

    def _is_pruned(self, active: ActiveTrial, rung: int, value: float) -> bool:
        """Report the mean at a rung; whether Optuna's pruner stops the trial there."""
        active.reported[rung] = value
        number = active.record.number
        pruned = self.optuna.report(number, rung, value)
        attributes = self.optuna.attributes(number)
        self.records.add_rung(number, rung, value, pruned, attributes)
        rungs = self._trials[number].rungs | {rung: {"value": value, "pruned": pruned, "attributes": attributes}}
        self._trials[number] = replace(self._trials[number], rungs=rungs)
        return pruned

    def _stop(self, active: ActiveTrial, rung: int) -> None:
        """What a worker kept at the rung can be seen before it is heard of: its cell is out until it is."""
        self._stopped |= {cell.id: rung for cell in active.cells if cell.id in self._context.out}
        self._mark_pruned([cell.id for cell in active.cells if cell.id not in self._stopped], rung)
        self._context.pruned(active.cells)
        self._end(active.record, "PRUNED", None, f"after epoch {rung}")

    def _mark_pruned(self, cell_ids: Iterable[str], rung: int) -> None:
        for cell_id in cell_ids:
            if self._ledger.outcome(cell_id).state in ("waiting", "running", "interrupted"):
                with suppress(OSError):
                    attempt = self._ledger.claim(cell_id, {"device": "", "by": "driver"})
                    attempt.finish("pruned", f"pruned after epoch {rung}", seconds=0.0)

    def _end(self, record: TrialRecord, state: str, values: list[float] | None, reason: str) -> None:
        """The ledger first, then Optuna: what only the ledger was told, Optuna is told at the next opening."""
        self._active.pop(record.number, None)
        attributes = self.optuna.attributes(record.number)
        self.records.end(record.number, state, values, reason, attributes)
        end = {"state": state, "values": values, "reason": reason, "attributes": attributes}
        self._trials[record.number] = replace(self._trials[record.number], end=end)
        self.optuna.tell(record.number, state, values)

    def _value(self, cell: Cell, objective: str, epoch: int) -> float | None:
        return value_after(self._ledger, cell, objective, epoch, self._steps)

    def _final_value(self, cell: Cell) -> float | None:
        return self._value(cell, self.spec.objectives[0], self.spec.train.epochs)
