"""The working directory of this process, which for a while may be another."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_lock = threading.Lock()
_before: list[int] = []  # the directory that the process was started in, while it works in another


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Within, the working directory of the whole process is a folder; whoever is `staying` waits."""
    with _lock:
        before = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        _before.append(before)
        try:
            os.chdir(folder)
            yield
        finally:
            os.fchdir(before)
            os.close(_before.pop())


def go_back() -> None:
    """Work in the directory that the process was started in, as whoever is `working_in` another will not come back."""
    if _before:
        os.fchdir(_before[0])


@contextmanager
def staying() -> Iterator[None]:
    """Within, the working directory is the one that the process was started in: for threads with relative paths."""
    with _lock:
        yield
