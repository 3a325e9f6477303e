"""One cell on one Ray worker: a thin shell about `CellTraining` that stays warm from cell to cell."""

import json
import os
import signal
import sys
from types import FrameType
from typing import Any, NamedTuple

from ray import tune

from orchestration import store
from orchestration.ledger import Ledger
from orchestration.training import CellTraining

SECONDS_A_STEP = 1.0


class Told(NamedTuple):
    """What a worker says of its cell, as text: of every number by itself Tune would keep statistics, for ever."""

    state: str
    reason: str
    note: str
    log: str
    at_step: int
    of_steps: int
    metrics: dict[str, float]

    @classmethod
    def of(cls, result: dict[str, Any]) -> "Told":
        return cls(*json.loads(result["told"]))


class CellTrainable(tune.Trainable):
    """Trains the cell that its config names; what it reports is for the eye alone, the ledger has the truth.

    A SIGTERM is noticed between two steps: the training is kept and the process ends.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._terminated = False
        if os.path.isdir(config["directory"]):
            os.chdir(config["directory"])
        sys.path[:0] = [path for path in config["python_path"] if path not in sys.path]
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._running.interrupt("stopped")
        self._take(new_config)
        return True

    def step(self) -> dict[str, Any]:
        run = self._running
        run.go_on(SECONDS_A_STEP)
        if self._terminated:
            raise SystemExit(143)
        state, log = run.ended or "running", str(run.log or "")
        told = Told(state, run.reason, run.note, log, run.step, run.total_steps, run.last)
        return {"done": run.ended is not None, "told": json.dumps(told)}

    def cleanup(self) -> None:
        self._running.interrupt("stopped")

    def _take(self, config: dict[str, Any]) -> None:
        stop_file = store.Awaited(store.place(config["stop_file"]))
        ledger = Ledger(config["results"])
        self._running = CellTraining(
            ledger,
            ledger.cell(config["cell"]),
            device=config["device"],
            checkpoint_every=config["checkpoint_every"],
            record=config["record"],
            until=config["until"],
            stop=lambda: self._terminated or stop_file.exists(),
        )

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        self._terminated = True
