"""What a training's tensors take at once: bytes that can be counted by hand, and the same ones on a warm process."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_experiment import images

from fsg.data import Arrays
from fsg.estimators import FSG
from fsg.models import ResNet
from fsg.train_config import TrainConfig
from fsg.trainer import Training
from orchestration.ledger.ledger import Ledger
from orchestration.runtime import peak_memory
from orchestration.runtime.cell_training import CellTraining
from orchestration.runtime.pilot import run_pilot
from orchestration.spec.cells import Cell
from orchestration.util.metric_names import PEAK_MEMORY

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    file = tmp_path_factory.mktemp("images") / "tiny.npz"
    images(file)
    return TrainConfig(
        data=Arrays(file=str(file), validation=16, crop_padding=1),
        model=ResNet.Config(depth=8, width=2),
        estimator=FSG.Config(chunk_size=8, history_length=2),
        epochs=3,
        batch_size=16,
    )


def megabytes(count: int) -> torch.Tensor:
    return torch.zeros(count * MEGABYTE, dtype=torch.uint8)


def during(work: Callable[[], object], held: object = None, device: str = "cpu") -> float:
    """The peak while something works, beside what is held."""
    training, values = SimpleNamespace(device=torch.device(device), held=held), dict[str, float]()
    with peak_memory.measuring_peak(training, values):  # type: ignore[arg-type]
        work()
    return values[PEAK_MEMORY]


def test_peak_is_of_all_that_is_alive_at_once() -> None:
    def work() -> None:
        a = megabytes(5)
        b = a + 1
        del a
        c = b.view(-1)[::2]  # the same bytes
        megabytes(4)
        megabytes(4)
        del b, c

    assert during(work) == pytest.approx(10)
    assert during(work, [[megabytes(3)], {"of": {"step": megabytes(2)}}]) == pytest.approx(15)


def test_what_a_training_held_before_counts_until_it_lets_go_of_it() -> None:
    held = SimpleNamespace(gradient=megabytes(8))

    def work() -> None:
        held.gradient = None
        megabytes(5)

    assert during(work, held) == pytest.approx(8)


def test_backward_pass_is_seen() -> None:
    weight = torch.zeros(MEGABYTE // 4, requires_grad=True)

    def step() -> None:
        (weight.exp() * 2).sum().backward()

    # The weight, its exponential, kept for the derivative, and twice that; on the way back at most as much again.
    without = during(step, weight)
    assert 3 <= without < 5
    assert weight.grad is not None
    assert during(lambda: weight.exp(), weight) == pytest.approx(3), "the gradient of the step before is there"


@pytest.fixture(scope="module")
def peak(train: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> float:
    """That of the training, undisturbed."""
    return trained(tmp_path_factory.mktemp("undisturbed"), train)


def test_training_says_the_same_on_a_process_that_has_trained_more(
    train: TrainConfig, peak: float, tmp_path: Path
) -> None:
    big = replace(train, model=ResNet.Config(depth=8, width=16), epochs=1)
    assert trained(tmp_path / "big", big) > 2 * peak
    assert trained(tmp_path / "again", replace(train, epochs=1)) == peak


def trained(folder: Path, train: TrainConfig, stops: int = 0) -> float:
    """The most that was recorded of a cell: once in each of its attempts, where the attempt's first epoch ends."""
    ledger, cell = Ledger(folder), Cell("a" * 16, "train", "a", {}, 0, train)
    ledger.add(cell)
    for stop in range(stops):
        attempt = CellTraining(ledger, cell, until=5 * (stop + 1))
        attempt.run_for(3600)
        assert attempt.ended == "paused"
    training = CellTraining(ledger, cell)
    training.run_for(3600)
    assert training.ended == "done", training.reason
    values = [(row.step, row.values[PEAK_MEMORY]) for row in ledger.rows(cell.id) if PEAK_MEMORY in row.values]
    assert [step for step, _ in values] == [5 * (at + 1) for at in range(stops + 1)]
    return max(value for _, value in values)


def test_resumed_training_says_what_an_undisturbed_one_says(train: TrainConfig, peak: float, tmp_path: Path) -> None:
    """All but gradients that only the first step gave."""
    assert trained(tmp_path, train, stops=2) == pytest.approx(peak, rel=0.02)


def test_longer_history_takes_its_tensors_more(train: TrainConfig, peak: float, tmp_path: Path) -> None:
    longer = replace(train, estimator=FSG.Config(chunk_size=8, history_length=5), epochs=1)
    history = Training(longer, 0).estimator.history.storage  # type: ignore[attr-defined]
    more = history[2:].numel() * history.element_size() / 1e6
    assert trained(tmp_path, longer) >= peak + more > peak


def test_step_alone_is_seen_and_the_pilot_foretells_it(train: TrainConfig, peak: float, tmp_path: Path) -> None:
    unseen = replace(train, evaluate_every=2.0, epochs=2)
    assert trained(tmp_path, unseen) == peak, "with and without a validation"
    assert run_pilot(Cell("a" * 16, "train", "a", {}, 0, train)).peak == pytest.approx(peak, rel=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_peak_on_a_gpu_is_of_the_step_alone() -> None:
    device = torch.device("cuda")
    before = torch.cuda.memory_allocated(device)
    torch.zeros(100 * MEGABYTE, dtype=torch.uint8, device=device)

    def work() -> None:
        torch.zeros(5 * MEGABYTE, dtype=torch.uint8, device=device)

    assert during(work, device="cuda") == pytest.approx(5 + before / 1e6, abs=0.6)
