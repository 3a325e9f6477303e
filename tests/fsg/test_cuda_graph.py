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
from fsg.checkpoint import digest, from_bytes, to_bytes
from fsg.cuda_graph import CapturedStep, NotCaptured
from fsg.data import FashionMNISTSubset
from fsg.estimators import STE
from fsg.hypernetworks import EMA
from fsg.imported import Imported
from fsg.layers import quantize
from fsg.models import ResNet
from fsg.optimizers import SGD, Adam, AdamW, Bop, NAdam
from fsg.quantizers import DoReFa, ReCU
from fsg.recording import Recording
from fsg.step import PARTS, StepInParts
from fsg.train_config import TrainConfig
from fsg.trainer import Training

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


def in_parts(estimator: Any, optimizer: Any, network: Any = Network) -> StepInParts:
    torch.manual_seed(0)
    model = quantize(network(), DoReFa())
    return StepInParts(model, estimator.build(model), optimizer.build(model))


def quick(names: Any, some: Any) -> list[Any]:
    """All of them, of which some are no slow ones."""
    return [pytest.param(*name, marks=() if name in some else pytest.mark.slow, id="-".join(name)) for name in names]


PAIRS = [(estimator, optimizer) for estimator in ESTIMATORS for optimizer in OPTIMIZERS]
QUICK = [pair for pair in PAIRS if pair[1] == "adam" or pair[0] == "fsg_released"]


@pytest.mark.parametrize(("estimator", "optimizer"), quick(PAIRS, QUICK))
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


@pytest.mark.parametrize("name", quick([(name,) for name in TRAININGS], [("ste",), ("fsg released",)]))
def test_a_replayed_training_has_the_rows_the_tables_and_the_bytes_of_one_that_is_not(name: str) -> None:
    config = TRAININGS[name]
    plain = Training(config, 0)
    training, device = simulated(config)
    assert list(run(training, 24)) == list(run(plain, 24))
    assert {graph.replays for graph in device.graphs[1:]} == {24 - training.estimator.warm_up}
    assert digest(training.state_dict()) == digest(plain.state_dict())


class Counts(Network):
    """It does something else in every step."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(images) * (1 + 1 / self.calls)


class Waits(Network):
    """It wants to know a number of the device."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits / 2 if logits.abs().max().item() > 1e6 else logits


FOREIGN = {
    Counts: r"aten.mul.Tensor, operation \d+, has 1\.\d+ and then 1\.\d+ \(descend\)",
    Waits: "operation not permitted when stream is capturing",
}


def made(parts: StepInParts, make: Any, steps: int) -> list[Tensor]:
    for step in range(steps):
        make(*batch(step), lr=0.1 / (1 + step), progress=step / 20)
    return [parameter.detach().clone() for parameter in parts.model.parameters()]


@pytest.mark.parametrize("estimator", ["fsg", "lstmfc"])
@pytest.mark.parametrize("network", FOREIGN)
def test_what_cannot_be_captured_is_trained_plainly_and_one_line_says_why(network: Any, estimator: str) -> None:
    parts, plain = (in_parts(ESTIMATORS[estimator], Adam(), network) for _ in range(2))
    step = CapturedStep(parts, Simulated(), compare=True)
    with pytest.warns(UserWarning, match=FOREIGN[network]) as said:
        weights = made(parts, step.make, 8)
    (warning,) = said
    assert "\n" not in str(warning.message)
    assert not step.graphs

    def plainly(images: Tensor, labels: Tensor, lr: float, progress: float) -> None:
        fsg.train_step(plain.model, plain.estimator, plain.optimizer, images, labels, lr=lr, progress=progress)

    for one, other in zip(weights, made(plain, plainly, 8), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    states = [{"o": each.optimizer.state_dict(), "e": each.estimator.state_dict()} for each in (parts, plain)]
    assert digest(states[0]) == digest(states[1])


@pytest.mark.parametrize("network", FOREIGN)
def test_what_has_to_be_captured_and_cannot_be_is_one_line(network: Any) -> None:
    parts = in_parts(STE.Config(), SGD(), network)
    step = CapturedStep(parts, Simulated(), compare=True, required=True)
    with pytest.raises(NotCaptured, match=FOREIGN[network]) as refused:
        made(parts, step.make, 8)
    assert "\n" not in str(refused.value)
    assert "expected cuda_graph: auto" in str(refused.value)


def test_a_network_of_ones_own_that_does_the_same_in_every_step_is_captured() -> None:
    parts = in_parts(ESTIMATORS["fsg"], Adam())
    step = CapturedStep(parts, Simulated(), compare=True, required=True)
    made(parts, step.make, 8)
    assert step.graphs


UNFIT = {
    "an estimator": ({"estimator": Imported(path="mine:Mine", settings={})}, "the estimator mine:Mine gets"),
    "an optimizer": ({"optimizer": Imported.of("torch.optim:SGD", {"lr": 0.1})}, "the optimizer torch.optim:SGD gets"),
    "a quantizer": ({"quantizer": ReCU(tau_start=0.85)}, "the quantizer recu is annealed"),
}


@pytest.mark.parametrize(("settings", "why"), UNFIT.values(), ids=UNFIT)
def test_settings_that_cannot_be_captured_are_refused_where_they_have_to_be(settings: Any, why: str) -> None:
    with pytest.raises(ValueError, match=rf"cuda_graph is true, and {why}.*\(expected cuda_graph: auto\)"):
        replace(BASE, cuda_graph=True, **settings)
    assert replace(BASE, cuda_graph="auto", **settings) == replace(BASE, **settings)


def test_a_graph_has_to_have_a_gpu_and_is_no_part_of_a_cpus_training() -> None:
    with pytest.raises(ValueError, match=r"cuda_graph is true, and the device is cpu \(expected cuda, or auto\)"):
        Training(replace(BASE, cuda_graph=True), 0)
    assert Training(BASE, 0).captured is None
    assert "cuda_graph" not in BASE.identity()
    with pytest.raises(ValueError, match="cuda_graph is 1, expected one of auto, true, false"):
        replace(BASE, cuda_graph=1)


def test_a_captured_training_goes_on_from_a_state_of_one_that_is_not() -> None:
    """And its own graphs, which have the old tensors, are forgotten."""
    config = TRAININGS["fsg released"]
    plain = Training(config, 0)
    list(run(plain, 8))
    kept = to_bytes(plain.state_dict())
    training, _ = simulated(config)
    list(run(training, 6))
    training.load_state_dict(from_bytes(kept))
    assert training.captured is None
    training.captured = CapturedStep(training.parts(), Simulated())
    assert list(run(training, 16)) == list(run(plain, 16))
    assert training.captured.graphs
    assert digest(training.state_dict()) == digest(plain.state_dict())
