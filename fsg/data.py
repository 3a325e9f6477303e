"""Datasets of images: kept in memory as bytes, augmented and normalised on the device that trains on them."""

import contextlib
import dataclasses
import hashlib
import importlib
import os
import socket
import tempfile
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsg.config import setting
from fsg.image_dataset import Batch, HeldOut, ImageDataset, Split, draw_seed, few, one_line
from fsg.image_dataset import DataError as DataError
from fsg.image_dataset import balanced_order as balanced_order
from fsg.image_folder import ImageFolder
from fsg.imported import Imported


class RawImages(NamedTuple):
    """A dataset as it was read: images uint8 [n, height, width] or [n, height, width, channels], integer labels [n]."""

    train_images: NDArray[Any]
    train_labels: NDArray[Any]
    test_images: NDArray[Any]
    test_labels: NDArray[Any]


class Dataset(ImageDataset):
    """Images in memory, their split, and how they are augmented and normalised; never changed once made.

    The images are given as uint8 [n, C, H, W], the labels as int64 [n], `mean` and `std` [C] for pixels in [0, 1].
    Raises ValueError where images are not uint8 [n, C, H, W].
    """

    def __init__(
        self,
        *,
        train_images: Tensor,
        train_labels: Tensor,
        validation_images: Tensor,
        validation_labels: Tensor,
        test_images: Tensor,
        test_labels: Tensor,
        mean: Tensor,
        std: Tensor,
        classes: int,
        crop_padding: int = 0,
        flip: bool = False,
    ) -> None:
        for images in (train_images, validation_images, test_images):
            if images.dtype != torch.uint8 or images.ndim != 4:
                raise ValueError(f"images are {images.dtype} {tuple(images.shape)}, expected torch.uint8 [n, C, H, W]")
        count, channels, height, width = train_images.shape
        super().__init__((channels, height, width), classes, mean, std)
        self.crop_padding, self.flip = crop_padding, flip
        self.train_labels = train_labels
        self.validation_images, self.validation_labels = validation_images, validation_labels
        self.test_images, self.test_labels = test_images, test_labels
        padded = (count, height + 2 * crop_padding, width + 2 * crop_padding, channels)
        self._padded = torch.zeros(padded, dtype=torch.uint8, device=train_images.device)
        self.train_images.copy_(train_images)

    @property
    def train_images(self) -> Tensor:
        """uint8 [n, C, H, W]: a view, since only the padded images are kept."""
        _, height, width = self.shape
        return self._padded.narrow(1, self.crop_padding, height).narrow(2, self.crop_padding, width).permute(0, 3, 1, 2)

    def batches(self, seed: int, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """The training batches of an epoch from number `start` on: images [b, C, H, W], augmented, and labels [b].

        A pure function of (seed, epoch): order, crops and mirrorings of all images are drawn at once, on the CPU
        whatever the device, so that a later `start` gives the very same remaining batches.
        """
        channels, height, width = self.shape
        _, padded_height, padded_width, _ = self._padded.shape
        device = self._padded.device
        order, mirrored, top, left = (drawn.to(device) for drawn in self._draws(seed, epoch))
        # Any `width` pixels in a row, wherever they begin, as the rows of a matrix that overlap in memory:
        # a crop is then `height` of these rows, and one index_select makes the crops of a whole batch.
        places = self._padded.numel() // channels
        rows = self._padded.as_strided((places - width + 1, width * channels), (channels, 1))
        corner = (order * padded_height + top) * padded_width + left
        below = torch.arange(height, device=device) * padded_width
        for step in range(start, self.steps_per_epoch(batch_size)):
            drawn = slice(step * batch_size, (step + 1) * batch_size)
            wanted = (corner[drawn, None] + below).view(-1)
            crops = rows.index_select(0, wanted).view(-1, height, width, channels)
            if self.flip:
                count = len(crops)
                both = torch.cat([crops, crops.flip(2)])
                crops = both.index_select(0, torch.arange(count, device=device) + count * mirrored[drawn])
            yield self._normalised(crops), self.train_labels[order[drawn]]

    def evaluation(self, split: Split, batch_size: int = 500) -> Iterator[Batch]:
        """All images [b, C, H, W] and labels [b] of a split, in their order, not augmented."""
        images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
        for first in range(0, len(labels), batch_size):
            part = slice(first, first + batch_size)
            yield self._normalised(images[part].permute(0, 2, 3, 1)), labels[part]

    def _draws(self, seed: int, epoch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(draw_seed(seed, epoch))
        count = len(self.train_labels)
        order = torch.randperm(count, generator=generator)
        mirrored = torch.randint(2, (count,), generator=generator)
        top, left = torch.randint(2 * self.crop_padding + 1, (2, count), generator=generator)
        return order, mirrored, top, left


@dataclass(frozen=True, kw_only=True)
class Images(HeldOut):
    """What every dataset of images can be asked for. One of your own derives from it and says how it is `read`."""

    crop_padding: int = setting(4, "Random crops after this many pixels of padding; 0: none.", ge=0)
    flip: bool = setting(True, "Mirror half of the images, at random.")

    def read(self) -> RawImages:
        """The images and labels. Raises DataError where they are missing or damaged."""
        raise NotImplementedError

    def normalisation(self, raw: RawImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, for pixels in [0, 1].

        Here those of all training images, held out ones included, as published constants are; a channel that
        is the same everywhere has 1 for its standard deviation.
        """
        pixels = raw.train_images.reshape(-1, raw.train_images.shape[3])
        values = np.arange(256) / 255
        moments = []
        for channel in pixels.T:
            share = np.bincount(channel, minlength=256) / len(pixels)
            mean = float(share @ values)
            moments.append((mean, float(share @ (values - mean) ** 2) ** 0.5 or 1.0))
        means, stds = zip(*moments, strict=True)
        return means, stds

    def source(self) -> Hashable:
        """What the images hang on, the split apart: a process reads an equal source once for its fingerprint."""
        split = {field.name for field in dataclasses.fields(Images)}
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in split)

    def load(self) -> Dataset:
        """The dataset, split; the same object for the same settings in the same process.

        Raises DataError where images are missing, damaged, or too few for the split.
        """
        return _load(self, self.source())

    def fingerprint(self) -> str:
        """SHA-256 over dtype, shape and bytes of all images and labels, whatever the split; once a process.

        Raises DataError where images are missing or damaged.
        """
        key = (type(self), self.source())
        if key not in _fingerprints:
            _read(self)
        return _fingerprints[key]


_fingerprints: dict[tuple[type[Images], Hashable], str] = {}


@lru_cache(maxsize=2)
def _load(config: Images, source: Hashable) -> Dataset:
    raw = _read(config)
    train, validation = config.split(raw.train_labels)
    mean, std = config.normalisation(raw)

    def images(chosen: NDArray[Any]) -> Tensor:
        return torch.from_numpy(chosen).permute(0, 3, 1, 2)

    return Dataset(
        train_images=images(raw.train_images[train]),
        train_labels=torch.from_numpy(raw.train_labels[train]),
        validation_images=images(raw.train_images[validation]),
        validation_labels=torch.from_numpy(raw.train_labels[validation]),
        test_images=images(raw.test_images),
        test_labels=torch.from_numpy(raw.test_labels),
        mean=torch.tensor(mean),
        std=torch.tensor(std),
        classes=int(raw.train_labels.max()) + 1,
        crop_padding=config.crop_padding,
        flip=config.flip,
    )


def _read(config: Images) -> RawImages:
    """The images of a config, checked, as uint8 [n, h, w, c] and int64 [n]; leaves their fingerprint behind."""
    key = (type(config), config.source())
    raw = _checked(config.read(), config.title())
    _fingerprints[key] = fingerprint_of(raw)
    return raw


def fingerprint_of(raw: RawImages) -> str:
    """SHA-256 over name, dtype, shape and bytes of each array, the images as [n, channels, height, width]."""
    total = hashlib.sha256()
    for name, array in raw._asdict().items():
        content = array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
        total.update(f"{name} {content.dtype.name} {content.shape} ".encode())
        total.update(np.ascontiguousarray(content).data)
    return total.hexdigest()


def _checked(raw: RawImages, title: str) -> RawImages:
    images, labels = {}, {}
    for split in ("train", "test"):
        try:
            images[split] = _checked_images(getattr(raw, f"{split}_images"))
        except DataError as error:
            raise DataError(f"{title}: {split}_images {error}") from None
        try:
            labels[split] = _checked_labels(getattr(raw, f"{split}_labels"), len(images[split]), split == "train")
        except DataError as error:
            raise DataError(f"{title}: {split}_labels {error}") from None
    if images["train"].shape[1:] != images["test"].shape[1:]:
        shapes = [images[split].shape[1:] for split in ("train", "test")]
        raise DataError(f"{title}: train_images are {shapes[0]} each but test_images {shapes[1]}, expected the same")
    largest = int(labels["train"].max())
    if largest >= len(labels["train"]):
        raise DataError(
            f"{title}: train_labels go up to {largest}, expected classes counted from 0 {_counted(labels['train'])}"
        )
    missing = np.setdiff1d(np.arange(largest + 1), labels["train"])
    if len(missing):
        raise DataError(
            f"{title}: train_labels go up to {largest} and have no {few(missing)}, expected classes counted from 0 "
            f"without gaps {_counted(labels['train'])}"
        )
    unknown = np.setdiff1d(labels["test"], labels["train"])
    if len(unknown):
        raise DataError(f"{title}: test_labels have classes that train_labels lack: {few(unknown)}")
    if not largest:
        raise DataError(f"{title}: train_labels have one class, expected two or more")
    return RawImages(images["train"], labels["train"], images["test"], labels["test"])


def _checked_images(images: NDArray[Any]) -> NDArray[np.uint8]:
    _refuse_other_than_array(images)
    if images.dtype != np.uint8:
        raise DataError(f"are {images.dtype}, expected uint8")
    if images.ndim not in (3, 4) or images.size == 0:
        raise DataError(f"have the shape {images.shape}, expected [n, height, width] or [n, height, width, channels]")
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise DataError(f"have the shape {images.shape}, expected the channels last: [n, height, width, channels]")
    return np.ascontiguousarray(images).reshape(*images.shape[:3], -1)  # torch takes no flipped view


def _checked_labels(labels: NDArray[Any], count: int, define: bool) -> NDArray[np.int64]:
    """`define`: whether they say which classes there are."""
    _refuse_other_than_array(labels)
    mended = f" {_counted(labels)}" if define else ""
    if labels.dtype.kind not in "iu":
        raise DataError(f"are {labels.dtype}, expected integers{mended}".rstrip())
    if labels.shape != (count,):
        raise DataError(f"have the shape {labels.shape}, expected ({count},): one label an image")
    if labels.min() < 0:
        negative = few(np.unique(labels[labels < 0]))
        raise DataError(f"have negative values: {negative}, expected classes counted from 0{mended}")
    return np.ascontiguousarray(labels, dtype=np.int64)


def _refuse_other_than_array(value: Any) -> None:
    if not isinstance(value, np.ndarray):
        raise DataError(f"are a {type(value).__name__}, expected a NumPy array")


def _counted(labels: NDArray[Any]) -> str:
    """The mapping that makes classes counted from 0 of labels, and the call that applies it, to test labels as well."""
    if labels.dtype.kind not in "biufUS":
        return ""
    classes = np.unique(labels)
    pairs = [f"{value}→{number}" for number, value in enumerate(classes[:5].tolist())]
    mapping = ", ".join(pairs) + (", …" if len(classes) > 5 else "")
    return f"({mapping}: np.searchsorted(np.unique(train_labels), labels))"


def _read_npz(path: Path) -> RawImages:
    names = RawImages._fields
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            raise DataError(f"{path}: not a readable .npz: a .npy of one array, expected {', '.join(names)}")
        with contextlib.closing(loaded) as archive:
            held = archive.files
            missing = [name for name in names if name not in held]
            if not missing:
                return RawImages(*(archive[name] for name in names))
    except DataError:
        raise
    except FileNotFoundError:
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise DataError(f"{path}: there is no such file{where}, expected a .npz with {', '.join(names)}") from None
    except Exception as error:  # a damaged archive raises half a dozen kinds
        raise DataError(f"{path}: not a readable .npz without pickled objects ({one_line(error)})") from error
    raise DataError(f"{path}: lacks {', '.join(missing)}; it has {', '.join(held) or 'nothing'}")


@dataclass(frozen=True, kw_only=True)
class FashionMNISTSubset(Images):
    """10,000 + 2,000 images of Fashion-MNIST, 28x28 grey, 10 classes, that come with this package."""

    name: Literal["fashion_mnist_subset"] = "fashion_mnist_subset"

    def read(self) -> RawImages:
        return _read_npz(Path(__file__).parent / "embedded" / "fashion_mnist_subset.npz")

    def normalisation(self, raw: RawImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The constants published for the whole of Fashion-MNIST."""
        return (0.2860,), (0.3530,)


@dataclass(frozen=True, kw_only=True)
class _Torchvision(Images):
    """A published dataset that torchvision downloads and reads."""

    dataset: ClassVar[str]
    """Its class in torchvision.datasets."""
    holds: ClassVar[str]
    """What torchvision makes of it below `folder`."""
    published: ClassVar[str]
    """Where a person can get it."""

    folder: str = setting("data", "Where torchvision keeps it; downloaded there if it is missing.", identity=False)

    def read(self) -> RawImages:
        folder = Path(self.folder).absolute()
        kept = folder / self.holds
        if not kept.exists():
            self._download(folder)
        try:
            train, test = (_torchvision_class(self.dataset)(folder, train=which) for which in (True, False))
            return RawImages(*(np.asarray(part) for split in (train, test) for part in (split.data, split.targets)))
        except DataError:
            raise
        except Exception as error:  # a damaged file raises half a dozen kinds
            raise DataError(
                f"{self.dataset}: the files in {kept} are incomplete or damaged ({one_line(error)}): remove that "
                f"folder, and it is downloaded again where there is a network, or {self._remedy()}"
            ) from error

    def _remedy(self) -> str:
        return f"put {self.holds} there yourself, unpacked from {self.published}"

    def _download(self, folder: Path) -> None:
        """Into a folder of its own first: two processes may do this at once, and one may be stopped half-way."""
        existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
        try:
            with tempfile.TemporaryDirectory(dir=existing, prefix=".download-") as fresh, _network_timeout(30):
                _torchvision_class(self.dataset)(fresh, download=True)
                (folder / self.holds).parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.rename(Path(fresh) / self.holds, folder / self.holds)
                except OSError:
                    if not (folder / self.holds).exists():
                        raise
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{self.dataset}: not in the folder {folder}, and the download failed ({one_line(error)}): "
                f"{self._remedy()}"
            ) from error


def _torchvision_class(name: str) -> Any:
    try:
        return getattr(importlib.import_module("torchvision.datasets"), name)
    except ImportError as error:
        raise DataError(f"{name}: torchvision is needed to read it, and cannot be imported ({error})") from error


@contextlib.contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    """torchvision sets none: behind a firewall that drops packets it would hang for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(_Torchvision):
    """60,000 + 10,000 images of clothes, 28x28 grey, 10 classes (Xiao, Rasul and Vollgraf, arXiv:1708.07747)."""

    name: Literal["fashion_mnist"] = "fashion_mnist"
    dataset: ClassVar[str] = "FashionMNIST"
    holds: ClassVar[str] = "FashionMNIST/raw"
    published: ClassVar[str] = "https://github.com/zalandoresearch/fashion-mnist/tree/master/data/fashion"
    contents: ClassVar[str] = "6c354993757d5533e78737d74d5198241a8e4185b3a692590b61434a6b744d4c"
    """Fingerprint of what was published: torchvision does not look whether the unpacked files are whole."""

    def read(self) -> RawImages:
        raw = _checked(super().read(), self.title())
        if fingerprint_of(raw) != self.contents:
            kept = Path(self.folder).absolute() / self.holds
            raise DataError(
                f"{self.dataset}: the files in {kept} are not the published ones: remove that folder, and it is "
                f"downloaded again where there is a network, or {self._remedy()}"
            )
        return raw

    def normalisation(self, raw: RawImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The constants commonly used for it."""
        return (0.2860,), (0.3530,)


@dataclass(frozen=True, kw_only=True)
class CIFAR10(_Torchvision):
    """50,000 + 10,000 photographs, 32x32 in colour, 10 classes (Krizhevsky, 2009)."""

    name: Literal["cifar10"] = "cifar10"
    dataset: ClassVar[str] = "CIFAR10"
    holds: ClassVar[str] = "cifar-10-batches-py"
    published: ClassVar[str] = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"

    def normalisation(self, raw: RawImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The constants commonly used for it (the deviations are means of those of single images)."""
        return (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True, kw_only=True)
class CIFAR100(_Torchvision):
    """50,000 + 10,000 photographs, 32x32 in colour, 100 classes (Krizhevsky, 2009)."""

    name: Literal["cifar100"] = "cifar100"
    dataset: ClassVar[str] = "CIFAR100"
    holds: ClassVar[str] = "cifar-100-python"
    published: ClassVar[str] = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"

    def normalisation(self, raw: RawImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """½ and ½, as the code released for MetaQuant and FSG has it, and not the statistics of the images."""
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Arrays(Images):
    """A user's own `.npz`: train_images uint8 [n, h, w] or [n, h, w, c], train_labels [n], test_images, test_labels."""

    name: Literal["arrays"] = "arrays"
    file: str = setting(description="The .npz file.", identity=False)

    def read(self) -> RawImages:
        return _read_npz(Path(self.file))

    def source(self) -> Hashable:
        """The file and its state, so that one which is written anew is read anew."""
        path = Path(self.file).absolute()
        with contextlib.suppress(OSError):
            state = path.stat()
            return path, state.st_mtime_ns, state.st_size
        return path

    def title(self) -> str:
        return self.file


DataConfig = FashionMNISTSubset | FashionMNIST | CIFAR10 | CIFAR100 | Arrays | ImageFolder | Imported
