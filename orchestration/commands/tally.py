"""What is done of a launch, what runs, and how long the rest will take: the counts behind every view."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from orchestration.ledger.outcome import Outcome
from orchestration.ledger.status import CellStatus
from orchestration.spec.cells import Cell, total_steps

logger = logging.getLogger(__name__)

_WARNINGS = 2  # that are kept in sight


@dataclass
class Running:
    """A training that runs: at `step`, as was said `at` a time; its pace is counted `since` a time and a step."""

    cell: Cell
    began: float
    first_step: int
    of_steps: int
    step: int = field(init=False)
    at: float = field(init=False)
    since: tuple[float, int] = field(init=False)
    metrics: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.step, self.at, self.since = self.first_step, self.began, (self.began, self.first_step)

    def reached(self, step: int, now: float) -> None:
        """The second report begins the count anew at the first: what was before is how long it took to start."""
        if step > self.step > self.first_step == self.since[1]:
            self.since = (self.at, self.step)
        self.step, self.at = step, now

    @property
    def part(self) -> float:
        return self.step / self.of_steps if self.of_steps else 0.0

    @property
    def trained(self) -> tuple[int, float]:
        """Steps, and the seconds that they took."""
        return self.step - self.since[1], self.at - self.since[0]

    @property
    def pace(self) -> float | None:
        """Seconds a step; None before the first."""
        steps, seconds = self.trained
        return seconds / steps if steps > 0 else None


class Tally:
    """The counts behind both views, updated by events, and the time that is left."""

    def __init__(
        self, standings: Sequence[CellStatus], max_running: int = 1, clock: Callable[[], float] = time.monotonic
    ):
        # Cells that a search will find have no id yet.
        self.standings = {standing.cell.id or f"to come {n}": standing for n, standing in enumerate(standings)}
        self.max_running, self.clock = max_running, clock
        self.began = clock()
        self.running: dict[str, Running] = {}
        self.states: Counter[str] = Counter(standing.outcome.state for standing in standings if standing.over)
        self.failed: list[tuple[Cell, str, str]] = []
        self.over = {standing.cell.id for standing in standings if standing.over}
        self.stopping = False
        self.phase = "starting Ray"
        self.waits: Callable[[], dict[str, int]] = dict
        self.interim = ""  # the comparison so far
        self.compare: Callable[[], str] = str
        self.warnings: deque[str] = deque(maxlen=_WARNINGS)
        self._pace: dict[str, list[tuple[int, float]]] = {}  # steps and seconds of each training, by variant
        self._expected = [cell_id for cell_id, one in self.standings.items() if not one.cell.id]

    @property
    def total(self) -> int:
        return len(self.standings)

    @property
    def waiting(self) -> int:
        return self.total - len(self.over) - len(self.running)

    def started(self, cell: Cell) -> None:
        self.phase = ""
        standing = self.standings.get(cell.id) or self._arrived(cell)
        step = standing.outcome.step
        logger.info("%s (%s) started at step %d", cell.label, cell.id, step)
        self.running[cell.id] = Running(cell, self.clock(), step, standing.steps)

    def _arrived(self, cell: Cell) -> CellStatus:
        """A cell that a search has found takes the place of one that was expected."""
        like = (key for key in self._expected if self.standings[key].cell.kind == cell.kind)
        place = next((key for key in like if self.standings[key].cell.variant == cell.variant), None)
        expected = self.standings.pop(place) if place else None
        if place:
            self._expected.remove(place)
        steps, seconds = (expected.steps, expected.seconds) if expected else (total_steps(cell), None)
        self.standings[cell.id] = CellStatus(cell, Outcome("waiting"), steps, seconds)
        return self.standings[cell.id]

    def progressed(self, cell: Cell, step: int, of_steps: int, metrics: dict[str, float]) -> None:
        run = self.running[cell.id]
        run.reached(step, self.clock())
        run.of_steps, run.metrics = of_steps, metrics

    def retried(self, cell: Cell, reason: str) -> None:
        self.running.pop(cell.id, None)
        logger.info("%s (%s) is retried: %s", cell.label, cell.id, reason)

    def paused(self, cell: Cell) -> None:
        """A trial's cell is as far as it may go for now."""
        run = self.running.pop(cell.id, None)
        if run is not None:
            standing = self.standings[cell.id]
            self.standings[cell.id] = replace(standing, outcome=replace(standing.outcome, step=run.step))

    def pruned(self, cells: Sequence[Cell]) -> None:
        """A search has stopped a trial."""
        for cell in cells:
            if cell.id not in self.over:
                if cell.id not in self.standings:
                    self._arrived(cell)
                self.states["pruned"] += 1
                self.over.add(cell.id)

    def ended(self, cell: Cell, state: str, reason: str, log: str) -> None:
        logger.info("%s (%s) is %s%s", cell.label, cell.id, state, f": {reason}" if reason else "")
        if state == "paused":
            self.paused(cell)
            return
        run = self.running.pop(cell.id, None)
        if cell.id not in self.standings:
            self._arrived(cell)
        if run is not None and state == "done":
            self.took(cell, max(run.of_steps - run.first_step, 1), self.clock() - run.began)
        if state == "interrupted":
            return
        self.states[state] += 1
        self.over.add(cell.id)
        self.interim = self.compare()
        if state == "failed":
            self.failed.append((cell, reason, log))

    def concluded(self) -> bool:
        """Whether there were cells that a search had made us expect, and that will not come: they count no more."""
        missing, self._expected = self._expected, []
        for key in missing:
            del self.standings[key]
        return bool(missing)

    def took(self, cell: Cell, steps: int, seconds: float) -> None:
        """How long some steps of a cell have taken."""
        self._pace.setdefault(cell.variant, []).append((steps, seconds))

    def left(self) -> float | None:
        """Seconds until all is done, from the pace so far; None before there is any."""
        return self._left(lambda seen: sum(seconds for _, seconds in seen) / sum(steps for steps, _ in seen))

    def spread(self) -> tuple[float, float] | None:
        """The same, were all the rest as fast as the fastest training of its variant so far, and as the slowest."""
        fast = self._left(lambda seen: min(seconds / steps for steps, seconds in seen))
        slow = self._left(lambda seen: max(seconds / steps for steps, seconds in seen))
        return None if fast is None or slow is None else (fast, slow)

    def _left(self, pace_of: Callable[[Sequence[tuple[int, float]]], float]) -> float | None:
        seen = {variant: list(found) for variant, found in self._pace.items()}
        for run in list(self.running.values()):  # what draws is another thread
            if run.pace is not None and run.cell.variant not in self._pace:
                seen.setdefault(run.cell.variant, []).append(run.trained)
        if not seen:
            return None
        pace = {variant: pace_of(found) for variant, found in seen.items()}
        typical = pace_of([one for found in seen.values() for one in found])
        seconds, longest = 0.0, 0.0
        for cell_id, standing in list(self.standings.items()):
            if cell_id in self.over:
                continue
            runs = self.running.get(cell_id)
            at = standing.outcome.step if runs is None else runs.step
            own = max(standing.steps - at, 0) * pace.get(standing.cell.variant, typical)
            seconds, longest = seconds + own, max(longest, own)
        return max(seconds / self.max_running, longest)
