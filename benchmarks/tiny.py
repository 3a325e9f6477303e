"""What small trainings are measured with: images of noise, and a callback that notes when cells end."""

import gc
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from fsg.data import Arrays
from fsg.imported import Imported, source_sha256
from fsg.models import ModelConfig, ResNet
from fsg.train_config import TrainConfig
from orchestration.spec.cells import Cell


class Silent:
    """A listener that notes when cells end, and what the driver takes then, where asked for: a look holds it up."""

    def __init__(self, memory: bool = False) -> None:
        self.looks = memory
        self.waits: Callable[[], dict[str, int]] = dict
        self.ends: list[float] = []
        self.memory: list[int] = []

    def started(self, cell: Cell) -> None: ...
    def progressed(self, cell: Cell, step: int, of_steps: int, metrics: dict[str, float]) -> None: ...
    def retried(self, cell: Cell, reason: str) -> None: ...
    def noted(self, cell: Cell, note: str) -> None: ...

    def ended(self, cell: Cell, state: str, reason: str, log: str) -> None:
        assert state == "done", reason
        self.note()

    def note(self) -> None:
        self.ends.append(time.monotonic())
        if self.looks and len(self.ends) % 50 == 0:
            gc.collect()
            self.memory.append(psutil.Process().memory_info().rss)


RESNET = ResNet.Config(depth=8, width=2)
_ONE_LAYER = "benchmarks.one_layer:OneLayer"


def one_layer(seconds: float = 0.0) -> Imported:
    """The smallest network; each batch of its training sleeps for so many seconds."""
    settings = {"seconds": seconds} if seconds else {}
    return Imported(path=_ONE_LAYER, source_sha256=source_sha256(_ONE_LAYER), settings=settings)


def train_config(folder: Path, epochs: int, model: ModelConfig = RESNET) -> TrainConfig:
    """Of six steps an epoch, on images of noise that are kept in a folder."""
    draw = np.random.default_rng(0)
    pixels, labels = draw.integers(0, 255, (80, 8, 8), dtype=np.uint8), np.arange(80) % 4
    file = folder / "tiny.npz"
    if not file.exists():
        np.savez(file, train_images=pixels[:64], train_labels=labels[:64], test_images=pixels[64:],
                 test_labels=labels[64:])  # fmt: skip
    data = Arrays(file=str(file), validation=16, crop_padding=0)
    return TrainConfig(data=data, model=model, epochs=epochs, batch_size=8, log_every=1, diagnostics=False)
