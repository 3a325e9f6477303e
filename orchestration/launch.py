"""`python orchestration/launch.py SPEC …` is `fsg launch SPEC …`."""

import sys
from pathlib import Path

# Python puts this file's folder first on the path, where `statistics` is ours and not the standard library's.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [str(_HERE.parent), *(path for path in sys.path if Path(path).resolve() != _HERE)]

from orchestration.cli import main  # noqa: E402

if __name__ == "__main__":
    main(["launch", *sys.argv[1:]])
