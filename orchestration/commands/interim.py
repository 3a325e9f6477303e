"""The primary difference while trainings are still to come: how it looks so far, and no verdict."""

from collections.abc import Sequence

from orchestration.analysis.comparisons import Measure, Trial, lines_of
from orchestration.ledger.ledger import Ledger
from orchestration.spec.cells import Cell

_LINES = 2  # points of a grid that are told


class Interim:
    """The mean difference of the primary variant to the baseline over the seeds that both have so far.

    It has no interval and no p: those are the report's, once the planned seeds are there.
    """

    def __init__(self, ledger: Ledger, cells: Sequence[Cell], baseline: str, primary: str, metric: str) -> None:
        self._ledger, self._baseline, self._primary = ledger, baseline, primary
        self._measure = Measure.metric(metric)
        self._cells = [cell for cell in cells if cell.kind == "train" and cell.variant in (baseline, primary)]
        self._over: dict[str, Trial] = {}

    def text(self) -> str:
        """`interim, no verdict: fsg − ste +0.52 points over 2 of 3 seeds (test accuracy)`; nothing once all end."""
        for cell in self._cells:
            if cell.id not in self._over and (outcome := self._ledger.outcome(cell.id)).state in ("done", "diverged"):
                self._over[cell.id] = Trial(cell, outcome, tuple(self._ledger.rows(cell.id)))
        if len(self._over) == len(self._cells):
            return ""
        unit, told = self._measure.unit, []
        for line in lines_of(self._over.values(), self._measure, self._baseline):
            if line.variant != self._primary or line.comparison is None or not line.comparison.n:
                continue
            grid = line.trials[0].cell.grid
            planned = sum(cell.variant == self._primary and cell.grid == grid for cell in self._cells)
            mean = " ".join(filter(None, [unit.write(line.comparison.mean, signed=True), unit.difference]))
            told.append(f"{line.short_label} − {self._baseline} {mean} over {line.comparison.n} of {planned} seeds")
        if not told:
            return ""
        more = f" and {len(told) - _LINES} more" if len(told) > _LINES else ""
        return f"interim, no verdict: {'; '.join(told[:_LINES])}{more} ({unit.name})"
