"""A worker: trains one cell after another in a process that stays warm. It does not know of Ray."""

import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from orchestration.ledger import store
from orchestration.ledger.ledger import Ledger
from orchestration.runtime.cell_training import CellTraining
from orchestration.runtime.messages import Order, WorkerReport
from orchestration.util.user_code import end_of_safe_path, import_from, shipped


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


class Worker:
    """Trains one cell after another. On SIGTERM it keeps a checkpoint after the current step, and the process ends."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._terminated = False
        self._running: CellTraining | None = None
        if os.path.isdir(config.directory):
            os.chdir(config.directory)
        import_from(*config.python_path, *shipped())
        end_of_safe_path()
        for stream in (sys.stdout, sys.stderr):  # what a component prints must not fail its training
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        self._stop_file = store.PolledFile(store.resolve_path(config.stop_file))
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def train(self, order: Order, report: Callable[[WorkerReport], bool]) -> WorkerReport:
        """Train a cell from what the ledger has of it; returns how it ended.

        `report` is called every so often; where it returns False, the training stops at a checkpoint.
        """
        self._running = run = self._begin(order)
        while run.ended is None:
            run.run_for(self._config.report_interval)
            if self._terminated:
                self.stop()  # the signal may have come in the last step of the interval
                raise SystemExit(143)
            if run.ended is None and not report(_report(run)):
                run.interrupt("stopped")
        self._running = None
        return _report(run)

    def stop(self) -> None:
        """Keep a checkpoint of the running training, if there is one."""
        if self._running is not None:
            self._running.interrupt("stopped")
            self._running = None

    def _begin(self, order: Order) -> CellTraining:
        ledger = Ledger(self._config.results)
        return CellTraining(
            ledger,
            ledger.cell(order.cell),
            device=self._config.device,
            checkpoint_every=self._config.checkpoint_every,
            record=self._config.record,
            until=order.until,
            stop=lambda: self._terminated or self._stop_file.exists(),
        )

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        self._terminated = True
        if self._running is None:
            raise SystemExit(143)


def _report(run: CellTraining) -> WorkerReport:
    return WorkerReport(
        run.ended or "running", run.reason, run.note, str(run.log or ""), run.step, run.total_steps, run.last
    )
