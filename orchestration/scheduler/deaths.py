"""Why a worker died, from what Ray says of it."""

import re
from dataclasses import dataclass

from ray.exceptions import OutOfMemoryError

_KILLED = re.compile(r"Selected to kill: .*\bpid=(\d+), actual memory used=([\d.]+)GB")
_LOW_ON_MEMORY = "running low on memory"


@dataclass(frozen=True)
class Death:
    """Why a worker died, in one line; `blamed` says whether what it trained may be the cause."""

    reason: str
    blamed: bool = True
    out_of_memory: bool = False


def death_of(error: Exception, pid: int) -> Death:
    """The death of the worker with this process id."""
    text, low = str(error), is_out_of_memory(error)
    blamed = not (getattr(error, "preempted", False) or is_oom_bystander(text, pid))
    return Death(failure_reason(text, low), blamed, low)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error is, or comes from, that Ray killed a process for want of memory."""
    while error is not None:
        if isinstance(error, OutOfMemoryError) or _LOW_ON_MEMORY in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def failure_reason(text: str, low_on_memory: bool = False) -> str:
    """Why a worker died, in one line."""
    if low_on_memory:
        return "the worker was killed: the machine ran low on memory"
    detail = re.search(r"Worker exit detail: (.*?)\.(\s|$)", text)
    return "the worker's process died" + (f": {detail[1]}" if detail else "")


def last_line(error: Exception) -> str:
    """The last line of an error that came over from a worker: what was raised there, after its traceback."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def is_oom_bystander(text: str, pid: int) -> bool:
    """Whether Ray killed a worker for memory together with one that used more: it does not count as a retry."""
    taken = {int(found[1]): float(found[2]) for found in _KILLED.finditer(text)}
    return pid in taken and taken[pid] < max(taken.values())
