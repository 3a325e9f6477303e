"""The progress of a launch: a live view in a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from orchestration.commands.picture import SHOWN, metric_text, picture, time_left
from orchestration.commands.tally import Tally
from orchestration.ledger.status import CellStatus
from orchestration.spec.cells import Cell
from orchestration.util.duration import duration

HEARTBEAT = 60.0


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
        self.tally.warnings.append(text)
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
        stopping = "stopping: each running cell keeps a checkpoint; press Ctrl-C again to end at once"
        hint = Text("Ctrl-C stops at a checkpoint; the same command resumes", style="dim")
        hint = Text(stopping, style="yellow") if self.tally.stopping else hint
        return picture(self.tally, self.name, self.console.width, self.console.height, hint)


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
        before = self.tally.interim
        self.tally.ended(cell, state, reason, log)
        if state in ("interrupted", "paused"):
            return
        said = [f"{SHOWN[n]} {metric_text(n, run.metrics[n])}" for n in SHOWN if run and n in run.metrics]
        seconds = [duration(self.tally.clock() - run.began)] if run else []
        detail = ", ".join(([reason] if reason else said) + seconds)
        self.message(f"{state:<11} {cell.label}  ({detail})  {self._counts()}")
        if self.tally.interim not in ("", before):
            self.message(self.tally.interim)

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
        left = time_left(self.tally)
        return f"{len(self.tally.over)}/{self.tally.total} cells" + (f", {left}" if left else "")


def view_for(standings: Sequence[CellStatus], name: str, max_running: int, console: Console) -> LiveView | PlainLines:
    """The view that suits where it is shown."""
    tally = Tally(standings, max_running)
    return LiveView(tally, name, console) if console.is_terminal else PlainLines(tally, name, console)
