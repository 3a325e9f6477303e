"""A ledger in a folder, on a disk or on a file system that several machines share."""

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestration.ledger.stores.errors import LockedError, Unwritable
from orchestration.ledger.stores.lock import heartbeat, lock_record, machine, read_holder, refuse_if_alive, who_holds


class FolderStore:
    """A file system: a disk, or one that several machines share."""

    poll_interval = 0.2

    def __init__(self) -> None:
        self._unflushed: set[Path] = set()

    def create(self, path: Path, data: bytes, covered: bool = False) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            try:
                _make(path.parent)
                _write_exclusively(temporary, data)
                if not covered and path.parent in self._unflushed:
                    _flush_folder(path.parent)
                    self._unflushed.discard(path.parent)
                _link(temporary, path, data)
            finally:
                temporary.unlink(missing_ok=True)
            if covered:
                self._unflushed.add(path.parent)
            else:
                _flush_folder(path.parent)
        except FileExistsError:
            raise
        except OSError as error:
            raise _unwritable(error, path) from error

    def claim(self, folder: Path) -> None:
        try:
            _make(folder.parent)
            folder.mkdir()
        except FileExistsError:
            raise
        except OSError as error:
            raise _unwritable(error, folder) from error
        _flush_folder(folder.parent)

    def release(self, folder: Path) -> None:
        folder.rmdir()

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def names(self, folder: Path) -> list[str]:
        try:
            return sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def size(self, path: Path) -> int | None:
        try:
            return path.stat().st_size
        except OSError:
            return None

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    @contextmanager
    def lock(self, folder: Path) -> Iterator[None]:
        """The kernel gives the lock of a dead process back. Of another machine's it may know nothing: such a holder is
        taken for dead once it has not touched the lock for `SILENCE` seconds.
        """
        _make(folder)
        path = folder / "lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            holder = read_holder(path.read_bytes())
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockedError(who_holds(folder, holder or {})) from None
            if holder is not None and holder.get("machine", "") != machine():
                refuse_if_alive(folder, holder, self._seconds_since(folder, descriptor))
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, lock_record(), 0)
            os.fsync(descriptor)
            with heartbeat(lambda: os.utime(descriptor)):
                yield
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)

    def _seconds_since(self, folder: Path, descriptor: int) -> float:
        """Since a file was last touched, by the clock of the file system."""
        probe = folder / f".clock.{os.getpid()}.{secrets.token_hex(4)}"
        _write_exclusively(probe, b"")
        try:
            return max(0.0, probe.stat().st_mtime - os.fstat(descriptor).st_mtime)
        finally:
            probe.unlink()

    @contextmanager
    def on_disk(self, path: Path) -> Iterator[Path]:
        yield path

    @contextmanager
    def staging_dir(self, folder: Path) -> Iterator[Path]:
        yield folder


def _write_exclusively(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _link(temporary: Path, path: Path, data: bytes) -> None:
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        _write_exclusively(path, data)  # a file system without links: a torn file is known by its seal


def _make(folder: Path) -> None:
    """A folder and those that it is in, as far as they are missing, as durable as what comes into it."""
    if not folder.is_dir():
        _make(folder.parent)
        with suppress(FileExistsError):  # another process makes it, or a file is there: what comes next will tell
            folder.mkdir()
        _flush_folder(folder.parent)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(error: OSError, path: Path) -> Unwritable:
    return Unwritable(error.errno, error.strerror or str(error), str(path))
