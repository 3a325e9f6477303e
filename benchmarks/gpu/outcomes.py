"""A pytest plugin: each outcome is kept as soon as it is known, and what is left when the time is over is skipped.

So a suite that is stopped, or whose process dies, has told what it did. FSG_GPU_OUTCOMES names the file, a JSON object
a line; FSG_GPU_UNTIL is a time as `time.time()` has it.
"""

import json
import os
import time
from pathlib import Path

import pytest


def pytest_runtest_setup() -> None:
    if time.time() > float(os.environ["FSG_GPU_UNTIL"]):
        pytest.skip("NOT RUN: the time of the suite is over")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.passed and report.when != "call":
        return
    outcome = {"test": report.nodeid, "outcome": report.outcome, "why": "" if report.passed else _reason(report)}
    with Path(os.environ["FSG_GPU_OUTCOMES"]).open("a") as out:
        out.write(json.dumps(outcome) + "\n")


def _reason(report: pytest.TestReport) -> str:
    """What a skip says, or the first line that pytest marks as the error."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ").removeprefix("NOT RUN: ")
    lines = report.longreprtext.splitlines()
    return next((line[1:].strip() for line in lines if line.startswith("E ")), lines[-1] if lines else "")
