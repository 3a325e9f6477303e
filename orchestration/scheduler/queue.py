"""The cells that are left to train, in order: which is next, what it waits for, and what follows a death."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestration.spec.cells import Cell, WorkItem


class RunCallback(Protocol):
    """Hears of every event, in the driver's thread; `waits` says what the waiting cells wait for."""

    waits: Callable[[], dict[str, int]]

    def started(self, cell: Cell) -> None: ...
    def progressed(self, cell: Cell, step: int, of_steps: int, metrics: dict[str, float]) -> None: ...
    def retried(self, cell: Cell, reason: str) -> None: ...
    def noted(self, cell: Cell, note: str) -> None: ...
    def ended(self, cell: Cell, state: str, reason: str, log: str) -> None: ...


class WorkSource(Protocol):
    """Where more work comes from during a run: a search, which decides from finished cells what is next."""

    def more(self) -> Sequence[WorkItem]:
        """Work for a free worker; none: wait, or nothing is left (`finished`)."""
        ...

    def ended(self, cell: Cell, state: str, reason: str) -> None:
        """A cell that came from here is no longer trained: as ended, or `paused`."""
        ...

    @property
    def finished(self) -> bool: ...


@dataclass
class Queue:
    """What is left to do, in order: hands out cells, waits for pretrainings, hands a cell out again after a death.

    `max_concurrent` limits the cells that are out, `max_retries` how often a cell whose process died or ran out of
    memory is handed out again. A failed pretraining fails the cells that wait for it. Once the ledger could not be
    written to (`unwritable` says how), nothing more is handed out.

    Where all that is left waits, a `source` is asked for more, though only for a free worker: what it gives may hang on
    what runs.
    """

    cells: Iterable[Cell]
    callback: RunCallback
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
        self._pending = {cell.id for cell in self._waiting}
        self._failed: dict[str, tuple[str, str]] = {}
        self._deaths: dict[str, int] = {}
        self.unwritable = ""

    @property
    def finished(self) -> bool:
        left = self._waiting or self.expects_more
        return not self._out and (self.is_stopping or not left)

    @property
    def left(self) -> int:
        """How many of the cells that are known have not ended."""
        return len(self._pending)

    @property
    def is_stopping(self) -> bool:
        return bool(self.unwritable) or self.stopping()

    @property
    def expects_more(self) -> bool:
        """Whether cells may come of which nothing is known yet."""
        return self.source is not None and not self.source.finished

    def is_waiting(self, fits: Callable[[Cell], bool]) -> bool:
        """Whether a cell that `fits` is not out, ready or not."""
        return any(fits(cell) for cell in self._waiting)

    @property
    def ready(self) -> Iterator[Cell]:
        """The cells that could start now, in order."""
        return (cell for cell in self._waiting if cell.depends_on not in self._pending)

    @property
    def out(self) -> Iterator[Cell]:
        """The cells that are being trained."""
        return iter(self._out.values())

    def until(self, cell_id: str) -> int | None:
        """The step up to which a cell is trained now; None: to its end."""
        return self._until.get(cell_id)

    def waits(self) -> dict[str, int]:
        """What the waiting cells wait for, and how many do."""
        found: Counter[str] = Counter()
        for cell in list(self._waiting):  # what draws is another thread
            before = self.taken.get(cell.depends_on or "")
            found[before.label if before is not None and before.id in self._pending else "a free place"] += 1
        return dict(found)

    def take(self, fits: Callable[[Cell], bool] = lambda cell: True) -> Cell | None:
        """The next cell that can start now, for a free worker that it `fits`; None: wait, or nothing is left."""
        if self.is_stopping or (self.max_concurrent is not None and len(self._out) >= self.max_concurrent):
            return None
        cell = self._next(fits)
        if cell is None and self.source is not None and not any(self.ready):
            for item in self.source.more():
                self._add(item)
            cell = self._next(fits)
        if cell is not None:
            self._out[cell.id] = cell
            self.callback.started(cell)
        return cell

    def _add(self, item: WorkItem) -> None:
        cell = item.cell
        self._until[cell.id] = item.until
        self._sourced.add(cell.id)
        if cell.id not in self._pending:
            self._pending.add(cell.id)
            self._failed.pop(cell.id, None)
            self.taken[cell.id] = cell
            self._waiting.append(cell)
            self._fail_what_waits_for(cell.depends_on)

    def _next(self, fits: Callable[[Cell], bool]) -> Cell | None:
        # The first one that waits for nothing: among many thousands nearly always the very first.
        cell = next((cell for cell in self.ready if fits(cell)), None)
        if cell is not None:
            self._waiting.remove(cell)
        return cell

    def ended(self, cell_id: str, state: str, reason: str = "", log: str = "", blamed: bool = True) -> str | None:
        """Take a cell back: as ended, or as `retry` (its process died, say), which counts where the cell is to blame.

        Returns its final state; None where it is queued again.
        """
        cell = self._out.pop(cell_id)
        if state == "unwritable":
            state, self.unwritable = "interrupted", reason
        if state == "retry":
            if self.is_stopping:
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

    def _over(self, cell: Cell, state: str, reason: str, log: str) -> None:
        if state in ("failed", "diverged"):
            self._failed[cell.id] = state, reason
        if state != "interrupted":
            self._pending.discard(cell.id)
        self.callback.ended(cell, state, reason, log)
        if self.source is not None and cell.id in self._sourced and state != "interrupted":
            self.source.ended(cell, state, reason)
        self._fail_what_waits_for(cell.id)

    def _fail_what_waits_for(self, cell_id: str | None) -> None:
        if cell_id not in self._failed:
            return
        why = "its pretraining {}: {}".format(*self._failed[cell_id])
        for cell in [cell for cell in self._waiting if cell.depends_on == cell_id]:
            self._waiting.remove(cell)
            self._over(cell, "failed", why, "")
