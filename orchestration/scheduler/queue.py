"""What is left to do, in order: which cell goes out next, what it waits for, and what becomes of it after a death."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestration.spec.cells import Cell, WorkItem


class RunCallback(Protocol):
    """Who is told what happens, in the driver's thread; `waits` says what the waiting cells wait for."""

    waits: Callable[[], dict[str, int]]

    def started(self, cell: Cell) -> None: ...
    def progressed(self, cell: Cell, step: int, of_steps: int, metrics: dict[str, float]) -> None: ...
    def retried(self, cell: Cell, reason: str) -> None: ...
    def noted(self, cell: Cell, note: str) -> None: ...
    def ended(self, cell: Cell, state: str, reason: str, log: str) -> None: ...


class WorkSource(Protocol):
    """What finds work while others are at work: a search, which decides from what is over what comes next."""

    def more(self) -> Sequence[WorkItem]:
        """Work for a free place; none: wait, or nothing is left (`finished`)."""
        ...

    def ended(self, cell: Cell, state: str, reason: str) -> None:
        """A cell that came from here is no longer trained: as ended, or `paused`."""
        ...

    @property
    def finished(self) -> bool: ...


@dataclass
class Queue:
    """What is left to do, in order: hands out cells, waits for pretrainings, hands a cell out again after a death.

    About `max_running` cells fit: so many are handed out at once, then one ahead of those that run, since among several
    Tune would choose. `max_concurrent` limits the cells that are out, `max_retries` how often a cell whose process died
    or ran out of memory is handed out again. A failed pretraining fails the cells that wait for it. Once the ledger
    could not be written to (`unwritable` says how), nothing more is handed out.

    Where all that is left waits, a `source` is asked for more, though never ahead: what it gives may hang on what runs.
    """

    cells: Iterable[Cell]
    callback: RunCallback
    max_running: int = 1
    max_concurrent: int | None = None
    max_retries: int = 3
    stopping: Callable[[], bool] = lambda: False
    source: WorkSource | None = None

    def __post_init__(self) -> None:
        self._waiting = deque(self.cells)
        self.taken: dict[str, Cell] = {cell.id: cell for cell in self._waiting}
        self._until: dict[str, int | None] = {}
        self._sourced: set[str] = set()
        self._out: dict[str, Cell] = {}
        self._running: set[str] = set()
        self._pending = {cell.id for cell in self._waiting}
        self._failed: dict[str, tuple[str, str]] = {}
        self._deaths: dict[str, int] = {}
        self.unwritable = ""

    @property
    def finished(self) -> bool:
        left = self._waiting or (self.source is not None and not self.source.finished)
        return not self._out and (self._is_stopping() or not left)

    def until(self, cell_id: str) -> int | None:
        """The step up to which a cell is to be trained now; None: to its end."""
        return self._until.get(cell_id)

    def waits(self) -> dict[str, int]:
        """What the waiting cells wait for, and how many do."""
        found: Counter[str] = Counter()
        for cell in list(self._waiting):  # what draws is another thread
            before = self.taken.get(cell.depends_on or "")
            found[before.label if before is not None and before.id in self._pending else "a free place"] += 1
        return dict(found)

    def take(self) -> Cell | None:
        """The next cell that can start now; None: wait, or nothing is left (`finished`)."""
        ahead = len(self._out) - len(self._running)
        if self._is_stopping() or ahead >= max(1, self.max_running - len(self._running)):
            return None
        if self.max_concurrent is not None and len(self._out) >= self.max_concurrent:
            return None
        cell = self._next()
        if cell is None and self.source is not None and len(self._out) < self.max_running:
            for leg in self.source.more():
                self._add(leg)
            cell = self._next()
        return cell

    def _add(self, leg: WorkItem) -> None:
        cell = leg.cell
        self._until[cell.id] = leg.until
        self._sourced.add(cell.id)
        if cell.id not in self._pending:
            self._pending.add(cell.id)
            self._failed.pop(cell.id, None)
            self._waiting.append(cell)
            self.taken[cell.id] = cell

    def _next(self) -> Cell | None:
        while True:
            # The first one that waits for nothing: among many thousands nearly always the very first.
            cell = next((cell for cell in self._waiting if cell.depends_on not in self._pending), None)
            if cell is None:
                return None
            self._waiting.remove(cell)
            if cell.depends_on not in self._failed:
                self._out[cell.id] = cell
                return cell
            self._over(cell, "failed", "its pretraining {}: {}".format(*self._failed[cell.depends_on]), "")

    def started(self, cell_id: str) -> None:
        """A cell that was taken has a worker."""
        self._running.add(cell_id)
        self.callback.started(self._out[cell_id])

    def ended(self, cell_id: str, state: str, reason: str = "", log: str = "", blamed: bool = True) -> str | None:
        """Take a cell back: as ended, or as `again` (its process died, say), which counts where it is to blame.

        Returns its final state; None where it goes out once more.
        """
        cell = self._out.pop(cell_id)
        self._running.discard(cell_id)
        if state == "unwritable":
            state, self.unwritable = "interrupted", reason
        if state == "retry":
            if self._is_stopping():
                state = "interrupted"
            else:
                deaths = self._deaths[cell_id] = self._deaths.get(cell_id, 0) + blamed
                if deaths <= self.max_retries:
                    self._waiting.appendleft(cell)
                    self.callback.retried(cell, reason)
                    return None
                state, reason = "failed", f"{reason} ({deaths} times)"
        self._over(cell, state, reason, log)
        return state

    def why_failed(self, cell_id: str) -> str:
        """The reason of a cell that has failed or diverged."""
        return self._failed[cell_id][1]

    def _is_stopping(self) -> bool:
        return bool(self.unwritable) or self.stopping()

    def _over(self, cell: Cell, state: str, reason: str, log: str) -> None:
        if state in ("failed", "diverged"):
            self._failed[cell.id] = state, reason
        if state != "interrupted":
            self._pending.discard(cell.id)
        self.callback.ended(cell, state, reason, log)
        if self.source is not None and cell.id in self._sourced and state != "interrupted":
            self.source.ended(cell, state, reason)
