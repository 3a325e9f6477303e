"""The launches and plans of an experiment, each a numbered record, and the lock that admits one launch at a time."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from orchestration.ledger import store
from orchestration.ledger.sealed import read_sealed, write_sealed
from orchestration.spec.fields import meant


class LaunchRecords:
    """What was launched and planned in an experiment's folder. Constructing it touches nothing."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = store.resolve_path(folder)

    def record_launch(self, record: dict[str, Any]) -> int:
        """Keep what is launched; returns the launch's number."""
        return self._numbered("launches", record)

    def record_launch_end(self, number: int, record: dict[str, Any]) -> None:
        """Keep how a launch ended: it joins the launch's record."""
        write_sealed(self.folder / "launches" / f"{number:04d}-end.json", record)

    def record_plan(self, record: dict[str, Any]) -> None:
        """Keep what a plan expects of its cells, by id, and when it was `made`."""
        folder = self.folder / "plans"
        write_sealed(folder / f"{len(store.matching(folder, '*.json')) + 1:04d}.json", record)

    def plans(self) -> list[dict[str, Any]]:
        """What plans expected, oldest first."""
        records = (read_sealed(path) for path in store.matching(self.folder / "plans", "*.json"))
        return [record for record in records if record is not None]

    def stop_file(self, number: int) -> Path:
        """The file whose existence asks the workers of a launch to stop at a checkpoint."""
        return self.folder / "launches" / f"{number:04d}-stop"

    def launches(self) -> list[dict[str, Any]]:
        """The records of the launches, oldest first."""
        found = []
        for path in store.matching(self.folder / "launches", "[0-9]*.json"):
            record = read_sealed(path) if path.stem.isdigit() else None
            if record is not None:
                found.append(record | (read_sealed(path.with_name(f"{path.stem}-end.json")) or {}))
        return found

    def last_launch(self) -> dict[str, Any]:
        """The record of the newest launch. Raises ValueError where nothing was ever launched."""
        launches = self.launches()
        if not launches:
            hint = f"expected the folder of an experiment{_nearest_experiment(self.folder)}"
            raise ValueError(f"{self.folder}: no launch is recorded there ({hint})")
        return launches[-1]

    def lock(self) -> AbstractContextManager[None]:
        """Hold the experiment: one launch at a time. Raises LockedError, saying who holds it and since when."""
        return store.of(self.folder).lock(self.folder)

    def _numbered(self, kind: str, record: dict[str, Any]) -> int:
        folder = self.folder / kind
        found = (path.stem for path in store.matching(folder, "[0-9]*.json"))
        number = max((int(stem) for stem in found if stem.isdigit()), default=0)
        while True:
            number += 1
            try:
                write_sealed(folder / f"{number:04d}.json", record)
                return number
            except FileExistsError:
                continue


def _nearest_experiment(folder: Path) -> str:
    """`; did you mean …?`: the experiment that a folder is a part of, one in it, or one beside it."""
    around = [parent for parent in folder.parents if _is_experiment(parent)]
    within = around or _experiments(folder)
    beside = {path.name: path for path in ([] if within else _experiments(folder.parent))}
    found = [*within, *(beside[name] for name in meant(folder.name, beside)), *beside.values()]
    return f"; did you mean {found[0]}?" if found else ""


def _experiments(folder: Path) -> list[Path]:
    return [path for path in store.matching(folder, "*") if _is_experiment(path)]


def _is_experiment(folder: Path) -> bool:
    return bool(store.matching(folder / "launches", "[0-9]*.json"))
