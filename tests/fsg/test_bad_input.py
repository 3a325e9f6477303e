"""What cannot be is refused with the valid range; what is no number stops a training and is never kept."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fsg
from fsg import evaluations
from fsg.checkpoint import digest, from_bytes, to_bytes
from fsg.data import Arrays, Dataset
from fsg.diagnostics import Diagnostics
from fsg.estimators import FSG, STE
from fsg.finite import Diverged, not_finite
from fsg.history import ChunkLayout, GradientHistory
from fsg.hypernetworks import EMA, Mamba
from fsg.layers import quantize
from fsg.models import ResNet
from fsg.optimizers import SGD, Adam, Bop
from fsg.quantizers import DoReFa, Sign
from fsg.schedules import Constant
from fsg.train_config import TrainConfig
from fsg.trainer import Training

SHAPES = (torch.Size([2, 2]),)


def dataset(images: Tensor | None = None, std: float = 1.0) -> Dataset:
    some = torch.zeros(4, 1, 8, 8, dtype=torch.uint8) if images is None else images
    labels = some.flatten(1)[:, 0]
    each = {"images": some, "labels": labels}
    splits = {f"{split}_{name}": v for split in ("train", "validation", "test") for name, v in each.items()}
    return Dataset(**splits, mean=torch.zeros(1), std=torch.full((1,), std), classes=2)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "chunk_size": (lambda: FSG.Config(chunk_size=0), "chunk_size is 0, expected ≥ 1"),
    "chunk_size of a layout": (lambda: ChunkLayout(SHAPES, 0), "chunk_size is 0, expected ≥ 1"),
    "K": (lambda: FSG.Config(history_length=0), "history_length is 0, expected ≥ 1"),
    "K of a history": (lambda: GradientHistory(0, (2,), torch.zeros(1)), "history length is 0, expected ≥ 1"),
    "chunk_size of a half": (lambda: FSG.Config(chunk_size=2.5), "chunk_size is 2.5, expected a whole number"),
    "chunk_size of yes": (lambda: FSG.Config(chunk_size=True), "chunk_size is True, expected a whole number"),
    "chunk_size in words": (lambda: FSG.Config(chunk_size="64"), "chunk_size is '64', expected a whole number"),
    "no K": (lambda: FSG.Config(history_length=None), "history_length is None, expected a whole number"),
    "learning rate in words": (lambda: Adam(lr="1e-3"), "lr is '1e-3', expected a number"),
    "no number": (lambda: Adam(lr=float("nan")), "lr is nan, expected > 0"),
    "semantics": (lambda: FSG.Config(semantics="relesed"), "semantics is 'relesed', expected one of released, paper"),
    "nonlinearity": (lambda: FSG.Config(nonlinearity="gelu"), "nonlinearity is 'gelu', expected one of linear, relu"),
    "bits": (lambda: DoReFa(weight_bits=3), "weight_bits is 3, expected one of 1, 2, 4"),
    "a quantizer's class": (lambda: quantize(nn.Linear(2, 2), DoReFa), r"is a class, expected an instance: DoReFa\(\)"),
    "bop in bop": (lambda: Bop(others=Bop()), r"others is Bop\(.*, expected SGD or Adam"),
    "slow weight": (lambda: FSG.Config(slow_weight=1.5), "slow_weight is 1.5, expected ≤ 1"),
    "layer embedding": (lambda: FSG.Config(layer_embedding_dim=0), "layer_embedding_dim is 0, expected ≥ 1"),
    "mamba": (lambda: Mamba(expand=0), "expand is 0, expected ≥ 1"),
    "ema": (lambda: EMA(decay=0.0), "decay is 0.0, expected > 0"),
    "learning rate": (lambda: Adam(lr=0.0), "lr is 0.0, expected > 0"),
    "momentum": (lambda: SGD(momentum=1.0), "momentum is 1.0, expected < 1"),
    "epochs": (lambda: TrainConfig(epochs=-1), "epochs is -1, expected ≥ 0"),
    "batch": (lambda: TrainConfig(batch_size=0), "batch_size is 0, expected ≥ 1"),
    "sampling": (
        lambda: Diagnostics(STE.Config().build(quantize(nn.Linear(2, 2), Sign())), sample_every=0),
        "sample_every is 0, expected ≥ 1",
    ),
    "no layer": (lambda: quantize(nn.Sequential(nn.ReLU()), Sign()), "no layer to quantize: expected at least one"),
    "no layer of an estimator": (lambda: STE.Config().build(nn.Linear(2, 2)), "no trainable quantized layer"),
    "no shape": (lambda: quantize(nn.LazyLinear(2), Sign()), "has no shape yet, expected a model that has seen"),
    "small images": (lambda: ResNet.Config().build((3, 7, 32), 10), "images of 3x7x32, expected at least 1x8x8"),
    "narrow images": (lambda: ResNet.Config().build((3, 32, 7), 10), "images of 3x32x7, expected at least 1x8x8"),
    "no channel": (lambda: ResNet.Config().build((0, 32, 32), 10), "images of 0x32x32, expected at least 1x8x8"),
    "one class": (lambda: ResNet.Config().build((3, 32, 32), 1), "classes is 1, expected ≥ 2"),
    "images without channels": (
        lambda: dataset(torch.zeros(4, 8, 8, 1, dtype=torch.uint8)[:, 0]),
        r"images are torch.uint8 \(4, 8, 1\), expected torch.uint8 \[n, C, H, W\]",
    ),
    "images that are no bytes": (
        lambda: dataset(torch.zeros(4, 1, 8, 8)),
        r"images are torch.float32 \(4, 1, 8, 8\), expected torch.uint8 \[n, C, H, W\]",
    ),
    "images without spread": (lambda: dataset(std=0.0), r"std \[0.0\], expected finite numbers and std > 0"),
    "images of no number": (lambda: dataset(std=float("nan")), r"std \[nan\], expected finite numbers and std > 0"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_is_refused_with_the_valid_range(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


# no numbers


@pytest.fixture(scope="module")
def config(noise: Arrays) -> TrainConfig:
    return TrainConfig(
        data=noise,
        model=ResNet.Config(depth=8, width=2),
        quantizer=Sign(),
        estimator=FSG.Config(hidden=4, chunk_size=8, layer_embedding_dim=4),
        lr_schedule=Constant(),
        epochs=3,
        batch_size=16,
        log_every=1000,
    )


def advance(training: Training) -> None:
    while not training.done:
        training.advance()


def spoil(training: Training, at: int, value: float) -> None:
    """Put a value into the gradient of one weight in one layer at a step."""
    update = training.estimator.update

    def spoiled(model: nn.Module) -> bool:
        applies = update(model)
        if training.step == at - 1:
            gradient = model.get_parameter("layer2.0.conv1.weight").grad
            assert gradient is not None
            gradient[0, 0, 0, 1] = value
        return applies

    training.estimator.update = spoiled  # type: ignore[method-assign]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_no_number_is_named_with_its_layer_and_step_though_the_loss_stays_finite(
    config: TrainConfig, value: float
) -> None:
    """The sign of a NaN weight is a number: nothing else would show."""
    training = Training(replace(config, optimizer=SGD(lr=0.01)), 1)
    spoil(training, 4, value)
    with pytest.raises(Diverged, match=r"^the gradient of layer2.0.conv1.weight is (nan|inf) at step 4$"):
        advance(training)
    assert training.step == 5, "noticed when the epoch ends, at the latest"


def test_a_state_that_is_no_number_is_never_given_out_and_the_one_before_goes_on(config: TrainConfig) -> None:
    whole = Training(config, 1)
    training = Training(config, 1)
    spoil(training, 4, float("nan"))
    saved = b""
    for _ in range(3):
        training.advance()
        whole.advance()
        saved = to_bytes(training.state_dict())
    training.advance()
    with pytest.raises(Diverged, match=r"the gradient of layer2.0.conv1.weight is nan at step 4"):
        training.state_dict()
    again = Training(config, 1)
    again.load_state_dict(from_bytes(saved))
    assert digest(again.state_dict()) == digest(whole.state_dict())
    for each in (again, whole):
        while each.step < 6:
            each.advance()
    assert digest(again.state_dict()) == digest(whole.state_dict())


@pytest.mark.parametrize(
    ("name", "spoiled"),
    [
        ("model/bn1.running_var", lambda t: t.model.get_buffer("bn1.running_var")),
        ("optimizer/buffers/square/conv1.weight", lambda t: t.optimizer.state["square"][0]),
        ("estimator/nets/fast/linear1.weight", lambda t: t.estimator.nets["fast"].linear1.weight.data),
        ("estimator/history/storage", lambda t: t.estimator.history.storage),
    ],
)
def test_any_part_of_a_state_that_is_no_number_is_named(
    config: TrainConfig, name: str, spoiled: Callable[[Any], Tensor]
) -> None:
    training = Training(config, 1)
    training.advance()
    spoiled(training).view(-1)[0] = float("inf")
    with pytest.raises(Diverged, match=f"^{name} is not finite after step 1$"):
        training.state_dict()


def test_images_that_are_no_numbers_are_a_failure_and_no_divergence(config: TrainConfig) -> None:
    training = Training(replace(config, log_every=2), 1)
    training.advance()
    training.advance()
    training.dataset._shift = training.dataset._shift * float("nan")
    training._batches = None
    with pytest.raises(
        RuntimeError, match=r"^the images of step 3 hold NaN or infinity, and the loss is nan at step 3;"
    ):
        advance(training)
    assert training.step == 4


def test_an_evaluation_that_is_no_number_stops_the_training(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluations, "evaluate", lambda model, batches: (float("nan"), 0.1))
    training = Training(config, 1)
    with pytest.raises(Diverged, match="the validation loss is nan after step 5"):
        advance(training)


def test_not_finite_finds_the_first_in_nested_state() -> None:
    good: dict[str, Any] = {"a": [torch.ones(2), 3], "b": {"c": torch.tensor(1)}, "d": torch.tensor([1 + 1j])}
    assert not_finite(good) == []
    assert not_finite({**good, "e": [1, {"f": torch.tensor([1.0, float("nan")])}]}) == ["/e/1/f"]


@pytest.mark.parametrize("optimizer", [SGD(weight_decay=1e-4), Adam(), Bop()], ids=lambda one: one.name)
def test_what_is_infinite_from_the_start_is_no_divergence_and_what_becomes_so_is(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, optimizer: Any
) -> None:
    """A mask among the buffers, a parameter that is not trained, and one that gets no gradient."""
    build = ResNet.Config.build

    def with_mask(self: Any, shape: tuple[int, int, int], classes: int) -> nn.Module:
        model = build(self, shape, classes)
        model.register_buffer("mask", torch.full((3,), float("-inf")))
        model.register_buffer("scale", torch.ones(3))
        model.register_parameter("frozen", nn.Parameter(torch.tensor([float("inf")]), requires_grad=False))
        return model

    monkeypatch.setattr(ResNet.Config, "build", with_mask)
    training = Training(replace(config, optimizer=optimizer), 1)
    training.advance()
    saved = to_bytes(training.state_dict())
    again = Training(replace(config, optimizer=optimizer), 1)
    again.load_state_dict(from_bytes(saved))
    advance(again)
    again.state_dict()
    again.model.get_buffer("scale")[1] = float("nan")
    with pytest.raises(Diverged, match=r"^model/scale is not finite after step 15$"):
        again.state_dict()


def test_network_that_starts_with_no_number_is_refused_by_name(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = ResNet.Config.build

    def spoiled(self: Any, shape: tuple[int, int, int], classes: int) -> nn.Module:
        model = build(self, shape, classes)
        model.get_parameter("fc.weight").data[0, 0] = float("nan")
        model.get_parameter("bn1.bias").data[0] = float("inf")
        return model

    monkeypatch.setattr(ResNet.Config, "build", spoiled)
    with pytest.raises(ValueError, match=r"^the network starts with NaN or infinity in bn1.bias and 1 more \(expected"):
        Training(config, 1)


# other checkpoints

OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "estimator": ({"estimator": STE.Config()}, r"estimator\.name is 'fsg' \(here 'ste'\)"),
    "setting": (
        {"estimator": FSG.Config(hidden=4, chunk_size=8, layer_embedding_dim=4, history_length=7)},
        r"another training: estimator\.history_length is 5 \(here 7\)$",
    ),
    "architecture": ({"model": ResNet.Config(depth=14, width=2)}, r"another training: model\.depth is 8 \(here 14\)$"),
    "quantizer": ({"quantizer": DoReFa()}, r"quantizer\.name is 'sign' \(here 'dorefa'\)"),
    "optimizer": ({"optimizer": SGD()}, r"optimizer\.name is 'adam' \(here 'sgd'\)"),
}


@pytest.mark.parametrize(("change", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_a_checkpoint_of_another_training_is_refused_in_a_line_that_says_what_differs(
    config: TrainConfig, change: dict[str, Any], message: str
) -> None:
    other = Training(config, 1)
    other.advance()
    training = Training(replace(config, **change), 1)
    before = digest(training.state_dict())
    with pytest.raises(ValueError, match=message) as refusal:
        training.load_state_dict(from_bytes(to_bytes(other.state_dict())))
    assert "\n" not in str(refusal.value)
    assert digest(training.state_dict()) == before


def test_a_checkpoint_of_another_seed_or_version_is_refused(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = Training(config, 2).state_dict()
    with pytest.raises(ValueError, match=r"of another training: seed is 2 \(here 1\)$"):
        Training(config, 1).load_state_dict(state)
    monkeypatch.setattr(fsg, "NUMERICS", 99)
    with pytest.raises(ValueError, match=r"of another training: numerics is \d+ \(here 99\)$"):
        Training(config, 2).load_state_dict(state)
    with pytest.raises(ValueError, match="does not say what it is of"):
        Training(config, 1).load_state_dict({"step": 3})


def test_a_checkpoint_of_a_network_that_was_edited_since_is_refused(config: TrainConfig) -> None:
    training = Training(config, 1)
    state = training.state_dict()
    state["model"] = {("head" + n[2:] if n.startswith("fc") else n): t for n, t in state["model"].items()}
    with pytest.raises(ValueError, match=r"do not fit the network: missing fc.weight, .* unexpected head.weight"):
        training.load_state_dict(state)
