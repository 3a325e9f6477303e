"""What a training step costs: `python -m benchmarks.step` (make bench).

Every row is a ratio of two things measured in the same run: the steps of all contestants are interleaved, and the
ratio is that of their medians. ResNet-20, batch 128, 32x32, real shapes and random images; training time alone.

Diagnostics are on, as they are by default, but where a row says otherwise; the few steps of an epoch whose gradients
they look at are not in a median.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fsg.data import Arrays
from fsg.estimators import FSG, STE, EstimatorConfig, MultiFC
from fsg.optimizers import Adam
from fsg.trainer import TrainConfig, Training

Step = Callable[[], object]


class _Rounding(torch.autograd.Function):
    """The straight-through estimator as one writes it in a plain loop."""

    @staticmethod
    def forward(context: object, prequantized: Tensor) -> Tensor:
        return 2 * torch.round(prequantized) - 1

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * gradient


class _PlainConv2d(nn.Conv2d):
    def forward(self, images: Tensor) -> Tensor:
        return self._conv_forward(images, _dorefa(self.weight), self.bias)


class _PlainLinear(nn.Linear):
    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, _dorefa(self.weight), self.bias)


def _dorefa(weight: Tensor) -> Tensor:
    squashed = torch.tanh(weight)
    return _Rounding.apply(squashed / (2 * squashed.detach().abs().max()) + 0.5)


def plain(config: TrainConfig) -> Step:
    """The same network, images and optimizer in a minimal plain-PyTorch loop."""
    dataset = config.data.load()
    torch.manual_seed(0)
    model = config.model.build(dataset.shape, dataset.classes)
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = _PlainConv2d
        elif type(module) is nn.Linear:
            module.__class__ = _PlainLinear
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), lr=config.optimizer.lr)

    def forever() -> Iterator[tuple[Tensor, Tensor]]:
        epoch = 0
        while True:
            yield from dataset.batches(0, epoch, config.batch_size)
            epoch += 1

    batches = forever()

    def step() -> float:
        images, labels = next(batches)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def ours(config: TrainConfig, estimator: EstimatorConfig) -> Step:
    return Training(replace(config, estimator=estimator), 0).advance


def measure(contestants: dict[str, Step], repetitions: int) -> dict[str, float]:
    """Median seconds of a step of each, interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repetition in range(repetitions + 2):
        for name, step in contestants.items():
            began = time.perf_counter()
            step()
            if repetition >= 2:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    draw = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        arrays = {
            f"{split}_{name}": array
            for split, n in (("train", 20_000), ("test", 100))
            for name, array in (
                ("images", draw.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)),
                ("labels", np.arange(n) % 10),
            )
        }
        np.savez(Path(folder) / "random.npz", **arrays)
        config = TrainConfig(
            data=Arrays(file=f"{folder}/random.npz", validation=0),
            optimizer=Adam(lr=1e-3),
            epochs=100,
            threads=arguments.threads,
        )
        seconds = measure(
            {
                "plain": plain(config),
                "ste": ours(config, STE.Config()),
                "multifc": ours(config, MultiFC.Config()),
                "fsg": ours(config, FSG.Config()),
                "ste unseen": ours(replace(config, diagnostics=False), STE.Config()),
                "fsg unseen": ours(replace(config, diagnostics=False), FSG.Config()),
            },
            arguments.repetitions,
        )
    rows = [
        ("STE step / plain-PyTorch loop", seconds["ste"] / seconds["plain"], "≤ 1.05"),
        ("MetaQuant MultiFC step / STE step", seconds["multifc"] / seconds["ste"], "≤ 1.10"),
        ("FSG step (chunk 64, width 8, K=5) / STE step", seconds["fsg"] / seconds["ste"], "≤ 1.25"),
        ("STE step, diagnostics on / off", seconds["ste"] / seconds["ste unseen"], "≤ 1.03"),
        ("FSG step, diagnostics on / off", seconds["fsg"] / seconds["fsg unseen"], "≤ 1.03"),
    ]
    machine = f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}"
    table = Table(title=f"ResNet-20, batch 128, 32x32 · medians of {arguments.repetitions} interleaved steps")
    for heading in ("ratio", "measured", "wanted"):
        table.add_column(heading, justify="left" if heading == "ratio" else "right")
    for name, ratio, wanted in rows:
        table.add_row(name, f"{ratio:.3f}", wanted)
    Console().print(table, f"{machine}; plain step {seconds['plain'] * 1000:.0f} ms", sep="\n")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"machine": machine, "seconds": seconds, "ratios": {n: r for n, r, _ in rows}})
        )


if __name__ == "__main__":
    main()
