"""The table that a launch planned, by the names of its trainings, whatever has become of their cells' records."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from orchestration.ledger.ledger import Ledger
from orchestration.ledger.study_records import StudyRecords
from orchestration.spec.cells import Cell
from orchestration.spec.fields import train_from_dict


class Entry(NamedTuple):
    """A training of a launch's table: the id of its cell, and what it is, `train` its settings as they are recorded."""

    id: str
    variant: str
    grid: dict[str, Any]
    seed: int
    train: Mapping[str, Any]

    def cell(self) -> Cell:
        return Cell(self.id, "train", self.variant, self.grid, self.seed, train_from_dict(dict(self.train)))


def entries(launch: Mapping[str, Any]) -> list[Entry]:
    """The trainings of a launch, in the order of `spec.cells.cells`: pretrainings first, then a seed after another."""
    spec, ids = launch["spec"], launch["cells"]
    points = [(seed, point) for seed in spec.get("seeds", ()) for point in spec.get("points", ())]
    if len(points) > len(ids):
        return []
    trained = ids[len(ids) - len(points) :]
    return [
        Entry(cell_id, point["variant"], point["grid"], seed, point["train"])
        for cell_id, (seed, point) in zip(trained, points, strict=True)
    ]


def missing_cells(ledger: Ledger, launch: Mapping[str, Any]) -> list[Cell]:
    """The trainings of a launch, those that its searches chose too, whose cells have no record that holds."""
    chosen = [entry for study in launch["spec"].get("studies", ()) for entry in _chosen(ledger, study)]
    return [entry.cell() for entry in [*entries(launch), *chosen] if ledger.find(entry.id) is None]


def _chosen(ledger: Ledger, study: Mapping[str, Any]) -> list[Entry]:
    """What the last choice of a search put into the table; `train` is as it was before the search."""
    found = []
    for choice in StudyRecords(ledger, study["name"]).choices()[-1:]:
        seeds = choice["candidates"][str(choice["chosen"])]
        pairs = zip(choice["cells"], seeds, strict=True)
        found += [Entry(cell_id, study["name"], {}, int(seed), study["train"]) for cell_id, seed in pairs]
    return found
