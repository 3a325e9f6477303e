"""The network as it predicts: signs baked in, batch norms folded."""

import copy
import re

import pytest
import torch
from torch import Tensor, nn

import fsg
from fsg.binarize import BinaryNetwork, traced
from fsg.models import ResNet


class Net(nn.Module):
    """A foldable pair, one whose layer's output is seen twice, one called twice, a linear one, and one of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.conv4, self.bn4 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)
        self.fc, self.bn5 = nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3, affine=False)

    def forward(self, images: Tensor) -> Tensor:
        features = self.bn1(self.conv1(images)).relu()
        seen_twice = self.conv2(features)
        features = self.bn2(seen_twice) + seen_twice
        features = self.bn3(self.conv3(self.bn3(self.conv3(features))))
        features = self.bn4(self.conv4(features))
        return self.bn5(self.fc(features.mean((2, 3))))


def seasoned(model: nn.Module, images: Tensor) -> nn.Module:
    """In evaluation mode, with batch norms that do something: negative factors too."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        for _ in range(30):
            model.train()(images)
    return model.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_binarized_model_predicts_the_same_with_plain_layers(images: Tensor) -> None:
    model = seasoned(fsg.quantize(Net(), fsg.BWN()), images)
    expected, latent = model(images), {name: p.clone() for name, p in model.named_parameters()}
    network = fsg.binarize(copy.deepcopy(model))
    assert torch.equal(network(images), expected)
    assert {type(module) for module in network.modules()} <= {Net, nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d}
    assert network.get_parameter("conv2.weight").abs().unique().numel() == 4  # a scale a channel
    assert all(torch.equal(p, latent[name]) for name, p in model.named_parameters())
    assert not torch.equal(fsg.dequantize(model)(images), expected)


def test_frozen_layers_are_binarized_too() -> None:
    model = fsg.quantize(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), fsg.Sign())
    model[0].requires_grad_(False)
    assert fsg.binarize(model)[0].weight.abs().unique().tolist() == [1.0]
    assert not model[0].weight.requires_grad


def test_layers_that_share_a_weight_share_its_signs() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    binary = BinaryNetwork.of(fsg.quantize(model, fsg.BWN()))
    assert list(binary.planes) == ["0.weight"]
    assert binary.network[1].weight is binary.network[0].weight


def test_odd_sharing_is_told_in_a_line() -> None:
    model: nn.Module = fsg.quantize(nn.Sequential(nn.Linear(3, 3), nn.Embedding(3, 3)), fsg.Sign())
    model[1].weight = model[0].weight
    text = "0 shares its weight with 1.weight, which is not quantized: expected a weight of its own"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        fsg.binarize(model)
    model = fsg.quantize(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), fsg.Sign())
    model[1].weight, model[1].quantizer = model[0].weight, fsg.BWN()
    text = "1 quantizes the weight that it shares with 0 otherwise, expected one weight"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        fsg.binarize(model)


@torch.no_grad()
@pytest.mark.parametrize("quantizer", [fsg.BWN(), fsg.DoReFa(weight_bits=2)])
def test_batch_norms_are_folded_where_nothing_else_sees_the_layer(quantizer: fsg.BWN, images: Tensor) -> None:
    model = seasoned(fsg.quantize(Net(), quantizer, ["conv1"]), images)
    before = BinaryNetwork.of(model)
    after = before.folded(images)
    assert [name for name, module in after.network.named_modules() if isinstance(module, nn.Identity)] == ["bn1", "bn5"]
    assert torch.allclose(before.network(images), model(images), atol=1e-5)
    assert torch.allclose(after.network(images), model(images), atol=1e-5)
    assert torch.equal(after.network.get_parameter("fc.weight"), after.planes["fc.weight"].weight)
    assert torch.equal(before.planes["fc.weight"].positive, after.planes["fc.weight"].positive)
    assert "conv1.weight" not in after.planes
    assert isinstance(model.get_submodule("bn1"), nn.BatchNorm2d)  # neither the model nor the first was touched
    assert isinstance(before.network.get_submodule("bn1"), nn.BatchNorm2d)


@torch.no_grad()
@pytest.mark.parametrize("bits", [32, 1])
def test_every_batch_norm_of_a_resnet_is_folded(bits: int, images: Tensor) -> None:
    config = ResNet.Config(depth=8, width=2, activation_bits=bits)  # type: ignore[arg-type]
    images = torch.cat([images, images.flip(2)], 2)[:, :, :9, :].repeat(1, 1, 1, 2)
    model = seasoned(fsg.quantize(config.build((1, 9, 12), 3), fsg.Sign()), images)
    folded = BinaryNetwork.of(model).folded(images)
    assert not [module for module in folded.network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert torch.allclose(folded.network(images), model(images), atol=1e-4)


def test_quantizers_without_planes_stay_float32() -> None:
    class Ternary(fsg.Sign):
        def quantize(self, prequantized: Tensor) -> Tensor:
            return prequantized.sign() * (prequantized.abs() > 0.05)

    binary = BinaryNetwork.of(fsg.quantize(nn.Sequential(nn.Linear(30, 3)), Ternary()))
    assert (binary.planes, binary.not_packed) == ({}, ("0.weight",))
    assert binary.contents().others["0.weight"].unique().tolist() == [-1.0, 0.0, 1.0]


def test_a_network_that_cannot_be_traced_is_told_in_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    class Branching(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images if images.sum() > 0 else -images

    with pytest.raises(ValueError, match=r"^torch\.export cannot trace the network \(.*\)$"):
        traced(Branching(), (torch.ones(2),))
    assert capfd.readouterr().err == ""


@torch.no_grad()
def test_torch_exports_a_quantized_model_and_its_binarized_one(images: Tensor) -> None:
    model = seasoned(fsg.quantize(Net(), fsg.BWN()), images)
    expected = model(images)
    for network in (model, fsg.binarize(copy.deepcopy(model))):
        assert torch.equal(torch.export.export(network, (images,)).module()(images), expected)
