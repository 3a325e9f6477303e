"""`fsg report`: write the report of an experiment from its ledger."""

import sys
from pathlib import Path

from orchestration.commands.exit_status import BAD_INPUT, DONE
from orchestration.ledger.ledger import Ledger
from orchestration.report.data import build
from orchestration.report.tables import terminal_table
from orchestration.report.write import write
from orchestration.util import terminal
from orchestration.util.error_text import first_line


def report(folder: Path) -> int:
    """Write and print the report of an experiment's folder. Returns the exit status."""
    try:
        built = build(Ledger(folder))
    except (OSError, ValueError) as error:
        print(first_line(error), file=sys.stderr)
        return BAD_INPUT
    paths = write(built)
    console = terminal.console()
    console.print(terminal_table(built))
    for path in paths:
        if path.parent == built.folder:
            console.print(str(path), soft_wrap=True, highlight=False)
    return DONE
