"""The report of an experiment, made where it does not show what the ledger has yet; and its table on a terminal."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from orchestration.ledger import store
from orchestration.report import stamp
from orchestration.report.stamp import Stamp
from orchestration.util.terminal import EscapedText

if TYPE_CHECKING:
    from orchestration.report.data import Report


def make(folder: Path, console: Console) -> list[Path]:
    """Print the table of an experiment's folder; returns the files of its report.

    Raises ValueError where nothing was ever launched.
    """
    found = stamp.current(folder)
    if found is None:
        found = _made(folder, console.width)
    table = found.table if found.width == console.width else _table(_built(folder), console.width)
    console.print(Text.from_ansi(table), soft_wrap=True)
    return [folder / name for name in found.files]


def _made(folder: Path, width: int) -> Stamp:
    from orchestration.report.write import write  # start-up time

    remote = store.is_remote(folder)
    inputs = "" if remote else stamp.inputs(folder)  # before it is read: what comes meanwhile makes another digest
    report = _built(folder)
    paths = write(report)
    sizes = {path.relative_to(folder).as_posix(): 0 if remote else path.stat().st_size for path in paths}
    found = Stamp(inputs, sizes, _table(report, width), width)
    if not remote and all(trial.state in ("done", "diverged", "failed") for trial in report.trials):
        found.save(folder)  # what is not over may be found interrupted without a change of any file
    return found


def _built(folder: Path) -> "Report":
    from orchestration.ledger.ledger import Ledger  # start-up time
    from orchestration.report.data import build  # start-up time

    return build(Ledger(folder))


def _table(report: "Report", width: int) -> str:
    """With its styles, for a terminal so wide."""
    from orchestration.report.tables import terminal_table  # start-up time

    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=width)
    with console.capture() as shown:
        console.print(EscapedText(terminal_table(report)))
    return shown.get().rstrip("\n")
