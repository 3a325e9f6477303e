"""What every dataset of images has: a split, batches to train on and to evaluate, normalised on their device."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsg.config import Settings, setting

Split = Literal["train", "validation", "test"]
Batch = tuple[Tensor, Tensor]


class DataError(ValueError):
    """Images that are missing, or not what they should be, in one line."""


class ImageDataset(ABC):
    """Labelled images, wherever they are kept; never changed once made.

    What `batches` and `evaluation` yield is, with `mean` and `std` [C] for pixels in [0, 1],

        (pixel/255 − mean)/std,   float32 [b, C, H, W], in channels_last memory format where C > 1

    Raises ValueError for a mean or a std that is not finite, and for a std that is not positive.
    """

    train_labels: Tensor
    validation_labels: Tensor
    test_labels: Tensor

    def __init__(
        self, shape: tuple[int, int, int], classes: int, mean: Tensor, std: Tensor, class_names: tuple[str, ...] = ()
    ) -> None:
        if not (torch.isfinite(mean).all() and torch.isfinite(std).all() and (std > 0).all()):
            raise ValueError(f"mean {mean.tolist()} and std {std.tolist()}, expected finite numbers and std > 0")
        _, height, width = self.shape = shape
        self.classes, self.class_names = classes, class_names
        self.mean, self.std = mean.float(), std.float()
        # One factor and one summand a position, rather than a channel: then a whole image is one vectorised loop.
        scale, shift = 1 / (255 * std.double()), -mean.double() / std.double()
        self._scale, self._shift = scale.float().repeat(height * width), shift.float().repeat(height * width)

    @abstractmethod
    def batches(self, seed: int, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """The training batches of an epoch from number `start` on: images [b, C, H, W], augmented, and labels [b].

        A pure function of (seed, epoch): a later `start` gives the very same remaining batches.
        """

    @abstractmethod
    def evaluation(self, split: Split, batch_size: int = ...) -> Iterator[Batch]:
        """All images [b, C, H, W] and labels [b] of a split, in their order, not augmented."""

    def left_out(self) -> str:
        """What a user should know of images that could not be used; empty where all could."""
        return ""

    def to(self, device: torch.device | str) -> Self:
        """The same dataset on a device."""
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device))
        return moved

    def steps_per_epoch(self, batch_size: int) -> int:
        """Batches an epoch: incomplete ones are dropped, unless it is the only one. Raises ValueError below 1."""
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected ≥ 1")
        return max(1, len(self.train_labels) // batch_size)

    def _normalised(self, images: Tensor) -> Tensor:
        """float32 [b, C, H, W] of uint8 [b, H, W, C]."""
        channels, height, width = self.shape
        flat = images.reshape(len(images), -1).float()
        torch.addcmul(self._shift, flat, self._scale, out=flat)
        if channels == 1:
            return flat.view(-1, 1, height, width)
        return flat.view(-1, height, width, channels).permute(0, 3, 1, 2)


@dataclass(frozen=True, kw_only=True)
class HeldOut(Settings):
    """Which of the training images are validated on, and which are trained on."""

    validation: int = setting(1000, "Training images held out for validation; 0 is the papers' protocol.", ge=0)
    validation_seed: int = setting(0, "Which images are held out, and nothing else, hangs on it.", ge=0)
    train_limit: int | None = setting(
        None, "Train on so many images alone, balanced by class, of those not held out; always the same ones.", ge=1
    )

    def title(self) -> str:
        """What an error calls the images."""
        return type(self).__name__

    def split(self, labels: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Which images are trained on and which are held out, each in ascending order.

        Raises DataError where there are too few.
        """
        count = len(labels)
        if self.validation >= count:
            raise DataError(
                f"{self.title()}: validation is {self.validation}, expected ≤ {count - 1}: "
                f"there are {count} training images, and at least one must be left to train on"
            )
        order = self.balanced(labels)
        validation, train = np.sort(order[: self.validation]), np.sort(order[self.validation :])
        return self.limited(train, labels), validation

    def balanced(self, labels: NDArray[np.int64]) -> NDArray[np.intp]:
        """The order in which images are taken to be validated on."""
        return balanced_order(labels, self.validation_seed)

    def limited(self, train: NDArray[np.intp], labels: NDArray[np.int64]) -> NDArray[np.intp]:
        """Of these images, those that are trained on. Raises DataError where there are too few."""
        if self.train_limit is None:
            return train
        if self.train_limit > len(train):
            raise DataError(
                f"{self.title()}: train_limit is {self.train_limit}, expected ≤ {len(train)}: "
                f"that many training images are left when {len(labels) - len(train)} are held out"
            )
        return train[np.sort(balanced_order(labels[train], seed=0)[: self.train_limit])]


def balanced_order(labels: NDArray[np.int64], seed: int) -> NDArray[np.intp]:
    """A permutation of the images whose every beginning has the classes in their proportions, as nearly as can be.

    So what is taken with a smaller number is part of what is taken with a larger one.
    """
    # The raw stream of a bit generator is the only one that NumPy promises to keep from version to version.
    keys = np.random.PCG64(seed).random_raw(len(labels))
    by_class = np.lexsort((keys, labels))
    counts = np.bincount(labels)
    rank = np.empty(len(labels))
    rank[by_class] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.lexsort((keys, (rank + 0.5) / counts[labels]))


def draw_seed(seed: int, epoch: int) -> int:
    """The seed of torch's generator for all that is drawn in an epoch."""
    return int.from_bytes(hashlib.sha256(f"{seed} {epoch}".encode()).digest()[:8], "little")


def one_line(error: BaseException) -> str:
    """The text of an exception without line breaks; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def few(values: Any) -> str:
    """The first of some values, in a sentence."""
    return ", ".join(str(value) for value in values[:5]) + (", …" if len(values) > 5 else "")
