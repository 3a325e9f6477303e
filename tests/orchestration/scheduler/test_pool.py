"""Workers of several shapes that come, die and leave: every cell ends once, nothing hangs."""

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from fsg.train_config import TrainConfig
from orchestration.runtime.messages import Order, Shape, WorkerReport
from orchestration.scheduler.pool import MAX_FAILED_STARTS, Start, WorkerPool
from orchestration.scheduler.queue import Queue
from orchestration.scheduler.resources import TrialResources
from orchestration.spec.cells import Cell, WorkItem

ONE: Shape = (("CPU", 1),)
TWO: Shape = (("CPU", 2),)


class Heard:
    """A callback that keeps what it hears."""

    def __init__(self) -> None:
        self.waits: Callable[[], dict[str, int]] = dict
        self.ends: dict[str, str] = {}
        self.said: list[str] = []

    def started(self, cell: Cell) -> None:
        self.said.append(f"started {cell.id}")

    def progressed(self, cell: Cell, step: int, of_steps: int, metrics: dict[str, float]) -> None:
        self.said.append(f"{cell.id} {step}/{of_steps} {metrics}")

    def retried(self, cell: Cell, reason: str) -> None:
        self.said.append(f"retried {cell.id}: {reason}")

    def noted(self, cell: Cell, note: str) -> None:
        self.said.append(f"noted {cell.id}: {note}")

    def ended(self, cell: Cell, state: str, reason: str, log: str) -> None:
        assert cell.id not in self.ends, "twice"
        if state != "paused":
            self.ends[cell.id] = state
        self.said.append(f"{state} {cell.id}: {reason}".rstrip(": "))


def cell(name: str, threads: int = 1, after: str | None = None) -> Cell:
    return Cell(name, "train", name, {}, 0, TrainConfig(threads=threads), after)


def pool_of(*cells: Cell, **settings: Any) -> tuple[WorkerPool, Heard]:
    heard = Heard()
    recorded: list[tuple[str, str]] = []
    queue = Queue(cells, heard, **settings)
    pool = WorkerPool(
        queue, TrialResources().of, record_failure=lambda cell, reason: recorded.append((cell.id, reason))
    )
    pool.recorded = recorded  # type: ignore[attr-defined]
    return pool, heard


def report(state: str = "done", reason: str = "", note: str = "", step: int = 0, total: int = 0) -> WorkerReport:
    return WorkerReport(state, reason, note, "", step, total, {})


def arrive(pool: WorkerPool) -> int:
    start = pool.start()
    assert start is not None
    pool.arrived(start.number, start.shape)
    return start.number


def test_so_many_workers_are_wanted_as_cells_could_start() -> None:
    pool, _ = pool_of(cell("a"), cell("b"), cell("c", after="a"))
    assert [pool.start(), pool.start(), pool.start()] == [Start(1, ONE), Start(2, ONE), None]


def test_no_more_workers_are_wanted_than_may_run() -> None:
    pool, _ = pool_of(cell("a"), cell("b"), max_concurrent=1)
    assert [pool.start(), pool.start()] == [Start(1, ONE), None]


def test_worker_trains_one_cell_after_another_and_leaves_when_nothing_is_left() -> None:
    pool, heard = pool_of(cell("a"), cell("b"))
    assert pool.orders() == {}
    first = arrive(pool)
    assert pool.orders() == {first: Order("a", None)}
    assert pool.orders() == {}, "it is busy"
    pool.heard(first, report("running", step=3, total=9))
    assert pool.orders() == {}
    pool.heard(first, report())
    assert pool.orders() == {first: Order("b", None)}
    pool.heard(first, report("failed", "ValueError"))
    assert pool.orders() == {first: None}
    assert pool.finished
    assert heard.said == ["started a", "a 3/9 {}", "done a", "started b", "failed b: ValueError"]


def test_worker_waits_for_a_pretraining_of_its_shape() -> None:
    pool, _ = pool_of(cell("pre"), cell("other"), cell("a", after="pre"))
    first, second = arrive(pool), arrive(pool)
    assert pool.orders() == {first: Order("pre", None), second: Order("other", None)}
    pool.heard(second, report())
    assert pool.orders() == {}
    assert pool.start() is None
    pool.heard(first, report())
    assert pool.orders() == {second: Order("a", None), first: None}


def test_idle_worker_makes_room_for_a_cell_of_another_shape() -> None:
    pool, _ = pool_of(cell("pre"), cell("wide", 2, after="pre"), cell("a", after="wide"))
    first = arrive(pool)
    assert pool.orders() == {first: Order("pre", None)}
    pool.heard(first, report())
    assert pool.orders() == {first: None}, "the wide one is ready, and has no worker"
    second = arrive(pool)
    assert pool.orders() == {second: Order("wide", None)}
    pool.heard(second, report())
    assert pool.orders() == {second: None}
    assert pool.start() == Start(3, ONE)


def test_a_worker_that_dies_is_replaced_and_its_cell_is_next() -> None:
    pool, heard = pool_of(cell("a"), cell("b"), max_retries=1)
    first = arrive(pool)
    pool.orders()
    pool.died(first, "it died")
    second = arrive(pool)
    assert pool.orders() == {second: Order("a", None)}
    pool.heard(first, report()), "the dead one speaks"
    assert "done a" not in heard.said
    pool.died(second, "it died")
    assert heard.said[1:] == ["retried a: it died", "started a", "failed a: it died (2 times)"]
    assert pool.recorded == [("a", "it died (2 times)")]  # type: ignore[attr-defined]


def test_a_cell_that_fails_by_itself_is_recorded_by_its_worker() -> None:
    pool, _ = pool_of(cell("a"))
    first = arrive(pool)
    pool.orders()
    pool.heard(first, report("failed", "ValueError"))
    assert pool.recorded == []  # type: ignore[attr-defined]


def test_worker_that_started_anew_gives_up_what_it_had_and_blames_nobody() -> None:
    pool, heard = pool_of(cell("a"), max_retries=0)
    first = arrive(pool)
    pool.orders()
    pool.arrived(first, ONE)
    assert heard.said[-1] == "retried a: the worker started anew"
    assert pool.orders() == {first: Order("a", None)}


def test_note_is_told_once_a_training() -> None:
    pool, heard = pool_of(cell("a"), cell("b"))
    first = arrive(pool)
    for _ in range(2):
        pool.orders()
        pool.heard(first, report("running", note="damaged"))
        pool.heard(first, report("done", note="damaged"))
    assert [line for line in heard.said if line.startswith("noted")] == ["noted a: damaged", "noted b: damaged"]


def test_workers_that_do_not_start_are_given_up_after_so_many() -> None:
    pool, heard = pool_of(cell("a"))
    for _ in range(MAX_FAILED_STARTS):
        assert not pool.finished
        start = pool.start()
        assert start is not None
        pool.start_failed(start.number, "ImportError: no")
        pool.start_failed(start.number)
    assert pool.start() is None
    assert pool.stuck
    assert pool.finished
    assert pool.why_not_started == "ImportError: no"
    assert heard.ends == {}


def test_worker_that_starts_makes_good_for_those_that_did_not_and_who_lives_goes_on() -> None:
    pool, _ = pool_of(cell("a"), cell("b"), cell("c"))
    for _ in range(MAX_FAILED_STARTS - 1):
        start = pool.start()
        assert start is not None
        pool.start_failed(start.number)
    first = arrive(pool)
    for _ in range(MAX_FAILED_STARTS):
        start = pool.start()
        assert start is not None, "they are counted from the last that started"
        pool.start_failed(start.number)
    assert pool.start() is None
    assert not pool.finished
    pool.orders()
    pool.died(first, "it died")
    assert pool.stuck


def test_stop_lets_idle_workers_leave_and_wants_no_more() -> None:
    stopping = [False]
    pool, heard = pool_of(cell("a"), cell("b"), stopping=lambda: stopping[0])
    first, second = arrive(pool), arrive(pool)
    stopping[0] = True
    assert pool.orders() == {first: None, second: None}
    assert pool.start() is None
    assert pool.finished
    assert heard.ends == {}


def test_all_leave_at_a_checkpoint_and_the_next_round_goes_on_without_a_retry() -> None:
    pool, heard = pool_of(cell("a"), cell("b"), cell("c"), max_retries=0)
    first, _ = arrive(pool), arrive(pool)
    pool.orders()
    pool.leaving = True
    assert pool.start() is None
    pool.heard(first, report("interrupted", "stopped"))
    assert pool.orders() == {first: None}
    assert pool.is_closed
    pool.begin_again()
    assert not pool.is_closed
    assert heard.said[2:] == [f"retried {name}: all workers are started anew" for name in "ab"]
    third = arrive(pool)
    assert pool.orders() == {third: Order("b", None)}


class Trials:
    """A source of trials that come one by one, each after the one before has ended."""

    def __init__(self, count: int) -> None:
        self.left, self.out = count, False

    def more(self) -> list[WorkItem]:
        if self.out or not self.left:
            return []
        self.out, self.left = True, self.left - 1
        return [WorkItem(cell(f"t{self.left}"))]

    def ended(self, cell: Cell, state: str, reason: str) -> None:
        self.out = False

    @property
    def finished(self) -> bool:
        return not self.left and not self.out


def test_source_keeps_one_worker_waiting_and_no_more() -> None:
    heard, source = Heard(), Trials(2)
    pool = WorkerPool(Queue([], heard, source=source), TrialResources().of, expected=[cell("?"), cell("?")])
    first, second = 1, 2
    assert [pool.start(), pool.start(), pool.start()] == [Start(first, ONE), Start(second, ONE), None]
    pool.arrived(first, ONE)
    pool.arrived(second, ONE)
    assert pool.orders() == {first: Order("t1", None)}
    assert pool.start() is None, "one is idle"
    pool.heard(first, report())
    assert pool.orders() == {second: Order("t0", None)}
    pool.heard(second, report())
    assert pool.orders() == {first: None, second: None}
    assert pool.finished


class Cluster:
    """What Tune and Ray do for a pool, on a clock of its own: nodes with CPUs, workers that start, train and die."""

    def __init__(
        self, pool: WorkerPool, nodes: list[int], seconds: dict[str, float], pending: int, seed: int, deaths: float
    ) -> None:
        self.pool, self.free, self.left, self.pending, self.deaths = pool, nodes, dict(seconds), pending, deaths
        self.random, self.now, self.busy = random.Random(seed), 0.0, 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._unplaced: list[Start] = []
        self._starting = 0
        self._node: dict[int, tuple[int, int]] = {}
        self._training: dict[int, str] = {}

    def run(self, within: float = 50_000.0) -> None:
        while not self.pool.finished:
            while len(self._unplaced) + self._starting < self.pending and (start := self.pool.start()) is not None:
                self._unplaced.append(start)
            self._place()
            if orders := self.pool.orders():
                for number, order in orders.items():
                    self._obey(number, order)
                continue  # who leaves makes room
            assert self._events or self.pool.finished, "it hangs"
            if self._events:
                self.now, _, happens = heapq.heappop(self._events)
                happens()
            assert self.now < within, "it hangs"

    def _after(self, seconds: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), happens))

    def _place(self) -> None:
        for start in list(self._unplaced):
            cpus = int(dict(start.shape)["CPU"])
            nodes = [node for node, free in enumerate(self.free) if free >= cpus]
            if nodes:
                node = self.random.choice(nodes)
                self.free[node] -= cpus
                self._unplaced.remove(start)
                self._starting += 1
                self._node[start.number] = node, cpus
                self._after(self.random.uniform(2, 6), lambda start=start: self._started(start))

    def _started(self, start: Start) -> None:
        self._starting -= 1
        self.pool.arrived(start.number, start.shape)

    def _obey(self, number: int, order: Order | None) -> None:
        if order is None:
            self._gone(number)
            return
        assert order.cell not in self._training.values(), "on two workers"
        self._training[number] = order.cell
        seconds = self.left[order.cell]
        if self.random.random() < self.deaths:
            part = self.random.uniform(0, seconds)
            self.left[order.cell] -= part / 2  # the checkpoint was some time ago
            self._after(part, lambda: self._dies(number))
        else:
            self.busy += seconds
            self._after(seconds, lambda: self._done(number))

    def _done(self, number: int) -> None:
        del self._training[number]
        self.pool.heard(number, report())

    def _dies(self, number: int) -> None:
        del self._training[number]
        self._gone(number)
        self.pool.died(number, "it died")

    def _gone(self, number: int) -> None:
        node, cpus = self._node.pop(number)
        self.free[node] += cpus


@pytest.mark.parametrize("seed", range(200))
def test_cells_of_several_shapes_that_wait_for_each_other_all_end_whoever_dies(seed: int) -> None:
    draw = random.Random(seed)
    nodes = draw.choice([[8], [8, 4, 4, 4, 4]])
    cells: list[Cell] = []
    for number in range(draw.randint(8, 25)):
        after = draw.choice(cells).id if cells and draw.random() < 0.5 else None
        cells.append(cell(f"c{number}", draw.choice([1, 1, 1, 2, 8]), after))
    longest, deaths = draw.choice([0.5, 3.0, 30.0]), draw.choice([0.0, 0.0, 0.1])
    seconds = {one.id: draw.uniform(0.1, longest) for one in cells}
    most = draw.choice([None, None, 1, 3])
    pool, heard = pool_of(*cells, max_retries=10**6, max_concurrent=most)
    Cluster(pool, nodes, seconds, draw.choice([1, 2, 9]), seed, deaths).run()
    assert heard.ends == dict.fromkeys(seconds, "done")
    assert deaths or not any(line.startswith("retried") for line in heard.said)


def test_short_cells_keep_all_places_busy() -> None:
    cells = [cell(f"c{number}") for number in range(200)]
    pool, _ = pool_of(*cells)
    cluster = Cluster(pool, [4], {one.id: 0.5 for one in cells}, 5, 0, 0.0)
    cluster.run()
    assert cluster.now < 6 + 200 * 0.5 / 4 + 1, "a start, and the work on four places"


def test_a_node_that_joins_is_used() -> None:
    cells = [cell(f"c{number}") for number in range(40)]
    pool, _ = pool_of(*cells)
    cluster = Cluster(pool, [2], {one.id: 2.0 for one in cells}, 3, 0, 0.0)
    cluster._after(10.0, lambda: cluster.free.append(2))
    cluster.run()
    assert cluster.now < 10 + 6 + (40 * 2.0 - 8) / 4 + 6, "on four places, not on two"
