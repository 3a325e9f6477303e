"""Where a ledger lies: a folder, or a bucket of an object store (`s3://BUCKET/PREFIX`). The few verbs that it needs.

    folder   a new file is written whole under a temporary name, flushed to the disk and linked to its own
    S3       a new object is one PUT on the condition that there is none of its name (`If-None-Match: *`)

Either way a file is there whole or not at all, is durable when the verb returns (or, where another one is to cover it,
before that one is there), and is never written over. Credentials and endpoint of S3 are those of AWS's environment and
files (`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`, `AWS_ENDPOINT_URL`, …); they are passed on to nobody and recorded nowhere.
"""

import errno
import fcntl
import json
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol, cast

import psutil  # type: ignore[import-untyped]

SILENCE = 60.0
_SCHEME = "s3://"
_CONFLICTS = 5


class Held(Exception):
    """Another launch holds the experiment."""


class Unwritable(OSError):
    """The ledger cannot be written to: the disk is full, say, or read-only. Nothing that was written is harmed."""


class Unreachable(Unwritable):
    """The object store does not answer, or refuses. What cannot be read then is neither absent nor damaged."""


class Store(Protocol):
    """The verbs. `seconds_between_looks` is how often whether a file exists may be asked while something is awaited."""

    seconds_between_looks: float

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
    def held(self, folder: Path) -> Iterator[None]:
        """Hold a folder: one process at a time. Raises Held, saying who holds it and since when."""
        ...

    @contextmanager
    def on_disk(self, path: Path) -> Iterator[Path]:
        """Within, a file as one on this machine's disk: itself or a copy."""
        ...

    @contextmanager
    def drafts(self, folder: Path) -> Iterator[Path]:
        """Within, a folder on this machine's disk whose files, nothing of a ledger, are in `folder` afterwards."""
        ...


def place(text: str | Path) -> Path:
    """A folder, or a bucket's part as a path. Raises ValueError, in one line, for what can be neither."""
    if not isinstance(text, str):
        return text
    scheme, found, rest = text.partition("://")
    if not found:
        return Path(text)
    if f"{scheme}://" != _SCHEME:
        raise ValueError(f"{scheme}://…: not known (expected a folder or s3://BUCKET/PREFIX)")
    if "@" in rest:
        raise ValueError("s3://: credentials do not belong there (expected them in AWS's environment or files)")
    if not rest.partition("/")[0]:
        raise ValueError(f"{text}: names no bucket (expected s3://BUCKET/PREFIX)")
    try:
        import s3fs  # type: ignore[import-untyped]  # noqa: F401
        from upath import UPath
    except ImportError as error:
        hint = "expected pip install 's3fs==2026.9.0' 'universal-pathlib==0.3.10'"
        raise ValueError(f"{text}: {error.name} is not installed ({hint})") from None
    return cast(Path, UPath(text.rstrip("/"), use_listings_cache=False))


def is_remote(path: Path) -> bool:
    """Whether a path is in an object store."""
    return not isinstance(path, Path)


def of(path: Path) -> Store:
    """The store that a path lies in."""
    return _OBJECTS if is_remote(path) else _FOLDERS


def matching(folder: Path, pattern: str) -> list[Path]:
    """What lies in a folder under such names (`*`, `?`, `[0-9]`), sorted."""
    return [folder / name for name in of(folder).names(folder) if fnmatchcase(name, pattern)]


def exists(path: Path) -> bool:
    """Whether there is such a file."""
    return of(path).size(path) is not None


class Awaited:
    """Whether a file exists, asked of a store, which may be a slow one, now and then; once there, it stays."""

    def __init__(self, path: Path) -> None:
        self._path, self._every = path, of(path).seconds_between_looks
        self._next, self._found = 0.0, False

    def exists(self) -> bool:
        now = time.monotonic()
        if not self._found and now >= self._next:
            self._next = now + self._every
            self._found = exists(self._path)
        return self._found


class _Folders:
    """A file system: a disk, or one that several machines share."""

    seconds_between_looks = 0.2

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
    def held(self, folder: Path) -> Iterator[None]:
        """The kernel gives the lock of a dead process back. Of another machine's it may know nothing: such a holder is
        taken for dead once it has not touched the lock for `SILENCE` seconds.
        """
        _make(folder)
        path = folder / "lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            holder = _holder(path.read_bytes())
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Held(_who_holds(folder, holder or {})) from None
            if holder is not None and holder.get("machine", "") != _machine():
                _refuse_if_heard_of(folder, holder, self._seconds_since(folder, descriptor))
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _holding(), 0)
            os.fsync(descriptor)
            with _again_and_again(lambda: os.utime(descriptor)):
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
    def drafts(self, folder: Path) -> Iterator[Path]:
        yield folder


class _Objects:
    """S3, or what speaks as it does and knows conditional writes. It has no folders: a claim is an object in one."""

    seconds_between_looks = 5.0

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
    def held(self, folder: Path) -> Iterator[None]:
        """An object says who holds it, and is written again as a sign of life. A holder is taken for dead where its
        process is gone from this host, or once it has been silent for `SILENCE` seconds; of two that take over, the
        condition on what is written over lets one through.
        """
        path = folder / "lock"
        ours = _holding()
        tag = self._taken(path, ours)

        def show() -> None:
            nonlocal tag
            tag = self._replaced(path, ours, tag)

        with _again_and_again(show):
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
        holder = _holder(self.read(path))
        if holder is not None and (holder.get("machine") != _machine() or alive(holder)):
            if holder.get("machine") == _machine() and holder["host"] == socket.gethostname():
                raise Held(_who_holds(path.parent, holder))
            _refuse_if_heard_of(path.parent, holder, self._seconds_since(path))
        try:
            return self._replaced(path, ours, tag)
        except FileExistsError:
            raise Held(_who_holds(path.parent, _holder(self.read(path)) or {})) from None

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
    def drafts(self, folder: Path) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="fsg-") as made:
            yield Path(made)
            for file in sorted(file for file in Path(made).rglob("*") if file.is_file()):
                target = folder / file.relative_to(made).as_posix()
                with _reaching(target):
                    _bucket(target).pipe_file(_key(target), file.read_bytes())


_FOLDERS, _OBJECTS = _Folders(), _Objects()


# Files


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


# Objects


def _bucket(path: Path) -> Any:
    return path.fs  # type: ignore[attr-defined]


def _key(path: Path) -> str:
    return str(path).removeprefix(_SCHEME)


@contextmanager
def _reaching(path: Path) -> Iterator[None]:
    """Raises Unreachable for whatever goes wrong, but FileNotFoundError and FileExistsError as they are."""
    import botocore.exceptions  # type: ignore[import-untyped]

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


# Processes


def this_process() -> dict[str, Any]:
    """Who is writing."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "process_started": psutil.Process().create_time()}


def alive(record: dict[str, Any]) -> bool:
    """Whether the process of a record runs; of another host's nothing is known, and it is taken to."""
    if record["host"] != socket.gethostname():
        return True
    try:
        return bool(abs(psutil.Process(record["pid"]).create_time() - record["process_started"]) < 2)
    except psutil.Error:
        return False


def _machine() -> str:
    """This machine, since it was started: the same in each of its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _holding() -> bytes:
    return json.dumps(this_process() | {"machine": _machine(), "since": time.time_ns() // 1_000_000}).encode()


def _holder(content: bytes) -> dict[str, Any] | None:
    try:
        holder = json.loads(content)
        return holder if {"host", "pid", "since"} <= holder.keys() else None
    except (ValueError, AttributeError):
        return None


def _who_holds(folder: Path, holder: dict[str, Any]) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(holder["since"] / 1000)) if holder else "now"
    who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
    return f"{folder} is held by {who} since {since}"


def _refuse_if_heard_of(folder: Path, holder: dict[str, Any], silent: float) -> None:
    if silent < SILENCE:
        last = f"last heard of {silent:.0f} s ago, and taken for dead after {SILENCE:.0f} s"
        raise Held(f"{_who_holds(folder, holder)} ({last})")


@contextmanager
def _again_and_again(show: Callable[[], object]) -> Iterator[None]:
    """Within, a sign of life is given again and again, for other machines to see."""
    stop = threading.Event()

    def give() -> None:
        while not stop.wait(SILENCE / 10):
            with suppress(OSError):
                show()

    thread = threading.Thread(target=give, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
