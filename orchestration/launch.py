"""`python orchestration/launch.py SPEC …` is `fsg launch SPEC …`."""

import sys
from pathlib import Path

# Python puts this file's folder first on the path, where `statistics` is ours and not the standard library's.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from orchestration.cli import main  # noqa: E402

if __name__ == "__main__":
    main(["launch", *sys.argv[1:]])
