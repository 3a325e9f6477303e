"""The progress of a launch: a live view in a terminal, plain lines elsewhere."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestration.ledger.outcome import Outcome
from orchestration.ledger.status import CellStatus
from orchestration.spec.cells import Cell, total_steps
from orchestration.util.duration import duration
from orchestration.util.terminal import EscapedText

logger = logging.getLogger(__name__)

HEARTBEAT = 60.0
_SHOWN = {"train/loss": "loss", "validation/accuracy": "val. acc.", "test/accuracy": "test acc."}
_STYLE = {"done": "green", "failed": "red", "diverged": "magenta", "interrupted": "yellow", "pruned": "cyan"}


@dataclass
class _Running:
    cell: Cell
    began: float
    first_step: int
    step: int
    of_steps: int
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def part(self) -> float:
        return self.step / self.of_steps if self.of_steps else 0.0


class Tally:
    """The counts behind both views, updated by events, and the time that is left."""

    def __init__(
        self, standings: Sequence[CellStatus], max_running: int = 1, clock: Callable[[], float] = time.monotonic
    ):
        # Cells that a search will find have no id yet.
        self.standings = {standing.cell.id or f"to come {n}": standing for n, standing in enumerate(standings)}
        self.max_running, self.clock = max_running, clock
        self.began = clock()
        self.running: dict[str, _Running] = {}
        self.states: Counter[str] = Counter(standing.outcome.state for standing in standings if standing.over)
        self.failed: list[tuple[Cell, str, str]] = []
        self.over = {standing.cell.id for standing in standings if standing.over}
        self.stopping = False
        self.phase = "starting Ray"
        self.waits: Callable[[], dict[str, int]] = dict
        self._pace: dict[str, tuple[int, float]] = {}
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
        self.running[cell.id] = _Running(cell, self.clock(), step, step, standing.steps)

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
        run.step, run.of_steps, run.metrics = step, of_steps, metrics

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
            steps, seconds = self._pace.get(cell.variant, (0, 0.0))
            trained = max(run.of_steps - run.first_step, 1)
            self._pace[cell.variant] = (steps + trained, seconds + self.clock() - run.began)
        if state == "interrupted":
            return
        self.states[state] += 1
        self.over.add(cell.id)
        if state == "failed":
            self.failed.append((cell, reason, log))

    def concluded(self) -> bool:
        """Whether there were cells that a search had made us expect, and that will not come: they count no more."""
        missing, self._expected = self._expected, []
        for key in missing:
            del self.standings[key]
        return bool(missing)

    def left(self) -> float | None:
        """Seconds until all is done, from the pace so far; None before there is any."""
        pace = dict(self._pace)
        for run in list(self.running.values()):  # what draws is another thread
            if run.step > run.first_step and run.cell.variant not in pace:
                pace[run.cell.variant] = (run.step - run.first_step, self.clock() - run.began)
        if not pace:
            return None
        typical = sum(seconds for _, seconds in pace.values()) / sum(steps for steps, _ in pace.values())
        seconds, longest = 0.0, 0.0
        for cell_id, standing in self.standings.items():
            if cell_id in self.over:
                continue
            steps, took = pace.get(standing.cell.variant, (1, typical))
            runs = self.running.get(cell_id)
            at = standing.outcome.step if runs is None else runs.step
            own = max(standing.steps - at, 0) * took / steps
            seconds, longest = seconds + own, max(longest, own)
        return max(seconds / self.max_running, longest)


class _TallyView:
    """What both views pass on to their tally."""

    tally: Tally

    @property
    def waits(self) -> Callable[[], dict[str, int]]:
        return self.tally.waits

    @waits.setter
    def waits(self, waits: Callable[[], dict[str, int]]) -> None:
        self.tally.waits = waits

    def pruned(self, cells: Sequence[Cell]) -> None:
        self.tally.pruned(cells)

    def concluded(self) -> None:
        """All is done."""
        self.tally.concluded()


class LiveView(_TallyView):
    """A view that is drawn over and over, at the bottom of a terminal."""

    def __init__(self, tally: Tally, name: str, console: Console) -> None:
        self.tally, self.name, self.console = tally, name, console

    def started(self, cell: Cell) -> None:
        self.tally.started(cell)

    def progressed(self, cell: Cell, step: int, of_steps: int, metrics: dict[str, float]) -> None:
        self.tally.progressed(cell, step, of_steps, metrics)

    def retried(self, cell: Cell, reason: str) -> None:
        self.tally.retried(cell, reason)
        self.message(f"{cell.label} is retried: {reason}")

    def noted(self, cell: Cell, note: str) -> None:
        self.message(f"{cell.label}: {note}")

    def ended(self, cell: Cell, state: str, reason: str, log: str) -> None:
        self.tally.ended(cell, state, reason, log)

    def message(self, text: str) -> None:
        self.console.print(Text(text, style="yellow"), soft_wrap=True)

    def stopping(self) -> None:
        self.tally.stopping = True

    @contextmanager
    def display(self) -> Iterator[None]:
        """Draw until the block is left."""
        with Live(
            get_renderable=self.draw, console=self.console, refresh_per_second=4, transient=True, redirect_stdout=False
        ):
            yield

    def draw(self) -> RenderableType:
        tally, height = self.tally, self.console.height
        width = self.console.width
        runs = list(tally.running.values())[: max(1, height - 10)]
        parts: list[RenderableType] = [self._head(), Text("")]
        if runs:
            parts.append(self._table(runs, width))
        hidden = len(tally.running) - len(runs)
        if hidden:
            parts.append(Text(f"and {hidden} more running", style="dim"))
        waits = [f"{count} for {what}" for what, count in sorted(tally.waits().items(), key=lambda one: -one[1])]
        if waits:
            more = f" and {len(waits) - 3} more" if len(waits) > 3 else ""
            line = Text(f"waiting: {', '.join(waits[:3])}{more}", style="dim", no_wrap=True, overflow="ellipsis")
            parts.append(line)
        for cell, reason, _ in tally.failed[-2:]:
            line = Text.assemble(("failed  ", "red"), cell.label, "  ", (reason, "dim"))
            line.truncate(width - 1, overflow="ellipsis")
            parts.append(line)
        hint = "stopping: each running cell keeps a checkpoint; press Ctrl-C again to end at once"
        hint = hint if tally.stopping else "Ctrl-C stops at a checkpoint; the same command resumes"
        parts += [Text(""), Text(hint, style="yellow" if tally.stopping else "dim", no_wrap=True, overflow="ellipsis")]
        return EscapedText(Group(*parts))

    def _head(self) -> RenderableType:
        tally = self.tally
        left = tally.left()
        counts = [
            f"{tally.states['done']}/{tally.total} done",
            f"{len(tally.running)} running",
            f"{tally.waiting} waiting",
        ]
        counts += [tally.phase] if tally.phase else []
        shown = ("failed", "diverged", "pruned")
        counts += [f"[{_STYLE[s]}]{tally.states[s]} {s}[/]" for s in shown if tally.states[s]]
        times = f"{duration(tally.clock() - tally.began)} gone"
        times += f", about {duration(left)} left" if left is not None else ""
        total = len(tally.over) + sum(run.part for run in list(tally.running.values()))
        head = Table.grid(padding=(0, 2), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        head.add_row(f"[bold]{escape(self.name)}[/]", ProgressBar(total=max(tally.total, 1), completed=total), times)
        return Group(head, _one_line("  ".join(counts)))

    def _table(self, runs: Sequence[_Running], width: int) -> Table:
        wide = width >= 60
        shown = [name for name in _SHOWN if wide and any(name in run.metrics for run in runs)]
        table = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="dim")
        table.add_column("running", ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column("", width=0 if not wide else 12 if width < 90 else 20)
        table.add_column("step", justify="right", no_wrap=True)
        for name in shown:
            table.add_column(_SHOWN[name], justify="right", no_wrap=True)
        for run in runs:
            bar = ProgressBar(total=max(run.of_steps, 1), completed=run.step)
            values = [_metric(name, run.metrics.get(name)) for name in shown]
            table.add_row(escape(run.cell.label), bar, f"{run.step}/{run.of_steps}", *values)
        return table


class PlainLines(_TallyView):
    """A line for each cell that ends, and at most one a minute besides."""

    def __init__(self, tally: Tally, name: str, console: Console) -> None:
        self.tally, self.name, self.console = tally, name, console
        self._spoke = tally.clock()

    def started(self, cell: Cell) -> None:
        self.tally.started(cell)

    def progressed(self, cell: Cell, step: int, of_steps: int, metrics: dict[str, float]) -> None:
        self.tally.progressed(cell, step, of_steps, metrics)
        if self.tally.clock() - self._spoke >= HEARTBEAT:
            runs = (f"{run.cell.label} at step {run.step}/{run.of_steps}" for run in self.tally.running.values())
            self.message(f"{self._counts()}; running: {', '.join(list(runs)[:4])}")

    def retried(self, cell: Cell, reason: str) -> None:
        self.tally.retried(cell, reason)
        self.message(f"{cell.label} is retried: {reason}")

    def noted(self, cell: Cell, note: str) -> None:
        self.message(f"{cell.label}: {note}")

    def ended(self, cell: Cell, state: str, reason: str, log: str) -> None:
        run = self.tally.running.get(cell.id)
        self.tally.ended(cell, state, reason, log)
        if state in ("interrupted", "paused"):
            return
        said = [f"{_SHOWN[n]} {_metric(n, run.metrics[n])}" for n in _SHOWN if run and n in run.metrics]
        seconds = [duration(self.tally.clock() - run.began)] if run else []
        detail = ", ".join(([reason] if reason else said) + seconds)
        self.message(f"{state:<11} {cell.label}  ({detail})  {self._counts()}")

    def message(self, text: str) -> None:
        self._spoke = self.tally.clock()
        stamp = time.strftime("%H:%M:%S")
        self.console.print(f"{stamp}  {text}", markup=False, highlight=False, soft_wrap=True)

    def pruned(self, cells: Sequence[Cell]) -> None:
        super().pruned(cells)
        self.message(f"{'pruned':<11} {cells[0].name}  {self._counts()}")

    def concluded(self) -> None:
        if self.tally.concluded():
            self.message(f"{self.name}: {self._counts()}")

    def stopping(self) -> None:
        self.tally.stopping = True
        self.message("stopping: each running cell keeps a checkpoint; press Ctrl-C again to end at once")

    @contextmanager
    def display(self) -> Iterator[None]:
        self.message(f"{self.name}: {self._counts()}")
        yield

    def _counts(self) -> str:
        left = self.tally.left()
        about = f", about {duration(left)} left" if left is not None and len(self.tally.over) < self.tally.total else ""
        return f"{len(self.tally.over)}/{self.tally.total} cells{about}"


def _one_line(markup: str) -> Text:
    text = Text.from_markup(markup)
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def view_for(standings: Sequence[CellStatus], name: str, max_running: int, console: Console) -> LiveView | PlainLines:
    """The view that suits where it is shown."""
    tally = Tally(standings, max_running)
    return LiveView(tally, name, console) if console.is_terminal else PlainLines(tally, name, console)


def _metric(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f} %" if name.endswith("accuracy") else f"{value:.3f}"
