"""The record beside code that was submitted to a cluster: where it came from."""

import json
import platform
from functools import cache
from pathlib import Path
from typing import Any

FILE = "submitted.json"


@cache
def record() -> dict[str, Any]:
    """Empty where this code was not submitted."""
    try:
        return dict(json.loads((Path(__file__).resolve().parents[2] / FILE).read_text()))
    except OSError:
        return {}


def other_python() -> str | None:
    """What to say where the Python that handed this over is another than the one that runs it."""
    theirs = record().get("python")
    ours = platform.python_version()
    if theirs is None or theirs.split(".")[:2] == ours.split(".")[:2]:
        return None
    minor = ".".join(ours.split(".")[:2])
    return f"the cluster has Python {ours}, this was submitted by {theirs} (expected {minor} at both ends)"
