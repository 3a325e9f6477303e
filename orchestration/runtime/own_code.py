"""Where the user's own components of a recorded experiment are found again, and whether they are as they were."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from fsg.import_closure import is_installed
from fsg.imported import edited
from fsg.train_config import TrainConfig
from orchestration.ledger import store
from orchestration.ledger.ledger import Ledger
from orchestration.spec.cells import imported
from orchestration.util.user_code import import_from


def import_own_code(ledger: Ledger) -> list[str]:
    """Put the folders of an experiment's own components on `sys.path`; returns them.

    They are those of the last launch, and the one that the folder of results lies in: a bundle's, or of a project that
    was moved. The first is the spec's, or that other one if more of its files are as they were recorded; of the folders
    of modules, too, one with more such files comes before the others.
    """
    launch, own = ledger.last_launch(), _recorded(ledger)
    if not own:
        return []

    def likelier_first(folders: Iterable[Path]) -> list[str]:
        there = [folder for folder in folders if folder.is_dir() and not is_installed(folder)]
        return [str(folder) for folder in sorted(there, key=lambda folder: -_unchanged(own, folder))]

    beside = [Path(launch["spec_source"]).parent]
    if not store.is_remote(ledger.folder):
        beside += [above for above in ledger.folder.resolve().parents[1:2] if _unchanged(own, above)]
    first = likelier_first(beside)[:1]
    return import_from(*first, *likelier_first([*beside, *map(Path, launch.get("own_folders", []))]))


def _recorded(ledger: Ledger) -> dict[str, str]:
    """SHA-256 of each file of the user's that cells consist of, as the last launch has it where it does."""
    found: dict[str, str] = {}
    ids = set(ledger.last_launch()["cells"])
    cells = sorted(ledger.cells(), key=lambda cell: cell.id in ids)
    for own in [own for cell in cells for own in imported(cell.train)]:
        module = own.path.partition(":")[0].replace(".", "/")
        found |= {f"{module}.py": own.source_sha256, f"{module}/__init__.py": own.source_sha256}
        found |= own.files_sha256 or {}
    return found


def _unchanged(recorded: dict[str, str], folder: Path) -> int:
    """How many recorded files a folder has as they were."""
    files = [(folder / name, digest) for name, digest in recorded.items()]
    return sum(file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == sha for file, sha in files)


def edits(train: TrainConfig) -> list[str]:
    """One line for each component of the user's own that is not as it was recorded, with the files that are not."""
    found = []
    for own in imported(train):
        try:
            names = edited(own)
        except (OSError, ValueError) as error:
            found.append(str(error))
            continue
        if names:
            found.append(f"{own.path} was edited since the launch ({', '.join(names)})")
    return found
