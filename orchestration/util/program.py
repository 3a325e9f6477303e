"""How a program of this project begins, before any library is imported: its descriptors, paths, signals and output.

Nothing but the standard library is imported here.
"""

import atexit
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterable
from types import TracebackType

from orchestration.util.user_code import take_off_users_folders

AT_WORK = "MLflow"  # the name of threads that the end of a program does not wait for
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def begin(words: Iterable[str]) -> None:
    """Make this process one that its surroundings cannot break; `words` are those of its command."""
    gc.set_threshold(100_000, 50, 100)  # libraries make a million objects that stay: to look through them takes long
    atexit.register(gc.freeze)  # and what goes with the process need not be looked through at its end
    _open_missing_descriptors()
    take_off_users_folders(words)
    os.environ["PYTHONIOENCODING"] = os.environ.get("PYTHONIOENCODING", "").partition(":")[0] + ":replace"
    for number in stops():
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    sys.excepthook, sys.unraisablehook = _told_in_a_line, _ignored_where_nobody_can_hear


def leave(status: int) -> None:
    """End the program. A thread that is still at work must not meet an interpreter that is taken down around it."""
    if any(thread.name == AT_WORK for thread in threading.enumerate()):
        os._exit(status)
    sys.exit(status)


def stops() -> list[signal.Signals]:
    """The signals that ask a process to stop: a terminal that closes is none where `nohup` says so."""
    return [one for one in STOPS if one != signal.SIGHUP or signal.getsignal(one) is not signal.SIG_IGN]


def _open_missing_descriptors() -> None:
    """A file that takes the number of a closed output would get what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def _told_in_a_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    os.write(2, b"Interrupted.\n")


def _ignored_where_nobody_can_hear(unraisable: "sys.UnraisableHookArgs") -> None:
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
