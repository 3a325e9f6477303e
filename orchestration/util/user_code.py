"""The user's own Python files: imported from behind what is installed, and copied as they are for an experiment.

A file of the user's that is named like a library (`mlflow.py`, `queue.py`) must not be imported in that one's place.
Nothing but the standard library is imported here: what a program starts with comes before anything that can be hidden.
"""

import importlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SHIPPED = "own-code"  # the folder of the user's files within what is sent to a cluster
_SAFE = "PYTHONSAFEPATH"
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
_set_aside: list[str] = []
_given: dict[str, str | None] = {}  # what is changed in the environment, as it was


def take_off_users_folders(words: Iterable[str]) -> None:
    """Take the folders that the user works in off the paths of this program and of those that it starts.

    They are the working directory, which `python -m` puts first, and those of the files that `words` name, where
    PYTHONPATH has them. A spec that imports something brings them back, behind what is installed.
    """
    folders = {os.path.realpath(one) for one in (".", *(os.path.dirname(w) or "." for w in words if os.path.isfile(w)))}
    folders.discard(str(_PACKAGE_ROOT))
    _set_aside.extend(path for path in sys.path if os.path.realpath(path) in folders and path not in _set_aside)
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) not in folders]
    if given := os.environ.get("PYTHONPATH"):
        _given["PYTHONPATH"] = given
        kept = [path for path in given.split(os.pathsep) if os.path.realpath(path) not in folders]
        os.environ["PYTHONPATH"] = os.pathsep.join(kept)
    os.environ[_SAFE] = "1"


def end_of_safe_path() -> None:
    """What this process starts from here on is the user's."""
    os.environ.pop(_SAFE, None)


def environment_as_given() -> dict[str, str]:
    """The environment for a program that begins anew in this one's place."""
    now = {name: value for name, value in os.environ.items() if name != _SAFE and name not in _given}
    return now | {name: value for name, value in _given.items() if value is not None}


@contextmanager
def other_environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Within, variables of the environment are others; a program that begins anew gets them as they were."""
    before = {name: os.environ.get(name) for name in changes}
    _given.update(before)
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name], _given[name]
            if value is not None:
                os.environ[name] = value


def import_from(*folders: str) -> list[str]:
    """Put folders last on `sys.path`, then what `take_off_users_folders` took; returns them in their order.

    In every process alike: which file a name means hangs on the order. The files that settings name are
    looked for in the first of the folders, wherever the module lies.
    """
    from fsg.imported import look_first_in  # start-up time, and no module of the user's may come in its place

    look_first_in(*folders[:1])
    last = list(dict.fromkeys([*folders, *map(os.path.abspath, _set_aside)]))
    sys.path[:] = [path for path in sys.path if path not in last] + last
    importlib.invalidate_caches()
    return last


def shipped() -> list[str]:
    """The folders of the user's files in what was sent to this process."""
    return [str(place) for place in (Path(path, SHIPPED) for path in sys.path) if place.is_dir()]


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
