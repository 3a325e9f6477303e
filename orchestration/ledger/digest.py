"""What lies in an experiment's folder as one digest: whoever kept it sees at once whether anything is new.

Nothing heavy is imported here, so that to find out takes no longer than to read the files.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

NOTE = "tracking.json"  # what MLflow acknowledged: `tracking` keeps it


def ledger_digest(folder: Path) -> str:
    """SHA-256 of the ledger's records by name and of its weights by size, in a folder on a disk.

    A launch that has nothing to add leaves no record, so that it changes no digest.
    """
    return _digest(folder, (part for part in _parts(folder) if not _is_report(part)))


def report_digest(folder: Path) -> str:
    """SHA-256 of the files of the report, in a folder on a disk."""
    return _digest(folder, filter(_is_report, _parts(folder)))


def _parts(folder: Path) -> Iterable[Path]:
    return (part for part in (folder.iterdir() if folder.is_dir() else ()) if part.name not in ("lock", NOTE))


def _is_report(part: Path) -> bool:
    return part.name == "figures" or part.name.startswith("report.")


def _digest(folder: Path, parts: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for part in parts for path in (part, *part.rglob("*"))):
        if path.is_file() and not path.name.startswith("."):
            weights = path.suffix == ".pt"
            content = str(path.stat().st_size) if weights else hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()
