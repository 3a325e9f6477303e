"""Files that are written once and say themselves whether they are whole (SHA-256)."""

import hashlib
import json
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


def digest_of_record(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
