"""The oracle: the cells of a spec trained one after the other in one process, without Ray.

python single_process.py SPEC RESULTS [--profile NAME] [--set PATH=VALUE …]
"""

import argparse
from pathlib import Path

from orchestration.ledger.ledger import Ledger
from orchestration.runtime.cell_training import CellTraining
from orchestration.spec.cells import cells
from orchestration.spec.experiment import load_spec


def train(source: Path, results: Path, profile: str | None = None, sets: tuple[str, ...] = ()) -> Ledger:
    spec = load_spec(source, profile, sets)
    ledger = Ledger(results / spec.folder_name)
    for cell in cells(spec):
        ledger.add(cell)
        if ledger.outcome(cell.id).state == "done":
            continue
        training = CellTraining(ledger, cell, checkpoint_every=1e9)
        while training.ended is None:
            training.run_for(3600)
        assert training.ended == "done", f"{cell.label}: {training.ended}: {training.reason}"
    return ledger


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("spec", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--profile")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    asked = parser.parse_args()
    train(asked.spec, asked.results, asked.profile, tuple(asked.sets))
