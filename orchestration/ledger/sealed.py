"""Files that are written once and say themselves whether they are whole (SHA-256)."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestration.ledger import store
from orchestration.ledger.stores.errors import Unreachable


def write_new(path: Path, data: bytes, covered: bool = False) -> None:
    """`Store.create`."""
    store.of(path).create(path, data, covered)


def seal_of(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def holds(path: Path, seal: dict[str, Any]) -> bool:
    try:
        content = store.of(path).read(path)
    except Unreachable:
        raise
    except OSError:
        return False
    return len(content) == seal["size"] and seal_of(content)["sha256"] == seal["sha256"]


def write_sealed(path: Path, record: dict[str, Any], covered: bool = False) -> None:
    """Write a record that says itself whether it is whole. Raises FileExistsError."""
    plain = json.loads(json.dumps(record))
    text = json.dumps(plain | {"sha256_of_record": digest_of_record(plain)}, indent=1, ensure_ascii=False)
    write_new(path, text.encode() + b"\n", covered)


def read_sealed(path: Path, *needs: str) -> dict[str, Any] | None:
    """A record that is there, whole, and has what it `needs` to be one of its kind; or else None."""
    try:
        record = json.loads(store.of(path).read(path))
    except Unreachable:
        raise
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict):
        return None
    seal = record.pop("sha256_of_record", None)
    return record if seal == digest_of_record(record) and record.keys() >= set(needs) else None


def write_beside_damaged(path: Path, record: dict[str, Any]) -> None:
    """Write a record; where what has its name is damaged, as `NAME-again-0002.json` and so on beside it.

    Raises FileExistsError where one holds.
    """
    for one in _names(path):
        try:
            return write_sealed(one, record)
        except FileExistsError:
            if read_sealed(one) is not None:
                raise


def read_beside_damaged(path: Path) -> dict[str, Any] | None:
    """What `write_beside_damaged` has written; or else None."""
    for one in _names(path):
        record = read_sealed(one)
        if record is not None or not store.exists(one):
            return record
    raise AssertionError("counting has no end")


def _names(path: Path) -> Iterator[Path]:
    yield path
    yield from (path.with_name(f"{path.stem}-again-{number:04d}{path.suffix}") for number in itertools.count(2))


def digest_of_record(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
