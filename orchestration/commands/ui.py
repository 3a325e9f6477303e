"""`fsg ui`: an experiment in MLflow."""

import sys
from pathlib import Path

from orchestration.commands.exit_status import BAD_INPUT
from orchestration.tracking import server
from orchestration.util.passwords import hide_passwords


def ui(folder: Path, tracking_uri: str | None, port: int, browser: bool) -> int:
    """Serve an experiment in MLflow until interrupted. Returns the exit status."""
    try:
        return server.show(folder, tracking_uri, port, browser, lambda line: print(line, flush=True))
    except (OSError, ValueError) as error:
        print(hide_passwords(str(error), tracking_uri), file=sys.stderr)
        return BAD_INPUT
