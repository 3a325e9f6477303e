"""What the ledger knows of a search, so that Optuna's own record of it may be lost.

    RESULTS/studies/<name>/
      study.json                     the space and all else that makes two trials comparable
      trials/000007.json             what was tried: settings, distributions, and the cells, one a seed
      trials/000007-rung-0003.json   the mean over the seeds after epoch 3, and whether the trial was stopped there
      trials/000007-end.json         how it ended: COMPLETE with its values, PRUNED or FAIL
      choice-0001.json               which of the best validation chose: written before the test images are looked at
      study.journal                  Optuna's; can be made anew from the rest

All but the journal is written once, whole and sealed, as everything in the ledger is.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsg
from fsg.starting_points import Pretrain
from orchestration import store
from orchestration.ledger import Ledger, read_sealed, write_sealed
from orchestration.plan import Cell
from orchestration.search_settings import StudySpec, dimension_dict

if TYPE_CHECKING:
    from orchestration.specs import ExperimentSpec


class SearchError(Exception):
    """What keeps a search from starting or from going on, in one line."""


TO_COME = ""  # the id of a cell that a search will find


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
        return read_sealed(self.folder / "study.json")

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
        """Every trial, by number, up to the first that is missing or damaged."""
        parts: dict[int, dict[str, dict[str, Any]]] = {}
        for path in store.matching(self.folder / "trials", "[0-9]*.json"):
            record = read_sealed(path)
            if record is not None:
                at, _, part = path.stem.partition("-")
                parts.setdefault(int(at), {})[part] = record
        found: list[TrialRecord] = []
        for number in itertools.count():
            records = parts.get(number, {})
            if "" not in records:
                return found
            begun = records[""]
            rungs = {int(part.removeprefix("rung-")): r for part, r in records.items() if part.startswith("rung-")}
            cells = {int(seed): cell for seed, cell in begun["cells"].items()}
            of_begin = (begun["params"], begun["distributions"], cells, begun["attributes"], begun["origin"])
            found.append(TrialRecord(number, *of_begin, rungs, records.get("end")))
        raise AssertionError("counting has no end")

    def choose(self, record: dict[str, Any]) -> None:
        self._write(f"choice-{len(self.choices()) + 1:04d}.json", record)

    def choices(self) -> list[dict[str, Any]]:
        """Each opening of the test set, oldest first."""
        records = (read_sealed(path) for path in store.matching(self.folder, "choice-*.json"))
        return [record for record in records if record is not None]

    def _write(self, name: str, record: dict[str, Any]) -> None:
        write_sealed(self.folder / name, record)


def described(study: StudySpec) -> dict[str, Any]:
    """What has to be the same for two trials to be of one study."""
    # What is searched may have another value where it starts.
    train = without(study.train.identity(), [dimension.path for dimension in study.dimensions])
    return {
        "space": {one.path: dimension_dict(one) for one in study.dimensions},
        "objectives": list(study.objectives),
        "seeds": list(study.seeds),
        "pruner": study.pruner.identity(),
        "train": train,
        "data": study.train.data.fingerprint(),
        "numerics": fsg.NUMERICS,
    }


def without(train: dict[str, Any], space: Iterable[str]) -> dict[str, Any]:
    """A description's `train` without what another space searches."""
    left: dict[str, Any] = _plain(train)
    for path in space:
        _forget(left, path.removesuffix(".name").split("."))
    return left


def _forget(values: Any, parts: Sequence[str]) -> None:
    if not isinstance(values, dict):
        return
    if "settings" in values and parts[0] not in values:
        values = values["settings"]
    if len(parts) == 1:
        values.pop(parts[0], None)
    else:
        _forget(values.get(parts[0]), parts[1:])


def differences(spec: "ExperimentSpec", ledger: Ledger, section: str) -> Iterator[tuple[str, str]]:
    """Field by field, what a study that has begun has otherwise than the spec, and that it must be as it was."""
    for study in spec.studies:
        stored = StudyRecords(ledger, study.name).description()
        now = described(study)
        if stored is None:
            continue
        now = _plain(now)
        remedy = "expected what it began with, or another name"
        remedy += "; warm_start takes its trials over" if section == "search" else ""
        for path in {**stored["space"], **now["space"]}:
            before, after = stored["space"].get(path), now["space"].get(path)
            if before != after:
                what = f"the study in {ledger.folder} has {_shown(before)} here, not {_shown(after)} ({remedy})"
                yield f"{section}.space.{path}", what
        for field_name, key in (("seeds", "seeds"), ("pruner", "pruner"), ("objectives", "objectives")):
            if stored[key] != now[key]:
                what = f"the study in {ledger.folder} has {_shown(stored[key])}, not {_shown(now[key])} ({remedy})"
                yield f"{section}.{field_name}", what
        same = all(stored[key] == now[key] for key in ("data", "numerics"))
        if not same or without(stored["train"], now["space"]) != without(now["train"], stored["space"]):
            yield "train", f"the study in {ledger.folder} is of other settings, images or code ({remedy})"


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(inner)}" for key, inner in value.items()) + "}"
    return "nothing" if value is None else str(value).replace("'", "")


def expected_cells(spec: "ExperimentSpec", ledger: Ledger) -> list[Cell]:
    """The cells of the searches: those that there are, and in the place of each that is to come one without an id."""
    found: list[Cell] = []
    for study in spec.studies:
        records = StudyRecords(ledger, study.name)
        trials = records.trials()
        own = [trial for trial in trials if trial.origin is None]
        there = [cell for trial in own for cell_id in trial.cells.values() if (cell := _cell(ledger, cell_id))]
        missing = max(0, study.trials - len(own)) * len(study.seeds)
        train, seeds = study.trial_train, study.table_seeds
        if not own and isinstance(train.init, Pretrain):
            found += _pretrainings(study, [*study.seeds, *(seeds if study.best else [])])
        found += there
        found += [Cell(TO_COME, "trial", study.name, {}, study.seeds[0], train)] * missing
        choice = records.choices()[-1:]
        if choice and choice[0]["trials"] == len(trials) and not missing:
            ids = [*choice[0]["candidate_cells"], *choice[0]["cells"]]
            found += [cell for cell_id in ids if (cell := _cell(ledger, cell_id))]
            continue
        best = min(study.best, study.trials)
        found += [Cell(TO_COME, "candidate", study.name, {}, seed, train) for seed in seeds for _ in range(best)]
        if best:
            end = replace(train, test="end")
            found += [Cell(TO_COME, "train", study.name, {}, seed, end, continues=TO_COME) for seed in seeds]
    return found


def chosen(ledger: Ledger, names: Iterable[str]) -> list[Cell]:
    """The cells of the table that searches have come to, each under its study's name."""
    choices = [(name, choice) for name in names for choice in StudyRecords(ledger, name).choices()[-1:]]
    cells = [(name, _cell(ledger, cell_id)) for name, choice in choices for cell_id in choice["cells"]]
    return [replace(cell, variant=name, grid={}) for name, cell in cells if cell is not None]


def _cell(ledger: Ledger, cell_id: str) -> Cell | None:
    try:
        return ledger.cell(cell_id)
    except KeyError:
        return None


def _pretrainings(study: StudySpec, seeds: Sequence[int]) -> list[Cell]:
    from fsg.trainer import pretraining

    train = pretraining(study.trial_train)
    return [Cell(TO_COME, "pretrain", "pretrain", {}, seed, train) for seed in seeds]
