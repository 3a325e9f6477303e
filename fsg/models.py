"""The networks of the field: residual networks for small images."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from fsg import config
from fsg.config import choice, setting
from fsg.imported import Imported


class ResNet(nn.Module):
    """A CIFAR ResNet of 6n + 2 layers: a 3x3 convolution, three stages of n basic blocks, a linear layer.

    The stages have width, 2·width and 4·width channels, and the second and third halve height and width, where the
    shortcut is a 1x1 convolution with batch norm (option B). Convolutions start from Kaiming's normal distribution
    (fan out, for ReLU), batch norms from weight 1 and bias 0, the linear layer as torch has it.
    Shapes: images [b, C, H, W] → logits [b, classes]. Raises ValueError for a depth that is not 6n + 2.
    He, Zhang, Ren and Sun, CVPR 2016 (arXiv:1512.03385), section 4.2; the initialisation: ICCV 2015 (arXiv:1502.01852).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Settings):
        """A CIFAR ResNet of `depth` layers with 1x1-convolution shortcuts."""

        name: Literal["resnet"] = "resnet"
        depth: Literal[8, 14, 20, 32, 44, 56, 110] = choice(20, "Number of layers: 6n + 2.")
        width: int = setting(16, "Channels of the first stage; the next two have twice and four times as many.", ge=1)

        def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
            """The full-precision network for images of `shape` (channels, height, width), drawn from torch's generator.

            Raises ValueError for images without a channel or smaller than 8x8, and for less than two classes.
            """
            channels, height, width = shape
            if channels < 1 or min(height, width) < 8:
                raise ValueError(f"ResNet: images of {channels}x{height}x{width}, expected at least 1x8x8")
            if classes < 2:
                raise ValueError(f"ResNet: classes is {classes}, expected ≥ 2")
            return ResNet(self.depth, self.width, channels, classes)

    def __init__(self, depth: int, width: int, in_channels: int, classes: int) -> None:
        super().__init__()
        blocks, remainder = divmod(depth - 2, 6)
        if blocks < 1 or remainder:
            raise ValueError(f"ResNet: depth is {depth}, expected 6n + 2 ≥ 8")
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(blocks, width, width, stride=1)
        self.layer2 = _stage(blocks, width, 2 * width, stride=2)
        self.layer3 = _stage(blocks, 2 * width, 4 * width, stride=2)
        self.fc = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        features = self.bn1(self.conv1(images)).relu()
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.fc(features.mean((2, 3)))


class _Block(nn.Module):
    """relu(bn(conv(relu(bn(conv x)))) + shortcut x), [b, in, h, w] → [b, out, ⌈h/stride⌉, ⌈w/stride⌉]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, features: Tensor) -> Tensor:
        inner = self.bn1(self.conv1(features)).relu()
        return (self.bn2(self.conv2(inner)) + self.downsample(features)).relu()


def _stage(blocks: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    first = _Block(in_channels, out_channels, stride)
    return nn.Sequential(first, *(_Block(out_channels, out_channels, 1) for _ in range(blocks - 1)))


ModelConfig = ResNet.Config | Imported
