"""The launches and plans of an experiment, each a numbered record, and the lock that admits one launch at a time."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from orchestration.ledger import store
from orchestration.ledger.endings import Ending, Endings
from orchestration.ledger.names import LAUNCH, OF_LAUNCH, PLAN, matches, next_number, strays
from orchestration.ledger.sealed import digest_of_record, read_sealed, write_sealed
from orchestration.ledger.stores.lock import alive, read_holder
from orchestration.util.nearest import meant


class LaunchRecords:
    """What was launched and planned in an experiment's folder. Constructing it touches nothing.

    `launch` is the number of the launch that this object has recorded: its attempts are that launch's.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = store.resolve_path(folder)
        self.launch: int | None = None
        self._endings = Endings(self.folder)

    def record_launch(self, record: dict[str, Any]) -> int:
        """Keep what is launched; returns the launch's number: no number that anything speaks of is given again."""
        number = max(self._numbers_told(), default=0)
        while True:
            number += 1
            try:
                write_sealed(self.folder / "launches" / f"{number:04d}.json", record | {"number": number})
            except FileExistsError:
                continue
            self.launch = number
            return number

    def record_launch_end(self, number: int, record: dict[str, Any]) -> None:
        """Keep how a launch ended: it joins the launch's record."""
        write_sealed(self.folder / "launches" / f"{number:04d}-end.json", record)

    def record_plan(self, record: dict[str, Any]) -> None:
        """Keep what a plan expects of its cells, by id, and when it was `made`."""
        folder = self.folder / "plans"
        write_sealed(folder / f"{next_number(folder, PLAN):04d}.json", record)

    def plans(self) -> list[dict[str, Any]]:
        """What plans expected, oldest first."""
        folder = self.folder / "plans"
        records = (read_sealed(folder / match[0], "made", "cells") for match in matches(folder, PLAN))
        return [record for record in records if record is not None]

    def stop_file(self, number: int) -> Path:
        """The file whose existence asks the workers of a launch to stop at a checkpoint."""
        return self.folder / "launches" / f"{number:04d}-stop"

    def launches(self) -> list[dict[str, Any]]:
        """The records of the launches that can be read, oldest first, each with its `number`."""
        return self._records()[0]

    def recorded_inputs(self, number: int) -> dict[str, str]:
        """The fingerprints of what the trainings of a launch read, by name, as they were when it was recorded."""
        return next((dict(one.get("inputs", {})) for one in self.launches() if one["number"] == number), {})

    def launch_problems(self) -> list[str]:
        """A line for each record of a launch that is damaged, missing, or there twice: none of them counts."""
        found, problems = self._records()
        whole = {record["number"] for record in found}
        for number in range(1, max(self._numbers_told(), default=0) + 1):
            name = f"{number:04d}.json"
            if number not in whole and not store.exists(self.folder / "launches" / name):
                problems.append(f"launches/{name} is missing")
        return sorted(problems)

    def strays(self) -> list[str]:
        """What lies among the records and is not the ledger's own (`names`): nothing reads it."""
        return strays(self.folder)

    def endings(self) -> list[Ending]:
        """The attempts that came to a result, by cell and attempt."""
        return self._endings.all()

    def last_launch(self) -> dict[str, Any]:
        """The record of the newest launch. Raises ValueError where nothing was ever launched."""
        launches, problems = self._records()
        if problems and not launches:
            raise ValueError(f"{self.folder}: no launch can be read: {'; '.join(problems)}")
        if not launches:
            hint = f"expected the folder of an experiment{_nearest_experiment(self.folder)}"
            raise ValueError(f"{self.folder}: no launch is recorded there ({hint})")
        return launches[-1]

    def lock(self) -> AbstractContextManager[None]:
        """Hold the experiment: one launch at a time. Raises LockedError, saying who holds it and since when."""
        return store.of(self.folder).lock(self.folder)

    def is_held(self) -> bool:
        """Whether a process that runs, or may run on another machine, holds the experiment."""
        lock = self.folder / "lock"
        holder = read_holder(store.of(lock).read(lock)) if store.exists(lock) else None
        return holder is not None and "process_started" in holder and alive(holder)

    def _records(self) -> tuple[list[dict[str, Any]], list[str]]:
        """The records that count, by number, and a line for each that does not."""
        found: dict[int, dict[str, Any]] = {}
        seals: dict[str, int] = {}
        problems = []
        for match in matches(self.folder / "launches", LAUNCH):
            path, number = self.folder / "launches" / match[0], int(match[1])
            record = read_sealed(path)
            if record is None:
                problems.append(f"launches/{path.name} is damaged")
                continue
            if record.keys().isdisjoint(("number", "started")):
                problems.append(f"launches/{path.name} is not the record of a launch")
                continue
            first = seals.setdefault(digest_of_record(record), number)
            if (said := record.get("number", first)) != number or path.stem != f"{number:04d}":
                problems.append(f"launches/{path.name} is a copy of the record of launch {said}")
                continue
            end = read_sealed(path.with_name(f"{path.stem}-end.json"), "exit_status") or {}
            found[number] = record | end | {"number": number}
        return [found[number] for number in sorted(found)], problems

    def _numbers_told(self) -> set[int]:
        """The numbers of launches that a file of theirs, or the end of an attempt, speaks of."""
        files = {int(match[1]) for match in matches(self.folder / "launches", OF_LAUNCH)}
        return files | {one.launch for one in self.endings() if one.launch is not None}


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
    return bool(matches(folder / "launches", LAUNCH))
