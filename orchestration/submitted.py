"""The driver's side of a handover: `python -m orchestration.submitted launch SPEC …`, in the package handed over.

`submitted.json` beside this code says where it came from. Results go to the folder FSG_RESULTS, which is the working
directory too, so that a relative path in a spec means the same to all nodes.
"""

import json
import os
import platform
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

FILE = "submitted.json"


@cache
def record() -> dict[str, Any]:
    """Empty where this code was not handed over."""
    try:
        return dict(json.loads((Path(__file__).resolve().parents[1] / FILE).read_text()))
    except OSError:
        return {}


def other_python() -> str | None:
    """What to say where the Python that handed this over is another than the one that runs it."""
    theirs = record().get("python")
    ours = platform.python_version()
    if theirs is None or theirs.split(".")[:2] == ours.split(".")[:2]:
        return None
    minor = ".".join(ours.split(".")[:2])
    return f"the cluster has Python {ours}, this was handed over by {theirs} (expected {minor} at both ends)"


def main(words: Sequence[str]) -> None:
    """Run `fsg` with these words, the second of which names a spec in the package."""
    results = os.environ.get("FSG_RESULTS", "")
    if not os.path.isabs(results):
        says = f"says {results}" if results else "is not set"
        print(f"FSG_RESULTS {says} in the cluster (expected a folder that all nodes share: --results /FOLDER)")
        sys.exit(2)
    from orchestration.cli import main as fsg

    verb, spec, *others = words
    try:
        os.makedirs(results, exist_ok=True)
        os.chdir(results)
    except OSError as error:
        print(f"{results}: cannot be written to in the cluster ({error.strerror})")
        sys.exit(2)
    fsg([verb, str(Path(__file__).resolve().parents[1] / spec), *others])


if __name__ == "__main__":
    main(sys.argv[1:])
