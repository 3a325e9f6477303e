"""The expected cost of cells: from finished cells of the same kind, or from a pilot, a few steps of each kind."""

import heapq
import itertools
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from statistics import mean, median
from typing import Any, Self

import torch

from fsg import evaluations, trainer
from fsg.config import to_dict
from fsg.image_dataset import ImageDataset
from fsg.metrics import evaluate
from fsg.starting_points import Scratch
from fsg.train_config import TrainConfig
from orchestration.ledger.status import CellStatus
from orchestration.runtime import peak_memory
from orchestration.runtime.reset import reset_process_state
from orchestration.runtime.system_metrics import SystemMetrics
from orchestration.spec.cells import Cell, total_steps
from orchestration.util.metric_names import PEAK_MEMORY


@dataclass(frozen=True)
class Cost:
    """Seconds of a step of training and of one image's evaluation, and the megabytes that a training holds.

    `megabytes` are its process's, or of a GPU those that it has reserved; `peak` is what a step's tensors take at once.
    """

    step: float
    image: float
    megabytes: float = 0.0
    peak: float = 0.0

    def seconds(self, cell: Cell, dataset: ImageDataset) -> float:
        """Training and evaluation of a whole cell."""
        train = cell.train
        if cell.continues is not None:
            return (len(dataset.test_labels) + train.recalibrate_batchnorm) * self.image
        validations = evaluations.validations(train.epochs, train.evaluate_every)
        tests = 0 if train.test == "never" else len(dataset.test_labels)
        if not train.data.validation:
            tests += min(train.epochs, evaluations.PAPERS_EPOCHS) * tests
        validated = validations * len(dataset.validation_labels)
        recalibrated = (validations + 1) * train.recalibrate_batchnorm
        return total_steps(cell) * self.step + (validated + tests + recalibrated) * self.image


def kind_of(train: TrainConfig) -> str:
    """What costs time, as text: two trainings of one kind take equally long a step."""
    values = to_dict(train)
    what = ("data", "model", "estimator", "quantizer", "batch_size", "accumulate", "precision", "threads")
    return json.dumps([*(_without_amounts(values[name]) for name in what), values["optimizer"]["name"]], sort_keys=True)


def _without_amounts(value: Any) -> Any:
    """Real numbers other than 0 and 1 (which switch parts off) cost no time."""
    if isinstance(value, dict):
        return {key: _without_amounts(item) for key, item in value.items()}
    return "some" if isinstance(value, float) and value not in (0.0, 1.0) else value


def run_pilot(
    cell: Cell, device: str = "cpu", seconds: float = 1.0, together: Callable[[], object] = lambda: None
) -> Cost:
    """What a cell costs, measured on a few of its steps, in this process. Raises what the training raises.

    `together` is called once it is warm: it may wait for other pilots.
    """
    train = replace(cell.train, init=Scratch(), epochs=max(1, cell.train.epochs), log_every=10**9)
    reset_process_state(train.threads, cell.seed)
    training = trainer.Training(train, cell.seed, device=device)
    per_epoch = training.steps_per_epoch
    times: list[float] = []
    training.advance()  # the first one warms up
    together()
    while training.step < per_epoch - 1 and (len(times) < 3 or sum(times) < seconds):
        times.append(_timed(training.advance, device))
    peak: dict[str, float] = {}
    if training.step < training.total_steps:
        training.advance(peak_memory.measuring_peak(training, peak))
    batches = list(itertools.islice(training.dataset.evaluation("test"), 2))
    images = sum(len(labels) for _, labels in batches)
    evaluation = _timed(lambda: evaluate(training.model, batches), device)
    held = SystemMetrics(training.device).sample()
    memory = held.get("system/gpu_memory_megabytes", held["system/memory_megabytes"])
    return Cost(median(times) if times else 0.0, evaluation / images, memory, peak.get(PEAK_MEMORY, 0.0))


def _timed(work: Callable[[], object], device: str) -> float:
    began = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - began


class Pilots:
    """Measures cells as they will run: on CPUs, beside others of their kind, which share caches and memory.

    Use it as a context: it keeps its processes, so that each warms up once.
    """

    def __init__(self, device: str, max_running: int) -> None:
        self.device, self.max_running = device, max_running
        self._processes: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._processes is not None:
            self._processes.shutdown()

    def measure(self, cell: Cell) -> Cost:
        """What a cell costs. Raises what its training raises, and BrokenProcessPool where it kills its process."""
        if self.device != "cpu" or self.max_running == 1:
            return run_pilot(cell, self.device)
        if self._processes is None:
            torch.set_num_threads(1)  # a pool of threads would not survive the fork
            self._processes = ProcessPoolExecutor(self.max_running, mp_context=get_context("fork"))
        try:
            costs = list(self._processes.map(run_pilot, [cell] * self.max_running))
        except BrokenProcessPool:
            self._processes = None
            raise
        held, peak = max(cost.megabytes for cost in costs), max(cost.peak for cost in costs)
        return Cost(mean(cost.step for cost in costs), mean(cost.image for cost in costs), held, peak)


def predict(
    cells_standing: Sequence[CellStatus],
    measure: Callable[[Cell], Cost],
    tell: Callable[[str], None] = lambda text: None,
) -> list[CellStatus]:
    """The same with expected seconds: from finished cells of the same kind, or else from a pilot.

    A kind whose pilot fails has no expectation; the launch will say why it fails.
    """
    took: dict[str, list[float]] = {}
    for standing in cells_standing:
        if standing.outcome.state == "done" and standing.steps:
            took.setdefault(_size(standing.cell), []).append(standing.outcome.seconds)
    costs: dict[str, Cost | None] = {}
    found = []
    for standing in cells_standing:
        cell, expected = standing.cell, took.get(_size(standing.cell))
        if expected:
            found.append(replace(standing, seconds=mean(expected)))
            continue
        kind = kind_of(cell.train)
        if kind not in costs and not standing.over:
            tell(cell.label)
            try:
                costs[kind] = measure(cell)
            except Exception:
                costs[kind] = None
        cost = costs.get(kind)
        if cost is not None:
            seconds = cost.seconds(cell, cell.train.data.load())
            standing = replace(standing, seconds=seconds, peak_megabytes=cost.peak or None)
        found.append(standing)
    return found


def _size(cell: Cell) -> str:
    return f"{kind_of(cell.train)} {total_steps(cell)} {cell.train.evaluate_every} {cell.train.recalibrate_batchnorm}"


def wall_clock(left: Sequence[CellStatus], max_running: int) -> float:
    """Seconds until the last cell ends where so many run at a time, in order, each after its pretraining."""
    ends: dict[str, float] = {}
    slots = [0.0] * max(1, max_running)
    for standing in left:
        if standing.over:
            continue
        earliest = ends.get(standing.cell.depends_on or "", 0.0)
        began = max(heapq.heappop(slots), earliest)
        ends[standing.cell.id] = began + (standing.left or 0.0)
        heapq.heappush(slots, ends[standing.cell.id])
    return max(slots)
