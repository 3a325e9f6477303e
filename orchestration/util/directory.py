"""The working directory of this process, which for a while may be another."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_lock = threading.Lock()


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Within, the working directory of the whole process is a folder; whoever is `staying` waits."""
    with _lock:
        before = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.chdir(folder)
            yield
        finally:
            os.fchdir(before)
            os.close(before)


@contextmanager
def staying() -> Iterator[None]:
    """Within, the working directory is the one that the process was started in: for threads with relative paths."""
    with _lock:
        yield
