"""A worker: trains one cell after another in a process that stays warm.

It does not import Ray: Tune alone takes as long to import as torch.
"""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple

from orchestration.ledger import store
from orchestration.ledger.ledger import Ledger
from orchestration.runtime.cell_training import CellTraining


@dataclass(frozen=True)
class WorkerConfig:
    """What all cells of a launch share; `report_interval` is in seconds, `record` is added to attempts' records."""

    results: str
    stop_file: str
    directory: str
    python_path: Sequence[str]
    device: str
    checkpoint_every: float
    report_interval: float
    record: dict[str, Any]


class WorkerReport(NamedTuple):
    """What a worker reports of its cell, for display: the ledger has the truth."""

    state: str
    reason: str
    note: str
    log: str
    step: int
    total_steps: int
    metrics: dict[str, float]


class Worker:
    """Trains one cell after another. On SIGTERM it keeps a checkpoint after the current step, and the process ends."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._terminated = False
        self._trial_id = ""
        self._running: CellTraining | None = None
        if os.path.isdir(config.directory):
            os.chdir(config.directory)
        sys.path[:0] = [path for path in config.python_path if path not in sys.path]
        self._stop_file = store.PolledFile(store.resolve_path(config.stop_file))
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def step(self, trial_id: str, cell: str, until: int | None) -> tuple[Any, ...]:
        """Train a cell for a while. A new trial id starts from what the ledger has. Returns a `WorkerReport`."""
        if trial_id != self._trial_id:
            self.stop()
            self._running, self._trial_id = self._begin(cell, until), trial_id
        run = self._running
        assert run is not None
        run.run_for(self._config.report_interval)
        if self._terminated:
            self.stop()  # the signal may have come in the last step of the interval
            raise SystemExit(143)
        return WorkerReport(
            run.ended or "running", run.reason, run.note, str(run.log or ""), run.step, run.total_steps, run.last
        )

    def stop(self) -> None:
        """Keep a checkpoint of the running training, if there is one."""
        if self._running is not None:
            self._running.interrupt("stopped")
            self._running = None

    def _begin(self, cell: str, until: int | None) -> CellTraining:
        ledger = Ledger(self._config.results)
        return CellTraining(
            ledger,
            ledger.cell(cell),
            device=self._config.device,
            checkpoint_every=self._config.checkpoint_every,
            record=self._config.record,
            until=until,
            stop=lambda: self._terminated or self._stop_file.exists(),
        )

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        self._terminated = True
