"""A driver whose own Ray has died starts its program again in its place; the new process resumes from the ledger."""

import os
import sys
from contextlib import suppress

import psutil  # type: ignore[import-untyped]

from orchestration.commands.exit_status import FAILED, INTERRUPTED
from orchestration.commands.request import LaunchRequest
from orchestration.ledger import store
from orchestration.ledger.ledger import Ledger
from orchestration.util.clock import now_ms
from orchestration.util.user_code import environment_as_given

_DEATHS = "FSG_RAY_DEATHS"  # in the environment: how often Ray has died so far
MAX_DEATHS = 5


def restart_process(what: str, request: LaunchRequest, ledger: Ledger, number: int) -> None:
    """Replace this process after the death of one of Ray's, as a call to Ray might now wait for ever.

    Running cells resume from their checkpoints. After `MAX_DEATHS` deaths the launch ends, since the cause may return.
    A launch that was asked to stop has stopped: the signal went to Ray's processes, too.
    """
    children = psutil.Process().children(recursive=True)
    for process in children:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(children, timeout=10)  # or the program that takes this one's place would inherit them
    deaths = int(os.environ.get(_DEATHS, "0")) + 1
    stopped = store.exists(ledger.stop_file(number))  # asked last: the signal may reach Ray's processes before this one
    again = deaths <= MAX_DEATHS and not stopped
    status = INTERRUPTED if stopped else FAILED
    with suppress(OSError):
        ledger.record_launch_end(number, {"finished": now_ms(), "exit_status": status, "reason": f"{what} died"})
    how = "restarting from the ledger" if again else f"{deaths} times. To resume: {request.command}"
    restored = "\x1b[?25h\r\n" if request.console.is_terminal else ""  # the live view hides the cursor
    if stopped:
        os.write(2, f"{restored}Interrupted. To resume: {request.command}\n".encode())
    else:
        os.write(2, f"{restored}Ray's {what} died: {how}\n".encode())
    if not again:
        os._exit(status)
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            os.set_inheritable(int(name), int(name) <= 2)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment_as_given() | {_DEATHS: str(deaths)})
