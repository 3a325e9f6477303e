"""The cells of a study's settings: made, entered into the ledger, and handed out to be trained, each once."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from fsg.train_config import TrainConfig
from orchestration.ledger.ledger import Ledger
from orchestration.spec.cells import Cell, Kind, WorkItem, cells_of
from orchestration.spec.study import StudySpec

Pair = tuple[Cell | None, Cell]  # a pretraining, if there is one, and the cell that waits for it


@dataclass
class SearchContext:
    """What the studies of an experiment share.

    `out` are the ids of cells that were handed out and have not ended, `failed` the reasons of those that failed;
    `pruned` is told the cells of a stopped trial.
    """

    ledger: Ledger
    out: set[str]
    failed: dict[str, str]
    pruned: Callable[[Sequence[Cell]], None]
    say: Callable[[str], None]


class Dispatcher:
    """Makes the cells of one study and queues what is to be trained."""

    def __init__(self, spec: StudySpec, context: SearchContext) -> None:
        self._spec, self._context, self._ledger = spec, context, context.ledger
        self._ready: deque[WorkItem] = deque()

    @property
    def has_work(self) -> bool:
        return bool(self._ready)

    def take(self) -> list[WorkItem]:
        """All queued work, once."""
        taken = list(self._ready)
        self._ready.clear()
        return taken

    def cells(self, train: TrainConfig, kind: Kind, number: int, seeds: Iterable[int]) -> list[Pair]:
        """The cells of the settings of trial `number`, one a seed, each with the pretraining that it waits for."""
        name, found = self._spec.name, list[Pair]()
        for seed in seeds:
            pretraining, cell = cells_of(train, kind, name, {"trial": number}, seed)
            shared, _ = cells_of(self._spec.trial_train, kind, name, {}, seed)
            if pretraining is not None and shared is not None and pretraining.id != shared.id:
                pretraining = replace(pretraining, variant=f"pretrain for {name}", grid={"trial": number})
            of_the_table, _ = cells_of(replace(train, test="end"), kind, name, {}, seed)
            if of_the_table is not None and self._ledger.find(of_the_table.id):  # its weights are the same
                pretraining, cell = of_the_table, replace(cell, depends_on=of_the_table.id)
            found.append((pretraining, cell))
        return found

    def enter(self, pairs: Sequence[Pair]) -> None:
        """Put cells into the ledger, and hand out the pretrainings that are missing."""
        for pretraining, cell in pairs:
            for one in (pretraining, cell):
                if one is not None:
                    self.add(one)
            if pretraining is not None and not self.is_over(pretraining):
                self.hand_out(WorkItem(pretraining))

    def add(self, cell: Cell) -> None:
        """Enter a cell that the ledger does not have."""
        if self._ledger.find(cell.id) is None:
            self._ledger.add(cell)

    def hand_out(self, item: WorkItem) -> None:
        """Queue a cell, unless it is out already."""
        if item.cell.id not in self._context.out:
            self._context.out.add(item.cell.id)
            self._ready.append(item)

    def is_over(self, cell: Cell) -> bool:
        return self._ledger.outcome(cell.id).state in ("done", "diverged")

    def any_done(self, cell_ids: Iterable[str]) -> bool:
        return any(self._ledger.outcome(cell_id).state == "done" for cell_id in cell_ids)

    def train(self, cells: Sequence[Cell]) -> bool:
        """Hand out the cells that are not over and have not failed; whether any of them is left to wait for."""
        left = [cell for cell in cells if cell.id not in self._context.failed and not self.is_over(cell)]
        for cell in left:
            self.hand_out(WorkItem(cell))
        return bool(left)

    def any_failed(self, cells: Iterable[Cell]) -> bool:
        return any(cell.id in self._context.failed for cell in cells)
