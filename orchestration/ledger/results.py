"""The results of an experiment as plain records, read from its ledger."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from fsg import checkpoint
from orchestration.ledger import store
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.study_records import StudyRecords, every_cell, study_names
from orchestration.spec.cells import Cell, find_cell

Record = dict[str, Any]


class Results:
    """What the ledger has of an experiment, read anew at each call: a cell that is trained shows what is durable.

    Cells are those of the last launch, and those of its searches. Records are flat dicts; all of a list have the same
    names, with None where there is no value. `pandas.DataFrame` takes such a list as it is.
    """

    def __init__(self, folder: Path | str) -> None:
        """Raises ValueError where no experiment is."""
        self._ledger = Ledger(folder)
        self._ledger.last_launch()

    def __repr__(self) -> str:
        return f"Results('{self.folder}')"

    @property
    def folder(self) -> Path:
        return self._ledger.folder

    def cells(self) -> list[Record]:
        """One record a cell: what it is, where it stands, and the last value of each metric.

        `state` is waiting, running, done, failed, diverged, interrupted or pruned, and `reason` says why. `steps` are
        those that are durable, `seconds` the time of training and evaluation. A grid value stands under its path.
        """
        return same_names([self._cell_record(cell, about) for cell, about in self._described()])

    def curves(self) -> list[Record]:
        """One record a cell and step, in the order of the steps: the cell, `step`, and the metrics recorded there."""
        records = []
        for cell, about in self._described():
            by_step: dict[int, Record] = {}
            for row in self._ledger.rows(cell.id):
                by_step.setdefault(row.step, {}).update(row.values)
            records += [{"cell": cell.id, **about, "step": step, **values} for step, values in by_step.items()]
        return same_names(records)

    def layers(self) -> list[Record]:
        """One record a cell, epoch and layer: the columns of `fsg.diagnostics`, such as `flip_rate`."""
        return same_names(
            [
                {"cell": cell.id, **about, **record}
                for cell, about in self._described()
                for record in layer_records(self._ledger.diagnostics(cell.id))
            ]
        )

    def cell(self, name: str) -> Cell:
        """A cell by its id, the beginning of it, or its label. Raises ValueError where there is none."""
        return find_cell([one for one, _ in self._described()], name)

    def weights(self, cell: str) -> dict[str, Tensor]:
        """The network's weights at the end of a cell, by name. The cell is named by its id or its label.

        Raises ValueError where there is no such cell, or it has no such weights.
        """
        found = self.cell(cell)
        path = self._ledger.final_weights(found.id)
        if path is None:
            state = self._ledger.outcome(found.id).state
            what = "its file is damaged" if state == "done" else f"is {state}"
            raise ValueError(f"{found.label}: {what}: there are no final weights (expected a cell that is done)")
        return checkpoint.from_bytes(store.of(path).read(path))

    def _cell_record(self, cell: Cell, about: Record) -> Record:
        outcome = self._ledger.outcome(cell.id)
        return {
            "id": cell.id,
            "label": cell.label,
            **about,
            "state": outcome.state,
            "reason": outcome.reason,
            "attempts": outcome.attempts,
            "steps": outcome.step,
            "seconds": outcome.seconds,
            "started": _time(outcome.started_ms),
            "finished": _time(outcome.finished_ms),
            "contaminated": cell.contaminated,
            **{name: value for row in self._ledger.rows(cell.id) for name, value in row.values.items()},
        }

    def _described(self) -> list[tuple[Cell, Record]]:
        """Each cell, and what every record says of it. A trial's settings count as its grid."""
        launch = self._ledger.last_launch()
        names = study_names(launch)
        trials = {(name, one.number): one for name in names for one in StudyRecords(self._ledger, name).trials()}
        cells = every_cell(self._ledger, launch)
        grids = []
        for cell in cells:
            trial = trials.get((cell.variant, cell.grid.get("trial", -1)))
            grids.append(cell.grid | (trial.params if trial else {}))
        paths = dict.fromkeys(path for grid in grids for path in grid)
        return [
            (cell, {"kind": cell.kind, "variant": cell.variant, "seed": cell.seed} | dict.fromkeys(paths) | grid)
            for cell, grid in zip(cells, grids, strict=True)
        ]


def layer_records(tables: Sequence[dict[str, Any]]) -> Iterator[Record]:
    """The tables of several epochs (`fsg.diagnostics`), a record an epoch and layer."""
    for table in tables:
        columns = {name: values for name, values in table.items() if isinstance(values, list)}
        epoch = {name: value for name, value in table.items() if name not in columns}
        for values in zip(*columns.values(), strict=True):
            yield {"epoch": table["epoch"], **dict(zip(columns, values, strict=True)), **epoch}


def same_names(records: Sequence[Record]) -> list[Record]:
    """The records with the names of all of them, None where one has no value."""
    names = dict.fromkeys(name for record in records for name in record)
    return [{name: record.get(name) for name in names} for record in records]


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)
