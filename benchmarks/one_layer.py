"""The smallest network that can be trained here: of what a cell costs that has one, next to nothing is training."""

from dataclasses import dataclass

from torch import Tensor, nn

from fsg.config import Settings


class OneLayer(nn.Module):
    """Images [b, C, H, W] → logits [b, classes], by a linear layer."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        """It has nothing to set."""

        def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
            """For images of `shape` (channels, height, width)."""
            channels, height, width = shape
            return OneLayer(channels * height * width, classes)

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(pixels, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(images.flatten(1))
        return logits
