"""Decoded images, kept on disk: one file of pixels a worker that decoded them, and an index.

A folder of the cache is named by what was listed and by the side, and is whole or not there.
"""

import fcntl
import hashlib
import os
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from fsg.image_dataset import DataError
from fsg.image_listing import Listing
from fsg.image_stream import ImageWorkers, Order, decoded
from fsg.stopping import go_on

_INDEX = "index.npz"
_FIELDS = ("shard", "offset", "width", "height")
_BATCH = 64  # images between two looks whether to stop
_PAUSE = 0.1  # seconds between two looks whether another process has ended


class DecodedCache:
    """The images of some folders as uint8 RGB, the shorter side at most `side`.

    What is smaller keeps its size. An image that could not be decoded is not in it.
    """

    def __init__(self, folder: Path, side: int, setup: Mapping[str, Any]) -> None:
        self.folder, self.side, self.setup = folder, side, setup
        self._at: Path | None = None
        self._index: dict[str, NDArray[np.int64]] = {}

    def fill(self, listings: Mapping[str, Listing], fingerprint: str, workers: int) -> None:
        """Decode all images of the listings, unless that was done before; another process's work is waited for.

        Raises DataError where the folder cannot be written, Stopped, and what `ImageWorkers` raises.
        """
        if self._at is not None:
            return
        at = self.folder / f"{hashlib.sha256(fingerprint.encode()).hexdigest()[:16]}-{self.side}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder / f".{at.name}.lock"):
                if not _is_whole(at):
                    self._build(at, listings, workers)
            with np.load(at / _INDEX) as index:
                self._index = {name: index[name] for name in listings}
        except OSError as error:
            raise DataError(f"{self.folder}: decoded images cannot be kept there ({error.strerror})") from error
        self._at = at

    def order(self, name: str, index: int) -> Order | None:
        """What a worker must know of an image; None for one that could not be decoded."""
        assert self._at is not None
        shard, offset, width, height = self._index[name][index].tolist()
        where = {"file": str(self._at / f"{shard}.rgb"), "offset": offset, "width": width, "height": height}
        return where if width else None

    def _build(self, at: Path, listings: Mapping[str, Listing], count: int) -> None:
        draft = at.with_name(f".{at.name}")
        for left in (draft, at):
            shutil.rmtree(left, ignore_errors=True)
        draft.mkdir()
        try:
            shards = [str(draft / f"{number}.rgb") for number in range(count)]
            setup = {**self.setup, "cached_side": self.side}
            with ImageWorkers(setup, count=count, batch_size=_BATCH, places=4, shards=shards) as workers:
                ends = [0] * count
                index = {name: _keep(workers, listing, ends) for name, listing in listings.items()}
            np.savez(draft / _INDEX, ends=np.array(ends), **index)  # type: ignore[arg-type]
            for path in draft.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            draft.rename(at)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _keep(workers: ImageWorkers, listing: Listing, ends: list[int]) -> NDArray[np.int64]:
    """Let the workers append a listing's images to their files, which end at `ends`; [n, 4], 0 for what failed."""
    found = np.zeros((len(listing), len(_FIELDS)), dtype=np.int64)
    firsts = range(0, len(listing), _BATCH)
    orders: Iterator[Sequence[Order]] = (
        [listing.order(index) for index in range(first, min(first + _BATCH, len(listing)))] for first in firsts
    )
    for first, batch in zip(firsts, decoded(workers, orders), strict=True):
        go_on()
        for position, (width, height) in sorted(batch.sizes.items()):
            shard = position % len(ends)
            found[first + position] = shard, ends[shard], width, height
            ends[shard] += 3 * width * height
    return found


def _is_whole(at: Path) -> bool:
    try:
        with np.load(at / _INDEX) as index:
            ends = index["ends"].tolist()
        return all((at / f"{number}.rgb").stat().st_size == end for number, end in enumerate(ends))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return False


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Within, no other process is here; the lock goes with the process that held it."""
    with path.open("w") as file:
        while not _taken(file):
            go_on()
            time.sleep(_PAUSE)
        yield


def _taken(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
