from numbers import Number
from types import SimpleNamespace

import pytest

from fsg.trainer import TrainConfig
from orchestration import ray_settings

ray_settings.prepare(None)

from ray.tune.execution.tune_controller import TuneController  # noqa: E402

from orchestration.plan import Cell  # noqa: E402
from orchestration.trainable import CellTrainable, Told  # noqa: E402
from orchestration.tuner import SECONDS_TO_START, Queue, Slots, _Controller, cause, took_less  # noqa: E402

LOW_ON_MEMORY = """Failure # 1 (occurred at 2026-01-01_00-00-00)
2 worker(s) were killed due to the node running low on memory. Memory on the node was 3.10GB used / 23.54GB limit
Considered workers: [
Selected to kill: (Actor(76d2): job ID=01, task name=A.__init__, pid=9081, actual memory used=0.45GB, worker ID=2fa8)
Selected to kill: (Actor(5027): job ID=01, task name=A.__init__, pid=9082, actual memory used=2.68GB, worker ID=39b8)
(Actor(1111): job ID=01, task name=A.__init__, pid=9083, actual memory used=0.10GB, worker ID=4444)
]
""".splitlines()


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def started(self, cell: Cell) -> None:
        self.said.append(f"started {cell.id}")

    def progressed(self, cell: Cell, step: int, of_steps: int, metrics: dict[str, float]) -> None:
        raise AssertionError("the queue does not speak of progress")

    def again(self, cell: Cell, reason: str) -> None:
        self.said.append(f"again {cell.id}: {reason}")

    def noted(self, cell: Cell, note: str) -> None:
        raise AssertionError("the queue has nothing to note")

    def ended(self, cell: Cell, state: str, reason: str, log: str) -> None:
        self.said.append(f"{state} {cell.id}: {reason}".rstrip(": "))


def cell(name: str, after: str | None = None) -> Cell:
    return Cell(name, "train", name, {}, 0, TrainConfig(), after)


def taken(queue: Queue) -> str | None:
    found = queue.take()
    return None if found is None else found.id


def run_next(queue: Queue) -> str | None:
    name = taken(queue)
    if name is not None:
        queue.started(name)
    return name


def test_cells_go_out_in_order_and_the_end_is_reached() -> None:
    queue = Queue([cell("a"), cell("b")], Heard())
    assert run_next(queue) == "a"
    assert run_next(queue) == "b"
    assert not queue.finished
    assert run_next(queue) is None
    assert queue.ended("a", "done") == "done"
    assert queue.ended("b", "done") == "done"
    assert queue.finished


def test_cells_wait_for_their_pretraining_and_others_do_not() -> None:
    queue = Queue([cell("pre"), cell("a", after="pre"), cell("b")], Heard(), at_a_time=2)
    assert [run_next(queue), run_next(queue), run_next(queue)] == ["pre", "b", None]
    assert not queue.finished
    queue.ended("pre", "done")
    assert run_next(queue) == "a"


def test_pretraining_that_is_done_already_is_not_waited_for() -> None:
    assert run_next(Queue([cell("a", after="done long ago")], Heard())) == "a"


@pytest.mark.parametrize("state", ["failed", "diverged"])
def test_failed_pretraining_fails_what_waits_for_it(state: str) -> None:
    heard = Heard()
    queue = Queue([cell("pre"), cell("a", after="pre"), cell("b")], heard)
    run_next(queue)
    queue.ended("pre", state, "no such luck")
    assert run_next(queue) == "b"
    queue.ended("b", "done")
    assert queue.finished
    assert f"failed a: its pretraining {state}: no such luck" in heard.said


def test_what_fails_for_its_pretraining_ends_the_queue() -> None:
    queue = Queue([cell("pre"), cell("a", after="pre")], Heard())
    run_next(queue)
    queue.ended("pre", "failed", "no")
    assert run_next(queue) is None
    assert queue.finished


def test_dead_cell_goes_out_first_again_so_often_and_then_fails() -> None:
    heard = Heard()
    queue = Queue([cell("a"), cell("b")], heard, max_retries=2)
    for _ in range(2):
        assert run_next(queue) == "a"
        assert queue.ended("a", "again", "it died") is None
    assert run_next(queue) == "a"
    assert queue.ended("a", "again", "it died") == "failed"
    assert heard.said[-1] == "failed a: it died (3 times)"
    assert run_next(queue) == "b"


def test_death_that_another_cell_is_to_blame_for_does_not_count() -> None:
    queue = Queue([cell("a")], Heard(), max_retries=1)
    for _ in range(5):
        assert run_next(queue) == "a"
        assert queue.ended("a", "again", "it died", blamed=False) is None
    assert run_next(queue) == "a"
    assert queue.ended("a", "again", "it died") is None
    assert run_next(queue) == "a"
    assert queue.ended("a", "again", "it died") == "failed"


def test_of_workers_killed_together_for_want_of_memory_the_largest_is_to_blame() -> None:
    assert cause(LOW_ON_MEMORY) == "the worker was killed: the machine ran low on memory"
    assert took_less(LOW_ON_MEMORY, 9081)
    assert not took_less(LOW_ON_MEMORY, 9082)
    assert not took_less(LOW_ON_MEMORY, 9083), "not killed"
    alone = [line for line in LOW_ON_MEMORY if "pid=9082" not in line]
    assert not took_less(alone, 9081)
    assert not took_less([], 9081)


def test_exception_is_final() -> None:
    queue = Queue([cell("a")], Heard())
    run_next(queue)
    assert queue.ended("a", "failed", "ValueError") == "failed"
    assert queue.finished


def test_no_more_are_out_than_asked_for() -> None:
    queue = Queue([cell("a"), cell("b"), cell("c")], Heard(), at_a_time=3, max_concurrent=2)
    assert [run_next(queue), run_next(queue), run_next(queue)] == ["a", "b", None]
    queue.ended("b", "done")
    assert run_next(queue) == "c"


def test_one_cell_is_ahead_of_those_that_run() -> None:
    queue = Queue([cell(name) for name in "abcdef"], Heard(), at_a_time=2)
    assert [taken(queue), taken(queue), taken(queue)] == ["a", "b", None]
    queue.started("a")
    assert taken(queue) is None, "b still waits for a worker"
    queue.started("b")
    assert [taken(queue), taken(queue)] == ["c", None]


def test_stop_hands_out_nothing_more_and_ends_with_what_is_out() -> None:
    stopping = [False]
    queue = Queue([cell("a"), cell("b")], Heard(), stopping=lambda: stopping[0])
    run_next(queue)
    stopping[0] = True
    assert run_next(queue) is None
    assert not queue.finished
    assert queue.ended("a", "again", "it died on the way") == "interrupted"
    assert queue.finished


def test_interrupted_pretraining_fails_nothing() -> None:
    heard = Heard()
    stopping = [False]
    queue = Queue([cell("pre"), cell("a", after="pre")], heard, stopping=lambda: stopping[0])
    run_next(queue)
    stopping[0] = True
    queue.ended("pre", "interrupted")
    assert queue.finished
    assert heard.said == ["started pre", "interrupted pre"]


def test_ledger_that_cannot_be_written_to_ends_the_queue_and_fails_nothing() -> None:
    heard = Heard()
    queue = Queue([cell("a"), cell("b"), cell("c"), cell("d")], heard, at_a_time=3)
    assert [run_next(queue), run_next(queue), run_next(queue)] == ["a", "b", "c"]
    queue.ended("a", "unwritable", "No space left on device")
    assert run_next(queue) is None
    assert not queue.finished, "two are out"
    queue.ended("b", "done")
    queue.ended("c", "again", "it died")
    assert queue.finished
    assert queue.unwritable == "No space left on device"
    assert heard.said[3:] == ["interrupted a: No space left on device", "done b", "interrupted c: it died"]


def test_cell_takes_its_threads_unless_the_spec_says_otherwise() -> None:
    assert Slots().of(cell("a")) == {"CPU": 1}
    assert Slots(cpus=3).of(cell("a")) == {"CPU": 3}
    assert Slots(gpus=0.25).of(cell("a")) == {"CPU": 1, "GPU": 0.25}
    assert (Slots().device, Slots(gpus=0.25).device) == ("cpu", "cuda")


def test_what_a_worker_says_reaches_the_driver_and_leaves_tune_no_number_to_keep() -> None:
    worker = CellTrainable.__new__(CellTrainable)
    worker._terminated = False
    worker._running = SimpleNamespace(
        go_on=lambda seconds: None, ended=None, reason="", note="a note", log=None, step=3, total_steps=9,
        last={"train/loss": 0.1},
    )  # fmt: skip
    result = worker.step()
    assert result["done"] is False
    assert Told.of(result) == Told("running", "", "a note", "", 3, 9, {"train/loss": 0.1})
    assert [name for name, value in result.items() if isinstance(value, Number)] == ["done"]
    worker._running.ended, worker._running.reason = "failed", "ValueError: no"
    result = worker.step()
    assert result["done"] is True
    assert Told.of(result)[:2] == ("failed", "ValueError: no")


class Actors:
    """Of Tune's: those that have been made, whether they run by now or not."""

    def __init__(self, *made: str) -> None:
        self.made = made

    def is_actor_started(self, actor: str) -> bool:
        return actor in self.made


class ATrial:
    trial_id = "a"


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
    own: str | None, made: tuple[str, ...], runs: tuple[str, ...], takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ATrial] = []
    monkeypatch.setattr(TuneController, "_maybe_reuse_cached_actor", lambda self, trial: asked.append(trial) or True)
    trial, now = ATrial(), [0.0]
    monkeypatch.setattr(TuneController, "__init__", lambda self: None)
    monkeypatch.setattr("orchestration.tuner.time.monotonic", lambda: now[0])
    controller = _Controller()
    controller._trial_to_actor = {} if own is None else {trial: own}
    controller._started_actors, controller._actor_manager = set(runs), Actors(*made)
    assert controller._maybe_reuse_cached_actor(trial) is takes
    assert asked == ([trial] if takes else [])
    now[0] = SECONDS_TO_START - 1
    assert controller._maybe_reuse_cached_actor(trial) is takes
    now[0] = SECONDS_TO_START
    assert controller._maybe_reuse_cached_actor(trial), "it does not start"
