"""VGG-Small, the plain network of the field."""

import itertools
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from fsg import config
from fsg.config import choice, setting
from fsg.models.sizes import refuse_unfit


class VGGSmall(nn.Module):
    """VGG-Small: six 3x3 convolutions, a max pool behind every second, and one linear layer.

        2×128C3 – MP2 – 2×256C3 – MP2 – 2×512C3 – MP2 – FC      for width 128

    Behind each convolution come the max pool, where there is one, batch norm and the nonlinearity. Convolutions have no
    bias, and start as torch has it. Shapes: images [b, C, H, W] → logits [b, classes].
    Zhang, Yang, Ye and Hua, LQ-Nets, ECCV 2018 (arXiv:1807.10029), after Courbariaux et al., 2016 (arXiv:1602.02830),
    whose nonlinearity is the hard tanh.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Settings):
        """VGG-Small: six convolutions and a linear layer."""

        name: Literal["vgg_small"] = "vgg_small"
        width: int = setting(128, "Channels of the first two convolutions; then twice and four times as many.", ge=1)
        nonlinearity: Literal["relu", "hardtanh"] = choice("relu", "What follows each batch norm.")

        def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
            """The full-precision network for images of `shape` (channels, height, width), drawn from torch's generator.

            Raises ValueError for images without a channel or smaller than 8x8, and for less than two classes.
            """
            refuse_unfit("VGG-Small", shape, classes, smallest=8)
            return VGGSmall(self.width, shape, classes, self.nonlinearity)

    def __init__(
        self, width: int, shape: tuple[int, int, int], classes: int, nonlinearity: Literal["relu", "hardtanh"]
    ) -> None:
        super().__init__()
        channels = [shape[0], width, width, 2 * width, 2 * width, 4 * width, 4 * width]
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(itertools.pairwise(channels)):
            layers.append(nn.Conv2d(before, after, 3, padding=1, bias=False))
            layers += [nn.MaxPool2d(2)] if index % 2 else []
            layers += [nn.BatchNorm2d(after), nn.ReLU() if nonlinearity == "relu" else nn.Hardtanh()]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels[-1] * (shape[1] // 8) * (shape[2] // 8), classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images).flatten(1))
