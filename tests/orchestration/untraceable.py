"""A network whose way through it depends on what it sees, which torch cannot write down as one program."""

from dataclasses import dataclass

from torch import Tensor, nn

from fsg.config import Settings


class Untraceable(nn.Module):
    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        def build(self, shape: tuple[int, int, int], classes: int) -> "Untraceable":
            return Untraceable(shape[0], classes)

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = images.mean((2, 3))
        return self.fc(features) if float(features.sum()) > 0 else -self.fc(features)
