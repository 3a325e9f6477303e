"""The training step as a graph: two steps ask the same of the device, and a replayed one gives the same bits."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from simulated_graph import Simulated
from test_estimators import ESTIMATORS, Network
from torch import Tensor

import fsg
from fsg import scalars
from fsg.checkpoint import digest
from fsg.cuda_graph import CapturedStep
from fsg.data import FashionMNISTSubset
from fsg.hypernetworks import EMA
from fsg.layers import quantize
from fsg.models import ResNet
from fsg.optimizers import SGD, Adam, AdamW, Bop, NAdam
from fsg.quantizers import DoReFa
from fsg.recording import Recording
from fsg.step import PARTS, StepInParts
from fsg.trainer import TrainConfig, Training

OPTIMIZERS = {
    "sgd": SGD(),
    "momentum": SGD(lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True),
    "adam": Adam(epsilon="uncorrected", clip_latent=1.0),
    "adamw": AdamW(),
    "nadam": NAdam(),
    "bop": Bop(),
}


@pytest.fixture(autouse=True)
def numbers_are_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    monkeypatch.setattr(scalars, "in_tensors", lambda device: True)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 2, 6, 6, generator=generator), torch.randint(3, (8,), generator=generator)


def in_parts(estimator: Any, optimizer: Any) -> StepInParts:
    torch.manual_seed(0)
    model = quantize(Network(), DoReFa())
    return StepInParts(model, estimator.build(model), optimizer.build(model))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_two_steps_ask_the_same_of_the_device(estimator: str, optimizer: str) -> None:
    """The same operations, with the same numbers, on memory that was there before or that the step itself made."""
    parts, recording = in_parts(ESTIMATORS[estimator], OPTIMIZERS[optimizer]), Recording(PARTS)
    for step in range(parts.estimator.warm_up + 2):
        parts.begin(*batch(step), lr=0.1 / (1 + step), progress=step / 20)
        for part in ("descend", "generate", "give", "apply"):
            with recording.of(part):
                getattr(parts, part)()
    assert len(recording.last["descend"]) > 30
    assert recording.difference() == ""


BASE = TrainConfig(
    data=FashionMNISTSubset(validation=20, train_limit=192),
    model=ResNet.Config(depth=8, width=2),
    batch_size=16,
    epochs=2,
    log_every=5,
)
SMALL = fsg.FSG.Config(history_length=2)
TRAININGS = {
    "ste": replace(BASE, estimator=fsg.STE.Config()),
    "ede": replace(BASE, estimator=fsg.EDE.Config(), anneal="epoch"),
    "reste": replace(BASE, estimator=fsg.ReSTE.Config()),
    "full precision": replace(BASE, estimator=fsg.FullPrecision.Config()),
    "multifc": replace(BASE, estimator=fsg.MultiFC.Config(), optimizer=NAdam()),
    "lstmfc": replace(BASE, estimator=fsg.LSTMFC.Config(hidden=4), optimizer=SGD(lr=0.1, momentum=0.9)),
    "fsg": replace(BASE, estimator=fsg.FSG.Config(history_length=4)),
    "fsg released": replace(BASE, estimator=replace(SMALL, semantics="released", start="random", applied="previous")),
    "fsg ema": replace(BASE, estimator=replace(SMALL, slow_net=EMA(), slow_weight=1.0), optimizer=Bop()),
    "one bit": replace(BASE, model=ResNet.Config(depth=8, width=2, activation_bits=1, activation_derivative="ede")),
}


def simulated(config: TrainConfig, **how: Any) -> tuple[Training, Simulated]:
    training, device = Training(config, 0), Simulated()
    training.captured = CapturedStep(training.parts(), device, **how)
    return training, device


def run(training: Training, steps: int) -> Iterator[Any]:
    while training.step < steps and not training.done:
        for row in training.advance():
            yield row.step, {name: value for name, value in row.values.items() if not name.startswith("time/")}
        yield training.table


@pytest.mark.parametrize("name", TRAININGS)
def test_a_replayed_training_has_the_rows_the_tables_and_the_bytes_of_one_that_is_not(name: str) -> None:
    config = TRAININGS[name]
    plain = Training(config, 0)
    training, device = simulated(config)
    assert list(run(training, 24)) == list(run(plain, 24))
    assert {graph.replays for graph in device.graphs[1:]} == {24 - training.estimator.warm_up}
    assert digest(training.state_dict()) == digest(plain.state_dict())
