"""Users' own components that remember, draw, or are not finite, in the ways that research code does."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fsg.config import Settings, setting
from fsg.data import Images, RawImages
from fsg.estimators import STE


class Own(STE):
    """STE that changes the gradient by `what`, the name of one of its methods."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        what: str = setting("nothing", "The method that is called in each step.")

        def build(self, model: nn.Module) -> "Own":
            return Own(model, self)

    def __init__(self, model: nn.Module, config: Config) -> None:
        super().__init__(model, STE.Config())
        self.what = config.what
        self.generators: dict[str, Any] = {"numpy": [np.random.default_rng(1)], "python": random.Random(1)}
        self.saved: Any = None
        self.lost: Any = None

    def update(self, model: nn.Module) -> bool:
        applies = super().update(model)
        getattr(self, self.what)([weight.grad for weight in self.weights if weight.grad is not None])
        return applies

    def state_dict(self) -> dict[str, Any]:
        return {"saved": self.saved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.what == "cannot_load":
            raise KeyError("saved before")
        self.saved = state["saved"]

    def draws(self, gradients: list[Tensor]) -> None:
        """From Python's and NumPy's generators, and from its own."""
        own = self.generators["numpy"][0].random() + self.generators["python"].gauss(0, 1)
        for gradient in gradients:
            noise = torch.from_numpy(np.random.randn(*gradient.shape)).float()
            gradient.add_(0.01 * noise, alpha=own + random.random())

    def keeps_numpy(self, gradients: list[Tensor]) -> None:
        """In the ways that NumPy, tuples and a generator come."""
        factor, (mean, count), generator = self.saved or (
            np.float32(1.0),
            (np.zeros(3), np.int64(0)),
            np.random.Generator(np.random.MT19937(1)),
        )
        mean = 0.9 * mean + generator.random(3)
        for gradient in gradients:
            gradient.mul_(float(factor * mean[0]))
        self.saved = (factor * np.float32(0.97), (mean, count + 1), generator)

    def keeps_a_set(self, gradients: list[Tensor]) -> None:
        self.saved = {"memory": [1, 2, 3, {4}]}

    def keeps_infinity(self, gradients: list[Tensor]) -> None:
        self.saved = {"lowest": torch.full((3,), float("inf"))}

    def cannot_load(self, gradients: list[Tensor]) -> None:
        self.saved = 1

    def forgets(self, gradients: list[Tensor]) -> None:
        """A mean that is in no state."""
        self.lost = gradients[0].clone() if self.lost is None else 0.9 * self.lost + gradients[0]
        gradients[0].copy_(self.lost)


class Masked(nn.Module):
    """Attention over the rows of an image, with a mask of −∞ as a buffer."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        divisor: float = setting(1.0, "One of the first layer's weights is divided by it.")

        def build(self, shape: tuple[int, int, int], classes: int) -> "Masked":
            return Masked(shape, classes, self.divisor)

    def __init__(self, shape: tuple[int, int, int], classes: int, divisor: float) -> None:
        super().__init__()
        channels, height, width = shape
        self.embed, self.qkv, self.fc = nn.Linear(channels * width, 8), nn.Linear(8, 24), nn.Linear(8, classes)
        self.register_buffer("mask", torch.triu(torch.full((height, height), float("-inf")), 1))
        self.embed.weight.data[0, 0] /= divisor

    def forward(self, images: Tensor) -> Tensor:
        rows = self.embed(images.permute(0, 2, 1, 3).flatten(2))
        q, k, v = self.qkv(rows).chunk(3, -1)
        rows = rows + torch.softmax(q @ k.transpose(1, 2) / 4 + self.mask, -1) @ v
        return self.fc(rows.mean(1))


@dataclass(frozen=True, kw_only=True)
class Broken(Images):
    """Images whose reading has a mistake."""

    file: str = setting("", "A file that is not there.")

    def read(self) -> RawImages:
        if self.file:
            np.load(self.file)
        return RawImages(*dict[str, Any]()["train_images"])
