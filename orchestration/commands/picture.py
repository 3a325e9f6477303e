"""What a person asks of a launch that runs, as a picture for a terminal so wide and so high."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestration.commands.tally import Running, Tally
from orchestration.util.duration import duration
from orchestration.util.terminal import EscapedText

SHOWN = {"train/loss": "loss", "validation/accuracy": "val. acc.", "test/accuracy": "test acc."}
_STYLE = {"failed": "red", "diverged": "magenta", "pruned": "cyan"}
_FAILED = 2  # whose reasons are in sight


def picture(tally: Tally, name: str, width: int, height: int, hint: Text) -> RenderableType:
    """What is done, what runs and what it waits for, how long it takes, how it looks so far; at most `height` lines."""
    above: list[RenderableType] = [_head(tally, name), _counts(tally), _one_line(times(tally)), Text("")]
    below = [*_below(tally, width)]
    running = list(tally.running.values())
    room = height - len(above) - len(below) - 4  # the table's header, how many are hidden, a blank line, the hint
    if room < 1:
        below, room = below[: max(0, len(below) - 1 + room)], 1
    parts = [*above, *([_table(running[:room], width)] if running else [])]
    if len(running) > room:
        parts.append(_one_line(f"and {len(running) - room} more running", "dim"))
    hint.no_wrap, hint.overflow = True, "ellipsis"
    apart = [Text("")] if running or below else []
    return EscapedText(Group(*parts, *below, *apart, hint))


def times(tally: Tally) -> str:
    """`3 min gone, about 12 min left (10 min to 15 min)`: with the rest as fast as the fastest, and as the slowest."""
    gone = f"{duration(tally.clock() - tally.began)} gone"
    return ", ".join([gone, *([left] if (left := time_left(tally)) else [])])


def time_left(tally: Tally) -> str:
    left, spread = tally.left(), tally.spread()
    if left is None or spread is None or len(tally.over) >= tally.total:
        return ""
    low, high = map(duration, spread)
    return f"about {duration(left)} left" + (f" ({low} to {high})" if low != high else "")


def metric_text(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{100 * value:.1f} %" if name.endswith("accuracy") else f"{value:.3f}"


def _head(tally: Tally, name: str) -> RenderableType:
    total = len(tally.over) + sum(run.part for run in list(tally.running.values()))
    head = Table.grid(padding=(0, 2), expand=True)
    head.add_column(no_wrap=True, overflow="ellipsis")
    head.add_column(ratio=1)
    head.add_column(no_wrap=True, justify="right")
    bar = ProgressBar(total=max(tally.total, 1), completed=total)
    head.add_row(f"[bold]{escape(name)}[/]", bar, f"{tally.states['done']}/{tally.total} done")
    return head


def _counts(tally: Tally) -> Text:
    counts = [f"{len(tally.running)} running", f"{tally.waiting} waiting", *([tally.phase] if tally.phase else [])]
    text = Text("  ".join(counts), no_wrap=True, overflow="ellipsis")
    for state, style in _STYLE.items():
        if tally.states[state]:
            text.append(f"  {tally.states[state]} {state}", style)
    return text


def _below(tally: Tally, width: int) -> Sequence[RenderableType]:
    """The most important first: where there is no room for all, the last are left out."""
    lines = []
    waits = [f"{count} for {what}" for what, count in sorted(tally.waits().items(), key=lambda one: -one[1])]
    if waits:
        more = f" and {len(waits) - 3} more" if len(waits) > 3 else ""
        lines.append(_one_line(f"waiting: {', '.join(waits[:3])}{more}", "dim"))
    if tally.interim:
        lines.append(_one_line(tally.interim))
    for cell, reason, _ in tally.failed[-_FAILED:]:
        lines.append(Text.assemble(("failed   ", "red"), cell.label, "  ", (reason, "dim")))
    lines += [Text.assemble(("warning  ", "yellow"), warning) for warning in tally.warnings]
    for line in lines:
        line.truncate(width - 1, overflow="ellipsis")
    return lines


def _table(runs: Sequence[Running], width: int) -> Table:
    wide = width >= 60
    shown = [name for name in SHOWN if wide and any(name in run.metrics for run in runs)]
    table = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="dim")
    table.add_column("running", ratio=1, no_wrap=True, overflow="ellipsis")
    if width >= 90:
        table.add_column("", width=20)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("s a step", justify="right", no_wrap=True)
    for name in shown:
        table.add_column(SHOWN[name], justify="right", no_wrap=True)
    for run in runs:
        bar = [ProgressBar(total=max(run.of_steps, 1), completed=run.step)] if width >= 90 else []
        values = [metric_text(name, run.metrics.get(name)) for name in shown]
        took = "" if run.pace is None else f"{run.pace:.3g}"
        table.add_row(escape(run.cell.label), *bar, f"{run.step}/{run.of_steps}", took, *values)
    return table


def _one_line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
