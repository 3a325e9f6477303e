from typing import Any

import pytest

from fsg.trainer import TrainConfig
from orchestration.scheduler import environment

environment.prepare(None)

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

from orchestration.scheduler.connection import START_TIMEOUT
from orchestration.scheduler.tune import (
    FREE_TIMEOUT,
    Concurrency,
    TrialResources,
    _Controller,
    failure_reason,
    is_oom_bystander,  # fmt: skip
    max_concurrency,
)
from orchestration.spec.cells import Cell

LOW_ON_MEMORY = """2 worker(s) were killed due to the node running low on memory. Memory on the node was 3.10GB used
Considered workers: [
Selected to kill: (Actor(76d2): job ID=01, task name=A.__init__, pid=9081, actual memory used=0.45GB, worker ID=2fa8)
Selected to kill: (Actor(5027): job ID=01, task name=A.__init__, pid=9082, actual memory used=2.68GB, worker ID=39b8)
(Actor(1111): job ID=01, task name=A.__init__, pid=9083, actual memory used=0.10GB, worker ID=4444)
]
Top 10 memory users: PID	MEM(GB)	COMMAND
9082	2.68	ray::Worker.go_on
Refer to the documentation on how to address the out of memory issue.
""".splitlines()


def cell(name: str, threads: int = 1) -> Cell:
    return Cell(name, "train", name, {}, 0, TrainConfig(threads=threads))


def test_what_fits_is_said_of_the_largest_cells_and_of_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestration.scheduler.tune.capacity", lambda: {"CPU": 16.0, "GPU": 2.0})
    cells = [cell("a", 16), *(cell(name) for name in "bcdefghijklmnopqrstuv")]
    assert max_concurrency(cells, TrialResources()) == Concurrency(1, 16)
    assert max_concurrency(cells[1:4], TrialResources()) == Concurrency(3, 3)
    assert max_concurrency(cells, TrialResources(max_concurrent=4)) == Concurrency(1, 4)
    assert max_concurrency(cells[1:], TrialResources(gpus=0.5)) == Concurrency(4, 4)
    assert max_concurrency([cell("x", 32)], TrialResources()) == Concurrency(1, 1), (
        "what no node has is refused elsewhere"
    )


def test_of_workers_killed_together_for_want_of_memory_the_largest_is_to_blame() -> None:
    assert failure_reason(LOW_ON_MEMORY) == "the worker was killed: the machine ran low on memory"
    assert is_oom_bystander(LOW_ON_MEMORY, 9081)
    assert not is_oom_bystander(LOW_ON_MEMORY, 9082)
    assert not is_oom_bystander(LOW_ON_MEMORY, 9083), "not killed"
    alone = [line for line in LOW_ON_MEMORY if "pid=9082" not in line]
    assert not is_oom_bystander(alone, 9081)
    assert not is_oom_bystander([], 9081)


def test_cell_takes_its_threads_unless_the_spec_says_otherwise() -> None:
    assert TrialResources().of(cell("a")) == {"CPU": 1}
    assert TrialResources(cpus=3).of(cell("a")) == {"CPU": 3}
    assert TrialResources(gpus=0.25).of(cell("a")) == {"CPU": 1, "GPU": 0.25}
    assert (TrialResources().device, TrialResources(gpus=0.25).device) == ("cpu", "cuda")


class Actors:
    """Of Tune's: those that have been made, whether they run by now or not."""

    def __init__(self, *made: str) -> None:
        self.made = made

    @property
    def num_total_actors(self) -> int:
        return len(self.made)

    def is_actor_started(self, actor: str) -> bool:
        return actor in self.made


class Waiting:
    """A trial that waits for a worker."""

    trial_id, status = "w", Trial.PENDING


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("orchestration.scheduler.tune.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> _Controller:
    """One without a Ray, where two fit at a time: what it asks places for is in `asked`."""
    monkeypatch.setattr(TuneController, "__init__", lambda self: None)
    monkeypatch.setattr(TuneController, "on_step_begin", lambda self: None)
    monkeypatch.setattr(TuneController, "_maybe_reuse_cached_actor", lambda self, trial: False)
    monkeypatch.setattr("orchestration.scheduler.tune._Workers", lambda resource_manager: Actors())
    made = _Controller.__new__(_Controller)
    made.__init__(None, Concurrency(2, 2))  # type: ignore[misc, arg-type]
    made._trial_to_actor, made._started_actors, made._stopping_actors = {}, set(), {}
    made.asked = []  # type: ignore[attr-defined]
    made._ask_for_a_place = made.asked.append  # type: ignore[attr-defined, method-assign]
    return made


@pytest.mark.parametrize(
    ("own", "made", "runs", "takes"),
    [
        (None, (), (), True),
        ("waits for a place", (), (), True),
        ("is starting", ("is starting",), (), False),
        ("runs", ("runs",), ("runs",), True),
    ],
)
def test_a_free_worker_does_not_take_the_place_of_one_that_is_starting(
    own: str | None, made: tuple[str, ...], runs: tuple[str, ...], takes: bool, controller: Any, clock: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    trial, asked = Waiting(), []
    monkeypatch.setattr(TuneController, "_maybe_reuse_cached_actor", lambda self, trial: asked.append(trial) or True)
    controller._trial_to_actor = {} if own is None else {trial: own}
    controller._started_actors, controller._actor_manager = set(runs), Actors(*made)
    assert controller._maybe_reuse_cached_actor(trial) is takes
    assert asked == ([trial] if takes else [])
    clock[0] = START_TIMEOUT - 1
    assert controller._maybe_reuse_cached_actor(trial) is takes
    clock[0] = START_TIMEOUT
    assert controller._maybe_reuse_cached_actor(trial), "it does not start"


def test_another_place_is_asked_for_once_none_of_the_workers_becomes_free(controller: Any, clock: list[float]) -> None:
    trial, controller._actor_manager = Waiting(), Actors("one", "another")
    controller._schedule_trial_actor(trial)
    clock[0] = FREE_TIMEOUT - 0.01
    controller.on_step_begin()
    assert controller.asked == []
    clock[0] = FREE_TIMEOUT
    controller.on_step_begin()
    controller.on_step_begin()
    assert controller.asked == [trial]


def test_a_place_is_asked_for_at_once_as_long_as_fewer_workers_are_there_than_fit(
    controller: Any, clock: list[float]
) -> None:
    trial, controller._actor_manager = Waiting(), Actors("one, and another has died")
    controller._schedule_trial_actor(trial)
    assert controller.asked == [trial]


def test_a_worker_that_is_stopping_holds_no_place(controller: Any, clock: list[float]) -> None:
    trial, controller._actor_manager = Waiting(), Actors("one", "another")
    controller._stopping_actors = {"another": 0.0}
    controller._schedule_trial_actor(trial)
    assert controller.asked == [trial]


def test_a_place_that_becomes_free_while_a_trial_waits_is_asked_for(controller: Any, clock: list[float]) -> None:
    trial, controller._actor_manager = Waiting(), Actors("one", "another")
    controller._schedule_trial_actor(trial)
    controller.on_step_begin()
    assert controller.asked == []
    controller._actor_manager = Actors("one")
    controller.on_step_begin()
    assert controller.asked == [trial]


def test_no_place_is_asked_for_once_a_trial_has_a_worker(controller: Any, clock: list[float]) -> None:
    trial, controller._actor_manager = Waiting(), Actors("one", "another")
    controller._schedule_trial_actor(trial)
    controller._trial_to_actor[trial] = "a worker that became free"
    controller.on_step_begin()
    del controller._trial_to_actor[trial]  # it is over
    clock[0] = FREE_TIMEOUT
    controller.on_step_begin()
    assert controller.asked == []


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (
            "\x1b[36mray::Worker.go_on()\x1b[39m (pid=1, ip=127.0.0.1)\n  File 'a.py', line 9\nKeyError: 'abc'\n",
            "the worker failed: KeyError: 'abc'",
        ),
        (
            "The actor died because of an error in its creation task, ray::Worker.__init__() (pid=1)\nOSError: no",
            "the worker failed: OSError: no",
        ),
        (
            "The actor died unexpectedly before finishing this task.\n\tpid: 2\nThe actor is dead because its worker "
            "process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker exits with code 143. And",
            "the worker's process died: Worker exits with code 143",
        ),
    ],
)
def test_why_a_worker_died_is_said_in_a_line(told: str, why: str) -> None:
    assert failure_reason(told.splitlines()) == why
