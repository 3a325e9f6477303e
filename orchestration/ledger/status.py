"""A planned cell with its state in the ledger and its expected cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestration.ledger.ledger import Ledger
from orchestration.ledger.outcome import Outcome
from orchestration.spec.cells import Cell, total_steps


@dataclass(frozen=True)
class CellStatus:
    """A planned cell, where it stands, and what is expected of it."""

    cell: Cell
    outcome: Outcome
    steps: int
    seconds: float | None = None
    peak_megabytes: float | None = None

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do: a divergence is a result, and would come again."""
        return self.outcome.state in ("done", "diverged", "pruned")

    @property
    def left(self) -> float | None:
        """Expected seconds that are left."""
        if self.over or self.seconds is None:
            return 0.0 if self.over else None
        return self.seconds * (1 - min(self.outcome.step, self.steps) / self.steps) if self.steps else self.seconds


def cell_statuses(planned: Sequence[Cell], ledger: Ledger) -> list[CellStatus]:
    """Where every planned cell stands in the ledger."""
    return [
        CellStatus(cell, ledger.outcome(cell.id) if cell.id else Outcome("waiting"), total_steps(cell))
        for cell in planned
    ]
