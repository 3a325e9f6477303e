"""The smallest network that can be trained here: of what a cell costs that has one, next to nothing is training."""

import time
from dataclasses import dataclass

from torch import Tensor, nn

from fsg.config import Settings, setting


class OneLayer(nn.Module):
    """Images [b, C, H, W] → logits [b, classes], by a linear layer."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        """A network that may take its time."""

        seconds: float = setting(0.0, "For how long each batch of a training sleeps.")

        def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
            """For images of `shape` (channels, height, width)."""
            channels, height, width = shape
            return OneLayer(channels * height * width, classes, self.seconds)

    def __init__(self, pixels: int, classes: int, seconds: float = 0.0) -> None:
        super().__init__()
        self.layer, self.seconds = nn.Linear(pixels, classes), seconds

    def forward(self, images: Tensor) -> Tensor:
        if self.training and self.seconds:
            time.sleep(self.seconds)
        logits: Tensor = self.layer(images.flatten(1))
        return logits
