"""What MLflow has acknowledged, noted beside the ledger: where nothing is new, nobody waits for MLflow to find it out.

`tracking.json` says of which ledger and which report an address of MLflow's has all, and how that was known to be. It
is a note, and no record: torn, of another folder or another address it counts as absent, and MLflow is asked itself.

    SQLite     the size and the time of the file as it was left: whoever has written to it since, or has put another in
               its place, makes the note void
    a server   says itself, in one call, which ledger the tag of its experiment names
    others     are asked by MLflow
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestration.ledger import store
from orchestration.ledger.digest import NOTE, ledger_digest, report_digest
from orchestration.ledger.sealed import read_sealed, write_sealed
from orchestration.tracking.server import experiment_at, is_server
from orchestration.util.databases import sqlite_file
from orchestration.util.passwords import without_password

TAG = "fsg.level"  # of an experiment at a server: the digest of the ledger that it has whole


@dataclass(frozen=True)
class Acknowledged:
    """That an experiment at an address has all of a `ledger` and of a `report`, digests of what lay in `folder`."""

    address: str
    folder: str
    experiment: str
    experiment_id: str
    ledger: str
    report: str
    database: Sequence[int]

    @property
    def is_level(self) -> bool:
        """Whether nothing has come since."""
        folder = Path(self.folder)
        return (self.ledger, self.report) == (ledger_digest(folder), report_digest(folder))


def note(folder: Path, uri: str, experiment: str, experiment_id: str, ledger: str, report: str) -> None:
    """Keep that all of these has arrived, if the folder can be written to."""
    address, place = without_password(uri), str(folder.resolve())
    found = Acknowledged(address, place, experiment, experiment_id, ledger, report, _database(uri))
    new = folder / f".{NOTE}.{os.getpid()}"
    with suppress(OSError):
        new.unlink(missing_ok=True)
        write_sealed(new, asdict(found))
        new.replace(folder / NOTE)


def noted(folder: Path, uri: str) -> Acknowledged | None:
    """What an address has acknowledged of a folder, if that still holds; None where MLflow has to be asked."""
    if store.is_remote(folder):
        return None
    record = read_sealed(folder / NOTE, *Acknowledged.__dataclass_fields__)
    if record is None or (record["address"], record["folder"]) != (without_password(uri), str(folder.resolve())):
        return None
    found = Acknowledged(**{name: record[name] for name in Acknowledged.__dataclass_fields__})
    return found if _still_has_it(found, uri) else None


def _still_has_it(found: Acknowledged, uri: str) -> bool:
    if not is_server(uri):
        return bool(found.database) and found.database == _database(uri)
    try:
        said = experiment_at(uri, found.experiment, timeout=5)
    except (OSError, ValueError):
        return False
    tags = {tag["key"]: tag["value"] for tag in said.get("tags", [])}
    alive = said.get("lifecycle_stage") == "active" and said["experiment_id"] == found.experiment_id
    return alive and tags.get(TAG) == found.ledger


def _database(uri: str) -> list[int]:
    """How a SQLite file is now, with what is not yet in it; empty where there is none, and for all other addresses."""
    file = sqlite_file(uri)
    if file is None or not file.exists():
        return []
    parts = (file, file.with_name(f"{file.name}-wal"))
    return [number for part in parts if part.exists() for number in (part.stat().st_size, part.stat().st_mtime_ns)]
