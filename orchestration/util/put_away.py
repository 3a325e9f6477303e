"""A process of its own that `scratch` starts: once the owner of a folder has ended, it puts away what is left of it.

However the owner ended: its end of the pipe that this process reads from is closed by the kernel. What is left are the
processes whose environment names the folder, and the folder. Run by its path; it imports the standard library alone.
"""

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

OWNER = "fsg.owner"  # in a folder that is removed with its owner
_PAUSE, _QUIET, _PATIENCE = 0.2, 3, 40  # seconds between two looks; looks in a row that find nothing; looks at most


def processes_with(folder: Path) -> list[int]:
    """The ids of the processes that were started with a folder's path in their environment, this one left out."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # over, or somebody else's
            number = int(environment.parent.name)
            if number != os.getpid() and os.fsencode(folder) in environment.read_bytes():
                found.append(number)
    return found


def put_away(folder: Path) -> None:
    """End those processes, also ones that others of them start meanwhile, and remove the folder if it has an owner."""
    quiet = 0
    for _ in range(_PATIENCE):
        left = processes_with(folder)
        for number in left:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        quiet = 0 if left else quiet + 1
        if quiet == _QUIET:
            break
        time.sleep(_PAUSE)
    if (folder / OWNER).exists():
        shutil.rmtree(folder, ignore_errors=True)


def main(folder: Path) -> None:
    """Wait for the end of the owner, who may outlive this process's parent; no signal that stops the owner counts."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.fork():
        return
    sys.stdin.buffer.read()
    put_away(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
