import os
import time

import pytest
from cases import DEVICE

from fsg.gpu import why_no_gpu

BEGAN = time.monotonic()
SECONDS = float(os.environ.get("FSG_GPU_SECONDS", "inf"))
WHY = "" if DEVICE == "cpu" else why_no_gpu()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if WHY:
        pytest.skip(f"NOT RUN: {WHY}")
    if time.monotonic() - BEGAN > SECONDS:
        pytest.skip(f"NOT RUN: the {SECONDS:.0f} s of the suite are over")


@pytest.fixture
def gpu() -> str:
    """The GPU's name for torch; a test that asks for it is not part of a dry run."""
    if DEVICE == "cpu":
        pytest.skip("NOT RUN: a dry run has no GPU")
    return DEVICE
