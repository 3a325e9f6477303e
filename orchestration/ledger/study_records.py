"""What the ledger knows of a search, so that Optuna's own record of it may be lost.

    RESULTS/studies/<name>/
      study.json                     the space and everything else that makes two trials comparable
      trials/000007.json             one trial: its settings, their distributions, and its cells, one a seed
      trials/000007-rung-0003.json   the mean over the seeds after epoch 3, and whether the trial was stopped there
      trials/000007-end.json         how it ended: COMPLETE with its values, PRUNED or FAIL
      choice-0001.json               which candidate validation chose: written before the test images are opened
      study.journal                  Optuna's; it can be rebuilt from the rest

All but the journal is written once, whole and sealed, like everything in the ledger. Where a record is damaged and
wanted again, it is written anew beside it (`000007-end-again-0002.json`). A trial whose settings are lost has failed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestration.ledger import store
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.names import CHOICE, TRIAL, matches, next_number
from orchestration.ledger.sealed import read_beside_damaged, read_sealed, write_beside_damaged
from orchestration.spec.cells import Cell

Record = dict[str, Any]


@dataclass(frozen=True)
class TrialRecord:
    """A trial as the ledger has it; `cells` by seed, `rungs` by epoch."""

    number: int
    params: dict[str, Any]
    distributions: dict[str, str]
    cells: dict[int, str]
    attributes: dict[str, Any]
    origin: str | None
    rungs: dict[int, dict[str, Any]] = field(default_factory=dict)
    end: dict[str, Any] | None = None

    @property
    def state(self) -> str:
        """COMPLETE, PRUNED, FAIL, or RUNNING."""
        return str(self.end["state"]) if self.end else "RUNNING"

    @property
    def intermediate(self) -> dict[int, float]:
        return {epoch: float(rung["value"]) for epoch, rung in sorted(self.rungs.items())}

    @property
    def last_attributes(self) -> dict[str, Any]:
        """Optuna's own notes on the trial, as they were last."""
        records = [rung for _, rung in sorted(self.rungs.items())] + ([self.end] if self.end else [])
        return dict(records[-1]["attributes"]) if records else self.attributes


_LOST: Record = {"state": "FAIL", "values": None, "reason": "the record of its settings is damaged", "attributes": {}}


class StudyRecords:
    """One study's part of the ledger. Constructing it touches nothing."""

    def __init__(self, ledger: Ledger, name: str) -> None:
        self.folder = ledger.folder / "studies" / name
        self.name = name

    @property
    def journal(self) -> Path:
        return self.folder / "study.journal"

    def description(self) -> dict[str, Any] | None:
        """What the study was begun with."""
        return read_beside_damaged(self.folder / "study.json")

    def begin(self, description: dict[str, Any]) -> None:
        self._write("study.json", description)

    def add(self, trial: TrialRecord) -> None:
        self._write(
            f"trials/{trial.number:06d}.json",
            {
                "params": trial.params,
                "distributions": trial.distributions,
                "cells": {str(seed): cell for seed, cell in trial.cells.items()},
                "attributes": trial.attributes,
                "origin": trial.origin,
            },
        )

    def add_rung(self, number: int, epoch: int, value: float, pruned: bool, attributes: dict[str, Any]) -> None:
        record = {"value": value, "pruned": pruned, "attributes": attributes}
        self._write(f"trials/{number:06d}-rung-{epoch:04d}.json", record)

    def end(
        self, number: int, state: str, values: Sequence[float] | None, reason: str, attributes: dict[str, Any]
    ) -> None:
        record = {"state": state, "values": values, "reason": reason, "attributes": attributes}
        self._write(f"trials/{number:06d}-end.json", record)

    def trials(self) -> list[TrialRecord]:
        """Every trial, by number."""
        parts = self._parts()
        return [self._trial(number, parts.get(number, {})) for number in range(max(parts, default=-1) + 1)]

    def _trial(self, number: int, parts: Mapping[str, Record | None]) -> TrialRecord:
        begun = parts.get("")
        if begun is None:
            return TrialRecord(number, {}, {}, {}, {}, None, end=dict(_LOST))
        rungs = {
            int(part.removeprefix("rung-")): record
            for part, record in parts.items()
            if part.startswith("rung-") and record is not None
        }
        cells = {int(seed): cell for seed, cell in begun["cells"].items()}
        of_begin = (begun["params"], begun["distributions"], cells, begun["attributes"], begun["origin"])
        return TrialRecord(number, *of_begin, rungs, parts.get("end"))

    def _parts(self) -> dict[int, dict[str, Record | None]]:
        """The record of each part of a trial, by the trial's number; None where it is damaged."""
        found: dict[int, dict[str, Record | None]] = {}
        for match in matches(self.folder / "trials", TRIAL):
            of_trial, part = found.setdefault(int(match[1]), {}), match[2] or ""
            of_trial[part] = of_trial.get(part) or read_sealed(self.folder / "trials" / match[0])
        return found

    def damage(self) -> list[str]:
        """A line for each record that is damaged."""
        trials = [
            f"trials/{number:06d}{f'-{part}' * bool(part)}.json"
            for number, parts in sorted(self._parts().items())
            for part, record in sorted(parts.items())
            if record is None
        ]
        choices = [match[0] for match in matches(self.folder, CHOICE) if read_sealed(self.folder / match[0]) is None]
        whole = self.description() is not None or not store.exists(self.folder / "study.json")
        names = [*([] if whole else ["study.json"]), *trials, *choices]
        return [f"studies/{self.name}/{name} is damaged" for name in names]

    def choose(self, record: dict[str, Any]) -> None:
        self._write(f"choice-{next_number(self.folder, CHOICE):04d}.json", record)

    def choices(self) -> list[dict[str, Any]]:
        """Each opening of the test set, oldest first."""
        records = (read_sealed(self.folder / match[0]) for match in matches(self.folder, CHOICE))
        return [record for record in records if record is not None]

    def _write(self, name: str, record: dict[str, Any]) -> None:
        write_beside_damaged(self.folder / name, record)


def damage_of_searches(ledger: Ledger) -> list[str]:
    """A line for each record of a search in a ledger that is damaged."""
    names = store.of(ledger.folder).names(ledger.folder / "studies")
    return [line for name in sorted(names) for line in StudyRecords(ledger, name).damage()]


def planned_cells(ledger: Ledger, launch: dict[str, Any]) -> list[Cell]:
    """The cells of a launch's table, in its order, those that searches have come to at the end."""
    every = {cell.id: cell for cell in ledger.cells()}
    planned = [every[cell_id] for cell_id in launch["cells"] if cell_id in every]
    return planned + chosen_cells(ledger, study_names(launch))


def every_cell(ledger: Ledger, launch: dict[str, Any]) -> list[Cell]:
    """The cells of a launch's table, then what its searches trained, and the pretrainings that these waited for."""
    names = study_names(launch)
    found = [*planned_cells(ledger, launch), *_searched(ledger.cells(), names)]
    return list({(cell.id, cell.variant): cell for cell in found}.values())


def _searched(cells: Sequence[Cell], names: Sequence[str]) -> list[Cell]:
    found = [cell for cell in cells if cell.kind in ("trial", "candidate") and cell.variant in names]
    found.sort(key=lambda cell: (names.index(cell.variant), cell.kind != "trial", cell.grid["trial"], cell.seed))
    needed = {cell.depends_on for cell in found}
    return [*(cell for cell in cells if cell.id in needed and cell.kind == "pretrain"), *found]


def study_names(launch: dict[str, Any]) -> list[str]:
    """The searches of a launch."""
    return [study["name"] for study in launch["spec"].get("studies", ())]


def chosen_cells(ledger: Ledger, names: Iterable[str]) -> list[Cell]:
    """The cells of the table that searches have come to, each under its study's name."""
    choices = [(name, choice) for name in names for choice in StudyRecords(ledger, name).choices()[-1:]]
    cells = [(name, ledger.find(cell_id)) for name, choice in choices for cell_id in choice["cells"]]
    return [replace(cell, variant=name, grid={}) for name, cell in cells if cell is not None]
