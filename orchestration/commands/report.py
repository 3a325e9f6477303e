"""`fsg report`: write the report of an experiment from its ledger."""

import sys
from pathlib import Path

from orchestration.commands.exit_status import BAD_INPUT, DONE
from orchestration.report.make import make
from orchestration.util import terminal
from orchestration.util.error_text import first_line


def report(folder: Path) -> int:
    """Print the report of an experiment's folder, and write it where it has changed. Returns the exit status."""
    console = terminal.console()
    try:
        paths = make(folder, console)
    except (OSError, ValueError) as error:
        print(first_line(error), file=sys.stderr)
        return BAD_INPUT
    for path in paths:
        if path.parent == folder:
            console.print(str(path), soft_wrap=True, highlight=False)
    return DONE
