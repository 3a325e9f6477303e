"""Ray Tune as a servant: it places cells on warm workers; order, retries and what is left to do are decided here.

Tune's own recovery is not used: it restores no trial and writes nothing. When the driver dies, the ledger is all that
the next launch needs.
"""

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import tune
from ray.air.execution import PlacementGroupResourceManager
from ray.air.execution._internal import RayActorManager
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import SearchAlgorithm

from orchestration.ledger import store
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.stores.errors import Unwritable
from orchestration.runtime.worker import Worker, WorkerConfig, WorkerReport
from orchestration.scheduler.connection import START_TIMEOUT, capacity
from orchestration.scheduler.queue import Queue, RunCallback, WorkSource
from orchestration.spec.cells import Cell

_KILLED = re.compile(r"Selected to kill: .*\bpid=(\d+), actual memory used=([\d.]+)GB")
FREE_TIMEOUT = 1.0
MAX_REPORTS_PER_SECOND = 100  # that the driver hears from all workers together


@dataclass(frozen=True)
class TrialResources:
    """What one cell takes, and where it finds things."""

    gpus: float = 0.0
    cpus: int | None = None
    max_concurrent: int | None = None
    max_retries: int = 3
    checkpoint_every: float = 60.0
    python_path: Sequence[str] = field(default=())

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    def of(self, cell: Cell) -> dict[str, float]:
        return {"CPU": self.cpus or cell.train.threads} | ({"GPU": self.gpus} if self.gpus else {})


def run(
    ledger: Ledger,
    cells: Sequence[Cell],
    resources: TrialResources,
    callback: RunCallback,
    *,
    stop_file: Path,
    record: dict[str, Any] | None = None,
    source: WorkSource | None = None,
    concurrency: "Concurrency | None" = None,
) -> list[Cell]:
    """Train cells, and what a source adds, until each has ended or `stop_file` exists; Ray is connected.

    Returns the cells that were handed out or waited. Raises Unwritable where a worker could not write to the ledger.
    """
    concurrency = concurrency or max_concurrency(cells, resources)
    stopping = store.PolledFile(stop_file).exists
    queue = Queue(
        cells, callback, concurrency.largest, resources.max_concurrent, resources.max_retries, stopping, source
    )
    callback.waits = queue.waits
    worker_config = WorkerConfig(
        results=str(ledger.folder.resolve()),
        stop_file=str(stop_file.resolve()),
        directory=os.getcwd(),
        python_path=list(resources.python_path),
        device=resources.device,
        checkpoint_every=resources.checkpoint_every,
        report_interval=max(1.0, concurrency.smallest / MAX_REPORTS_PER_SECOND),
        record=record or {},
    )
    controller = _Controller(
        worker_config,
        concurrency,
        search_alg=QueueSearcher(queue, resources),
        scheduler=FIFOScheduler(),  # type: ignore[no-untyped-call]
        callbacks=[TuneCallback(queue, ledger, callback)],
        reuse_actors=True,
    )
    with _workers_stopped(controller):
        while not controller.is_finished():  # type: ignore[no-untyped-call]
            controller.step()  # type: ignore[no-untyped-call]
    if queue.unwritable:
        raise Unwritable(queue.unwritable)
    return list(queue.taken.values())


@contextmanager
def _workers_stopped(controller: "_Controller") -> Iterator[None]:
    """Afterwards workers have kept what they train; whoever cannot wait for that (Ctrl-C, twice) does not."""
    try:
        yield
    except Exception:
        controller.cleanup()  # type: ignore[no-untyped-call]
        raise
    controller.cleanup()  # type: ignore[no-untyped-call]


class _Workers(RayActorManager):
    """Tune's; to these a worker that Ray kills for want of memory has died, where Tune itself would break off."""

    def _actor_task_failed(self, tracked_actor_task: TrackedActorTask, exception: Exception) -> None:
        if isinstance(exception, ray.exceptions.OutOfMemoryError):
            exception = ray.exceptions.RayActorError(error_msg=str(exception))
        super()._actor_task_failed(tracked_actor_task, exception)


class _Trial(Trial):
    """A cell on its way through Tune, without what Tune keeps of a trial: folders, results, a state to recover from."""

    def __init__(self, cell: Cell, until: int | None, resources: tune.PlacementGroupFactory) -> None:
        super().__init__("cell", config={"cell": cell.id}, placement_group_factory=resources, stub=True)
        self.cell, self.until = cell, until
        self.report: WorkerReport | None = None
        self.death: list[str] = []
        self.preempted = False

    @property
    def local_path(self) -> None:
        return None

    def init_local_path(self) -> None: ...

    def set_ray_actor(self, ray_actor: Any) -> None:
        """Tune's asks every worker for what it fills results with, twice a trial."""
        self.temporary_state.ray_actor = ray_actor

    def update_last_result(self, result: dict[str, Any]) -> None:
        """Tune's keeps statistics of every number in it, for ever."""
        self.run_metadata.last_result = result

    def handle_error(self, exc: Exception | None = None) -> None:
        """Tune's writes it to a file, and goes on by itself with a trial whose node was taken away."""
        self.death = str(exc).splitlines()
        self.preempted = bool(getattr(exc, "preempted", False))
        self.run_metadata.num_failures += 1


class _Controller(TuneController):
    """Tune's; here it makes our workers, and tells a warm one of its next cell in a single call.

    A worker that is free does not take the place of one that is starting, which Tune would end then: trainings that are
    shorter than the start of a worker would all be done by one. A worker that does not start within `SECONDS_TO_START`
    loses its training to a free one all the same.

    Beyond the workers that fit, another place is asked for only where a trial has waited for one of them longer than
    `SECONDS_TO_BE_FREE`: for every place Ray's head makes a group, which costs more than a short training.

    Trials that are over are forgotten: Tune keeps them all, and looks at each to choose the next.
    """

    def __init__(self, worker_config: WorkerConfig, concurrency: "Concurrency", **settings: Any) -> None:
        super().__init__(**settings)
        self._actor_manager = _Workers(resource_manager=PlacementGroupResourceManager())
        self._max_pending_trials, self._places = concurrency
        self._worker_config = worker_config
        self._worker = ray.remote(Worker)
        self._starting: dict[str, float] = {}
        self._waits: dict[_Trial, float] = {}

    def on_step_begin(self) -> None:
        super().on_step_begin()  # type: ignore[no-untyped-call]
        for trial, since in list(self._waits.items()):
            if trial.status != Trial.PENDING or trial in self._trial_to_actor:
                del self._waits[trial]
            elif self._a_place_is_free() or time.monotonic() - since >= FREE_TIMEOUT:
                del self._waits[trial]
                self._ask_for_a_place(trial)

    def checkpoint(self, force: bool = False, wait: bool = False) -> None:
        """Nothing: the ledger has it."""

    def _create_checkpoint_manager(self) -> None: ...

    def _mark_trial_to_checkpoint(self, trial: Any) -> None: ...

    def _maybe_add_actors(self) -> None:
        super()._maybe_add_actors()
        # Tune stages a trial for which a worker is free once more, since with its own `reset` it would not run yet.
        for trial in [trial for trial in self._staged_trials if trial.status != Trial.PENDING]:
            self._staged_trials.remove(trial)
            self._actor_cache.decrease_max(trial.placement_group_factory)

    def _schedule_trial_actor(self, trial: Any) -> None:
        if self._maybe_reuse_cached_actor(trial):
            return
        if self._a_place_is_free():
            self._ask_for_a_place(trial)
        else:
            self._waits[trial] = time.monotonic()

    def _a_place_is_free(self) -> bool:
        return self._actor_manager.num_total_actors - len(self._stopping_actors) < self._places

    def _ask_for_a_place(self, trial: Any) -> None:
        worker = self._actor_manager.add_actor(
            cls=self._worker,
            kwargs={"config": self._worker_config},
            resource_request=trial.placement_group_factory,
            on_start=self._actor_started,
            on_stop=self._actor_stopped,
            on_error=self._actor_failed,
        )
        self._trial_to_actor[trial] = worker
        self._actor_to_trial[worker] = trial

    def _maybe_reuse_cached_actor(self, trial: Any) -> bool:
        own = self._trial_to_actor.get(trial)
        if own is not None and own not in self._started_actors and self._actor_manager.is_actor_started(own):
            since = self._starting.setdefault(trial.trial_id, time.monotonic())
            if time.monotonic() - since < START_TIMEOUT:
                return False
        self._starting.pop(trial.trial_id, None)
        return bool(super()._maybe_reuse_cached_actor(trial))

    def _schedule_trial_reset(self, trial: Any, new_config: dict[str, Any], new_experiment_tag: str) -> None:
        """Nothing to prepare: what a worker is to train is said when it is to go on."""
        self._actor_started(self._trial_to_actor[trial])

    def _schedule_trial_train(self, trial: Any) -> None:
        self._schedule_trial_task(
            trial,
            "step",
            args=(trial.trial_id, trial.cell.id, trial.until),
            on_result=self._on_report,
            on_error=self._trial_task_failure,
        )

    def _schedule_trial_stop(self, trial: Any, exception: Exception | None = None) -> None:
        super()._schedule_trial_stop(trial, exception)
        if trial in self._trials:
            self._trials.remove(trial)
        for kept in (self._live_trials, self._stopped_trials, self._failed_trials):
            kept.discard(trial)

    def _on_report(self, trial: Any, report: tuple[Any, ...]) -> None:
        trial.report = WorkerReport(*report)
        self._on_training_result(trial, {"done": trial.report.state != "running"})  # type: ignore[no-untyped-call]


class Concurrency(NamedTuple):
    """How many cells fit, of the largest and of the smallest that there are."""

    largest: int
    smallest: int


def max_concurrency(cells: Sequence[Cell], resources: TrialResources) -> Concurrency:
    """What concurrency of these cells, and is allowed."""
    have = capacity()
    concurrency = {
        int(min(have[name] // amount for name, amount in resources.of(cell).items() if amount)) for cell in cells
    }
    most = min(resources.max_concurrent or len(cells), len(cells))
    return Concurrency(max(1, min(*concurrency, most)), max(1, min(max(concurrency), most)))


class QueueSearcher(SearchAlgorithm):
    """Hands the queue's cells to Tune."""

    def __init__(self, queue: Queue, resources: TrialResources) -> None:
        self.queue, self.resources = queue, resources
        self._kinds: dict[tuple[tuple[str, float], ...], tune.PlacementGroupFactory] = {}

    def next_trial(self) -> _Trial | None:
        cell = self.queue.take()
        if cell is None:
            return None
        return _Trial(cell, self.queue.until(cell.id), self._kind(self.resources.of(cell)))

    def is_finished(self) -> bool:
        return self.queue.finished

    def _kind(self, resources: dict[str, float]) -> tune.PlacementGroupFactory:
        """One object for trials that take the same: Tune compares them all the time."""
        return self._kinds.setdefault(tuple(resources.items()), tune.PlacementGroupFactory([resources]))


class TuneCallback(tune.Callback):
    """Tells the queue and the callback what Tune hears of the workers."""

    def __init__(self, queue: Queue, ledger: Ledger, callback: RunCallback) -> None:
        self.queue, self.ledger, self.callback = queue, ledger, callback
        self._noted: set[tuple[str, str]] = set()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.queue.started(trial.cell.id)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        report: WorkerReport = trial.report
        if report.note and (trial.trial_id, report.note) not in self._noted:
            self._noted.add((trial.trial_id, report.note))
            self.callback.noted(trial.cell, report.note)
        if report.total_steps or report.metrics:
            self.callback.progressed(trial.cell, report.step, report.total_steps, report.metrics)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial, trial.report.state, trial.report.reason, trial.report.log)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(
            trial, "retry", failure_reason(trial.death), "", blamed=not (trial.preempted or self._took_less(trial))
        )

    def _end(self, trial: _Trial, state: str, reason: str, log: str, blamed: bool = True) -> None:
        if self.queue.ended(trial.cell.id, state, reason, log, blamed) == "failed" and state == "retry":
            self._record_death(trial.cell, self.queue.why_failed(trial.cell.id))

    def _took_less(self, trial: _Trial) -> bool:
        with suppress(OSError):
            last = self.ledger.attempts(trial.cell.id)[-1:]
            return any(is_oom_bystander(trial.death, attempt["pid"]) for attempt in last)
        return False

    def _record_death(self, cell: Cell, reason: str) -> None:
        """The dead cannot write: an attempt of the driver's own says how the cell failed."""
        with suppress(OSError):
            self.ledger.claim(cell.id, {"device": "", "by": "driver"}).finish("failed", reason, seconds=0.0)


def failure_reason(report: Sequence[str]) -> str:
    """Why a worker died, in one line: what Ray wrote down of it, without the advice around it."""
    text = " ".join(report)
    if "running low on memory" in text:
        return "the worker was killed: the machine ran low on memory"
    if "ray::" in text:  # how a traceback begins that came over from a worker
        return "the worker failed: " + next((line for line in reversed(report) if line.strip()), "").strip()
    detail = re.search(r"Worker exit detail: (.*?)\.(\s|$)", text)
    return "the worker's process died" + (f": {detail[1]}" if detail else "")


def is_oom_bystander(report: Sequence[str], pid: int) -> bool:
    """Whether Ray, for want of memory, killed a worker along with one that had taken more."""
    killed = [found for line in report if (found := _KILLED.search(line))]
    taken = {int(found[1]): float(found[2]) for found in killed}
    return pid in taken and taken[pid] < max(taken.values())
