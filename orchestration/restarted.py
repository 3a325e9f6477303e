"""What takes the place of a driver whose Ray has died: `restart_process` says which launch goes on."""

import sys
from pathlib import Path

# As in `launch.py`: this file's folder is not one to import from.
_HERE = Path(__file__).resolve().parent
sys.path[:] = [str(_HERE.parent), *(path for path in sys.path if Path(path).resolve() != _HERE)]

from orchestration.cli import main  # noqa: E402

if __name__ == "__main__":
    main(["restarted"])
