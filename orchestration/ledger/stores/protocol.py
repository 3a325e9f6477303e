"""The operations that every store offers to the ledger."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol


class Store(Protocol):
    """The operations. `poll_interval` is how many seconds to wait between two checks for a file."""

    poll_interval: float

    def create(self, path: Path, data: bytes, covered: bool = False) -> None:
        """Write a file whole, durably, under a name that must be free. Raises FileExistsError, Unwritable.

        A `covered` one counts only once a later file in its folder says so: it need not be durable before that one is
        there.
        """
        ...

    def claim(self, folder: Path) -> None:
        """Make a folder that must not be there yet this process's own. Raises FileExistsError, Unwritable."""
        ...

    def release(self, folder: Path) -> None:
        """Give up a claimed folder in which nothing was written."""
        ...

    def read(self, path: Path) -> bytes:
        """Raises OSError; FileNotFoundError where there is no such file."""
        ...

    def names(self, folder: Path) -> list[str]:
        """What lies in a folder, sorted; nothing in one that is not there."""
        ...

    def size(self, path: Path) -> int | None:
        """Of a file, in bytes; None where there is none."""
        ...

    def remove(self, path: Path) -> None:
        """A file, which may be gone already."""
        ...

    @contextmanager
    def lock(self, folder: Path) -> Iterator[None]:
        """Hold a folder: one process at a time. Raises LockedError, saying who holds it and since when."""
        ...

    @contextmanager
    def on_disk(self, path: Path) -> Iterator[Path]:
        """Within, a file as one on this machine's disk: itself or a copy."""
        ...

    @contextmanager
    def staging_dir(self, folder: Path) -> Iterator[Path]:
        """Within, a folder on this machine's disk whose files, nothing of a ledger, are in `folder` afterwards."""
        ...
