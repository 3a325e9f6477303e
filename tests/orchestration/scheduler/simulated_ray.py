"""Ray's part of Tune's loop on a clock of its own: nodes with CPUs, workers that start, train, die and stop.

What runs on it is the real controller, queue and listener (`orchestration.scheduler`), and Tune's own code under them.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.exceptions import RayActorError
from ray.tune.execution import tune_controller
from ray.tune.schedulers import FIFOScheduler

from orchestration.runtime.worker import WorkerReport
from orchestration.scheduler import tune
from orchestration.scheduler.queue import Queue


class Clock:
    """In place of the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class SimulatedRay:
    """In place of Tune's actor manager: workers on nodes, each event at its time.

    `seconds` is how long each cell still trains. A worker starts within 2 to 6 s and stops within 0.05 s; at each word
    of a worker's, and at each start, it dies with the probability `deaths`.
    """

    num_actor_tasks = 0

    def __init__(
        self, clock: Clock, nodes: Sequence[int], seconds: Mapping[str, float], seed: int, deaths: float
    ) -> None:
        self.clock, self.free, self.left, self.deaths = clock, list(nodes), dict(seconds), deaths
        self.random = random.Random(seed)
        self.asked = 0
        self.training: set[str] = set()
        self._pending: dict[TrackedActor, int] = {}
        self._live_actors_to_ray_actors_resources: dict[TrackedActor, tuple[Any, tuple[int, int]]] = {}
        self._failed: set[TrackedActor] = set()
        self._events: list[tuple[float, int, TrackedActor, str, Callable[[], None]]] = []
        self._number, self._identity = itertools.count(), itertools.count()

    @property
    def num_pending_actors(self) -> int:
        return len(self._pending)

    @property
    def num_live_actors(self) -> int:
        return len(self._live_actors_to_ray_actors_resources)

    @property
    def num_total_actors(self) -> int:
        return self.num_pending_actors + self.num_live_actors

    def is_actor_started(self, tracked_actor: TrackedActor) -> bool:
        return tracked_actor in self._live_actors_to_ray_actors_resources

    def is_actor_failed(self, tracked_actor: TrackedActor) -> bool:
        return tracked_actor in self._failed

    def add_actor(self, *, cls: Any, kwargs: Any, resource_request: Any, **told: Any) -> TrackedActor:
        self.asked += 1
        actor = TrackedActor(next(self._identity), **told)
        self._pending[actor] = int(resource_request.required_resources["CPU"])
        return actor

    def remove_actor(self, tracked_actor: TrackedActor, kill: bool = False, stop_future: Any = None) -> bool:
        if tracked_actor in self._failed:
            return False
        if self._pending.pop(tracked_actor, None) is not None:
            return False
        if self._forget(tracked_actor, "start"):
            tracked_actor._on_start = tracked_actor._on_stop = tracked_actor._on_error = None
        self._at(0.05, tracked_actor, "stop", lambda: self._stopped(tracked_actor))
        return True

    def schedule_actor_task(
        self, tracked_actor: TrackedActor, method_name: str, args: Any = (), kwargs: Any = None,
        on_result: Any = None, on_error: Any = None, _return_future: bool = False,
    ) -> Any:  # fmt: skip
        if tracked_actor in self._failed or method_name == "stop":
            return None
        assert tracked_actor in self._live_actors_to_ray_actors_resources
        _, cell, _ = args
        assert cell not in self.training, "on two workers"
        self.training.add(cell)
        word = min(1.0, self.left[cell])

        def dies() -> None:
            self.training.discard(cell)
            error = self._dead(tracked_actor)
            on_error(tracked_actor, error)

        def says() -> None:
            self.training.discard(cell)
            self.left[cell] -= word
            state = "running" if self.left[cell] > 1e-9 else "done"
            on_result(tracked_actor, tuple(WorkerReport(state, "", "", "", 1, 2, {})))

        self._at(word, tracked_actor, "task", dies if self.random.random() < self.deaths else says)
        return None

    def clear_actor_task_futures(self, tracked_actor: TrackedActor) -> None:
        self._forget(tracked_actor, "task")

    def next(self, timeout: float) -> bool:
        self._place()
        if not self._events or self._events[0][0] > self.clock.now + timeout:
            self.clock.now += timeout
            return False
        at, _, _, _, happens = heapq.heappop(self._events)
        self.clock.now = max(self.clock.now, at)
        happens()
        self._place()
        return True

    def cleanup(self) -> None: ...

    def _at(self, after: float, actor: TrackedActor, kind: str, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.clock.now + after, next(self._number), actor, kind, happens))

    def _forget(self, actor: TrackedActor, *kinds: str) -> bool:
        kept = [event for event in self._events if event[2] is not actor or event[3] not in kinds]
        forgotten = len(kept) < len(self._events)
        self._events = kept
        heapq.heapify(self._events)
        return forgotten

    def _place(self) -> None:
        for actor, cpus in list(self._pending.items()):
            nodes = [node for node, free in enumerate(self.free) if free >= cpus]
            if nodes:
                node = self.random.choice(nodes)
                self.free[node] -= cpus
                del self._pending[actor]
                self._live_actors_to_ray_actors_resources[actor] = (object(), (node, cpus))
                dies = self.random.random() < self.deaths
                starts = self._dead if dies else self._started
                self._at(self.random.uniform(2, 6), actor, "start", lambda actor=actor, starts=starts: starts(actor))

    def _started(self, actor: TrackedActor) -> None:
        if actor._on_start:
            actor._on_start(actor)

    def _dead(self, actor: TrackedActor) -> Exception:
        error = RayActorError(error_msg="it died")
        self._failed.add(actor)
        self._gone(actor)
        if actor._on_error:
            actor._on_error(actor, error)
        return error

    def _stopped(self, actor: TrackedActor) -> None:
        if actor in self._live_actors_to_ray_actors_resources:
            self._gone(actor)
            if actor._on_stop:
                actor._on_stop(actor)

    def _gone(self, actor: TrackedActor) -> None:
        self._forget(actor, "task", "start", "stop")
        _, (node, cpus) = self._live_actors_to_ray_actors_resources.pop(actor)
        self.free[node] += cpus


def simulated(
    patch: pytest.MonkeyPatch, queue: Queue, listening: Any, nodes: Sequence[int], seconds: Mapping[str, float],
    fits: tune.Concurrency, *, seed: int = 0, deaths: float = 0.0, within: float = 20_000.0,
) -> SimulatedRay:  # fmt: skip
    """Run a queue to its end. Raises AssertionError where that does not come `within` so many seconds."""
    clock = Clock()
    ray = SimulatedRay(clock, nodes, seconds, seed, deaths)
    patch.setattr(tune, "time", clock)
    patch.setattr(tune_controller, "time", clock)
    patch.setattr(tune, "_Workers", lambda resource_manager: ray)
    patch.setattr(tune_controller, "_ResourceUpdater", lambda interval: _Quiet())
    patch.setattr(tune_controller, "_InsufficientResourcesManager", lambda **settings: _Quiet())
    controller = tune._Controller(
        None,  # type: ignore[arg-type]
        fits,
        search_alg=tune.QueueSearcher(queue, tune.TrialResources()),
        scheduler=FIFOScheduler(),  # type: ignore[no-untyped-call]
        callbacks=[listening],
        reuse_actors=True,
    )
    while not controller.is_finished():  # type: ignore[no-untyped-call]
        controller.step()  # type: ignore[no-untyped-call]
        assert all(trial.status == trial.PENDING for trial in controller._staged_trials)
        assert clock.now < within, "it hangs"
    assert (controller._trials, controller._staged_trials, controller._actor_to_trial) == ([], set(), {})
    return ray


class _Quiet:
    def update_avail_resources(self) -> None: ...

    def on_no_available_trials(self, trials: Any) -> None: ...
