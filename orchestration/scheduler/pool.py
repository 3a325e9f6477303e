"""The workers of a launch: which are wanted, what each trains, and what follows a death. Ray is not known here.

Tune starts the workers and finds places for them; each then asks for one training after another. A worker holds the
resources of its shape as long as it lives, so it leaves when nothing of its shape is left, or when another shape waits.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from threading import RLock
from typing import NamedTuple

from orchestration.runtime.messages import Order, Shape, WorkerReport
from orchestration.scheduler.queue import Queue
from orchestration.spec.cells import Cell

MAX_FAILED_STARTS = 3  # one after the other
LOG = logging.getLogger(__name__)


class Start(NamedTuple):
    """A worker that is to be started."""

    number: int
    shape: Shape


@dataclass
class _Worker:
    shape: Shape
    cell: Cell | None = None
    notes: frozenset[str] = frozenset()


class WorkerPool:
    """Gives the queue's cells to workers.

    `start` is called by a thread of Tune's, all else by the driver's loop. `expected` are cells that a source may give.
    A cell whose worker died is queued again; `record_failure` is called with one that has died too often, since a dead
    worker cannot write. After `MAX_FAILED_STARTS` workers that did not start no further one is wanted; where none lives
    then, the pool is `stuck`. After the first there is a `pause` of so many seconds, after the second twice as many: in
    that time it is noticed that a node is lost, and nothing more is started there.
    """

    def __init__(
        self,
        queue: Queue,
        shape_of: Callable[[Cell], Shape],
        *,
        expected: Sequence[Cell] = (),
        record_failure: Callable[[Cell, str], None] = lambda cell, reason: None,
        pause: float = 0.0,
    ) -> None:
        self.queue, self._shape_of, self._expected = queue, shape_of, expected
        self._record_failure = record_failure
        self._pause, self._not_before = pause, 0.0
        self._lock = RLock()
        self._started = self._failed_starts = 0
        self._starting: dict[int, Shape] = {}
        self._workers: dict[int, _Worker] = {}
        self._idle: dict[int, None] = {}  # in the order in which they asked
        self.leaving = False  # all workers are to keep a checkpoint and leave
        self.why_not_started = ""
        self._closed = False

    @property
    def stuck(self) -> bool:
        """Whether no worker lives, and none starts."""
        return self._failed_starts >= MAX_FAILED_STARTS and not self._workers and not self._starting

    @property
    def finished(self) -> bool:
        with self._lock:
            return self.queue.finished or self.stuck

    @property
    def is_closed(self) -> bool:
        """Whether no worker is wanted any more, in this round."""
        return self._closed or self.leaving or self.finished

    def close(self) -> None:
        """End this round."""
        self._closed = True

    def start(self) -> Start | None:
        """A worker that is wanted now, if there is one."""
        with self._lock:
            shape = self._wanted()
            if shape is None:
                return None
            self._started += 1
            self._starting[self._started] = shape
            return Start(self._started, shape)

    def _wanted(self) -> Shape | None:
        """The shape of the first cell that has no worker, and for which none is being started.

        How many cells a source still gives is not known, so it has no further worker while one is idle.
        """
        queue = self.queue
        most = queue.max_concurrent
        if self.leaving or queue.is_stopping or self._failed_starts >= MAX_FAILED_STARTS:
            return None
        if most is not None and len(self._workers) + len(self._starting) >= most:
            return None
        if time.monotonic() < self._not_before:
            return None
        spare = Counter(self._starting.values()) + Counter(worker.shape for worker in self._workers.values())
        for cell in chain(queue.out, queue.ready):
            shape = self._shape_of(cell)
            if not spare[shape]:
                return shape
            spare[shape] -= 1
        idle = {self._workers[number].shape for number in self._idle}
        for cell in self._expected if queue.expects_more else ():
            shape = self._shape_of(cell)
            if not spare[shape] and shape not in idle:
                return shape
            spare[shape] -= 1
        return None

    def start_failed(self, number: int, reason: str = "") -> None:
        """A worker did not come to its first request."""
        with self._lock:
            self.why_not_started = reason or self.why_not_started
            if self._starting.pop(number, None) is not None:
                self._failed_starts += 1
                self._not_before = time.monotonic() + self._pause * self._failed_starts
                LOG.info("worker %d did not start: %s", number, reason)

    def arrived(self, number: int, shape: Shape) -> None:
        """A worker runs, and asks for its first training."""
        with self._lock:
            if number in self._workers:
                self.died(number, "the worker started anew", blamed=False)
            self._starting.pop(number, None)
            self._failed_starts = 0
            self._workers[number] = _Worker(shape)
            self._idle[number] = None
            LOG.info("worker %d started, %s", number, dict(shape))

    def heard(self, number: int, report: WorkerReport) -> None:
        """What a worker says of its training; where that has ended, the worker asks for another one."""
        with self._lock:
            worker = self._workers.get(number)
            if worker is None or worker.cell is None:
                return  # it was given up, and its cell is another's
            cell, callback = worker.cell, self.queue.callback
            if report.note and report.note not in worker.notes:
                worker.notes |= {report.note}
                callback.noted(cell, report.note)
            if report.total_steps or report.metrics:
                callback.progressed(cell, report.step, report.total_steps, report.metrics)
            if report.state != "running":
                self._idle[number] = None
                if report.state == "interrupted" and self.leaving:
                    self._end(worker, "retry", "all workers are started anew", blamed=False)
                else:
                    self._end(worker, report.state, report.reason, report.log)

    def died(self, number: int, reason: str, blamed: bool = True) -> None:
        """A worker's process has ended; with `blamed`, its training may be the cause."""
        with self._lock:
            worker = self._workers.pop(number, None)
            self._idle.pop(number, None)
            if worker is None:
                return
            LOG.info("worker %d ended: %s", number, reason)
            if worker.cell is not None:
                self._end(worker, "retry", reason, blamed=blamed)

    def _end(self, worker: _Worker, state: str, reason: str, log: str = "", blamed: bool = True) -> None:
        cell, worker.cell, worker.notes = worker.cell, None, frozenset()
        assert cell is not None
        if self.queue.ended(cell.id, state, reason, log, blamed) == "failed" and state == "retry":
            self._record_failure(cell, self.queue.why_failed(cell.id))

    def orders(self) -> dict[int, Order | None]:
        """What idle workers are to do now: the next training each, or None, to leave."""
        with self._lock:
            found: dict[int, Order | None] = {}
            for number in list(self._idle):
                worker = self._workers[number]
                cell = None if self.leaving else self.queue.take(self._is_of(worker.shape))
                if cell is not None:
                    worker.cell = cell
                    del self._idle[number]
                    found[number] = Order(cell.id, self.queue.until(cell.id))
                elif self._is_to_leave(worker.shape):
                    del self._idle[number], self._workers[number]
                    found[number] = None
            return found

    def _is_to_leave(self, shape: Shape) -> bool:
        if self.leaving or self.queue.is_stopping:
            return True
        if not self.queue.expects_more and not self.queue.is_waiting(self._is_of(shape)):
            return True
        served = {worker.shape for worker in self._workers.values() if worker.cell is None} | {shape}
        return any(self._shape_of(cell) not in served for cell in self.queue.ready)

    def _is_of(self, shape: Shape) -> Callable[[Cell], bool]:
        return lambda cell: self._shape_of(cell) == shape

    def begin_again(self) -> None:
        """All workers are gone; those of the next round are to do what they have left undone."""
        with self._lock:
            for number in list(self._workers):
                self.died(number, "all workers are started anew", blamed=False)
            self._starting.clear()
            self.leaving = self._closed = False
