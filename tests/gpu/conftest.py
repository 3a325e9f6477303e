from functools import cache

import pytest
from cases import DEVICE

from fsg.gpu import why_no_gpu


@cache
def missing() -> str:
    return "" if DEVICE == "cpu" else why_no_gpu()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if missing():
        pytest.skip(f"NOT RUN: {missing()}")


@pytest.fixture
def gpu() -> str:
    """The GPU's name for torch; a test that asks for it is not part of a dry run."""
    if DEVICE == "cpu":
        pytest.skip("NOT RUN: a dry run has no GPU")
    return DEVICE
