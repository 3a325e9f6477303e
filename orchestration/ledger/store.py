"""Where a ledger lies: a folder, or a bucket of an object store (`s3://BUCKET/PREFIX`).

    folder   a new file is written whole under a temporary name, flushed to the disk and linked to its own name
    S3       a new object is one PUT, on the condition that no object of that name exists (`If-None-Match: *`)

In both cases a file is there whole or not at all. It is durable when the call returns; a file that a later one covers
is durable before that later one exists. No file is ever overwritten. S3's credentials and endpoint come from AWS's
environment and files (`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`, `AWS_ENDPOINT_URL`, …); they are recorded nowhere.
"""

import os
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import cast

from orchestration.ledger.stores.local import FolderStore
from orchestration.ledger.stores.protocol import Store
from orchestration.ledger.stores.s3 import SCHEME, S3Store


def resolve_path(text: str | Path) -> Path:
    """A folder, or a part of a bucket, as a path. Raises ValueError, in one line, for any other text."""
    if not isinstance(text, str):
        return text
    scheme, found, rest = text.partition("://")
    if not found:
        _refuse_other_bytes(text)
        return Path(text)
    if f"{scheme}://" != SCHEME:
        raise ValueError(f"{scheme}://…: not known (expected a folder or s3://BUCKET/PREFIX)")
    if "@" in rest:
        raise ValueError("s3://: credentials do not belong there (expected them in AWS's environment or files)")
    if not rest.partition("/")[0]:
        raise ValueError(f"{text}: names no bucket (expected s3://BUCKET/PREFIX)")
    try:
        import s3fs  # type: ignore[import-untyped]  # noqa: F401  # start-up time
        from upath import UPath  # start-up time
    except ImportError as error:
        hint = "expected pip install 's3fs==2026.9.0' 'universal-pathlib==0.3.10'"
        raise ValueError(f"{text}: {error.name} is not installed ({hint})") from None
    return cast(Path, UPath(text.rstrip("/"), use_listings_cache=False))


def _refuse_other_bytes(text: str) -> None:
    """MLflow's database and the records hold text."""
    place = os.path.abspath(text)
    try:
        place.encode()
    except UnicodeEncodeError:
        shown = place.encode("utf-8", "backslashreplace").decode()
        raise ValueError(f"{shown}: is no text in UTF-8 (expected a folder whose name is)") from None


def absolute(path: Path) -> Path:
    """The same place, whatever the working directory becomes."""
    return path if is_remote(path) else path.absolute()


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


class PolledFile:
    """Checks now and then whether a file exists: a store may be slow. Once found, the file stays."""

    def __init__(self, path: Path) -> None:
        self._path, self._every = path, of(path).poll_interval
        self._next, self._found = 0.0, False

    def exists(self) -> bool:
        now = time.monotonic()
        if not self._found and now >= self._next:
            self._next = now + self._every
            self._found = exists(self._path)
        return self._found


_FOLDERS, _OBJECTS = FolderStore(), S3Store()
