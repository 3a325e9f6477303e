"""Temporary folders of this process. Those that dead processes left behind are removed."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_OWNER = "fsg.owner"


@contextmanager
def scratch(prefix: str, below: str | None = None) -> Iterator[Path]:
    """A folder that is gone at the end, unless `keep` has said otherwise; `below` the system's place for such things.

    Its owner holds a lock on a file in it, which the kernel gives back when the owner dies: whoever makes a folder of
    the same prefix then removes it.
    """
    place = Path(below or tempfile.gettempdir())
    for old in place.glob(f"{prefix}*"):
        _remove_if_dead(old)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    with (folder / ".new").open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        (folder / ".new").rename(folder / _OWNER)  # there is no moment at which it is there and not locked
        try:
            yield folder
        finally:
            if (folder / _OWNER).exists():
                shutil.rmtree(folder, ignore_errors=True)


def keep(folder: Path) -> None:
    """Leave a folder of `scratch` where it is, for somebody to look at."""
    (folder / _OWNER).unlink()


def _remove_if_dead(folder: Path) -> None:
    with suppress(OSError), (folder / _OWNER).open("r+") as owner:
        if os.fstat(owner.fileno()).st_uid == os.getuid():
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
