"""The controller on a simulated Ray: nothing hangs, nothing is lost, no place stays idle."""

import random
from typing import Any

import pytest

from fsg.trainer import TrainConfig
from orchestration.scheduler import environment

environment.prepare(None)

from ray.tune import PlacementGroupFactory
from simulated_ray import SimulatedRay, simulated

from orchestration.scheduler.queue import Queue
from orchestration.scheduler.tune import (
    Concurrency,
    TuneCallback,
    _Trial,
)
from orchestration.spec.cells import Cell


class Heard:
    """A listener that keeps the ends."""

    def __init__(self) -> None:
        self.waits: Any = dict
        self.ends: dict[str, str] = {}
        self.deaths = 0

    def started(self, cell: Cell) -> None: ...
    def progressed(self, cell: Cell, step: int, of_steps: int, metrics: dict[str, float]) -> None: ...
    def noted(self, cell: Cell, note: str) -> None: ...

    def retried(self, cell: Cell, reason: str) -> None:
        self.deaths += 1

    def ended(self, cell: Cell, state: str, reason: str, log: str) -> None:
        assert cell.id not in self.ends, "twice"
        self.ends[cell.id] = state


class NoLedger:
    def attempts(self, cell_id: str) -> list[dict[str, Any]]:
        return []

    def claim(self, cell_id: str, record: dict[str, Any]) -> Any:
        raise OSError


def cell(name: str, threads: int = 1, after: str | None = None) -> Cell:
    return Cell(name, "train", name, {}, 0, TrainConfig(threads=threads), after)


def run(
    patch: pytest.MonkeyPatch,
    cells: list[Cell],
    nodes: list[int],
    seconds: dict[str, float],
    fits: Concurrency,
    **settings: Any,
) -> tuple[Heard, SimulatedRay]:
    heard = Heard()
    queue = Queue(cells, heard, fits.largest, max_retries=10**6)
    listening = TuneCallback(queue, NoLedger(), heard)  # type: ignore[arg-type]
    ray = simulated(patch, queue, listening, nodes, seconds, fits, **settings)
    assert heard.ends == dict.fromkeys(seconds, "done")
    return heard, ray


@pytest.mark.parametrize("seed", [*range(20), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(20, 120))])
def test_cells_of_several_kinds_that_wait_for_each_other_all_end_whoever_dies(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    nodes = draw.choice([[8], [8, 4, 4, 4, 4]])
    cells: list[Cell] = []
    for number in range(draw.randint(8, 25)):
        after = draw.choice(cells).id if cells and draw.random() < 0.5 else None
        cells.append(cell(f"c{number}", draw.choice([1, 1, 1, 2, 8]), after))
    longest = draw.choice([0.5, 3.0, 30.0])
    seconds = {one.id: draw.uniform(0.1, longest) for one in cells}
    fit = [max(1, min(sum(nodes) // one.train.threads, len(cells))) for one in cells]
    deaths = draw.choice([0.0, 0.0, 0.1])
    heard, _ = run(monkeypatch, cells, nodes, seconds, Concurrency(min(fit), max(fit)), seed=seed, deaths=deaths)
    assert deaths or not heard.deaths


def test_a_place_is_asked_for_once_for_each_that_fits_and_short_cells_keep_all_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cells = [cell(f"c{number}") for number in range(200)]
    _, ray = run(monkeypatch, cells, [4], {one.id: 0.5 for one in cells}, Concurrency(4, 4))
    assert ray.asked == 4
    assert ray.clock.now < 6 + 200 * 0.5 / 4 + 6, "a start, the work on four places, and some seconds"


def test_a_larger_cluster_than_was_counted_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node joined: cells that are longer than a second spread over it."""
    cells = [cell(f"c{number}") for number in range(40)]
    _, ray = run(monkeypatch, cells, [2, 2], {one.id: 20.0 for one in cells}, Concurrency(2, 2))
    assert ray.clock.now < 40 * 20 / 4 + 40, "on four places, not on two"


class TakenAway(RuntimeError):
    """What Ray says of a worker whose node was drained."""

    preempted = True


@pytest.mark.parametrize(("error", "state"), [(TakenAway("gone"), None), (RuntimeError("died"), "failed")])
def test_a_cell_whose_node_was_taken_away_is_not_to_blame(error: RuntimeError, state: str | None) -> None:
    heard = Heard()
    queue = Queue([cell("a")], heard, max_retries=0)
    trial = _Trial(queue._next() or cell("none"), None, PlacementGroupFactory([{"CPU": 1}]))
    trial.handle_error(error)
    TuneCallback(queue, NoLedger(), heard).on_trial_error(0, [], trial)  # type: ignore[arg-type]
    assert heard.ends.get("a") == state
    assert heard.deaths == (state is None)
