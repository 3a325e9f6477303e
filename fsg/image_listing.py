"""What lies in a folder of class folders: names, sizes and times of its images, in the order of torchvision's."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fsg.image_dataset import DataError, few
from fsg.image_stream import Order, shown
from fsg.stopping import go_on

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_THREADS, _AT_ONCE = 8, 256


class Names:
    """Names in one piece of memory: a million of them as a list would take twice as much."""

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._bytes = b"".join(encoded)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> str:
        begin = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._bytes[begin : int(self._ends[index])])


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of a folder: names below it, classes as labels [n], bytes [n] and times of change in ns [n].

    `folders` are all folders that were looked into, with theirs: while these hold, no image came or went.
    """

    folder: str
    classes: tuple[str, ...]
    names: Names
    labels: NDArray[np.int64]
    sizes: NDArray[np.int64]
    times: NDArray[np.int64]
    folders: dict[str, int]

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        return os.path.join(self.folder, self.names[index])

    def order(self, index: int) -> Order:
        """What a worker must know of an image."""
        return {"file": self.path(index), "bytes": int(self.sizes[index]), "time": int(self.times[index])}

    def is_current(self) -> bool:
        """Whether the folders are as they were; a file that was written anew shows only when it is opened."""
        try:
            return all(os.stat(folder).st_mtime_ns == time for folder, time in self.folders.items())
        except OSError:
            return False

    @cached_property
    def by_times(self) -> str:
        """SHA-256 over name, size and time of every image."""
        total = hashlib.sha256()
        for name, size, time in zip(self.names, self.sizes.tolist(), self.times.tolist(), strict=True):
            total.update(os.fsencode(name) + f"\0{size} {time}\n".encode())
        return total.hexdigest()

    @cached_property
    def by_contents(self) -> str:
        """SHA-256 over name and content of every image. Raises DataError for one that cannot be read, Stopped."""
        total = hashlib.sha256()
        with ThreadPoolExecutor(_THREADS) as threads:
            for first in range(0, len(self), _AT_ONCE):
                some = range(first, min(first + _AT_ONCE, len(self)))
                for index, digest in zip(some, threads.map(_digest, map(self.path, some)), strict=True):
                    total.update(os.fsencode(self.names[index]) + b"\0" + digest)
                go_on()
        return total.hexdigest()


def _digest(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read ({error.strerror})") from error


def list_images(folder: str, title: str) -> Listing:
    """List a folder's images: classes in the order of their names, in each the files by folder and name.

    Raises DataError for a folder without classes, a class without images, and what cannot be looked into.
    """
    classes = sorted(class_folders(folder))
    if not classes:
        raise DataError(f"{title}: {shown(folder)} has no class folders (expected a folder a class, images in each)")
    folders: dict[str, int] = {folder: os.stat(folder).st_mtime_ns}
    names: list[str] = []
    counts: list[int] = []
    states: list[tuple[int, int]] = []
    for name in classes:
        before = len(names)
        for path in _files(os.path.join(folder, name), folders, title):
            try:
                state = os.stat(path)
            except OSError as error:
                raise DataError(f"{title}: {shown(path)} cannot be read ({error.strerror})") from error
            names.append(path[len(folder) + 1 :])
            states.append((state.st_size, state.st_mtime_ns))
        counts.append(len(names) - before)
    empty = [shown(name) for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        what = f"no image in the class {few(empty)}" if len(empty) == 1 else f"no image in the classes {few(empty)}"
        raise DataError(f"{title}: {shown(folder)} has {what} (expected files ending in {', '.join(EXTENSIONS)})")
    sizes, times = np.array(states, dtype=np.int64).T
    labels = np.repeat(np.arange(len(classes)), counts)
    return Listing(folder, tuple(map(shown, classes)), Names(names), labels, sizes, times, folders)


def class_folders(folder: str) -> list[str]:
    """The names of the folders in a folder."""
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.is_dir()]


def _files(folder: str, folders: dict[str, int], title: str) -> Iterator[str]:
    """The images below a folder, those of nested folders and behind links too."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{title}: {shown(str(error.filename))} cannot be read ({error.strerror})") from error

    found: list[tuple[str, list[str]]] = []
    for at, inner, files in os.walk(folder, onerror=refuse, followlinks=True):
        here = os.path.realpath(at)
        for name in inner:
            target = os.path.realpath(os.path.join(at, name))
            if here == target or here.startswith(target + os.sep):
                link = shown(os.path.join(at, name))
                raise DataError(f"{title}: {link} is a link to a folder that it is in (expected none)")
        folders[at] = os.stat(at).st_mtime_ns
        found.append((at, files))
    for at, files in sorted(found):
        yield from (os.path.join(at, name) for name in sorted(files) if name.lower().endswith(EXTENSIONS))


def compare_classes(train: Listing, other: Listing, title: str) -> None:
    """Raises DataError, naming them, for classes that one of two folders lacks."""
    theirs, ours = set(other.classes), set(train.classes)
    lacking = [(other, train, ours - theirs), (train, other, theirs - ours)]
    for where, there, missing in lacking:
        if missing:
            first, second = (os.path.basename(one.folder) for one in (where, there))
            kinds = "the class" if len(missing) == 1 else f"{len(missing)} classes"
            raise DataError(
                f"{title}: {first} lacks {kinds} {few(sorted(missing))} of {second} (expected the same class folders)"
            )
