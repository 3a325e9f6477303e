"""A real PostgreSQL for tests, Debian's."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from benchmarks.tracking import postgresql


@contextmanager
def database() -> Iterator[str]:
    """The address of an empty one, with its password; where there is none to be had, the test says so."""
    with ExitStack() as stack:
        try:
            address = stack.enter_context(postgresql())
        except SystemExit as absent:
            pytest.skip(str(absent))
        yield address
