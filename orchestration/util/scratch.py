"""Temporary folders of this process, each closed to other users, which are gone when it has ended, however it ends."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from orchestration.util import put_away
from orchestration.util.put_away import KEEP, OWNER

_folders: dict[str, IO[bytes]] = {}  # of this process, each with what is told to who puts it away


@contextmanager
def scratch(prefix: str, below: str | None = None) -> Iterator[Path]:
    """A folder that is gone at the end, unless `keep` has said otherwise; `below` the system's place for such things.

    A process that is started with its path in the environment ends with this one. Where both this process and the one
    that sees to it (`put_away`) are killed, whoever makes a folder of the same prefix removes it: its owner holds a
    lock on a file in it, which the kernel gives back.
    """
    place = Path(below or tempfile.gettempdir())
    for old in place.glob(f"{prefix}*"):
        _remove_if_dead(old)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    with (folder / ".new").open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        (folder / ".new").rename(folder / OWNER)  # there is no moment at which it is there and not locked
        with _put_away_later(folder) as told:
            _folders[str(folder)] = told
            try:
                yield folder
            finally:
                del _folders[str(folder)]
                if (folder / OWNER).exists():
                    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def private_temporary_files() -> Iterator[None]:
    """Within, what this process has in the system's place for temporary files lies in a folder of `scratch`."""
    before = tempfile.tempdir
    with scratch("fsg-launch-") as folder:
        tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before


def without_scratch(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for what outlives this process: without what names its folders, as libraries leave it there."""
    return {name: value for name, value in environment.items() if not any(one in value for one in _folders)}


def keep(folder: Path) -> None:
    """Leave a folder of `scratch` where it is, for somebody to look at."""
    _folders[str(folder)].write(KEEP)
    (folder / OWNER).unlink()


@contextmanager
def _put_away_later(folder: Path) -> Iterator[IO[bytes]]:
    """The process that sees to a folder is a session of its own and no child: no signal to a group reaches it."""
    command = [sys.executable, "-I", "-S", str(Path(put_away.__file__).resolve()), str(folder)]
    libraries = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb", buffering=0) as told:
        with os.fdopen(reader, "rb") as end:
            subprocess.run(
                command,
                env=libraries,  # without the name of another such folder, which would end it
                cwd="/",
                stdin=end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                check=True,
            )
        yield told


def _remove_if_dead(folder: Path) -> None:
    with suppress(OSError), (folder / OWNER).open("r+") as owner:
        if os.fstat(owner.fileno()).st_uid == os.getuid():
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            put_away.put_away(folder)
