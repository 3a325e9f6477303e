"""Images in folders, `train/CLASS/NAME.jpg`: read while they are trained on, for sets that no memory holds."""

import hashlib
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fsg.config import choice, setting
from fsg.image_cache import DecodedCache
from fsg.image_dataset import Batch, DataError, HeldOut, ImageDataset, Split, draw_seed
from fsg.image_listing import Listing, class_folders, compare_classes, list_images
from fsg.image_stream import Decoded, ImageWorkers, Order, decoded, shown
from fsg.image_worker import CHANGED
from fsg.uploads import upload

Indices = NDArray[np.intp]
_TEST_FOLDERS = ("val", "test")
_NAMED = 3


class Part(NamedTuple):
    """Some images of a folder."""

    listing: Listing
    indices: Indices

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.listing.labels[self.indices]


@dataclass(frozen=True, kw_only=True)
class ImageFolder(HeldOut):
    """A user's own folders in torchvision's layout: train/CLASS/… and val/CLASS/…, and test/CLASS/… if there is one.

    Images are converted to RGB, their orientation as stored. Training: a random crop, resized, mirrored and coloured
    at random. Evaluation: the shorter side is made `evaluation_side`, and the middle is taken.
    """

    name: Literal["image_folder"] = "image_folder"
    folder: str = setting(description="The folder that has train and val.", identity=False)
    test_folder: Literal["auto", "val", "test"] = choice(
        "auto",
        "Whose accuracy the test accuracy is; auto: of the only one that has classes. Where it is test and there is a "
        "val, validation images come from val, otherwise from train.",
    )
    size: int = setting(224, "Height and width of what the network sees.", ge=1)
    evaluation_side: int | None = setting(
        None, "Shorter side of an image whose middle is evaluated; by default 8/7 of size.", ge=1
    )
    crop_area: float = setting(0.08, "Smallest share of an image that a random crop has.", gt=0, le=1)
    flip: bool = setting(True, "Mirror half of the images, at random.")
    brightness: float = setting(0.0, "Brightness changes by a factor in [1 - b, 1 + b]; 0: never.", ge=0)
    contrast: float = setting(0.0, "The same for contrast.", ge=0)
    saturation: float = setting(0.0, "The same for saturation.", ge=0)
    hue: float = setting(0.0, "The hue moves by up to this share of the circle.", ge=0, le=0.5)
    mean: tuple[float, ...] = choice((0.485, 0.456, 0.406), "Of each channel, for pixels in [0, 1].")
    std: tuple[float, ...] = choice((0.229, 0.224, 0.225), "Of each channel, for pixels in [0, 1].")
    unreadable: int = setting(0, "So many images that cannot be decoded are left out.", ge=0, identity=False)
    identified_by: Literal["times", "contents"] = choice(
        "times", "The fingerprint is over names, sizes, and times or contents, which are read whole.", identity=False
    )
    cached_side: int | None = setting(
        None, "Keep decoded images, their shorter side at most this; random crops are then taken from these.", ge=1
    )
    cache_folder: str = setting("data/decoded", "Where decoded images are kept.", identity=False)
    workers: int = setting(2, "Processes that decode.", ge=1, le=256, identity=False)
    prefetch: int = setting(3, "Batches that are decoded ahead, at most.", ge=1, le=64, identity=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mean", "std"):
            values = tuple(getattr(self, name))
            numbers = len(values) == 3 and all(isinstance(value, Real) and math.isfinite(value) for value in values)
            if not numbers or (name == "std" and min(values) <= 0):
                what = "three finite numbers" + (" above 0" if name == "std" else "")
                raise ValueError(f"{type(self).__name__}: {name} is {list(values)}, expected {what}")
            object.__setattr__(self, name, values)
        for name in ("evaluation_side", "cached_side"):
            side = getattr(self, name)
            if side is not None and side < self.size:
                raise ValueError(f"{type(self).__name__}: {name} is {side}, expected ≥ {self.size}, which is size")

    def title(self) -> str:
        """The folder, with what tells it from other uses of the same folder."""
        uses = [("test_folder", self.test_folder, "auto"), ("identified_by", self.identified_by, "times")]
        said = ", ".join(f"{name}: {value}" for name, value, default in uses if value != default)
        return f"{self.folder} ({said})" if said else self.folder

    def load(self) -> "FolderDataset":
        """The dataset, split; the same object for the same settings and files in the same process.

        Raises DataError where folders or classes are missing, or images too few for the split.
        """
        return _load(self, _listings(self))

    def fingerprint(self) -> str:
        """SHA-256 over names, sizes and times of all images, or over names and contents, whatever the split.

        Raises DataError where folders or classes are missing.
        """
        return _listings(self).fingerprint(self.identified_by)


class Listings:
    """The folders of a set, by their names; the same object while nothing in them comes or goes."""

    def __init__(self, folder: str, names: Sequence[str]) -> None:
        self.of = {name: list_images(os.path.join(folder, name), folder) for name in names}
        train, *others = self.of.values()
        if len(train.classes) < 2:
            raise DataError(f"{folder}: train has one class folder, {train.classes[0]}, expected two or more")
        for other in others:
            compare_classes(train, other, folder)

    def is_current(self) -> bool:
        return all(listing.is_current() for listing in self.of.values())

    def fingerprint(self, by: Literal["times", "contents"]) -> str:
        """One SHA-256 for all folders."""
        each = [(name, listing.by_times if by == "times" else listing.by_contents) for name, listing in self.of.items()]
        return hashlib.sha256(f"{by} {each}".encode()).hexdigest()


_listed: dict[tuple[str, str], Listings] = {}


def _listings(config: ImageFolder) -> Listings:
    """What lies in the folders now. Raises DataError."""
    folder = str(Path(config.folder).absolute())
    key, names = (folder, config.test_folder), _folders(folder, config.test_folder)
    if key not in _listed or list(_listed[key].of) != names or not _listed[key].is_current():
        _listed[key] = Listings(folder, names)
    return _listed[key]


def _folders(folder: str, test: str) -> list[str]:
    """Names of the folders to list: train, and one or two others, the test images' last. Raises DataError."""
    try:
        inside = sorted(class_folders(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}), expected a folder with train and val") from error
    if "train" not in inside:
        has = ", ".join(map(shown, inside[:5])) or "no folders"
        raise DataError(
            f"{folder}: has no folder train (expected train and val, a folder a class in each); it has {has}"
        )
    with_classes = [name for name in _TEST_FOLDERS if name in inside and class_folders(os.path.join(folder, name))]
    if test == "auto":
        if len(with_classes) > 1:
            what = "has val and test, expected test_folder: test (then val is validated on) or test_folder: val"
            raise DataError(f"{folder}: {what}")
        there = [name for name in _TEST_FOLDERS if name in inside]
        if not there:
            raise DataError(f"{folder}: has neither val nor test (expected one of them, a folder a class in it)")
        return ["train", (with_classes or there)[0]]
    if test not in inside:
        raise DataError(f"{folder}: test_folder is {test}, and there is none (expected {' or '.join(with_classes)})")
    return ["train", *(name for name in with_classes if name != test and test == "test"), test]


@lru_cache(maxsize=2)
def _load(config: ImageFolder, listings: Listings) -> "FolderDataset":
    if find_spec("PIL") is None:
        raise DataError(f"{config.folder}: Pillow is needed to read images, and is not installed")
    train, *others = listings.of.values()
    everything = Part(train, np.arange(len(train)))
    if len(others) > 1:
        validation = _validated(config, others[0])
        trained = Part(train, config.limited(everything.indices, train.labels))
    else:
        kept, held_out = config.split(train.labels)
        trained, validation = Part(train, kept), Part(train, held_out)
    test = Part(others[-1], np.arange(len(others[-1])))
    return FolderDataset(config, {"train": trained, "validation": validation, "test": test}, listings)


def _validated(config: ImageFolder, listing: Listing) -> Part:
    """The images of val that are validated on, balanced by class. Raises DataError."""
    if config.validation > len(listing):
        what = f"validation is {config.validation}, expected ≤ {len(listing)}, the images in val"
        raise DataError(f"{config.folder}: {what}")
    return Part(listing, np.sort(config.balanced(listing.labels)[: config.validation]))


class FolderDataset(ImageDataset):
    """Images that worker processes decode, some batches ahead; the pixels that come are normalised on the device.

    `unreadable` are the images that were left out so far, each with the reason.
    """

    def __init__(self, config: ImageFolder, parts: dict[Split, Part], listings: Listings) -> None:
        classes = parts["train"].listing.classes
        mean, std = torch.tensor(config.mean), torch.tensor(config.std)
        super().__init__((3, config.size, config.size), len(classes), mean, std, classes)
        self.config, self.parts, self._listings = config, parts, listings
        self.device = torch.device("cpu")
        self.train_labels, self.validation_labels, self.test_labels = (
            torch.from_numpy(part.labels) for part in parts.values()
        )
        self.unreadable: dict[str, str] = {}
        self._cache: DecodedCache | None = None
        if config.cached_side is not None:
            self._cache = DecodedCache(Path(config.cache_folder).absolute(), config.cached_side, self._setup())

    def to(self, device: torch.device | str) -> "FolderDataset":
        moved = super().to(device)
        moved.device = torch.device(device)
        return moved

    def batches(self, seed: int, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """As in `ImageDataset`; what is drawn for an image is a function of (seed, epoch, its place in the listing).

        An image that cannot be decoded is missing from its batch. Raises DataError for more than `unreadable` of them,
        and for a file that is no longer what was listed; MemoryError and RuntimeError for a worker that died.
        """
        part = self.parts["train"]
        generator = torch.Generator().manual_seed(draw_seed(seed, epoch))
        order = part.indices[torch.randperm(len(part.indices), generator=generator).numpy()]
        steps = range(start, self.steps_per_epoch(batch_size))
        drawn = [order[step * batch_size : (step + 1) * batch_size] for step in steps]
        for images, labels in self._decoded(part.listing, drawn, f"{seed} {epoch}"):
            if not len(labels):
                raise DataError(f"{self.config.folder}: no image of a batch can be decoded")
            yield images, labels

    def evaluation(self, split: Split, batch_size: int = 100) -> Iterator[Batch]:
        listing, indices = self.parts[split]
        drawn = [indices[first : first + batch_size] for first in range(0, len(indices), batch_size)]
        yield from (batch for batch in self._decoded(listing, drawn, None) if len(batch[1]))

    def _decoded(self, listing: Listing, batches: Sequence[Indices], key: str | None) -> Iterator[Batch]:
        """Images and labels of these batches; with a key they are augmented, by the key and their index."""
        if not batches:
            return
        if self._cache is not None:
            self._cache.fill(self._listings.of, self._listings.fingerprint("times"), self.config.workers)
        orders = ([self._order(listing, int(index), key) for index in batch] for batch in batches)
        config = self.config
        largest = max(map(len, batches))
        workers = ImageWorkers(self._setup(), count=config.workers, batch_size=largest, places=config.prefetch)
        with workers, closing(decoded(workers, orders)) as stream:
            for indices, batch in zip(batches, stream, strict=True):
                yield self._batch(listing, indices, batch)

    def _batch(self, listing: Listing, indices: Indices, batch: Decoded) -> Batch:
        pixels, labels = batch.pixels, torch.from_numpy(listing.labels[indices])
        if batch.failed:
            self._leave_out({listing.path(int(indices[at])): why for at, why in batch.failed.items()})
            kept = torch.tensor([at for at in range(len(indices)) if at not in batch.failed], dtype=torch.int64)
            pixels, labels = pixels[kept], labels[kept]
        return self._normalised(upload(pixels, self.device)), upload(labels, self.device)

    def _leave_out(self, failed: dict[str, str]) -> None:
        """Count and name images that cannot be decoded. Raises DataError where there are too many, or one changed."""
        changed = [path for path, why in failed.items() if why == CHANGED]
        if changed:
            _listed.clear()  # what is listed next is what is there then
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise DataError(f"{shown(changed[0])} was changed or removed since the images were listed{more}")
        new = {path: why for path, why in failed.items() if path not in self.unreadable}
        self.unreadable.update(new)  # which copies on other devices share
        if len(self.unreadable) > self.config.unreadable:
            expected = f"expected ≤ {self.config.unreadable}, the setting unreadable"
            raise DataError(f"{self.config.folder}: {self.left_out()} ({expected})")
        for path, why in new.items():
            warnings.warn(f"left out, as it cannot be decoded: {shown(path)} ({why})", stacklevel=2)

    def left_out(self) -> str:
        """How many images were left out so far, and the first of them."""
        if not self.unreadable:
            return ""
        some = [f"{shown(path)} ({why})" if why else shown(path) for path, why in self.unreadable.items()][:_NAMED]
        count = len(self.unreadable)
        more = f", and {count - _NAMED} more" if count > _NAMED else ""
        return f"{count} image{'s' * (count > 1)} cannot be decoded: {', '.join(some)}{more}"

    def _order(self, listing: Listing, index: int, key: str | None) -> Order:
        kept = self._cache.order(os.path.basename(listing.folder), index) if self._cache is not None else None
        order = kept or listing.order(index)
        return order if key is None else order | {"key": f"{key} {index}"}

    def _setup(self) -> dict[str, Any]:
        config = self.config
        return {
            "size": config.size,
            "evaluation_side": config.evaluation_side or round(config.size * 8 / 7),
            "crop_area": config.crop_area,
            "flip": config.flip,
            "jitter": [config.brightness, config.contrast, config.saturation, config.hue],
            "cached_side": config.cached_side,
        }
