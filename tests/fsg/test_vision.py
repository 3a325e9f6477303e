"""torchvision's classifiers by name: published counts of parameters, stems for small images, and what cannot be."""

import math
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from fsg import models as ours
from fsg.models import Torchvision
from fsg.models import vision as module

FAMILIES = ["alexnet", "googlenet", "regnet_x_400mf", "resnet18", "squeezenet1_1", "vgg11", "vit_b_16"]


@pytest.mark.parametrize("arch", FAMILIES)
def test_each_family_has_the_published_number_of_parameters_and_gives_logits(arch: str) -> None:
    """The count is the one that torchvision publishes with its weights, for 1,000 classes."""
    with torch.device("meta"):
        network = Torchvision.Config(arch=arch).build((3, 224, 224), 1000)
        logits = network(torch.empty(2, 3, 224, 224))
    published = models.get_model_weights(arch).DEFAULT.meta["num_params"]
    assert sum(parameter.numel() for parameter in network.parameters()) == published
    assert network.training
    assert logits.shape == (2, 1000)


# The first convolution, the pool that goes, and the size of the kernel before.
STEMS = {"resnet18": ("conv1", "maxpool", 7), "squeezenet1_1": ("features.0", "features.2", 3)}


@pytest.mark.parametrize("arch", STEMS)
def test_small_images_keep_their_size_through_the_stem(arch: str) -> None:
    torch.manual_seed(0)
    network = Torchvision.Config(arch=arch, small_images=True).build((3, 32, 32), 10)
    *names, size = STEMS[arch]
    convolution, pool = (network.get_submodule(str(name)) for name in names)
    assert isinstance(convolution, nn.Conv2d)
    assert (convolution.kernel_size, convolution.stride, convolution.padding) == ((3, 3), (1, 1), (1, 1))
    assert isinstance(pool, nn.Identity)
    plain = Torchvision.Config(arch=arch).build((3, 224, 224), 10)
    lost = 3 * convolution.out_channels * (size**2 - 9)
    assert _count(plain) - _count(network) == lost
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_a_small_resnet18_starts_from_kaimings_deviation_and_has_the_count_of_the_cifar_form() -> None:
    torch.manual_seed(0)
    network = Torchvision.Config(small_images=True).build((3, 32, 32), 10)
    assert _count(network) == 11_173_962
    weight = network.get_parameter("conv1.weight").detach()
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.08)


@pytest.mark.parametrize("channels", [1, 5])
def test_images_of_any_number_of_channels(channels: int) -> None:
    torch.manual_seed(0)
    network = Torchvision.Config().build((channels, 28, 28), 7)
    weight = network.get_parameter("conv1.weight").detach()
    assert weight.shape == (64, channels, 7, 7)
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / (64 * 49)), rel=0.08)
    assert network(torch.randn(2, channels, 28, 28)).shape == (2, 7)


def test_initial_weights_hang_on_torchs_seed_alone() -> None:
    """Whether or not the process has looked before how the architecture takes such images."""
    firsts = []
    for _ in range(2):
        torch.manual_seed(3)
        firsts.append(Torchvision.Config(arch="squeezenet1_1").build((1, 29, 31), 3).state_dict())
    assert all(torch.equal(tensor, firsts[1][name]) for name, tensor in firsts[0].items())


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({"arch": "resnet19"}, (3, 32, 32), r"arch is 'resnet19' \(expected a classifier of .*did you mean resnet18\?"),
        ({"arch": "fasterrcnn_resnet50_fpn"}, (3, 32, 32), "expected a classifier"),
        ({"arch": "vgg11"}, (3, 28, 28), r"vgg11 cannot take images of 3x28x28: .*\(expected images of another size"),
        ({"arch": "vit_b_16"}, (3, 32, 48), "vit_b_16 cannot take images of 3x32x48"),
        ({"arch": "vit_b_16", "small_images": True}, (3, 32, 32), "cuts the image into patches .expected small_images"),
        ({"arch": "vgg11", "small_images": True}, (3, 32, 32), "vgg11's first convolution has no stride"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings: Any, shape: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        Torchvision.Config(**settings).build(shape, 10)
    assert "\n" not in str(refused.value)


def test_without_torchvision_settings_can_be_read_and_nothing_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    monkeypatch.setattr(module, "_architectures", module._architectures.__wrapped__)
    config = Torchvision.Config(arch="resnet34")
    with pytest.raises(ValueError, match="resnet34: torchvision is needed, and cannot be imported"):
        config.build((3, 40, 40), 10)
    assert ours.ResNet.Config(depth=8).build((3, 8, 8), 2)


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
