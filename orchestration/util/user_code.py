"""The user's own Python files: imported from their folder, and copied as they are when an experiment begins."""

import importlib
import os
import shutil
import sys
from pathlib import Path


def import_from(*folders: str) -> None:
    """Put folders first on `sys.path`, in every process alike: which file a name means hangs on the order."""
    sys.path[:0] = [folder for folder in folders if folder not in sys.path]
    importlib.invalidate_caches()


def python_files(source: Path, target: Path) -> Path:
    """Copy the Python files of a folder and of those below it, but for hidden ones, environments and results."""
    for folder, below, names in os.walk(source):
        below[:] = [name for name in below if not name.startswith((".", "__")) and not _is_foreign(Path(folder, name))]
        for name in names:
            if name.endswith(".py"):
                copy = target / Path(folder, name).relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(Path(folder, name), copy)
    target.mkdir(parents=True, exist_ok=True)
    return target


def _is_foreign(folder: Path) -> bool:
    return (folder / "pyvenv.cfg").exists() or (folder / "mlflow.db").exists()
