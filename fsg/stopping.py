"""Work that takes long before a step is even begun asks now and then whether it should go on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_stop: ContextVar[Callable[[], bool]] = ContextVar("stop", default=lambda: False)


class Stopped(Exception):
    """Somebody wants the work to end, and nothing that it began is kept."""


@contextmanager
def stoppable(stop: Callable[[], bool]) -> Iterator[None]:
    """Within, in this thread, `go_on` asks `stop`."""
    token = _stop.set(stop)
    try:
        yield
    finally:
        _stop.reset(token)


def go_on() -> None:
    """Raises Stopped where that is wanted."""
    if _stop.get()():
        raise Stopped
