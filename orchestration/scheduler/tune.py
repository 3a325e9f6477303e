"""Trains cells on Ray: each worker is a trial of Ray Tune, which finds a place for it; each worker trains many cells.

This package, not Tune, handles order, retries and resume: when the driver dies, the next launch needs only the ledger.
docs/design.md says why a trial is a worker and not a cell.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestration.ledger import store
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.stores.errors import Unwritable
from orchestration.runtime.messages import Arrival, Failure, Message
from orchestration.runtime.worker import WorkerConfig
from orchestration.scheduler.connection import capacity
from orchestration.scheduler.deaths import Death, death_of, is_out_of_memory, last_line
from orchestration.scheduler.environment import Unusable
from orchestration.scheduler.exchange import Exchange
from orchestration.scheduler.pool import MAX_FAILED_STARTS, WorkerPool
from orchestration.scheduler.queue import Queue, RunCallback, WorkSource
from orchestration.scheduler.resources import TrialResources, max_concurrency
from orchestration.scheduler.worker_trial import WorkerTrial
from orchestration.spec.cells import Cell

POLL_INTERVAL = 0.2
TIME_TO_NOTICE = 5  # that Ray itself has died, and not the exchange alone: then the process is replaced meanwhile
START_PAUSE = 5  # after a worker that did not start: a lost node is noticed in some seconds
END_TIMEOUT = 300  # for Tune to end its workers: Ray must not be shut down while Tune still calls it
MAX_WORKERS = 100_000  # that wait for an order at the same time
MAX_REPORTS_PER_SECOND = 100  # from all workers together
MAX_ROUNDS = 20  # in which no cell has ended


def run(
    ledger: Ledger,
    cells: Sequence[Cell],
    resources: TrialResources,
    callback: RunCallback,
    *,
    stop_file: Path,
    record: dict[str, Any] | None = None,
    source: WorkSource | None = None,
    expected: Sequence[Cell] = (),
) -> list[Cell]:
    """Train cells, and those that a source adds, until each has ended or `stop_file` exists. Ray must be connected.

    `expected` are the cells that the source may add. Returns the cells that were submitted or waiting. Raises
    Unwritable where a worker could not write to the ledger, Unusable where no worker starts.
    """
    stopping = store.PolledFile(stop_file).exists
    queue = Queue(cells, callback, resources.max_concurrent, resources.max_retries, stopping, source)
    callback.waits = queue.waits

    def record_failure(cell: Cell, reason: str) -> None:
        with suppress(OSError):
            ledger.claim(cell.id, {"device": "", "by": "driver"}).finish("failed", reason, seconds=0.0)

    pool = WorkerPool(queue, resources.of, expected=expected, record_failure=record_failure, pause=START_PAUSE)
    have = capacity()
    settings = WorkerConfig(
        results=str(ledger.folder.resolve()),
        stop_file=str(stop_file.resolve()),
        directory=os.getcwd(),
        python_path=list(resources.python_path),
        device=resources.device,
        checkpoint_every=resources.checkpoint_every,
        report_interval=max(1.0, have["CPU"] / MAX_REPORTS_PER_SECOND),
        record=record or {},
    )
    places = max_concurrency([*cells, *expected], resources, have)
    rounds, left = 0, queue.left
    while not pool.finished:
        error = _run_round(pool, settings, places)
        if error is not None and not pool.leaving:
            raise error
        pool.begin_again()
        rounds, left = (rounds + 1, left) if queue.left == left else (0, queue.left)
        if rounds == MAX_ROUNDS:
            raise Unusable(f"all workers were started anew {rounds} times, and no cell ended (expected more memory)")
    if pool.stuck and not queue.finished:
        raise Unusable(f"no worker starts, tried {MAX_FAILED_STARTS} times: {pool.why_not_started or 'it died'}")
    if queue.unwritable:
        raise Unwritable(queue.unwritable)
    return list(queue.taken.values())


def _run_round(pool: WorkerPool, settings: WorkerConfig, places: int) -> Exception | None:
    """Train until the pool is finished or Tune has ended; returns what ended Tune.

    A worker that is killed for want of memory ends Tune: all other workers then leave at a checkpoint. They are started
    anew also where the exchange dies.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": MAX_WORKERS, "scheduling_strategy": here}
    exchange: Any = ray.remote(**options)(Exchange).remote()
    ends: dict[Any, tuple[int, int]] = {}  # of each worker that lives: number and process id
    orders: dict[int, Any] = {}
    with _tune_that_starts_workers(pool, settings, exchange, places) as tuning:
        while tuning.is_alive():
            try:
                messages = ray.get(exchange.swap.remote(orders, pool.leaving, POLL_INTERVAL))
            except ray.exceptions.RayActorError:
                time.sleep(TIME_TO_NOTICE)
                pool.leaving = True
                break
            for number, message in messages:
                if isinstance(message, Arrival):
                    ends[ray.cloudpickle.loads(message.actor).wait.remote()] = number, message.pid
                _hear(pool, number, message)
            _hear_of_deaths(pool, ends)
            orders = pool.orders()
        _hear_of_deaths(pool, ends)
    pool.leaving = pool.leaving or is_out_of_memory(tuning.error)  # a worker that did not come to its first message
    return tuning.error


def _hear(pool: WorkerPool, number: int, message: Message) -> None:
    if isinstance(message, Arrival):
        pool.arrived(number, message.shape)
    elif isinstance(message, Failure):
        pool.start_failed(number, message.reason)
        pool.died(number, message.reason)
    else:
        pool.heard(number, message)


def _hear_of_deaths(pool: WorkerPool, ends: dict[Any, tuple[int, int]]) -> None:
    for number, death in _deaths(ends):
        pool.leaving = pool.leaving or death.out_of_memory
        pool.died(number, death.reason, death.blamed)


def _deaths(ends: dict[Any, tuple[int, int]]) -> Iterator[tuple[int, Death]]:
    """The workers that have ended since the last call."""
    over = ray.wait(list(ends), num_returns=len(ends), timeout=0)[0] if ends else []
    for one in over:
        number, pid = ends.pop(one)
        try:
            ray.get(one)
        except Exception as error:
            yield number, death_of(error, pid)
        else:
            yield number, Death("the worker has ended", blamed=False)


@contextmanager
def _tune_that_starts_workers(
    pool: WorkerPool, settings: WorkerConfig, exchange: Any, places: int
) -> Iterator["_TuneThread"]:
    """Within, Tune starts the workers that the pool wants; afterwards it has ended them."""
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(places + 1)  # one more: a node that joins is used
    with TemporaryDirectory(prefix="fsg-tune-", ignore_cleanup_errors=True) as folder:
        tuner = tune.Tuner(
            WorkerTrial,
            tune_config=tune.TuneConfig(num_samples=-1, search_alg=_WantedWorkers(pool, settings, exchange)),
            run_config=tune.RunConfig(
                name="workers",
                storage_path=folder,
                stop=_PoolFinished(pool),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        thread = _TuneThread(tuner, pool)
        thread.start()
        try:
            yield thread
        finally:
            pool.close()
            thread.join(END_TIMEOUT)


class _TuneThread(Thread):
    """Runs Tune beside the driver's loop; `error` is what ended it."""

    def __init__(self, tuner: tune.Tuner, pool: WorkerPool) -> None:
        super().__init__(name="Ray Tune", daemon=True)
        self._tuner, self._pool = tuner, pool
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            for error in self._tuner.fit().errors:
                self._pool.why_not_started = self._pool.why_not_started or last_line(error)
        except Exception as error:
            self.error = error


class _OfThisProcess:
    """Part of a Tuner that means nothing elsewhere: Tune writes all of a Tuner to a file, which nothing here reads."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _WantedWorkers(_OfThisProcess, Searcher):
    """Gives Tune the workers that a pool wants."""

    def __init__(self, pool: WorkerPool, settings: WorkerConfig, exchange: Any) -> None:
        super().__init__()
        self._pool = pool
        # As bytes: what Ray itself keeps for workers it tries to recover when its raylet dies, and the driver with it.
        self._given = ray.cloudpickle.dumps((settings, exchange))  # type: ignore[no-untyped-call]
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        if self._pool.is_closed:
            return Searcher.FINISHED
        start = self._pool.start()
        if start is None:
            return None
        self._numbers[trial_id] = start.number
        shape = [list(one) for one in start.shape]
        return {"worker": start.number, "shape": shape, "settings_and_exchange": self._given}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if error:
            self._pool.start_failed(self._numbers[trial_id])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it."""


class _PoolFinished(_OfThisProcess, tune.Stopper):
    """Ends Tune's run when the pool is finished, or all its workers are to leave."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._pool.is_closed
