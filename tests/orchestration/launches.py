"""A small experiment, launched as a user does it: in a process of its own; and what it has to come to."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.chaos import in_mlflow, multiset, values_of
from orchestration.ledger.ledger import Ledger
from orchestration.runtime.cell_training import CellTraining
from orchestration.spec.cells import Cell, cells
from orchestration.spec.experiment import load_spec

LAUNCH = Path(__file__).resolve().parents[2] / "orchestration" / "launch.py"
NO_MLFLOW = ("--tracking-uri", "http://127.0.0.1:9")  # nothing listens there: for launches that are not about MLflow

SPEC = """
name: tiny
question: does it hold?
train:
  data: {name: arrays, file: tiny.npz, validation: 64, crop_padding: 1}
  model: {name: resnet, depth: 8, width: 4}
  epochs: 20
  batch_size: 16
  log_every: 3
  init: {name: pretrain, epochs: 1}
variants: {fsg: {estimator: {name: fsg, chunk_size: 8}}, ste: {}}
seeds: [0, 1]
resources: {checkpoint_every: 0.3}
report: {baseline: ste, primary: fsg}
"""
SEARCH = """
name: tiny
train:
  data: {name: arrays, file: tiny.npz, validation: 64, crop_padding: 1}
  model: {name: resnet, depth: 8, width: 4}
  epochs: 4
  batch_size: 16
  init: {name: pretrain, epochs: 1}
search:
  trials: 4
  space:
    optimizer.lr: {low: 1.0e-4, high: 0.1, log: true}
    optimizer.weight_decay: [0.0, 1.0e-3]
  seeds: [7, 8]
  pruner: {name: successive_halving, reduction: 2}
  sampler: random
  best: 2
seeds: [0]
resources: {checkpoint_every: 0.3, max_concurrent: 1}
"""
SHORT = SPEC.replace("seeds: [0, 1]", "seeds: [0]").replace("epochs: 20", "epochs: 6").replace(": 0.3", ": 0.1")


def bring_own_code(folder: Path) -> None:
    """`own:Unlucky`, to which things happen."""
    shutil.copy(Path(__file__).with_name("unlucky.py"), folder / "own.py")


def images(path: Path) -> None:
    draw = np.random.default_rng(0)
    pixels, labels = draw.integers(0, 255, (384, 12, 12), dtype=np.uint8), np.arange(384) % 4
    pixels[:, 2, 2] = labels * 60
    np.savez(
        path, train_images=pixels[:320], train_labels=labels[:320], test_images=pixels[320:], test_labels=labels[320:]
    )


class Launched:
    """`python orchestration/launch.py tiny.yaml …` in a session of its own, as a shell starts it."""

    def __init__(self, folder: Path, *arguments: str, program: Path = LAUNCH) -> None:
        self.output = folder / "output.txt"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(program), "tiny.yaml", *arguments],
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, seconds: float = 900) -> int:
        return self.process.wait(seconds)

    def ctrl_c(self) -> None:
        """What a terminal does: to everything that was started from it."""
        os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        """All of it, at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @property
    def text(self) -> str:
        return self.output.read_text()


def until(condition: Callable[[], Any], one: Launched, seconds: float = 600) -> Any:
    """What the condition has found, once it has."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert one.process.poll() is None, one.text
        assert time.monotonic() < end, one.text
        time.sleep(0.05)
    return found


def processes(one: Launched, name: str) -> list[psutil.Process]:
    """Those of a launch's own Ray."""
    with suppress(psutil.Error):
        return [child for child in psutil.Process(one.process.pid).children() if child.name() == name]
    return []


def ledger_of(folder: Path, name: str = "tiny") -> Ledger:
    return Ledger(folder / "results" / name)


def checkpoints(ledger: Ledger) -> list[Cell]:
    """Cells that are being trained and have, in this attempt, a checkpoint to go on from."""
    found = []
    for cell in ledger.cells():
        point = ledger.resume_point(cell.id) if ledger.outcome(cell.id).state == "running" else None
        if point is not None and point.attempt == len(ledger.attempts(cell.id)):
            found.append(cell)
    return found


def without_times(ledger: Ledger, cell: Cell) -> list[tuple[int, dict[str, float]]]:
    rows = [
        (row.step, {k: v for k, v in row.values.items() if not k.startswith(("time/", "system/"))})
        for row in ledger.rows(cell.id)
    ]
    return [row for row in rows if row[1]]


@cache
def _place() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="fsg-undisturbed-")


def undisturbed(planned: list[Cell]) -> Ledger:
    """The same cells, each trained here in one go: once a session, as an id says all that determines the numbers."""
    ledger = Ledger(Path(_place().name))
    for cell in planned:
        ledger.add(cell)
        if ledger.outcome(cell.id).state != "done":
            training = CellTraining(ledger, cell)
            training.run_for(3600)
            assert (training.ended, training.reason) == ("done", "")
    return ledger


def assert_exact(got: Ledger, planned: list[Cell]) -> None:
    """Every cell is done, with the digest, the rows and the weights of a training that nothing disturbed."""
    assert_same(got, undisturbed(planned), planned)


def assert_same(got: Ledger, expected: Ledger, planned: list[Cell]) -> None:
    for cell in planned:
        assert got.outcome(cell.id).state == expected.outcome(cell.id).state, cell.label
        assert got.outcome(cell.id).digest == expected.outcome(cell.id).digest, cell.label
        assert without_times(got, cell) == without_times(expected, cell), cell.label
        for ours, theirs in (
            (got.final_weights(cell.id), expected.final_weights(cell.id)),
            (got.best_weights(cell.id), expected.best_weights(cell.id)),
        ):
            assert (ours is None) == (theirs is None), cell.label
            assert ours is None or theirs is None or ours.read_bytes() == theirs.read_bytes(), cell.label


def leftovers(one: Launched) -> list[str]:
    listed = subprocess.run(
        ["ps", "-ww", "-o", "args=", "-s", str(one.process.pid)], capture_output=True, text=True, check=False
    )
    return [line for line in listed.stdout.splitlines() if "ray" in line]


def compared(ledger: Ledger, database: Path) -> tuple[int, int]:
    """Rows of the ledger that MLflow lacks, and that it has once too often."""
    sent, _, _ = in_mlflow(database)
    lost = doubled = 0
    for cell in ledger.cells():
        kept = values_of(ledger, cell.id, whole=True)
        names = {name for _, name, _ in kept}
        got = [(step, name, value) for step, name, value, _ in sent.get(cell.id, []) if name in names]
        one = multiset(got, kept)
        lost, doubled = lost + one[0], doubled + one[1]
    return lost, doubled


def planned_here() -> list[Cell]:
    return cells(load_spec(Path("tiny.yaml")))


def stands_still(process: psutil.Process) -> bool:
    """A stop is a request: a thread inside a call to the system first ends it."""
    return all(psutil.Process(thread.id).status() == psutil.STATUS_STOPPED for thread in process.threads())


def assert_level(ledger: Ledger, database: Path) -> None:
    """Every row once, a run a cell, all finished."""
    assert compared(ledger, database) == (0, 0)
    _, runs, statuses = in_mlflow(database)
    assert runs == Counter([*(cell.id for cell in ledger.cells()), "experiment"])
    assert statuses == {"FINISHED"}
