"""What orchestration costs: `python -m benchmarks.orchestration` (part of make bench).

Every ratio is of two things measured in the same run, on the same Ray. `--small` runs few trials, to see that it
works; `--long` adds what takes minutes: 2,000 trainings for the driver's memory, and the quick ablation against its
plan. `--occupancy RESULTS` looks at an experiment that was launched once and is done, instead: how well it filled its
places.
"""

import argparse
import contextlib
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import places
from benchmarks.measuring import ROOT, Row, in_a_process, number
from benchmarks.tiny import Silent, one_layer, train_config
from fsg.train_config import TrainConfig
from orchestration.ledger.ledger import Ledger
from orchestration.scheduler import environment
from orchestration.spec.cells import Cell, cell_id
from orchestration.spec.experiment import ExperimentSpec
from orchestration.spec.fields import Report, Resources


def _cells(ledger: Ledger, train: TrainConfig, count: int, first_seed: int = 0) -> list[Cell]:
    found = []
    for seed in range(first_seed, first_seed + count):
        found.append(Cell(cell_id(train, seed), "train", "empty", {}, seed, train))
        ledger.add(found[-1])
    return found


def _ours(folder: Path, train: TrainConfig, count: int, memory: bool = False) -> tuple[Silent, Ledger, list[Cell]]:
    """Cells through the whole of it, ledger and all, MLflow apart."""
    from orchestration.scheduler import tune
    from orchestration.scheduler.resources import TrialResources

    ledger, heard = Ledger(folder), Silent(memory)
    cells = _cells(ledger, train, count)
    stop = folder / "stop"
    with contextlib.redirect_stdout(None):
        tune.run(ledger, cells, TrialResources(python_path=[str(ROOT)]), heard, stop_file=stop)
    return heard, ledger, cells


def _steady(heard: Silent) -> float:
    """Trainings a second once the workers are warm: after the first tenth."""
    skipped = max(2, len(heard.ends) // 10)
    ends = heard.ends[skipped:]
    return (len(ends) - 1) / (ends[-1] - ends[0])


def _memory_a_trial(heard: Silent) -> float:
    """kB that the driver grew by a finished training: the slope over the second half of the run."""
    half = heard.memory[len(heard.memory) // 2 :]
    if len(half) < 2:
        return float("nan")
    slope, _ = np.polyfit(np.arange(len(half)) * 50, half, 1)
    return float(slope) / 1000


def empty_trainings(folder: Path, count: int) -> list[Row]:
    """`epochs: 0`: what is left is a claim, four durable files, 16 test images and a SHA-256 of the state.

    The network has one layer; what a larger one adds (to build it, to look at the test images, to keep its weights) is
    seen from those of a ResNet-8.
    """
    trains = {"one layer": train_config(folder, 0, one_layer()), "ResNet-8": train_config(folder, 0)}
    rates = {name: _steady(_ours(folder / name, train, count)[0]) for name, train in trains.items()}
    return [
        Row(
            f"{count} empty trainings",
            rates["one layer"],
            20,
            at_least=True,
            unit=" a second",
            measured=rates | {"unit": "trainings a second"},
        )
    ]


def memory_a_training(count: int) -> float:
    """kB that this process grows by a finished training, as the driver."""
    with tempfile.TemporaryDirectory(prefix="fsg-bench-") as made, _connected():
        heard, _, _ = _ours(Path(made) / "many", train_config(Path(made), 0), count, memory=True)
        return _memory_a_trial(heard)


def driver_memory(count: int) -> list[Row]:
    """What the driver grows by a training: in a process that has taken nothing before."""
    found = in_a_process("orchestration", "--memory", count)["found"]
    return [Row(f"driver memory a finished training over {count}", found, 40, 0, unit=" kB")]


def warm_start(folder: Path, count: int) -> list[Row]:
    """From the end of a cell to the first training step of the next one on the same worker."""
    _, ledger, cells = _ours(folder / "warm", train_config(folder, 1), count)
    of_worker: dict[int, list[tuple[int, int]]] = {}
    for cell in cells:
        (attempt,) = ledger.attempts(cell.id)
        first = min(row.time_ms for row in ledger.rows(cell.id))
        of_worker.setdefault(attempt["pid"], []).append((first, attempt["end"]["ended_at"]))
    gaps = []
    for spans in of_worker.values():
        spans.sort()
        gaps += [(first - ended) / 1000 for (_, ended), (first, _) in itertools.pairwise(spans)]
    median = statistics.median(gaps) if gaps else float("nan")
    return [Row("new trial on a warm worker → its first training step", median, 0.3, unit=" s")]


def result_throughput(folder: Path, reports: int, theirs: int) -> list[Row]:
    """16 torch-free trials that report 4 metrics as fast as they can, until MLflow shows them."""
    import ray

    from orchestration.tracking.sync import Tracker

    def values(step: int) -> dict[str, float]:
        return {f"metric/{n}": float(step + n) for n in range(4)}

    @ray.remote
    def report_into(results: str, cell: str, count: int) -> None:
        from orchestration.ledger.history import LedgerRow
        from orchestration.ledger.ledger import Ledger

        attempt = Ledger(Path(results)).claim(cell, {"device": "none"})
        for step in range(1, count + 1):
            attempt.take_over([LedgerRow(step, time.time_ns() // 1_000_000, values(step))])
            if step % 100 == 0:
                attempt.checkpoint(b"-", step)
        attempt.weights("final.pt", b"-")
        attempt.finish("done", step=count)

    spec = ExperimentSpec(
        name="throughput", question="", profile=None, variants=("empty",), seeds=tuple(range(16)),
        resources=Resources(), report=Report(baseline="empty", primary="empty"), points=(),
        source=Path("throughput.yaml"), text="",
    )  # fmt: skip
    ledger = Ledger(folder / "ours" / "throughput")
    cells = _cells(ledger, train_config(folder, 1), 16)
    tracker = Tracker(ledger, spec)
    tracker.sync()  # MLflow's import and its database are not what is measured
    began = time.monotonic()
    ray.get([report_into.remote(str(ledger.folder), cell.id, reports) for cell in cells])
    durable = time.monotonic() - began
    tracker.sync()
    visible = time.monotonic() - began

    rate = _callback_rate(folder / "theirs", theirs, values)
    ours = 16 * reports / visible
    return [
        Row(
            "results a second until MLflow shows them / Tune's MLflowLoggerCallback",
            ours / rate,
            10,
            50,
            at_least=True,
            measured={"durable": 16 * reports / durable, "visible": ours, "callback": rate, "unit": "results a second"},
        )
    ]


def _callback_rate(folder: Path, reports: int, values: Callable[[int], dict[str, float]]) -> float:
    """Results a second through Tune's own callback."""
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    class Reporting(tune.Trainable):
        def step(self) -> dict[str, Any]:
            return values(self.iteration) | {"done": self.iteration + 1 >= reports}

    folder.mkdir()
    callback = MLflowLoggerCallback(f"sqlite:///{folder / 'mlflow.db'}", experiment_name="throughput")
    began = time.monotonic()
    with contextlib.redirect_stdout(None):
        tune.run(Reporting, num_samples=16, storage_path=str(folder), name="t", verbose=0, callbacks=[callback])
    return 16 * reports / (time.monotonic() - began)


_SPEC = """
name: plan
train:
  data: {{name: arrays, file: {file}, validation: 16, crop_padding: 0}}
  model: {{name: resnet, depth: 8, width: 2}}
  epochs: 1
  batch_size: 8
  log_every: 1
variants: {{{variants}}}
seeds: {seeds}
report: {{baseline: v0, primary: v1}}
"""


def _spec(folder: Path, variants: int, seeds: int) -> Path:
    train_config(folder, 1)
    named = ", ".join(f"v{n}: {{optimizer.lr: {1e-3 + n * 1e-4:.4f}}}" for n in range(variants))
    path = folder / "plan.yaml"
    path.write_text(_SPEC.format(file=folder / "tiny.npz", variants=named, seeds=list(range(seeds))))
    return path


def plan(folder: Path) -> list[Row]:
    """1,000 cells, without the pilot."""
    from orchestration.commands.plan import plan
    from orchestration.commands.request import LaunchRequest

    path = _spec(folder, 8, 125)
    with Path(os.devnull).open("w") as nowhere:
        request = LaunchRequest(path, results=folder / "planned", console=Console(file=nowhere))
        plan(request, with_pilot=False)  # the first one imports and reads the data
        began = time.monotonic()
        plan(request, with_pilot=False)
        seconds = time.monotonic() - began
    return [Row("1,000 cells in --plan, without the pilot, once imported", seconds, 3, 1, unit=" s")]


def launch_to_first_step(folder: Path, times: int) -> list[Row]:
    """What a launch takes beyond importing torch and starting Ray with a worker that has imported it too: medians."""
    path = _spec(folder, 2, 1)
    bare = (
        "from orchestration.scheduler.environment import prepare; prepare(None)\n"
        "import torch\nfrom orchestration.scheduler import connection\nimport ray\n"
        "with connection.connect(None):\n"
        "    ray.get(ray.remote(lambda: __import__('torch').__version__).remote())\n"
        "    import time; print(time.time())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, str(ROOT / "orchestration" / "launch.py"), str(path), "--results"]
    floors, launches = [], []
    for turn in range(times):
        began = time.time()
        said = subprocess.run(
            [sys.executable, "-c", bare], cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
        floors.append(float(said.stdout.split()[-1]) - began)
        began, results = time.time(), f"launched-{turn}"
        subprocess.run([*words, results], cwd=folder, env=environment, capture_output=True, check=True)
        ledger = Ledger(folder / results / "plan")
        launches.append(min(row.time_ms for cell in ledger.cells() for row in ledger.rows(cell.id)) / 1000 - began)
    first, floor = statistics.median(launches), statistics.median(floors)
    return [
        Row(
            "launch → first training step, beyond importing torch and starting Ray",
            first - floor,
            2,
            1,
            unit=" s",
            measured={"launch": first, "torch and Ray": floor, "unit": "s"},
        )
    ]


def quick_ablation(folder: Path) -> list[Row]:
    """The quick ablation: what was predicted, and how well it filled two places."""
    from orchestration.commands.plan import make_plan
    from orchestration.commands.request import LaunchRequest
    from orchestration.runtime.pilot import Pilots, predict, wall_clock
    from orchestration.spec.experiment import load_spec

    spec = load_spec(ROOT / "configs" / "ablation_hgs.yaml", "quick")
    ledger = Ledger(folder / "quick" / spec.folder_name)
    plan = make_plan(LaunchRequest(spec.source), spec, ledger)
    max_running = plan.max_running
    with Pilots("cpu", max_running) as pilots:
        found = predict(plan.statuses, pilots.measure)
    expected = wall_clock(found, max_running)
    words = [sys.executable, str(ROOT / "orchestration" / "launch.py"), str(spec.source), "--profile", "quick"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*words, "--results", str(folder / "quick")], env=environment, capture_output=True, check=True)
    row = occupancy(ledger, max_running)
    took = row.measured["seconds"]
    return [Row("quick ablation: predicted / actual time (at least 0.8)", expected / took, 1.25, 1.1), row]


def occupancy(ledger: Ledger, places: int) -> Row:
    """How well an experiment that was launched once filled its places."""
    outcomes = [ledger.outcome(cell.id) for cell in ledger.cells()]
    began = min(outcome.started_ms for outcome in outcomes if outcome.started_ms)
    took = (max(outcome.finished_ms for outcome in outcomes if outcome.finished_ms) - began) / 1000
    busy = sum(outcome.seconds for outcome in outcomes) / places
    name = f"{ledger.folder.name}: first step to last / (training and evaluation / {places} places)"
    return Row(name, took / busy, 1.1, 1.03, measured={"seconds": took, "busy": busy, "cells": len(outcomes)})


def _prepare() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}  # of Tune with its callback
    environment.prepare(None)


def _connected() -> contextlib.AbstractContextManager[None]:
    _prepare()
    from orchestration.scheduler import connection

    return connection.connect(None)


def rows(small: bool = False, long: bool = False) -> Iterator[Row]:
    """The table, line by line."""
    _prepare()
    with tempfile.TemporaryDirectory(prefix="fsg-bench-") as made:
        folder = Path(made)
        yield from plan(folder)
        yield from launch_to_first_step(folder, 1 if small else 5)
        if long:
            yield from quick_ablation(folder)
            yield from driver_memory(2000)
        yield from places.rows(small)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        with _connected():
            yield from warm_start(folder, 6 if small else 20)
            yield from empty_trainings(folder, 20 if small else 200)
            yield from result_throughput(folder, *((200, 2) if small else (2000, 10)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orchestration", description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="few trials: to see that it works")
    parser.add_argument("--long", action="store_true", help="2,000 trainings, and the quick ablation")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--occupancy", type=Path, metavar="RESULTS", help="of an experiment that is done")
    parser.add_argument("--places", type=int, default=2, help="how many trainings it ran at a time (default 2)")
    parser.add_argument("--memory", type=int, metavar="TRAININGS", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.memory:
        print(json.dumps({"found": memory_a_training(given.memory)}))
        return
    looked_at = [occupancy(Ledger(given.occupancy), given.places)] if given.occupancy else None
    found = looked_at or list(rows(given.small, given.long))
    if given.json:
        print(json.dumps({"rows": [asdict(row) for row in found]}))
        return
    table = Table(title="What orchestration costs")
    for heading in ("measure", "measured", "must", "aim"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for row in found:
        table.add_row(row.name, f"{number(row.value)}{row.unit}", row.wanted(row.must), row.wanted(row.aim))
    Console().print(table)


if __name__ == "__main__":
    main()
