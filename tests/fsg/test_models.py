"""Networks: parameters counted, a forward pass written a second time, and shapes that cannot be."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from fsg.models import ResNet, VGGSmall

# As published for the parameter-free shortcuts of the paper's section 4.2 (0.27M … 1.7M; exact ones from
# github.com/akamaster/pytorch_resnet_cifar10); two 1x1 convolutions with batch norms come on top here.
PUBLISHED = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}
SHORTCUTS = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)


@pytest.mark.parametrize("depth", PUBLISHED)
def test_resnet_has_the_published_number_of_parameters(depth: Any) -> None:
    network = ResNet.Config(depth=depth).build((3, 32, 32), 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == PUBLISHED[depth] + SHORTCUTS


@pytest.mark.parametrize("depth", [8, 14, 20, 32, 44, 56, 110])
def test_depth_counts_the_layers_off_the_shortcuts(depth: Any) -> None:
    network = ResNet.Config(depth=depth, width=2).build((1, 8, 8), 3)
    layers = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([name for name in layers if "downsample" not in name]) == depth
    assert len(layers) == depth + 2


def written_again(state: dict[str, Tensor], x: Tensor, blocks: int) -> Tensor:
    """The network in evaluation mode, from nothing but its tensors."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            state[f"{name}.{key}"].view(-1, 1, 1) for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    x = norm(functional.conv2d(x, state["conv1.weight"], padding=1), "bn1").clamp_min(0)
    for stage in (1, 2, 3):
        for block in range(blocks):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = functional.conv2d(x, state[f"{at}.conv1.weight"], stride=stride, padding=1)
            y = norm(y, f"{at}.bn1").clamp_min(0)
            y = norm(functional.conv2d(y, state[f"{at}.conv2.weight"], padding=1), f"{at}.bn2")
            if f"{at}.downsample.0.weight" in state:
                x = norm(functional.conv2d(x, state[f"{at}.downsample.0.weight"], stride=2), f"{at}.downsample.1")
            x = (x + y).clamp_min(0)
    return x.sum((2, 3)) / (x.shape[2] * x.shape[3]) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (2, 9, 21)])
def test_forward_pass_equals_one_written_again(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    network = ResNet.Config(depth=14, width=4).build(shape, 7).double().eval()
    for name, tensor in network.state_dict().items():
        if "bn" in name or "downsample.1" in name:
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    images = torch.randn(5, *shape, dtype=torch.float64)
    logits = network(images)
    assert logits.shape == (5, 7)
    torch.testing.assert_close(logits, written_again(network.state_dict(), images, blocks=2), rtol=1e-12, atol=1e-12)
    last = network(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, logits, rtol=1e-12, atol=1e-12)


def test_initial_weights_have_kaimings_deviation() -> None:
    torch.manual_seed(0)
    network = ResNet.Config(depth=8, width=32).build((3, 32, 32), 10)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            tolerance = 4 / math.sqrt(2 * module.weight.numel())
            assert float(module.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_out), rel=tolerance)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


def test_initial_weights_hang_on_torchs_seed_alone() -> None:
    def first(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in ResNet.Config(depth=8).build((1, 8, 8), 2).parameters()])

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_depth_that_cannot_be_is_refused(depth: Any) -> None:
    with pytest.raises(ValueError, match=f"depth is {depth}, expected one of 8, 14, 20"):
        ResNet.Config(depth=depth).build((3, 32, 32), 10)


@pytest.mark.parametrize("derivative", ["clipped", "approx_sign"])
def test_one_bit_activations_keep_names_shapes_and_initial_weights(derivative: Any) -> None:
    states = []
    for bits in (32, 1):
        torch.manual_seed(0)
        config = ResNet.Config(depth=14, width=4, activation_bits=bits, activation_derivative=derivative)
        states.append(config.build((3, 16, 16), 5).state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(one, states[1][name]) for name, one in states[0].items())


def written_again_with_signs(state: dict[str, Tensor], x: Tensor, blocks: int, seen: list[Tensor]) -> Tensor:
    """Bi-Real's order in evaluation mode, from nothing but its tensors: every 3x3 convolution has its own shortcut."""

    def norm(x: Tensor, name: str) -> Tensor:
        keys = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(state[f"{name}.{key}"] for key in keys))  # type: ignore[arg-type]

    def sign(x: Tensor) -> Tensor:
        seen.append(x)
        return 2.0 * (x >= 0).double() - 1

    x = norm(functional.conv2d(x, state["conv1.weight"], padding=1), "bn1")
    for stage in (1, 2, 3):
        for block in range(blocks):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            shortcut = x
            if stride == 2:
                shortcut = functional.conv2d(x, state[f"{at}.downsample.0.weight"], stride=2)
                shortcut = norm(shortcut, f"{at}.downsample.1")
            inner = functional.conv2d(sign(x), state[f"{at}.conv1.weight"], stride=stride, padding=1)
            x = norm(inner, f"{at}.bn1") + shortcut
            x = norm(functional.conv2d(sign(x), state[f"{at}.conv2.weight"], padding=1), f"{at}.bn2") + x
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def test_one_bit_network_equals_one_written_again_and_its_convolutions_see_signs_of_both_kinds() -> None:
    torch.manual_seed(0)
    network = ResNet.Config(depth=14, width=4, activation_bits=1).build((3, 16, 16), 7).double().eval()
    for name, tensor in network.state_dict().items():
        if "bn" in name or "downsample.1" in name:
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    fed: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs, name=name: fed.update({name: inputs[0]}))  # type: ignore[misc]
    images = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    logits = network(images)
    seen: list[Tensor] = []
    expected = written_again_with_signs(network.state_dict(), images, 2, seen)
    torch.testing.assert_close(logits, expected, rtol=1e-11, atol=1e-11)
    real = {name for name, x in fed.items() if set(x.unique().tolist()) != {-1.0, 1.0}}
    assert real == {"conv1", "layer2.0.downsample.0", "layer3.0.downsample.0"}
    assert len(seen) == 12


def test_one_bit_network_trains_every_parameter() -> None:
    torch.manual_seed(0)
    network = ResNet.Config(depth=8, width=4, activation_bits=1).build((1, 8, 8), 3)
    functional.cross_entropy(network(torch.randn(8, 1, 8, 8)), torch.arange(8) % 3).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("depth", PUBLISHED)
def test_shortcuts_without_parameters_have_exactly_the_published_number(depth: Any) -> None:
    network = ResNet.Config(depth=depth, shortcut="A").build((3, 32, 32), 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == PUBLISHED[depth]


@pytest.mark.parametrize("shortcut", ["A", "B", "pooled"])
def test_every_shortcut_fits_images_of_any_size(shortcut: Any) -> None:
    counts = set()
    for bits, shape in itertools.product((32, 1), ((1, 28, 28), (2, 9, 21))):
        config: Any = ResNet.Config(depth=8, width=3, shortcut=shortcut, activation_bits=bits)  # type: ignore[arg-type]
        assert config.build(shape, 7)(torch.randn(2, *shape)).shape == (2, 7)
        counts.add(sum(parameter.numel() for parameter in config.build((3, 8, 8), 7).parameters()))
    plain = sum(parameter.numel() for parameter in ResNet.Config(depth=8, width=3).build((3, 8, 8), 7).parameters())
    assert counts == {plain - (0 if shortcut != "A" else 3 * 6 + 2 * 6 + 6 * 12 + 2 * 12)}


def test_shortcut_a_takes_every_second_pixel_between_zero_channels() -> None:
    network = ResNet.Config(depth=8, width=3, shortcut="A").build((3, 9, 9), 2)
    x = torch.randn(2, 3, 5, 7)
    expected = torch.zeros(2, 6, 3, 4)
    for row in range(3):
        for column in range(4):
            expected[:, 1:4, row, column] = x[:, :, 2 * row, 2 * column]
    assert torch.equal(network.get_submodule("layer2.0.downsample")(x), expected)


def test_pooled_shortcut_is_a_convolution_of_the_means_of_2x2_pixels() -> None:
    torch.manual_seed(0)
    network = ResNet.Config(depth=8, width=3, shortcut="pooled").build((3, 9, 9), 2).double().eval()
    shortcut, x = network.get_submodule("layer2.0.downsample"), torch.randn(2, 3, 5, 8, dtype=torch.float64)
    means = torch.stack(
        [x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3)) for i in range(3) for j in range(4)]
    )
    weight = network.get_parameter("layer2.0.downsample.1.weight")[:, :, 0, 0]
    expected = torch.einsum("pbi,oi->bop", means, weight).reshape(2, 6, 3, 4) / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(shortcut(x), expected, rtol=1e-12, atol=1e-12)


def test_batch_norm_before_the_classifier_sees_the_pooled_features() -> None:
    torch.manual_seed(0)
    network = ResNet.Config(depth=8, width=4, classifier_norm=True).build((1, 8, 8), 3).double()
    plain = ResNet.Config(depth=8, width=4).build((1, 8, 8), 3).double()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("norm.")})
    plain.fc = nn.Identity()  # type: ignore[assignment]
    images = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    pooled, state = plain(images), network.state_dict()
    standard = (pooled - pooled.mean(0)) / (pooled.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(
        network(images), standard @ state["fc.weight"].T + state["fc.bias"], rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("nonlinearity", ["relu", "hardtanh"])
def test_vgg_small_has_its_parameters_and_equals_one_written_again(nonlinearity: Any) -> None:
    torch.manual_seed(0)
    network = VGGSmall.Config(nonlinearity=nonlinearity).build((3, 32, 32), 10).double().eval()
    convolutions = [(3, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    expected = sum(9 * before * after + 2 * after for before, after in convolutions) + 512 * 4 * 4 * 10 + 10
    assert sum(parameter.numel() for parameter in network.parameters()) == expected == 4_660_106

    network = VGGSmall.Config(width=3, nonlinearity=nonlinearity).build((2, 17, 24), 5).double().eval()
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1 and name != "fc.bias" and tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    x = images = torch.randn(4, 2, 17, 24, dtype=torch.float64)
    modules = list(network.named_modules())
    norms = [module for _, module in modules if isinstance(module, nn.BatchNorm2d)]
    weights = [module.weight for _, module in modules if isinstance(module, nn.Conv2d)]
    for index, (weight, norm) in enumerate(zip(weights, norms, strict=True)):
        x = functional.conv2d(x, weight, padding=1)
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-2, -1)) if index in (1, 3, 5) else x
        x = functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        x = x.clamp_min(0) if nonlinearity == "relu" else x.clamp(-1, 1)
    state = network.state_dict()
    expected_logits = x.flatten(1) @ state["fc.weight"].T + state["fc.bias"]
    torch.testing.assert_close(network(images), expected_logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [((0, 32, 32), 10, "at least 1x8x8"), ((3, 7, 32), 10, "images of 3x7x32"), ((3, 32, 32), 1, "expected ≥ 2")],
)
def test_vgg_small_refuses_what_it_cannot_take(shape: Any, classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VGGSmall.Config().build(shape, classes)
