"""What a report was made from, kept beside it: one that still shows what its ledger has is not made again.

Nothing heavy is imported here, so that to find out takes no longer than to read the ledger's files.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from orchestration.ledger import store
from orchestration.ledger.digest import ledger_digest
from orchestration.util.provenance import source_sha256

NAME = "report.json"
TEMPLATES = Path(__file__).parent / "templates"
_MADE_BY = ("matplotlib", "numpy", "scipy", "jinja2", "rich")


@dataclass(frozen=True)
class Stamp:
    """The digest of what a report was made from, its files with their sizes, and its table for a terminal so wide."""

    inputs: str
    files: dict[str, int]
    table: str
    width: int

    def save(self, folder: Path) -> None:
        (folder / NAME).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


def current(folder: Path) -> Stamp | None:
    """The stamp of the report in a folder, if that shows what the ledger has; None on remote stores: look again."""
    if store.is_remote(folder):
        return None
    try:
        found = Stamp(**json.loads((folder / NAME).read_text(encoding="utf-8")))
        whole = all((folder / name).stat().st_size == size for name, size in found.files.items())
        return found if whole and found.inputs == inputs(folder) else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def inputs(folder: Path) -> str:
    """SHA-256 of what the ledger has, of this code and its templates, and of what draws."""
    digest = hashlib.sha256(ledger_digest(folder).encode())
    digest.update(source_sha256(Path(__file__).resolve().parents[1]).encode())
    for template in sorted(TEMPLATES.iterdir()):
        digest.update(f"{template.name}\n".encode() + template.read_bytes())
    digest.update(repr([(package, metadata.version(package)) for package in _MADE_BY]).encode())
    return digest.hexdigest()
