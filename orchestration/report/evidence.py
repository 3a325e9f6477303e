"""Every result that an experiment ever had: those of its table, and those that were dropped, replaced or lost."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orchestration.analysis.comparisons import grid_text
from orchestration.analysis.preregistration import Result
from orchestration.ledger.endings import Ending
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.tables import entries
from orchestration.spec.cells import Cell


class _Name(NamedTuple):
    variant: str
    grid: str
    seed: int


def every_result(ledger: Ledger, launches: Sequence[Mapping[str, Any]], table: Sequence[Cell]) -> list[Result]:
    """What came to its end in any launch, as `seed_plan` takes it; `table` are the cells of today's.

    A cell that a launch has listed and that has no record any more may have had a result: it counts as one.
    """
    known = {cell.id: cell for cell in ledger.cells()}
    ends: dict[str, list[Ending]] = {}
    for one in ledger.endings():
        ends.setdefault(one.cell, []).append(one)
    listed, now = _listed(launches, known), {_name(cell): cell.id for cell in table if cell.kind == "train"}
    for name, cell_id in now.items():
        listed.setdefault((cell_id, name), launches[-1]["number"])
    origins = {cell_id: ledger.origin(cell_id) for cell_id, _ in listed}
    told = set(origins.values())
    for cell_id, own in ends.items():  # of a launch whose record does not hold
        cell = known.get(cell_id)
        if cell is not None and cell.kind == "train" and not cell.continues and cell_id not in told:
            listed[cell_id, _name(cell)] = max(one.launch or 1 for one in own)
            origins[cell_id] = cell_id
    today = {name: origins[cell_id] for name, cell_id in now.items()}
    counted, found = set(today.values()), []
    for (cell_id, name), last in listed.items():
        origin = origins[cell_id]
        own, counts = ends.get(origin, []), today.get(name) == origin
        if not own and cell_id in known:
            continue
        found.append(
            Result(
                cell=origin,
                variant=name.variant,
                name=" · ".join(filter(None, name[:2])),
                seed=name.seed,
                state=own[-1].state if own else "missing",
                launch=min((one.launch or 1 for one in own), default=1),
                listed=last,
                counts=counts,
                gone=name not in today and origin not in counted,
                before=_before(own) if counts else "",
            )
        )
    return found


def _listed(launches: Sequence[Mapping[str, Any]], known: Mapping[str, Cell]) -> dict[tuple[str, _Name], int]:
    """Each cell under each name that a launch had it by, with the number of the last such launch."""
    found: dict[tuple[str, _Name], int] = {}
    for launch in launches:
        table = [(entry.id, _Name(entry.variant, grid_text(entry.grid), entry.seed)) for entry in entries(launch)]
        by_record = [(i, _name(known[i])) for i in launch["cells"] if i in known and known[i].kind == "train"]
        found |= dict.fromkeys(table or by_record, launch["number"])
    return found


def _name(cell: Cell) -> _Name:
    return _Name(cell.variant, grid_text(cell.grid), cell.seed)


def _before(ends: Sequence[Ending]) -> str:
    """An earlier result of a cell than its last, if that was another."""
    others = [one for one in ends if (one.state, one.digest) != (ends[-1].state, ends[-1].digest)]
    return ", ".join(f"attempt {one.attempt}: {one.state}" for one in others)
