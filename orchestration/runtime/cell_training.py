"""Trains one cell in this process, from the claim of an attempt to its end.

User-code errors are final. Out of memory or a newer attempt means retry, which resumes from the last checkpoint; so
does a fault of the device, in another process. A full disk (`unwritable`) stops the launch.
"""

import logging
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from fsg import checkpoint
from fsg.diagnostics import over_all_layers
from fsg.finite import Diverged
from fsg.plain import encode
from fsg.stopping import Stopped, stoppable
from fsg.trainer import Row, Training
from orchestration.ledger import store
from orchestration.ledger.attempt import Attempt, Superseded
from orchestration.ledger.history import ResumePoint
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.sealed import write_new
from orchestration.ledger.stores.errors import Unwritable
from orchestration.runtime import peak_memory
from orchestration.runtime.determinants import determinants, moves
from orchestration.runtime.faults import DeviceFault, is_device_fault, is_lack_of_memory
from orchestration.runtime.inputs import changed
from orchestration.runtime.own_code import edits
from orchestration.runtime.reset import reset_process_state
from orchestration.runtime.system_metrics import SystemMetrics
from orchestration.spec.cells import Cell
from orchestration.util.error_text import first_line, one_line

logger = logging.getLogger(__name__)

Ending = Literal["done", "failed", "diverged", "interrupted", "retry", "paused", "unwritable"]
BEST_METRIC = "validation/accuracy"


class CellTraining:
    """The training of one cell. `stop` is called between two steps; `ended` says how it ended, once it has.

    At step `until` it keeps a checkpoint and is `paused`: whoever submitted it decides whether it resumes.
    `note` is what the user should know besides: which checkpoint was damaged or cannot be read, and where the training
    resumed instead; what of the estimator is in no state.
    `record` is added to the attempt's record in the ledger; `inputs` in it are fingerprints that still have to hold.
    """

    def __init__(
        self,
        ledger: Ledger,
        cell: Cell,
        *,
        device: str = "cpu",
        checkpoint_every: float = 60.0,
        record: dict[str, Any] | None = None,
        stop: Callable[[], bool] = lambda: False,
        until: int | None = None,
    ) -> None:
        self.ledger, self.cell, self.device, self.checkpoint_every = ledger, cell, device, checkpoint_every
        self.until = until
        self.record, self.stop = record or {}, stop
        self.ended: Ending | None = None
        self.reason = self.note = ""
        self.log: Path | None = None
        self.last: dict[str, float] = {}
        self.step = self.total_steps = 0
        self._attempt: Attempt | None = None
        self._run: ActiveRun | None = None

    def run_for(self, seconds: float) -> None:
        """Train for about so long, or until the cell has ended. What the training raises ends it, and is not raised.

        Raises DeviceFault where this process can train nothing more; its end is not recorded, as if it were killed.
        """
        try:
            with stoppable(self.stop):
                self._run_until(time.monotonic() + seconds)
        except Stopped:  # before this run's first step: there is nothing to keep
            self._end("interrupted", "stopped")
        except Diverged as error:
            self._end("diverged", one_line(error))
        except Superseded as error:
            self.ended, self.reason = "retry", str(error)
        except Unwritable as error:
            self.ended, self.reason = "unwritable", f"{error.strerror} ({error.filename})"
        except Exception as error:
            self._fail(error)
        if self._run is not None:
            self.step, self.total_steps = self._run.training.step, self._run.training.total_steps
        if self.ended is not None:
            self._run = None  # frees its memory while the worker waits

    def interrupt(self, reason: str) -> None:
        """Keep a checkpoint, from which another attempt can resume."""
        if self.ended is not None:
            return
        try:
            if self._run is not None:
                self._run.checkpoint()
            self._end("interrupted", reason)
        except Diverged as error:
            self._end("diverged", one_line(error))
        except (Superseded, OSError) as error:
            self.ended, self.reason = "interrupted", f"{reason}; no checkpoint was kept: {one_line(error)}"
        except Exception as error:
            self._fail(error)

    def _run_until(self, until: float) -> None:
        while self.ended is None:
            if self.stop():
                self.interrupt("stopped")
            elif self._run is None:
                self._run = self._begin()
            elif self.until is not None and self._run.training.step >= self.until:
                self.interrupt(f"paused at step {self._run.training.step}")
                self.ended = "paused" if self.ended == "interrupted" else self.ended
            else:
                self.last |= self._run.advance()
                self._say_what_is_lost(self._run.training)
                if self._run.training.done:
                    self.note = "; ".join(filter(None, [self.note, self._run.training.dataset.left_out()]))
                    self._run.finish(whole_state=self.cell.kind == "candidate")
                    self.ended = "done"
                elif self._run.since_checkpoint() >= self.checkpoint_every:
                    self._run.checkpoint()
            if time.monotonic() >= until:
                return

    def _begin(self) -> "ActiveRun":
        reset_process_state(self.cell.train.threads, self.cell.seed)  # the number of threads is on record
        if other := [*edits(self.cell.train), *changed(self.cell.train, self.record.get("inputs", {}))]:
            raise RuntimeError(f"{'; '.join(other)}; another launch trains what it is now")
        where = determinants(self.cell.train, self.device)
        unreadable: dict[Path, str] = {}
        while True:
            self._attempt = attempt = self.ledger.claim(self.cell.id, where | self.record, unreadable)
            training = self._fresh()
            if attempt.resume is None:
                self._say_where_from(attempt, unreadable)
                return self._at_start(attempt, training)
            try:
                best = _load(training, attempt.resume)
            except Unreadable as error:
                unreadable[attempt.resume.path] = str(error)
            else:
                self._say_where_from(attempt, unreadable)
                self._say_what_moved(attempt.resume, where)
                return ActiveRun(attempt, training, best)

    def _fresh(self) -> Training:
        self.cell.train.data.load()  # once a process: what it may draw from the generators must be in no training
        reset_process_state(self.cell.train.threads, self.cell.seed)
        return Training(self.cell.train, self.cell.seed, start=self._start(), device=self.device)

    def _at_start(self, attempt: Attempt, training: Training) -> "ActiveRun":
        """A training without a checkpoint: from its start, or from the end of the cell that it continues."""
        ended = self.ledger.resume_point(self.cell.continues) if self.cell.continues else None
        if ended is None or ended.step < training.total_steps:  # nobody's end, or a lost one: train it all
            return ActiveRun(attempt, training, {})
        try:
            best = _load(training, ended)
        except Unreadable:
            return ActiveRun(attempt, self._fresh(), {})
        training.done = False  # the test is left
        assert self.cell.continues is not None
        attempt.take_over(self.ledger.rows(self.cell.continues))
        for table in self.ledger.diagnostics(self.cell.continues):
            attempt.diagnostics(table)
        return ActiveRun(attempt, training, best, seconds=ended.seconds)

    def _say_where_from(self, attempt: Attempt, unreadable: Mapping[Path, str]) -> None:
        goes_on = f"resumed from step {attempt.resume.step}" if attempt.resume is not None else "began again"
        at = goes_on if attempt.resume is not None else "from the start"
        logger.info("%s (%s): attempt %d claimed, %s", self.cell.label, self.cell.id, attempt.number, at)
        of = {f"{path.parent.name}/{path.name}": why for path, why in unreadable.items()}
        damaged = [name for name in attempt.passed_over if name not in of]
        lost = [f"damaged: {', '.join(damaged)}"] if damaged else []
        lost += [f"cannot be read: {name} ({why})" for name, why in of.items()]
        if lost:
            self.note = "; ".join([*lost, goes_on])

    def _say_what_moved(self, point: ResumePoint, where: dict[str, Any]) -> None:
        before = next(a for a in self.ledger.attempts(self.cell.id) if a["number"] == point.attempt)
        if moved := moves(before, where):
            told = f"resumed with other {', '.join(moved)}: other bits are to be expected"
            self.note = "; ".join(filter(None, [self.note, told]))

    def _say_what_is_lost(self, training: Training) -> None:
        lost = ", ".join(f"estimator.{name}" for name in training.lost_state.names)
        if lost and lost not in self.note:
            told = f"in no state_dict: {lost}: it changes from step to step, and a training that is resumed will differ"
            self.note = "; ".join(filter(None, [self.note, told]))

    def _start(self) -> dict[str, Tensor] | None:
        if self.cell.depends_on is None:
            return None
        path = self.ledger.final_weights(self.cell.depends_on)
        if path is None:
            raise RuntimeError(f"the weights of its pretraining (cell {self.cell.depends_on}) are missing or damaged")
        return checkpoint.from_bytes(store.of(path).read(path))

    def _end(self, state: Literal["failed", "diverged", "interrupted"], reason: str) -> None:
        self.ended, self.reason = state, reason
        if self._attempt is None:
            return
        try:
            self._attempt.finish(state, reason, seconds=self._run.seconds if self._run else 0.0)
        except (Superseded, OSError) as error:
            self.reason = f"{reason}; its end could not be recorded: {one_line(error)}"

    def _fail(self, error: Exception) -> None:
        if is_lack_of_memory(error):
            self.ended, self.reason = "retry", f"out of memory: {one_line(error)}"
            return
        self._keep_traceback()
        if is_device_fault(error):
            self.ended, self.reason, self._run = "retry", f"the device failed: {first_line(error)}", None
            raise DeviceFault(self.reason) from error
        self._end("failed", f"{type(error).__name__}: {one_line(error)}")

    def _keep_traceback(self) -> None:
        if self._attempt is not None:
            with suppress(OSError):
                write_new(self._attempt.log, traceback.format_exc().encode())
                self.log = self._attempt.log


@dataclass
class ActiveRun:
    """A running training and the attempt that it writes to; `best` are the weights at the best validation."""

    attempt: Attempt
    training: Training
    best: dict[str, Any]
    seconds: float = 0.0
    checkpointed: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.system = SystemMetrics(self.training.device)
        self._peak_is_due = True
        self._read_back = False

    def advance(self) -> dict[str, float]:
        """Do one step; returns its metrics."""
        began = time.monotonic()
        rows, peak = self._advance()
        self.seconds += time.monotonic() - began
        self.attempt.record(rows + self._beside(peak))
        if self.training.table is not None:
            self.attempt.diagnostics(self.training.table)
        values: dict[str, float] = {}
        for row in rows:
            values |= row.values
            if row.values.get(BEST_METRIC, float("-inf")) > self.best.get("value", float("-inf")):
                self.best = {
                    "step": row.step,
                    "value": row.values[BEST_METRIC],
                    "weights": _copied(self.training.weights()),
                }
        return values

    def _advance(self) -> tuple[list[Row], dict[str, float]]:
        """One step, and its peak of memory where it is the last of the attempt's first epoch: the history is filled."""
        training = self.training
        ends_an_epoch = (training.step + 1) % training.steps_per_epoch == 0 and training.step < training.total_steps
        if not (self._peak_is_due and ends_an_epoch):
            return training.advance(), {}
        self._peak_is_due = False
        peak: dict[str, float] = {}
        return training.advance(peak_memory.measuring_peak(training, peak)), peak

    def _beside(self, peak: dict[str, float]) -> list[Row]:
        """A row beside the metrics of a step: peak memory, the load of the machine, flip rates."""
        values = peak | (self.system.sample() if self.training.done else self.system.due())
        if self.training.table is not None:
            values |= over_all_layers(self.training.table)
        return [Row(self.training.step, values)] if values else []

    def since_checkpoint(self) -> float:
        return time.monotonic() - self.checkpointed

    def checkpoint(self) -> None:
        """Keep the state; before the first step there is none."""
        if self.training.step and not self.training.done:
            self.attempt.checkpoint(self._state(), self.training.step, self.seconds)
            logger.info("checkpoint at step %d written to %s", self.training.step, self.attempt.folder)
        self.checkpointed = time.monotonic()

    def _state(self) -> bytes:
        """Raises ValueError where the first one has a part that cannot be kept, or does not read back as it was."""
        state = {"training": self.training.state_dict(), "best": self.best}
        if self._read_back:
            return checkpoint.to_bytes(state)
        encode(state["training"]["estimator"], "estimator.state")  # names the part that cannot be kept
        content = checkpoint.to_bytes(state)
        if checkpoint.digest(checkpoint.from_bytes(content)) != checkpoint.digest(state):
            raise ValueError("a checkpoint reads back as something else than was written")
        self._read_back = True
        return content

    def finish(self, whole_state: bool = False) -> None:
        """Keep the weights, with `whole_state` also a checkpoint for another cell, and end the attempt."""
        if whole_state and self.training.step:
            self.attempt.checkpoint(self._state(), self.training.step, self.seconds)
        step, digest = self.training.step, checkpoint.digest(self.training.state_dict())
        if self.best and self.best["step"] < step:
            self.attempt.weights(f"best-{self.best['step']:08d}.pt", checkpoint.to_bytes(self.best["weights"]))
        self.attempt.weights("final.pt", checkpoint.to_bytes(self.training.weights()))
        self.attempt.finish("done", digest=digest, step=step, seconds=self.seconds)


class Unreadable(Exception):
    """A checkpoint that is whole, and from which its training cannot go on."""


def _load(training: Training, point: ResumePoint) -> dict[str, Any]:
    """Put a training where it was kept; returns the best weights so far. After Unreadable it is half loaded."""
    content = store.of(point.path).read(point.path)
    try:
        state = checkpoint.from_bytes(content)
        training.load_state_dict(state["training"])
        best: dict[str, Any] = state["best"]
    except Exception as error:  # a user's component may raise anything
        if is_lack_of_memory(error) or is_device_fault(error):
            raise
        raise Unreadable(f"{type(error).__name__}: {one_line(error)}") from error
    return best


def _copied(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
