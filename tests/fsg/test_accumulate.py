"""Several micro-batches a step: the gradient of them all, and steps that are the optimizer's."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsg.checkpoint import digest, from_bytes, to_bytes
from fsg.data import Arrays
from fsg.estimators import FSG, STE, FullPrecision, GradientEstimator, MultiFC
from fsg.layers import quantize
from fsg.losses import Distillation
from fsg.models import ResNet
from fsg.optimizers import SGD
from fsg.quantizers import DoReFa
from fsg.starting_points import Pretrain
from fsg.step import train_step
from fsg.train_config import TrainConfig, pretraining
from fsg.trainer import Training, train

ESTIMATORS: dict[str, Any] = {
    "ste": STE.Config(),
    "full precision": FullPrecision.Config(),
    "multifc": MultiFC.Config(hidden=5),
    "fsg": FSG.Config(hidden=5, chunk_size=8, layer_embedding_dim=4, history_length=3),
}


class Network(nn.Module):
    """Without batch norm, so that an image's gradient hangs on no other image; one layer is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.again(self.again(self.conv(images).tanh()).tanh()).mean((2, 3)))


class Scaled(GradientEstimator):
    """The latent weights times a learned number: what it proposes has a graph, which can be gone through once."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.scale = torch.tensor(0.9, dtype=self.weights[0].dtype, requires_grad=True)

    def propose(self, model: nn.Module, *, lr: float, progress: float) -> dict[str, Tensor]:
        return {f"{name}.weight": layer.weight * self.scale.exp() for name, layer in self.layers.items()}

    def update(self, model: nn.Module) -> bool:
        assert self.scale.grad is not None
        with torch.no_grad():
            self.scale -= 0.1 * self.scale.grad
        return True

    def zero_grad(self) -> None:
        self.scale.grad = None


def after_steps(build: Any, micro_batch: int | None, sizes: list[int], teacher: Any = None, loss: Any = None) -> Any:
    torch.manual_seed(0)
    model = quantize(Network().double(), DoReFa())
    estimator, optimizer = build(model), SGD(lr=0.05, momentum=0.9).build(model)
    draw, losses, gradients = torch.Generator().manual_seed(1), [], []
    for number, size in enumerate(sizes):
        images = torch.randn(size, 2, 5, 5, generator=draw, dtype=torch.float64)
        labels = torch.randint(3, (size,), generator=draw)
        step = train_step(
            model, estimator, optimizer, images, labels, lr=0.05, progress=number / 9, micro_batch=micro_batch,
            teacher=teacher, loss_function=loss or F.cross_entropy,
        )  # fmt: skip
        losses.append(step)
        gradients.append(torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None]))
    weights = torch.cat([one.detach().flatten() for one in model.parameters()])
    return torch.stack(losses), torch.stack(gradients), weights


@pytest.mark.parametrize("name", [*ESTIMATORS, "with a graph"])
@pytest.mark.parametrize(("size", "micro_batch"), [(12, 4), (12, 5), (12, 1)])
def test_micro_batches_have_the_gradient_of_the_mean_over_all_their_images(
    name: str, size: int, micro_batch: int
) -> None:
    build = Scaled if name == "with a graph" else ESTIMATORS[name].build
    whole, parts = (after_steps(build, each, [size] * 4) for each in (None, micro_batch))
    for one, other in zip(whole, parts, strict=True):
        assert one.abs().max() > 1e-3
        assert (one - other).abs().max() < 1e-12


def test_a_micro_batch_as_large_as_the_batch_is_the_batch_to_the_last_bit() -> None:
    whole, one = (after_steps(STE.Config().build, each, [12] * 3) for each in (None, 12))
    assert all(torch.equal(a, b) for a, b in zip(whole, one, strict=True))


def test_a_teacher_says_of_each_micro_batch_what_it_says_of_the_batch() -> None:
    torch.manual_seed(7)
    teacher, seen = Network().double(), []

    def says(images: Tensor) -> Tensor:
        seen.append(len(images))
        said: Tensor = teacher(images)
        assert not said.requires_grad
        return said

    loss = Distillation(weight=0.7)
    whole, parts = (after_steps(STE.Config().build, each, [9] * 2, says, loss) for each in (None, 4))
    assert seen == [9, 9, 4, 4, 1, 4, 4, 1]
    assert all((one - other).abs().max() < 1e-12 for one, other in zip(whole, parts, strict=True))


@pytest.fixture
def config(noise: Arrays) -> TrainConfig:
    """80 images to train on."""
    model = ResNet.Config(depth=8, width=2)
    return TrainConfig(data=noise, model=model, epochs=2, batch_size=8, accumulate=3, log_every=1)


def test_steps_epochs_and_rows_are_the_optimizers_and_an_incomplete_group_is_dropped(config: TrainConfig) -> None:
    """80 images are 3 groups of 24; what is left over is dropped, as an incomplete batch is."""
    training, seen = Training(config, 0), []
    training.model.register_forward_pre_hook(
        lambda model, given: seen.append(len(given[0])) if model.training else None
    )
    calls = []
    step = training.optimizer.step
    training.optimizer.step = lambda lr: (calls.append(lr), step(lr))[1]  # type: ignore[method-assign, func-returns-value]
    rows = []
    while not training.done:
        rows += training.advance()
    assert (training.steps_per_epoch, training.total_steps, training.step) == (3, 6, 6)
    assert seen == [8] * 18
    assert len(calls) == 6
    logged = [(row.step, row.values["epoch"]) for row in rows if "train/loss" in row.values]
    assert logged == [(step, pytest.approx(step / 3)) for step in range(1, 7)]
    assert [row.step for row in rows if "validation/accuracy" in row.values] == [3, 6]


def test_the_only_group_may_be_incomplete(config: TrainConfig) -> None:
    training, seen = Training(replace(config, accumulate=40, batch_size=30, epochs=1), 0), []
    training.model.register_forward_pre_hook(
        lambda model, given: seen.append(len(given[0])) if model.training else None
    )
    training.advance()
    assert training.done
    assert seen == [30, 30, 20]


def test_the_images_are_those_of_a_larger_batch_and_batch_norm_alone_differs(config: TrainConfig) -> None:
    """Its statistics are those of a micro-batch, and move once for each."""
    groups = [list(Training(one, 0).dataset.batches(0, 0, one.images_a_step)) for one in
              (config, replace(config, accumulate=1, batch_size=24))]  # fmt: skip
    assert all(torch.equal(a, b) for one, other in zip(*groups, strict=True) for a, b in zip(one, other, strict=True))
    training = Training(config, 0)
    norm = next(module for module in training.model.modules() if isinstance(module, nn.BatchNorm2d))
    training.advance()
    assert norm.num_batches_tracked is not None
    assert int(norm.num_batches_tracked) == 3


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_training_resumed_inside_an_epoch_ends_with_the_same_bytes(config: TrainConfig, stop: int) -> None:
    def to_the_end(training: Training) -> str:
        while not training.done:
            training.advance()
        return digest(training.state_dict())

    config = replace(config, estimator=ESTIMATORS["fsg"])
    training = Training(config, 0)
    while training.step < stop:
        training.advance()
    resumed = Training(config, 0)
    resumed.load_state_dict(from_bytes(to_bytes(training.state_dict())))
    assert to_the_end(resumed) == to_the_end(training) == to_the_end(Training(config, 0))


def test_the_default_is_in_no_identity_and_a_pretraining_has_its_own_batches(config: TrainConfig) -> None:
    assert "accumulate" not in replace(config, accumulate=1).identity()
    assert config.identity()["accumulate"] == 3
    before = replace(config, init=Pretrain(epochs=1, batch_size=16))
    assert (pretraining(before).accumulate, pretraining(before).batch_size) == (1, 16)
    assert pretraining(before) == pretraining(replace(before, accumulate=1))
    assert list(train(replace(before, loss=Distillation(), epochs=1)))[-1].step == 3
    with pytest.raises(ValueError, match="accumulate is 0, expected ≥ 1"):
        replace(config, accumulate=0)
