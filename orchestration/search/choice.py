"""The end of a study: the best settings are trained again, validation chooses one, and its test images are opened."""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from orchestration.ledger.study_records import StudyRecords, TrialRecord
from orchestration.search.dispatch import Dispatcher
from orchestration.search.values import at_bounds, first_value, mean_of, ranked
from orchestration.spec.cells import Cell, cells_of
from orchestration.spec.search_config import MAXIMISED
from orchestration.spec.study import StudySpec, with_settings


class FinalChoice:
    """Chooses among the candidates of a study, the best trials trained anew with the table's seeds.

    `made` says that a choice stands and its cells are over, or that none was asked for; `stuck` that a failed cell
    prevents it, or that there is nothing valid to choose from, which `say` is told. A trial or candidate is valid if
    one of its cells was trained to its end, and its mean is finite. `value_of` is a cell's objective at the end of its
    training, None where there is none.
    """

    def __init__(
        self,
        spec: StudySpec,
        records: StudyRecords,
        dispatcher: Dispatcher,
        value_of: Callable[[Cell], float | None],
        say: Callable[[str], None],
    ) -> None:
        self._spec, self._records, self._dispatcher, self._value_of = spec, records, dispatcher, value_of
        self._say = say
        self.made = self.stuck = False

    def advance(self, trials: Sequence[TrialRecord]) -> None:
        """Hand out what is missing of the candidates; once they are over, choose, and hand out the test."""
        if not self._spec.best:
            self.made = True
            return
        best = [one for one in ranked(self._spec, trials) if self._is_valid(one.cells.values(), first_value(one))]
        best = best[: self._spec.best]
        if not best:
            self._choose_nothing("trial")
            return
        candidates: dict[int, list[Cell]] = {}
        for record in best:
            train = with_settings(self._spec.trial_train, record.params)
            pairs = self._dispatcher.cells(train, "candidate", record.number, self._spec.table_seeds)
            self._dispatcher.enter(pairs)
            candidates[record.number] = [cell for _, cell in pairs]
        every = [cell for cells in candidates.values() for cell in cells]
        left = self._dispatcher.train(every)
        self.stuck = self.stuck or self._dispatcher.any_failed(every)
        if left or self.stuck:
            return
        chosen = self._chosen(candidates)
        if chosen is None:
            self.stuck = True
            return
        finals = [self._with_test(candidate) for candidate in candidates[chosen]]
        self._keep(chosen, candidates, finals, trials)
        for cell in finals:
            self._dispatcher.add(cell)  # where the chosen settings are the untuned ones, it is there already
        if not self._dispatcher.train(finals):
            self.made = not self._dispatcher.any_failed(finals)
        self.stuck = self.stuck or self._dispatcher.any_failed(finals)

    def _is_valid(self, cell_ids: Collection[str], mean: float) -> bool:
        """A trial that was taken over has no cells here."""
        return math.isfinite(mean) and (not cell_ids or self._dispatcher.any_done(cell_ids))

    def _choose_nothing(self, of: str) -> None:
        self.stuck = True
        self._say(f"{self._spec.name}: no {of} is valid, as all diverged or failed: nothing is chosen")

    def _with_test(self, candidate: Cell) -> Cell:
        """The cell of the table that goes on where a candidate ended: what is left is the test."""
        train = replace(candidate.train, test="end")
        _, cell = cells_of(train, "train", self._spec.name, {}, candidate.seed)
        return replace(cell, depends_on=candidate.depends_on, continues=candidate.id)

    def _chosen(self, candidates: Mapping[int, Sequence[Cell]]) -> int | None:
        means: dict[int, float] = {}
        for number, cells in candidates.items():
            values = [self._value_of(cell) for cell in cells]
            if any(value is None for value in values):  # one of them failed: there is nothing to choose from
                return None
            mean = mean_of(values)
            if self._is_valid([cell.id for cell in cells], mean):
                means[number] = mean
        if not means:
            self._choose_nothing("candidate")
            return None
        sign = -1 if self._spec.objectives[0] in MAXIMISED else 1
        return min(means, key=lambda number: (sign * means[number], number))

    def _keep(
        self,
        chosen: int,
        candidates: Mapping[int, Sequence[Cell]],
        finals: Sequence[Cell],
        trials: Sequence[TrialRecord],
    ) -> None:
        params = trials[chosen].params
        record = {
            "trials": len(trials),
            "chosen": chosen,
            "params": params,
            "objective": self._spec.objectives[0],
            "candidates": {
                str(number): {cell.seed: self._value_of(cell) for cell in cells} for number, cells in candidates.items()
            },
            "candidate_cells": [cell.id for cells in candidates.values() for cell in cells],
            "cells": [cell.id for cell in finals],
            "at_bound": at_bounds(self._spec.dimensions, params),
        }
        record = json.loads(json.dumps(record))
        if record not in self._records.choices()[-1:]:
            self._records.choose(record)
