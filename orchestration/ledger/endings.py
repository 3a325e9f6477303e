"""Which attempts came to a result, and in which launch: read from their ends alone, whatever became of the rest."""

from pathlib import Path
from typing import Any, NamedTuple

from orchestration.ledger import store
from orchestration.ledger.history import attempt_end, attempt_numbers
from orchestration.ledger.names import CELL, matches


class Ending(NamedTuple):
    """An attempt that ended `done` or `diverged`, or whose end is `damaged`: it may have been either.

    `launch` is the number of its launch; None where the end does not say it, as those of earlier versions.
    """

    cell: str
    attempt: int
    launch: int | None
    state: str
    digest: str | None


class Endings:
    """Those of all cells of an experiment's folder. An end that was read is not read again: it never changes."""

    def __init__(self, folder: Path) -> None:
        self._trials = folder / "trials"
        self._ends: dict[Path, dict[str, Any]] = {}

    def all(self) -> list[Ending]:
        """By cell and attempt."""
        trials = [self._trials / match[0] for match in matches(self._trials, CELL)]
        found = (self._ending(trial, number) for trial in trials for number in attempt_numbers(trial))
        return [one for one in found if one is not None]

    def _ending(self, trial: Path, number: int) -> Ending | None:
        path = trial / f"{number:04d}" / "end.json"
        end = self._ends.get(path) or attempt_end(path.parent)
        if end is None:
            return Ending(trial.name, number, None, "damaged", None) if store.exists(path) else None
        self._ends[path] = end
        if end["state"] not in ("done", "diverged"):
            return None
        return Ending(trial.name, number, end.get("launch"), end["state"], end["digest"])
