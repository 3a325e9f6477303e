"""The driver's side of a submission: `python -m orchestration.submitted launch SPEC …`, in the submitted package.

`submitted.json` beside this code says where it came from. Results go to the folder FSG_RESULTS, which is the working
directory too, so that a relative path in a spec means the same on all nodes.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path


def main(words: Sequence[str]) -> None:
    """Run `fsg` with these words, the second of which names a spec in the package."""
    results = os.environ.get("FSG_RESULTS", "")
    if not os.path.isabs(results):
        says = f"says {results}" if results else "is not set"
        print(f"FSG_RESULTS {says} in the cluster (expected a folder that all nodes share: --results /FOLDER)")
        sys.exit(2)
    from orchestration.cli import main as fsg  # start-up time
    from orchestration.util.user_code import SHIPPED  # start-up time

    verb, spec, *others = words
    try:
        os.makedirs(results, exist_ok=True)
        os.chdir(results)
    except OSError as error:
        print(f"{results}: cannot be written to in the cluster ({error.strerror})")
        sys.exit(2)
    fsg([verb, str(Path(__file__).resolve().parents[1] / SHIPPED / spec), *others])


if __name__ == "__main__":
    main(sys.argv[1:])
