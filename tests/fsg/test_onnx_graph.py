"""ONNX models of binary networks, run by onnxruntime."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from test_binarize import seasoned
from torch import Tensor, nn
from torchvision import models

import fsg
from fsg.binarize import BinaryNetwork
from fsg.models import ResNet
from fsg.onnx_graph import OPSET, onnx_model
from fsg.packing import write
from fsg.quantizers import Quantizer

QUANTIZERS: dict[str, Quantizer] = {
    "dorefa": fsg.DoReFa(),
    "dorefa2": fsg.DoReFa(weight_bits=2),
    "dorefa4": fsg.DoReFa(weight_bits=4),
    "sign": fsg.Sign(),
    "bwn": fsg.BWN(),
    "libra": fsg.Libra(),
    "recu": fsg.ReCU(),
}


def mlp() -> nn.Module:
    hidden = [nn.Linear(75, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 7, bias=False), nn.BatchNorm1d(7), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(7, 5))


def small_convolutional() -> nn.Module:
    first = [nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(5, 6, 3, stride=2, padding=1, padding_mode="circular", bias=False), nn.BatchNorm2d(6)]
    return nn.Sequential(*first, *second, fsg.SignActivation(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (lambda: ResNet.Config(width=4).build((3, 16, 16), 5), 16),
    "resnet20 of signs": (lambda: ResNet.Config(width=4, activation_bits=1).build((3, 16, 16), 5), 16),
    "mlp": (mlp, 5),
    "convolutional": (small_convolutional, 8),
    "vgg small": (lambda: fsg.VGGSmall.Config(width=16).build((3, 32, 32), 5), 32),
    "torchvision's resnet18": (lambda: models.resnet18(num_classes=5), 64),
}


def predictions(model: onnx.ModelProto, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    return torch.from_numpy(logits)


@torch.no_grad()
def exported(network: str, quantizer: str, fold: bool) -> tuple[onnx.ModelProto, Tensor, Tensor, BinaryNetwork]:
    """The model, images, the quantized network's logits for them, and the network that was written."""
    build, size = NETWORKS[network]
    torch.manual_seed(0)
    images = torch.randn(24, 3, size, size)
    model = seasoned(fsg.quantize(build(), QUANTIZERS[quantizer]), images)
    binary = BinaryNetwork.of(model)
    binary = binary.folded(images[:2]) if fold else binary
    return onnx_model(binary, images[:2], {"mean": "[0.5]"}), images, model(images), binary


def test_onnxruntime_predicts_what_the_model_does() -> None:
    model, images, expected, binary = exported("convolutional", "dorefa2", fold=False)
    assert torch.allclose(predictions(model, images), expected, atol=1e-4)
    assert torch.allclose(predictions(model, images[:1]), expected[:1], atol=1e-4)  # any number of images
    assert {node.domain for node in model.graph.node} == {""}
    assert [(one.domain, one.version) for one in model.opset_import] == [("", OPSET)]
    assert {one.key: one.value for one in model.metadata_props} == {"mean": "[0.5]"}
    held = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    made = {value for node in model.graph.node for value in node.output}
    assert set(binary.planes) <= made - held.keys()
    assert held["signs"].nbytes == -(-sum(one.positive.numel() for one in binary.planes.values()) // 8)
    used = {value for node in model.graph.node for value in node.input}
    assert {name for name in held if "." in name and not name.rpartition(".scale")[1]} == (
        binary.tensors().keys() - binary.planes.keys()
    ) & used
    for name in held.keys() & binary.tensors().keys():
        np.testing.assert_array_equal(held[name], binary.tensors()[name].numpy())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "quantizer", "fold"),
    [
        *(("convolutional", name, True) for name in QUANTIZERS),  # it pads in a circle, and its linear layer has a bias
        *((name, "dorefa", True) for name in NETWORKS if name != "convolutional"),
        ("resnet20", "bwn", True),  # a scale, folded into batch normalization
        ("resnet20", "bwn", False),
    ],
)
def test_every_quantizer_and_every_network_predict_as_before(network: str, quantizer: str, fold: bool) -> None:
    model, images, expected, _ = exported(network, quantizer, fold)
    found = predictions(model, images)
    assert torch.equal(found.argmax(1), expected.argmax(1))
    if "signs" not in network and network != "convolutional":  # where one rounding may flip an activation
        assert (found - expected).abs().max() <= 1e-4 * max(1.0, expected.abs().max().item())


@pytest.mark.slow
def test_a_resnet_20_takes_a_twentieth_of_its_float32_state(tmp_path: Path) -> None:
    images = torch.randn(8, 3, 32, 32)
    model = seasoned(fsg.quantize(ResNet.Config().build((3, 32, 32), 10), fsg.BWN()), images)
    state = sum(4 * tensor.numel() for tensor in model.state_dict().values() if tensor.is_floating_point())
    binary, about = BinaryNetwork.of(model).folded(images[:2]), {"mean": "[0.5, 0.5, 0.5]", "cell": "0" * 16}
    sizes = [len(onnx_model(binary, images[:2], about).SerializeToString())]
    for name in ("x.npz", "x.safetensors"):
        write(binary.contents(about), tmp_path / name)
        sizes.append((tmp_path / name).stat().st_size)
    assert max(sizes) <= state / 20


@pytest.mark.slow
def test_a_network_without_a_quantized_layer_is_exported_as_it_is() -> None:
    images = torch.randn(3, 3, 5, 5)
    network = mlp().eval()
    model = onnx_model(BinaryNetwork.of(network), images)
    assert torch.allclose(predictions(model, images), network(images), atol=1e-5)
    assert "signs" not in {one.name for one in model.graph.initializer}


class _Svd(nn.Module):
    def forward(self, images: Tensor) -> Any:
        return torch.linalg.svdvals(images)


class _Two(nn.Module):
    def forward(self, images: Tensor) -> Any:
        return images, images + 1


class _OneSize(nn.Module):
    def forward(self, images: Tensor) -> Any:
        return images.reshape(2, -1)


@pytest.mark.parametrize(
    ("network", "text"),
    [
        (_Svd(), r"^ONNX has no way to say what the network does \(.*svd.*\)$"),
        (_Two(), r"^the network gives 2 tensors, expected one$"),
        (_OneSize(), r"^torch\.export cannot trace the network \(.*\)$"),
    ],
)
def test_what_onnx_cannot_say_is_told_in_a_line(network: nn.Module, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        onnx_model(BinaryNetwork.of(network), torch.ones(2, 3))
