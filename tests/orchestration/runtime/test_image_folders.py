"""Cells whose images are files: what is told of the files, and what happens where they or their workers fail."""

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.image_files import write_images
from fsg.data import ImageFolder
from fsg.models import ResNet
from fsg.train_config import TrainConfig
from orchestration.ledger.ledger import Ledger
from orchestration.runtime.cell_training import CellTraining
from orchestration.runtime.inputs import inputs
from orchestration.runtime.pilot import run_pilot
from orchestration.spec.cells import Cell, cell_id, total_steps


@pytest.fixture
def train(tmp_path: Path) -> TrainConfig:
    folder = write_images(tmp_path / "set", train=8, val=3)
    data = ImageFolder(folder=str(folder), size=12, validation=8, prefetch=1)
    return TrainConfig(data=data, model=ResNet.Config(depth=8, width=2), epochs=2, batch_size=4)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "experiment")


def begun(ledger: Ledger, train: TrainConfig, name: str = "a" * 16, steps: int | None = None) -> CellTraining:
    """A cell's training, up to a step."""
    one = Cell(name, "train", name, {}, 0, train, None)
    ledger.add(one)
    training = CellTraining(ledger, one, record={"inputs": inputs([train])})
    while training.ended is None and (steps is None or training.step < steps):
        training.run_for(0.0)
    return training


def test_a_training_resumed_with_other_workers_is_the_undisturbed_one(ledger: Ledger, train: TrainConfig) -> None:
    begun(ledger, train, steps=3).interrupt("stopped")
    more = replace(train, data=replace(train.data, workers=3, prefetch=4))  # type: ignore[type-var]
    again = CellTraining(ledger, Cell("a" * 16, "train", "a", {}, 0, more, None))
    again.run_for(3600)
    assert again.ended == "done"
    begun(ledger, train, "b" * 16)
    assert ledger.outcome("a" * 16).digest == ledger.outcome("b" * 16).digest is not None
    assert cell_id(more, 0) == cell_id(train, 0)


def test_images_that_are_left_out_are_told_at_the_end(ledger: Ledger, train: TrainConfig) -> None:
    assert isinstance(train.data, ImageFolder)
    bad = Path(train.data.folder) / "train" / "class 1" / "3.png"
    bad.write_bytes(bad.read_bytes()[:50])
    refused = begun(ledger, replace(train, data=replace(train.data, validation=0)))
    assert refused.ended == "failed"
    assert "1 image cannot be decoded: " in refused.reason
    assert "class 1/3.png (" in refused.reason
    assert refused.reason.endswith("(expected ≤ 0, the setting unreadable)")
    with pytest.warns(UserWarning, match="left out"):
        done = begun(ledger, replace(train, data=replace(train.data, validation=0, unreadable=1)), "b" * 16)
    assert done.ended == "done"
    assert done.note.startswith("1 image cannot be decoded: ")
    assert str(bad) in done.note


def test_a_stop_while_images_are_decoded_for_a_cache_leaves_a_cell_that_is_trained_later(
    ledger: Ledger, train: TrainConfig, tmp_path: Path
) -> None:
    cached = replace(train.data, cached_side=12, cache_folder=str(tmp_path / "cache"))  # type: ignore[type-var]
    one = Cell("a" * 16, "train", "a", {}, 0, replace(train, data=cached), None)
    ledger.add(one)
    stops = iter([False] * 3 + [True])  # before it is begun, before its first step, and while the first are decoded
    training = CellTraining(ledger, one, stop=lambda: next(stops, True))
    training.run_for(3600)
    assert (training.ended, training.reason, training.step) == ("interrupted", "stopped", 0)
    assert ledger.outcome(one.id).state == "interrupted"
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []
    again = CellTraining(ledger, one)
    again.run_for(3600)
    assert again.ended == "done"


def test_images_that_change_during_a_launch_are_named(ledger: Ledger, train: TrainConfig) -> None:
    """Also those that change while they are trained on."""
    assert isinstance(train.data, ImageFolder)
    training = begun(ledger, train, steps=1)
    changed = [path for path in (Path(train.data.folder) / "val").rglob("*.png") if path.name == "1.png"]
    for path in changed:
        Image.new("RGB", (20, 20)).save(path)
    training.run_for(3600)
    assert training.ended == "failed"
    assert "/1.png was changed or removed since the images were listed" in training.reason
    (Path(train.data.folder) / "train" / "class 0" / "7.png").unlink()
    one = Cell("b" * 16, "train", "b", {}, 0, train, None)
    ledger.add(one)
    after = CellTraining(ledger, one, record=training.record)
    after.run_for(3600)
    assert after.ended == "failed"
    assert f"{train.data.folder} was changed since the launch; another launch trains what it is now" in after.reason


def test_a_worker_that_is_killed_makes_its_cell_start_again_from_its_checkpoint(
    ledger: Ledger, train: TrainConfig
) -> None:
    training = begun(ledger, train, steps=2)
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, check=True
    )
    pids = [int(line.split()[0]) for line in listed.stdout.decode().splitlines() if "image_worker.py" in line]
    os.kill(pids[0], signal.SIGKILL)
    training.run_for(3600)
    assert training.ended == "retry"
    assert "an image worker was killed" in training.reason
    assert "\n" not in training.reason


def test_a_pilot_counts_steps_of_micro_batches_and_evaluates_files(train: TrainConfig) -> None:
    several = replace(train, accumulate=2)
    assert total_steps(Cell("a", "train", "a", {}, 0, several, None)) == 2 * (24 // 8)
    cost = run_pilot(Cell("a", "train", "a", {}, 0, several, None), seconds=0.1)
    assert cost.step > 0
    assert cost.image > 0
