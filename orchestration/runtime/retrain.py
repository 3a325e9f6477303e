"""A finished cell is trained again in a scratch ledger, to compare: whole, or killed on the way and resumed.

`python -m orchestration.runtime.retrain LEDGER CELL DEVICE FOLDERS [STEP …]` is the process that is killed; FOLDERS
is a list in JSON. What is compared, to the last bit: rows, diagnostics, weights, the digest of the final state.
"""

import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fsg import checkpoint
from orchestration.ledger.ledger import Ledger
from orchestration.runtime.cell_training import CellTraining
from orchestration.spec.cells import Cell
from orchestration.util.metric_names import OF_THE_MACHINE
from orchestration.util.user_code import import_from

_MOST_NAMED = 3


def to_train_again(ledger: Ledger, cell: Cell, folder: Path) -> Ledger:
    """A ledger in a scratch folder, with the cell, whole, and the pretraining that it starts from."""
    again = Ledger(folder)
    again.add(cell.whole)
    if cell.depends_on is not None:
        for name in {cell.depends_on, ledger.origin(cell.depends_on)}:
            shutil.copytree(ledger.folder / "trials" / name, folder / "trials" / name, dirs_exist_ok=True)
    return again


def train_until_killed(command: Sequence[str], steps: int, draw: random.Random) -> int | None:
    """Start a training and kill it at a random moment after a random step; returns the step, None if it ended before.

    It writes a checkpoint at a random step before that, and begins another one right after it.
    """
    last = draw.randint(1, steps - 2)
    checkpoints = [draw.randint(1, last), last + 1]
    child = subprocess.Popen(
        [*command, *map(str, checkpoints)],
        stdin=subprocess.PIPE,  # whose end tells it that this process is dead
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(),
    )
    assert child.stdin is not None
    assert child.stdout is not None
    began, first, step = time.monotonic(), 0, 0
    try:
        for line in child.stdout:
            step = int(line)
            if step and not first:
                began, first = time.monotonic(), step
            if step >= last:
                a_step = (time.monotonic() - began) / max(step - first, 1)
                time.sleep(draw.uniform(0.0, 1.5) * min(a_step, 60.0))
                break
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        child.stdin.close()
    return last if step >= last else None


def train_to_the_end(command: Sequence[str]) -> str:
    """Resume it; returns the last line of its error, if there was one."""
    ended = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
    return (ended.stderr.strip().splitlines() or [""])[-1] if ended.returncode else ""


def _environment() -> dict[str, str]:
    path = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}


def main(folder: str, cell_id: str, device: str, own: str, *checkpoints: str) -> None:
    """Train a cell of a scratch ledger, printing each step.

    With steps to write checkpoints at, it waits after the last of them to be killed.
    """
    tell = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a component of the user's own prints
    import_from(*json.loads(own))
    at = {int(step) for step in checkpoints}
    ledger = Ledger(Path(folder))
    training = CellTraining(ledger, ledger.cell(cell_id), device=device)
    while training.ended is None:
        training.checkpoint_every = 0.0 if training.step + 1 in at else math.inf
        training.run_for(0.0)
        print(training.step, file=tell, flush=True)
        if at and training.step >= max(at):
            sys.stdin.read()
            sys.exit("its verifier has died")
    if training.ended != "done":
        sys.exit(f"{training.ended}: {training.reason}")


def rows_of(ledger: Ledger, cell: Cell) -> dict[tuple[int, str], float]:
    """Every recorded value of a cell, by step and name, without timings and system metrics."""
    values = ((row.step, name, value) for row in ledger.rows(cell.id) for name, value in row.values.items())
    return {(step, name): value for step, name, value in values if not name.startswith(OF_THE_MACHINE)}


def other_rows(before: dict[tuple[int, str], float], now: dict[tuple[int, str], float]) -> list[str]:
    """A line for each of the first values that differ in any bit."""
    places = sorted({*before, *now})
    wrong = [place for place in places if bits(before.get(place)) != bits(now.get(place))]
    told = [f"{name} at step {step}: {before.get((step, name))!r} in the ledger, {now.get((step, name))!r} here"
            for step, name in wrong[:_MOST_NAMED]]  # fmt: skip
    return told + ([f"and {len(wrong) - _MOST_NAMED} more values"] if len(wrong) > _MOST_NAMED else [])


def bits(value: float | None) -> str | None:
    """A value as it is to the last bit, in text."""
    return None if value is None else float(value).hex()


def digest_of(weights: Path) -> str:
    """Of the tensors in a file of weights."""
    return checkpoint.digest(checkpoint.from_bytes(weights.read_bytes()))


if __name__ == "__main__":
    main(*sys.argv[1:])
