"""What a user waits for: `python -m benchmarks.commands [TIMES]` (medians of so many, 5 unless given).

The quick profile of configs/ablation_hgs.yaml, 18 cells, is launched once. Then every command is a fresh process, in
turns with one that imports torch, mlflow and matplotlib and does nothing else: its time is the unit.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import time

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import ROOT, Row, Step, interleaved, number
from orchestration.ledger.ledger import Ledger
from orchestration.report import stamp

SPEC = [str(ROOT / "configs/ablation_hgs.yaml"), "--profile", "quick"]


def run(*words: str, program: Sequence[str] = ("-m", "orchestration.cli")) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *program, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}\n{done.stderr[-1000:]}")


def measured(folder: Path, times: int) -> list[Row]:
    """Each as a multiple of the import of torch, mlflow and matplotlib."""
    results = [f"--results={folder}"]
    experiment = folder / "ablation_hgs-quick"
    run("launch", *SPEC, *results)
    last = max(attempt["end"]["ended_at"] for cell in Ledger(experiment).cells()
               for attempt in Ledger(experiment).attempts(cell.id)) / 1000  # fmt: skip
    after = time() - last

    def changed() -> None:
        (experiment / stamp.NAME).unlink()  # as if the ledger were another: it is read and drawn whole
        run("report", str(experiment))

    contestants: dict[str, Step] = {
        "import": lambda: run(program=("-c", "import torch, mlflow, matplotlib.pyplot")),
        "launch with nothing to do": lambda: run("launch", *SPEC, *results),
        "report, nothing changed": lambda: run("report", str(experiment)),
        "report, a cell changed": changed,
        "sync, nothing to send": lambda: run("sync", str(experiment)),
        "plan without pilot": lambda: run("plan", *SPEC, "--no-pilot", *results),
    }
    seconds = interleaved(contestants, times, warm_up=1) | {"last cell's end → the launch's end (once)": after}
    unit = seconds.pop("import")
    return [Row(f"{name}", value / unit, measured={"seconds": value, "unit": unit}) for name, value in seconds.items()]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("times", nargs="?", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="fsg-bench-") as made:
        rows = measured(Path(made), arguments.times)
    if arguments.json:
        print(json.dumps({row.name: row.value for row in rows}))
        return
    table = Table("18 cells", "/ importing torch, mlflow and matplotlib", "seconds")
    for row in rows:
        table.add_row(row.name, number(row.value), number(row.measured["seconds"]))
    Console().print(table)


if __name__ == "__main__":
    main()
