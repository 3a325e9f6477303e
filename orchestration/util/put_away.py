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
KEEP = b"keep"  # what an owner says that leaves its folder there
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


def put_away(folder: Path, remove: bool = True) -> None:
    """End those processes, also ones that others of them start meanwhile, and then remove the folder.

    The owner may have removed it before: until they have ended, those processes may have made it again.
    """
    quiet = 0
    for _ in range(_PATIENCE):
        left = processes_with(folder)
        for number in left:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        quiet = 0 if left else quiet + 1
        if quiet >= _QUIET:
            if remove:
                shutil.rmtree(folder, ignore_errors=True)
            if not remove or not folder.exists():
                break
        time.sleep(_PAUSE)


def main(folder: Path, stays: bool) -> None:
    """Wait for the end of the owner, away from its parent unless it stays; no signal that stops the owner counts."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if not stays and os.fork():
        return
    put_away(folder, remove=sys.stdin.buffer.read() != KEEP)


if __name__ == "__main__":
    main(Path(sys.argv[1]), stays="--stay" in sys.argv)
