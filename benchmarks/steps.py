"""A training step of each method, of the same network in a plain loop, and what looking at it costs."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measuring import Row, Step, interleaved
from fsg.data import Arrays
from fsg.diagnostics import Diagnostics
from fsg.estimators import FSG, STE, EstimatorConfig, FullPrecision, MultiFC
from fsg.models import ResNet
from fsg.optimizers import Adam
from fsg.train_config import TrainConfig
from fsg.trainer import SAMPLES, Training

CIFAR_EPOCH = 50_000 // 128  # steps


def random_images(folder: Path, count: int) -> Path:
    """CIFAR's shape, and nothing to learn."""
    draw = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split, n in (("train", count), ("test", 100)):
        arrays[f"{split}_images"] = draw.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(n) % 10
    np.savez(folder / "random.npz", **arrays)
    return folder / "random.npz"


def config(images: Path, threads: int, depth: int = 20, batch: int = 128) -> TrainConfig:
    return TrainConfig(
        data=Arrays(file=str(images), validation=0, crop_padding=4, flip=True),
        model=ResNet.Config(depth=depth),
        optimizer=Adam(lr=1e-3),
        epochs=1000,
        batch_size=batch,
        threads=threads,
        diagnostics=False,
    )


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
        return F.conv2d(images, _dorefa(self.weight), self.bias, self.stride, self.padding, self.dilation, self.groups)


class _PlainLinear(nn.Linear):
    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, _dorefa(self.weight), self.bias)


def _dorefa(weight: Tensor) -> Tensor:
    squashed = torch.tanh(weight)
    return _Rounding.apply(squashed / (2 * squashed.detach().abs().max()) + 0.5)


def plain(config: TrainConfig, device: str = "cpu") -> Step:
    """The same network, images and optimizer in a minimal plain-PyTorch loop; a step returns its loss."""
    dataset = config.data.load().to(device)
    torch.manual_seed(0)
    model = config.model.build(dataset.shape, dataset.classes)
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = _PlainConv2d
        elif type(module) is nn.Linear:
            module.__class__ = _PlainLinear
    model = model.to(torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), lr=config.optimizer.lr)

    def forever() -> Iterator[tuple[Tensor, Tensor]]:
        epoch = 0
        while True:
            yield from dataset.batches(0, epoch, config.batch_size)
            epoch += 1

    batches = forever()

    def step() -> Tensor:
        images, labels = next(batches)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def ours(config: TrainConfig, estimator: EstimatorConfig, device: str = "cpu") -> Step:
    return Training(replace(config, estimator=estimator), 0, device=device).advance


def ratios(config: TrainConfig, repetitions: int) -> list[Row]:
    """Training time alone, diagnostics off: they have rows of their own."""
    seconds = interleaved(
        {
            "plain": plain(config),
            "ste": ours(config, STE.Config()),
            "multifc": ours(config, MultiFC.Config()),
            "fsg": ours(config, FSG.Config()),
        },
        repetitions,
    )

    def row(name: str, one: str, other: str, must: float, aim: float) -> Row:
        pair = {f"seconds_{which}": seconds[which] for which in (one, other)}
        return Row(name, seconds[one] / seconds[other], must, aim, measured=pair)

    return [
        row("STE step / plain PyTorch loop", "ste", "plain", 1.05, 1.0),
        row("MetaQuant MultiFC step / STE step", "multifc", "ste", 1.10, 1.03),
        row("FSG step / STE step", "fsg", "ste", 1.25, 1.10),
    ]


def over_full_precision(config: TrainConfig, repetitions: int) -> list[Row]:
    """What binary weights and a learned gradient add to the step of the same network in full precision.

    Where the processor multiplies in bfloat16, also what that takes off a binary step; only AMX has a bound to keep.
    """
    contestants = {
        "full precision": ours(config, FullPrecision.Config()),
        "STE": ours(config, STE.Config()),
        "FSG": ours(config, FSG.Config()),
    }
    processor = torch.cpu.get_capabilities()
    bf16 = processor.get("amx_bf16") or processor.get("avx512_bf16")
    if bf16:
        contestants["STE, bf16"] = ours(replace(config, precision="bf16"), STE.Config())
    seconds = interleaved(contestants, repetitions)
    whole, ste, fsg = (seconds[name] for name in ("full precision", "STE", "FSG"))
    on = f"{config.threads} thread{'s' * (config.threads > 1)}"
    rows = [
        Row(f"STE step / full-precision step, {on}", ste / whole, 1.05, 1.0, measured=seconds),
        Row(f"(FSG step − STE step) / full-precision step, {on}", (fsg - ste) / whole, 0.10, 0.05, measured=seconds),
    ]
    if bf16:
        must = 0.60 if processor.get("amx_bf16") else None
        rows.append(Row(f"STE step, bf16 / float32, {on}", seconds["STE, bf16"] / ste, must, measured=seconds))
    return rows


def looking(config: TrainConfig, name: str, estimator: EstimatorConfig) -> Row:
    """Steps with diagnostics over the same steps without what the diagnostics did, in CPU time.

    Over as many steps as CIFAR-10 has between two looks at the gradients, one of which is in it, and an epoch's end's
    share. The difference of two trainings would be lost in the noise.
    """
    period = CIFAR_EPOCH // SAMPLES
    training = Training(replace(config, estimator=estimator), 0)
    training.advance()
    training.diagnostics = Diagnostics(training.estimator, sample_every=period)
    spent: list[float] = []
    observe = training.diagnostics.observe

    def timed(applied: bool = True) -> None:
        began = time.process_time()
        observe(applied)
        spent.append(time.process_time() - began)

    training.diagnostics.observe = timed  # type: ignore[method-assign]
    began = time.process_time()
    for _ in range(period):
        training.advance()
    total = time.process_time() - began
    began = time.process_time()
    training.diagnostics.finish(1, training.step)
    looked = sum(spent) + (time.process_time() - began) / SAMPLES
    measured = {"steps": period, "cpu_seconds": total, "of_these_diagnostics": sum(spent)}
    return Row(f"{name} step, diagnostics on / off", total / (total - looked), 1.03, 1.01, measured=measured)
