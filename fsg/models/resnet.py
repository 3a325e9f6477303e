"""Residual networks for small images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fsg import config
from fsg.activations import ActivationDerivative, SignActivation
from fsg.config import choice, setting
from fsg.models.sizes import refuse_unfit

Shortcut = Literal["A", "B", "pooled"]


class ResNet(nn.Module):
    """A CIFAR ResNet of 6n + 2 layers: a 3x3 convolution, three stages of n basic blocks, a linear layer.

    The stages have width, 2·width and 4·width channels. The second and third halve height and width, where the shortcut
    is

        A        every second pixel, and zero channels before and after: no parameter
        B        a 1x1 convolution of stride 2 with batch norm
        pooled   the mean of 2x2 pixels, a 1x1 convolution and batch norm, as in Bi-Real Net

    `classifier_norm` puts a batch norm before the linear layer, as FSG's released ResNet-20 has it. Convolutions start
    from Kaiming's normal distribution (fan out, for ReLU), batch norms from weight 1 and bias 0, the linear layer as
    torch has it. Shapes: images [b, C, H, W] → logits [b, classes]. Raises ValueError for a depth that is not 6n + 2.
    He, Zhang, Ren and Sun, CVPR 2016 (arXiv:1512.03385), section 4.2; the initialisation: ICCV 2015 (arXiv:1502.01852).

    With 1-bit activations each 3x3 convolution of the stages sees signs, and has a shortcut of its own, as in Bi-Real
    Net (ECCV 2018, arXiv:1808.00278); there is no ReLU. The same parameters have the same names and shapes. Images, the
    1x1 convolutions' inputs and the linear layer's stay real numbers.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Settings):
        """A CIFAR ResNet of `depth` layers, its activations real or ±1."""

        name: Literal["resnet"] = "resnet"
        depth: Literal[8, 14, 20, 32, 44, 56, 110] = choice(20, "Number of layers: 6n + 2.")
        width: int = setting(16, "Channels of the first stage; the next two have twice and four times as many.", ge=1)
        activation_bits: Literal[32, 1] = choice(32, "1: what the 3x3 convolutions of the stages see is ±1.")
        activation_derivative: ActivationDerivative = choice(
            "approx_sign", "What stands in for the derivative of a 1-bit activation."
        )
        shortcut: Shortcut = choice(
            "B",
            "Where a stage begins: zero channels (A), a 1x1 convolution (B), or one after pooling (Bi-Real Net).",
            identity="unless_default",
        )
        classifier_norm: bool = setting(
            False, "Whether a batch norm stands before the classifier.", identity="unless_default"
        )

        def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
            """The full-precision network for images of `shape` (channels, height, width), drawn from torch's generator.

            Raises ValueError for images without a channel or smaller than 8x8, and for less than two classes.
            """
            refuse_unfit("ResNet", shape, classes, smallest=8)
            derivative = self.activation_derivative if self.activation_bits == 1 else None
            return ResNet(self.depth, self.width, shape[0], classes, derivative, self.shortcut, self.classifier_norm)

    def __init__(
        self,
        depth: int,
        width: int,
        in_channels: int,
        classes: int,
        sign: ActivationDerivative | None = None,
        shortcut: Shortcut = "B",
        classifier_norm: bool = False,
    ) -> None:
        """`sign`, the surrogate of 1-bit activations' derivative; None for real ones."""
        super().__init__()
        blocks, remainder = divmod(depth - 2, 6)
        if blocks < 1 or remainder:
            raise ValueError(f"ResNet: depth is {depth}, expected 6n + 2 ≥ 8")
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu: nn.Module = nn.ReLU() if sign is None else nn.Identity()
        self.layer1 = _stage(blocks, width, width, 1, sign, shortcut)
        self.layer2 = _stage(blocks, width, 2 * width, 2, sign, shortcut)
        self.layer3 = _stage(blocks, 2 * width, 4 * width, 2, sign, shortcut)
        self.norm: nn.Module = nn.BatchNorm1d(4 * width) if classifier_norm else nn.Identity()
        self.fc = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.fc(self.norm(features.mean((2, 3))))


class _Block(nn.Module):
    """relu(bn(conv(relu(bn(conv x)))) + shortcut x), [b, in, h, w] → [b, out, ⌈h/stride⌉, ⌈w/stride⌉]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu1: nn.Module = nn.ReLU()
        self.relu2: nn.Module = nn.ReLU()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = _SHORTCUTS[shortcut](in_channels, out_channels, stride)

    def forward(self, features: Tensor) -> Tensor:
        inner = self.relu1(self.bn1(self.conv1(features)))
        return self.relu2(self.bn2(self.conv2(inner)) + self.downsample(features))


class _SignBlock(_Block):
    """Two times x ← bn(conv(sign x)) + shortcut x; what a sign sees is a sum of batch norms' outputs.

    [b, in, h, w] → [b, out, ⌈h/stride⌉, ⌈w/stride⌉]; the second shortcut is the identity.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut, derivative: ActivationDerivative
    ) -> None:
        super().__init__(in_channels, out_channels, stride, shortcut)
        self.relu1 = self.relu2 = nn.Identity()
        self.sign = SignActivation(derivative)

    def forward(self, features: Tensor) -> Tensor:
        features = self.bn1(self.conv1(self.sign(features))) + self.downsample(features)
        return self.bn2(self.conv2(self.sign(features))) + features


class _Padded(nn.Module):
    """Every second pixel, between as many channels of zeros before as after: [b, in, h, w] → [b, out, ⌈h/2⌉, ⌈w/2⌉]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, features: Tensor) -> Tensor:
        return F.pad(features[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def _projected(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(out_channels))


def _pooled(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """An odd border, which a convolution of this stride would see too, is a mean of what is there."""
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True)
    return nn.Sequential(pool, nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))


_SHORTCUTS: dict[Shortcut, Callable[[int, int, int], nn.Module]] = {"A": _Padded, "B": _projected, "pooled": _pooled}


def _stage(
    blocks: int, in_channels: int, out_channels: int, stride: int, sign: ActivationDerivative | None, shortcut: Shortcut
) -> nn.Sequential:
    sizes = [(in_channels, out_channels, stride), *[(out_channels, out_channels, 1)] * (blocks - 1)]
    return nn.Sequential(
        *(_Block(*size, shortcut) if sign is None else _SignBlock(*size, shortcut, sign) for size in sizes)
    )
