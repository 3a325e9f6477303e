"""The network of a program predicts what the trained one does, on images that neither has seen in that batch size."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fsg.data import Arrays
from fsg.estimators import FSG, STE, FullPrecision
from fsg.models import ResNet
from fsg.quantizers import BWN, Sign
from fsg.trainer import TrainConfig, Training
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


def logits_of(training: Training) -> Tensor:
    """As the trainer's own evaluation computes them."""
    training.model.eval()
    with torch.no_grad():
        return torch.cat([training.model(images) for images, _ in training.dataset.evaluation("test")])


def predicted(content: bytes, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.export.load(io.BytesIO(content)).module()(pixels)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quantizer": Sign(), "estimator": FSG.Config()},
        {"quantizer": BWN(), "full_precision_layers": ("conv1", "fc")},
        {"estimator": FullPrecision.Config()},
        {"model": ResNet.Config(depth=8, width=4, activation_bits=1)},
    ],
    ids=["dorefa", "fsg", "bwn", "full precision", "one-bit activations"],
)
def test_program_predicts_what_the_trained_network_does(
    images: Path, exporter: Exporter, changes: dict[str, object]
) -> None:
    train, training = trained(images, **changes)
    program = exporter.program(train, training.weights())
    expected, pixels = logits_of(training), training.dataset.test_images
    assert (program.shape, program.classes) == ((3, 8, 8), 3)
    torch.testing.assert_close(predicted(program.content, pixels), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predicted(program.content, pixels[:1]), expected[:1], rtol=1e-4, atol=1e-5)


def test_second_network_of_an_architecture_has_its_own_weights(images: Path) -> None:
    exporter = Exporter()
    train, first = trained(images)
    other, second = trained(images, quantizer=Sign(), epochs=3)
    exporter.program(train, first.weights())
    program = exporter.program(other, second.weights())
    assert len(exporter._traced) == 1
    pixels = second.dataset.test_images
    torch.testing.assert_close(predicted(program.content, pixels), logits_of(second), rtol=1e-4, atol=1e-5)


def test_recalibrated_statistics_are_those_of_the_evaluation(images: Path, exporter: Exporter) -> None:
    train, training = trained(images, recalibrate_batchnorm=24)
    program = exporter.program(train, training.weights())
    with training._evaluating():
        expected = logits_of(training)
    pixels = training.dataset.test_images
    torch.testing.assert_close(predicted(program.content, pixels), expected, rtol=1e-4, atol=1e-5)
    assert (predicted(program.content, pixels) - logits_of(training)).abs().max() > 1e-3


def test_weights_of_the_program_are_binary_and_a_safe_loader_reads_them(images: Path, exporter: Exporter) -> None:
    train, training = trained(images, quantizer=Sign(), estimator=STE.Config())
    program = exporter.program(train, training.weights())
    held = torch.export.load(io.BytesIO(program.content)).state_dict
    assert set(held["network.layer1.0.conv1.weight"].unique().tolist()) == {-1.0, 1.0}
    with zipfile.ZipFile(io.BytesIO(program.content)) as archive:
        inner = [archive.read(name) for name in archive.namelist() if name.endswith(".pt")]
    for content in inner:
        torch.load(io.BytesIO(content), weights_only=True)


def test_export_leaves_the_trainings_weights_as_they_were(images: Path, exporter: Exporter) -> None:
    train, training = trained(images)
    before = {name: tensor.clone() for name, tensor in training.weights().items()}
    exporter.program(train, training.weights())
    assert all(torch.equal(tensor, before[name]) for name, tensor in training.weights().items())
