"""The network of a program predicts what the trained one does, on images that neither has seen in that batch size."""

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fsg.activations import SignActivations
from fsg.data import Arrays
from fsg.estimators import FSG, FullPrecision
from fsg.models import ResNet
from fsg.quantizers import BWN, Sign
from fsg.train_config import TrainConfig
from fsg.trainer import Training
from orchestration.tracking.program import Exporter


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "colour.npz"
    draw = np.random.default_rng(0)
    pixels, labels = draw.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), np.arange(60) % 3
    np.savez(path, train_images=pixels[:40], train_labels=labels[:40], test_images=pixels[40:], test_labels=labels[40:])
    return path


@pytest.fixture(scope="module")
def exporter() -> Exporter:
    return Exporter()


def trained(images: Path, **changes: object) -> tuple[TrainConfig, Training]:
    data = Arrays(file=str(images), validation=4, crop_padding=0)
    train = TrainConfig(data=data, model=ResNet.Config(depth=8, width=4), epochs=2, batch_size=8)
    train = replace(train, **changes)  # type: ignore[arg-type]
    training = Training(train, seed=1)
    while not training.done:
        training.advance()
    return train, training


def predictor(content: bytes) -> Callable[[Tensor], Tensor]:
    return torch.no_grad()(torch.export.load(io.BytesIO(content)).module())


def logits_of(training: Training) -> Tensor:
    """As the trainer's own evaluation computes them."""
    training.model.eval()
    with torch.no_grad():
        return torch.cat([training.model(images) for images, _ in training.dataset.evaluation("test")])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quantizer": Sign(), "estimator": FSG.Config()},
        {"quantizer": BWN(), "full_precision_layers": ("conv1", "fc")},
        {"estimator": FullPrecision.Config()},
        {"model": ResNet.Config(depth=8, width=4, activation_bits=1)},
        {"activations": SignActivations(thresholds="learned", relu="rprelu"), "full_precision_layers": ("conv1", "fc")},
    ],
    ids=["dorefa", "fsg", "bwn", "full precision", "one-bit activations", "signs before layers"],
)
def test_program_predicts_what_the_trained_network_does(
    images: Path, exporter: Exporter, changes: dict[str, object]
) -> None:
    train, training = trained(images, **changes)
    before = {name: tensor.clone() for name, tensor in training.weights().items()}
    program = exporter.program(train, training.weights())
    expected, pixels, predicted = logits_of(training), training.dataset.test_images, predictor(program.content)
    assert (program.shape, program.classes) == ((3, 8, 8), 3)
    torch.testing.assert_close(predicted(pixels), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predicted(pixels[:1]), expected[:1], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in training.weights().items()), "left as they were"


def test_second_network_of_an_architecture_has_its_own_weights_which_are_binary_and_which_a_safe_loader_reads(
    images: Path, exporter: Exporter
) -> None:
    train, first = trained(images, epochs=1)
    other, second = trained(images, quantizer=Sign())
    exporter.program(train, first.weights())
    traced = len(exporter._traced)
    program = exporter.program(other, second.weights())
    assert len(exporter._traced) == traced
    pixels, loaded = second.dataset.test_images, torch.export.load(io.BytesIO(program.content))
    with torch.no_grad():
        torch.testing.assert_close(loaded.module()(pixels), logits_of(second), rtol=1e-4, atol=1e-5)
    assert set(loaded.state_dict["network.layer1.0.conv1.weight"].unique().tolist()) == {-1.0, 1.0}
    with zipfile.ZipFile(io.BytesIO(program.content)) as archive:
        inner = [archive.read(name) for name in archive.namelist() if name.endswith(".pt")]
    for content in inner:
        torch.load(io.BytesIO(content), weights_only=True)


def test_recalibrated_statistics_are_those_of_the_evaluation(images: Path, exporter: Exporter) -> None:
    train, training = trained(images, recalibrate_batchnorm=24)
    predicted = predictor(exporter.program(train, training.weights()).content)(training.dataset.test_images)
    with training.evaluations.evaluating():
        expected = logits_of(training)
    torch.testing.assert_close(predicted, expected, rtol=1e-4, atol=1e-5)
    assert (predicted - logits_of(training)).abs().max() > 1e-3
