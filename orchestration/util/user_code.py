"""A copy of the user's own Python files, as they are when an experiment begins."""

import os
import shutil
from pathlib import Path


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
