"""A ledger in a bucket of an object store (S3)."""

import errno
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from orchestration.ledger.stores.errors import LockedError, Unreachable
from orchestration.ledger.stores.lock import (
    alive,
    heartbeat,
    lock_record,
    machine,
    read_holder,
    refuse_if_alive,
    who_holds,
)

SCHEME = "s3://"
_CONFLICTS = 5


class S3Store:
    """S3, or what speaks as it does and knows conditional writes. It has no folders: a claim is an object in one."""

    poll_interval = 5.0

    def create(self, path: Path, data: bytes, covered: bool = False) -> None:
        for _ in range(_CONFLICTS):
            try:
                with _reaching(path):
                    _bucket(path).pipe_file(_key(path), data, mode="create")
                return
            except FileExistsError:
                # An answer that got lost is asked for again: then what is there is ours.
                if self.size(path) == len(data) and data and self.read(path) == data:
                    return
                raise
            except Unreachable as error:
                if "ConditionalRequestConflict" not in str(error):
                    raise
        raise FileExistsError(errno.EEXIST, "others write it too", str(path))

    def claim(self, folder: Path) -> None:
        self.create(folder / "claim", f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(8)}\n".encode())

    def release(self, folder: Path) -> None:
        self.remove(folder / "claim")

    def read(self, path: Path) -> bytes:
        with _reaching(path):
            return cast(bytes, _bucket(path).cat_file(_key(path)))

    def names(self, folder: Path) -> list[str]:
        try:
            with _reaching(folder):
                keys = _bucket(folder).ls(_key(folder), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        return sorted({key.removeprefix(_key(folder)).strip("/").partition("/")[0] for key in keys} - {""})

    def size(self, path: Path) -> int | None:
        try:
            with _reaching(path):
                return cast(int, _bucket(path).info(_key(path), refresh=True)["size"])
        except FileNotFoundError:
            return None

    def remove(self, path: Path) -> None:
        with suppress(FileNotFoundError), _reaching(path):
            _bucket(path).rm_file(_key(path))

    @contextmanager
    def lock(self, folder: Path) -> Iterator[None]:
        """An object says who holds it, and is written again as a sign of life. A holder is taken for dead where its
        process is gone from this host, or once it has been silent for `SILENCE` seconds; of two that take over, the
        condition on what is written over lets one through.
        """
        path = folder / "lock"
        ours = lock_record()
        tag = self._taken(path, ours)

        def show() -> None:
            nonlocal tag
            tag = self._replaced(path, ours, tag)

        with heartbeat(show):
            yield
        with suppress(FileExistsError):  # others took it for dead
            self._replaced(path, b"{}\n", tag)

    def _taken(self, path: Path, ours: bytes) -> str:
        try:
            self.create(path, ours)
            return self._tag(path)
        except FileExistsError:
            pass
        tag = self._tag(path)
        holder = read_holder(self.read(path))
        if holder is not None and (holder.get("machine") != machine() or alive(holder)):
            if holder.get("machine") == machine() and holder["host"] == socket.gethostname():
                raise LockedError(who_holds(path.parent, holder))
            refuse_if_alive(path.parent, holder, self._seconds_since(path))
        try:
            return self._replaced(path, ours, tag)
        except FileExistsError:
            raise LockedError(who_holds(path.parent, read_holder(self.read(path)) or {})) from None

    def _replaced(self, path: Path, data: bytes, tag: str) -> str:
        """Write over what bears a tag; returns the new one's. Raises FileExistsError where it is another by now."""
        try:
            with _reaching(path):
                return str(_bucket(path).pipe_file(_key(path), data, IfMatch=tag)["ETag"])
        except Unreachable as error:
            if error.errno == errno.EINVAL:  # what s3fs makes of a condition that does not hold
                raise FileExistsError(errno.EEXIST, "others have written over it", str(path)) from error
            raise

    def _tag(self, path: Path) -> str:
        with _reaching(path):
            return str(_bucket(path).info(_key(path), refresh=True)["ETag"])

    def _seconds_since(self, path: Path) -> float:
        """Since an object was last written, by the clock of the store."""
        probe = path.with_name(f"clock-{secrets.token_hex(8)}")
        self.create(probe, b"-")
        try:
            with _reaching(path):
                now, then = (_bucket(p).info(_key(p), refresh=True)["LastModified"] for p in (probe, path))
            return max(0.0, (now - then).total_seconds())
        finally:
            self.remove(probe)

    @contextmanager
    def on_disk(self, path: Path) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="fsg-") as made:
            copy = Path(made) / path.name
            copy.write_bytes(self.read(path))
            yield copy

    @contextmanager
    def staging_dir(self, folder: Path) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="fsg-") as made:
            yield Path(made)
            for file in sorted(file for file in Path(made).rglob("*") if file.is_file()):
                target = folder / file.relative_to(made).as_posix()
                with _reaching(target):
                    _bucket(target).pipe_file(_key(target), file.read_bytes())


def _bucket(path: Path) -> Any:
    return path.fs  # type: ignore[attr-defined]


def _key(path: Path) -> str:
    return str(path).removeprefix(SCHEME)


@contextmanager
def _reaching(path: Path) -> Iterator[None]:
    """Raises Unreachable for whatever goes wrong, but FileNotFoundError and FileExistsError as they are."""
    import botocore.exceptions  # type: ignore[import-untyped]  # start-up time

    try:
        yield
    except FileExistsError:
        raise
    except FileNotFoundError as error:
        if "specified bucket does not exist" in str(error):
            raise Unreachable(errno.ENOENT, "there is no such bucket", str(path)) from error
        raise
    except (OSError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise Unreachable(getattr(error, "errno", None) or errno.EIO, what, str(path)) from error
