"""What a Ray worker does: a thin shell about `CellTraining` that stays warm from cell to cell.

It imports no Ray itself: Tune alone would take as long as torch.
"""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple

from orchestration import store
from orchestration.ledger import Ledger
from orchestration.training import CellTraining


@dataclass(frozen=True)
class Workplace:
    """What is the same for all cells of a launch: where things are, how often to say how far a training is, and what
    the records of attempts say besides.
    """

    results: str
    stop_file: str
    directory: str
    python_path: Sequence[str]
    device: str
    checkpoint_every: float
    seconds_a_word: float
    record: dict[str, Any]


class Told(NamedTuple):
    """What a worker says of its cell: for the eye alone, the ledger has the truth."""

    state: str
    reason: str
    note: str
    log: str
    at_step: int
    of_steps: int
    metrics: dict[str, float]


class Worker:
    """Trains one cell after another. A SIGTERM is noticed between two steps: the training is kept, the process ends."""

    def __init__(self, workplace: Workplace) -> None:
        self._workplace = workplace
        self._terminated = False
        self._order = ""
        self._running: CellTraining | None = None
        if os.path.isdir(workplace.directory):
            os.chdir(workplace.directory)
        sys.path[:0] = [path for path in workplace.python_path if path not in sys.path]
        self._stop_file = store.Awaited(store.place(workplace.stop_file))
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def go_on(self, order: str, cell: str, until: int | None) -> tuple[Any, ...]:
        """Train a cell for a while: under another order than the last one from what the ledger has. Returns `Told`."""
        if order != self._order:
            self.stop()
            self._running, self._order = self._taken(cell, until), order
        run = self._running
        assert run is not None
        run.go_on(self._workplace.seconds_a_word)
        if self._terminated:
            raise SystemExit(143)
        return Told(
            run.ended or "running", run.reason, run.note, str(run.log or ""), run.step, run.total_steps, run.last
        )

    def stop(self) -> None:
        """Keep a training that is not over yet."""
        if self._running is not None:
            self._running.interrupt("stopped")
            self._running = None

    def _taken(self, cell: str, until: int | None) -> CellTraining:
        ledger = Ledger(self._workplace.results)
        return CellTraining(
            ledger,
            ledger.cell(cell),
            device=self._workplace.device,
            checkpoint_every=self._workplace.checkpoint_every,
            record=self._workplace.record,
            until=until,
            stop=lambda: self._terminated or self._stop_file.exists(),
        )

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        self._terminated = True
