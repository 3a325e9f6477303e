import pytest

from fsg.train_config import TrainConfig
from orchestration.scheduler.queue import Queue
from orchestration.spec.cells import Cell, WorkItem


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def started(self, cell: Cell) -> None:
        self.said.append(f"started {cell.id}")

    def progressed(self, cell: Cell, step: int, of_steps: int, metrics: dict[str, float]) -> None:
        raise AssertionError("the queue does not speak of progress")

    def retried(self, cell: Cell, reason: str) -> None:
        self.said.append(f"again {cell.id}: {reason}")

    def noted(self, cell: Cell, note: str) -> None:
        raise AssertionError("the queue has nothing to note")

    def ended(self, cell: Cell, state: str, reason: str, log: str) -> None:
        self.said.append(f"{state} {cell.id}: {reason}".rstrip(": "))


def cell(name: str, after: str | None = None) -> Cell:
    return Cell(name, "train", name, {}, 0, TrainConfig(), after)


def run_next(queue: Queue) -> str | None:
    found = queue.take()
    return None if found is None else found.id


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
    queue = Queue([cell("pre"), cell("a", after="pre"), cell("b")], Heard())
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
        assert queue.ended("a", "retry", "it died") is None
    assert run_next(queue) == "a"
    assert queue.ended("a", "retry", "it died") == "failed"
    assert heard.said[-1] == "failed a: it died (3 times)"
    assert run_next(queue) == "b"


def test_death_that_another_cell_is_to_blame_for_does_not_count() -> None:
    queue = Queue([cell("a")], Heard(), max_retries=1)
    for _ in range(5):
        assert run_next(queue) == "a"
        assert queue.ended("a", "retry", "it died", blamed=False) is None
    assert run_next(queue) == "a"
    assert queue.ended("a", "retry", "it died") is None
    assert run_next(queue) == "a"
    assert queue.ended("a", "retry", "it died") == "failed"


def test_exception_is_final() -> None:
    queue = Queue([cell("a")], Heard())
    run_next(queue)
    assert queue.ended("a", "failed", "ValueError") == "failed"
    assert queue.finished


def test_no_more_are_out_than_asked_for() -> None:
    queue = Queue([cell("a"), cell("b"), cell("c")], Heard(), max_concurrent=2)
    assert [run_next(queue), run_next(queue), run_next(queue)] == ["a", "b", None]
    queue.ended("b", "done")
    assert run_next(queue) == "c"


def test_only_a_cell_that_fits_goes_out() -> None:
    queue = Queue([cell("a"), cell("b"), cell("c", after="a")], Heard())
    found = queue.take(lambda cell: cell.id != "a")
    assert found is not None
    assert found.id == "b"
    assert queue.take(lambda cell: cell.id == "c") is None, "it waits"
    assert [one.id for one in queue.ready] == ["a"]
    assert queue.is_waiting(lambda cell: cell.id == "c")
    assert not queue.is_waiting(lambda cell: cell.id == "b")


class Source:
    """Gives what it is told to, in portions."""

    def __init__(self, *portions: list[WorkItem]) -> None:
        self.portions, self.ends = list(portions), list[str]()

    def more(self) -> list[WorkItem]:
        return self.portions.pop(0) if self.portions else []

    def ended(self, cell: Cell, state: str, reason: str) -> None:
        self.ends.append(f"{cell.id} {state}")

    @property
    def finished(self) -> bool:
        return not self.portions


def test_source_is_asked_once_nothing_else_is_ready_and_hears_of_its_own_alone() -> None:
    source = Source([WorkItem(cell("pre")), WorkItem(cell("t", after="pre"), until=3)], [WorkItem(cell("u"))])
    queue = Queue([cell("a")], Heard(), source=source)
    assert [run_next(queue), len(source.portions)] == ["a", 2]
    assert [run_next(queue), len(source.portions)] == ["pre", 1]
    assert [run_next(queue), run_next(queue)] == ["u", None]
    queue.ended("a", "done")
    queue.ended("pre", "done")
    assert run_next(queue) == "t"
    assert (queue.until("t"), queue.until("u")) == (3, None)
    queue.ended("t", "paused")
    assert source.ends == ["pre done", "t paused"]
    assert not queue.finished
    queue.ended("u", "diverged")
    assert queue.finished


def test_source_is_not_asked_for_a_worker_of_another_shape() -> None:
    source = Source([WorkItem(cell("t"))])
    queue = Queue([cell("a")], Heard(), source=source)
    assert queue.take(lambda cell: False) is None
    assert len(source.portions) == 1


def test_paused_cell_comes_again_from_its_source() -> None:
    source = Source([WorkItem(cell("t"), until=1)], [WorkItem(cell("t"), until=2)])
    heard = Heard()
    queue = Queue([], heard, source=source)
    for _ in range(2):
        assert run_next(queue) == "t"
        queue.ended("t", "paused")
    assert queue.until("t") == 2
    assert heard.said == ["started t", "paused t"] * 2


def test_cell_whose_pretraining_failed_before_it_came_fails_at_once() -> None:
    source = Source([WorkItem(cell("pre"))], [WorkItem(cell("t", after="pre"))])
    queue = Queue([], Heard(), source=source)
    run_next(queue)
    queue.ended("pre", "failed", "no")
    assert run_next(queue) is None
    assert source.ends == ["pre failed", "t failed"]
    assert queue.finished


def test_stop_hands_out_nothing_more_and_ends_with_what_is_out() -> None:
    stopping = [False]
    queue = Queue([cell("a"), cell("b")], Heard(), stopping=lambda: stopping[0])
    run_next(queue)
    stopping[0] = True
    assert run_next(queue) is None
    assert not queue.finished
    assert queue.ended("a", "retry", "it died on the way") == "interrupted"
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
    queue = Queue([cell("a"), cell("b"), cell("c"), cell("d")], heard)
    assert [run_next(queue), run_next(queue), run_next(queue)] == ["a", "b", "c"]
    queue.ended("a", "unwritable", "No space left on device")
    assert run_next(queue) is None
    assert not queue.finished, "two are out"
    queue.ended("b", "done")
    queue.ended("c", "retry", "it died")
    assert queue.finished
    assert queue.unwritable == "No space left on device"
    assert heard.said[3:] == ["interrupted a: No space left on device", "done b", "interrupted c: it died"]
