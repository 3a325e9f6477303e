"""What is measured on a GPU, a part a process: `python -m benchmarks.gpu.parts steps|beside|epochs --seconds 60`.

Prints a JSON object a row as soon as it is known, so that what was measured before a part dies is not lost. A row has
`what`, and the figures of COLUMNS that it has, or `not_run` with the reason, and `failed` where that is an error.
"""

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from benchmarks import steps as cpu
from benchmarks.measuring import Step
from fsg.estimators import FSG, STE, EstimatorConfig, FullPrecision, MultiFC
from fsg.hypernetworks import EMA
from fsg.selective_scan import HAS_TRITON
from fsg.train_config import TrainConfig
from fsg.trainer import Training

Told = dict[str, Any]
COLUMNS = {  # of a row: its heading in the table
    "milliseconds_a_step": "ms a step",
    "over_plain": "over plain",
    "images_a_second": "images/s",
    "seconds_an_epoch": "s an epoch",
    "epochs": "epochs",
    "peak_megabytes": "peak MB",
}
PLAIN = "STE in a plain PyTorch loop"
WARM_UP = 8  # steps: the history of five gradients is full, and Triton has compiled
PROCESSES = (1, 2, 4, 8)
EPOCHS = "FSG, chunk 64: epochs of 50,000 images, diagnostics on"


class Contestant(NamedTuple):
    """A step to be measured: an estimator's, with the scan that FSG_SCAN names; no estimator: the plain loop.

    `captured`: replayed from CUDA graphs.
    """

    estimator: EstimatorConfig | None
    scan: str = ""
    captured: bool = False

    def missing(self, device: str) -> str:
        """Why it cannot be measured here; empty where it can."""
        if (self.scan or self.captured) and device == "cpu":
            return "it is for GPUs"
        if self.scan == "mamba-ssm" and importlib.util.find_spec("mamba_ssm") is None:
            return "mamba-ssm is not installed"
        if self.scan == "triton" and not HAS_TRITON:
            return "Triton is not installed"
        return ""


STEPS = {
    PLAIN: Contestant(None),
    "full precision": Contestant(FullPrecision.Config()),
    "STE": Contestant(STE.Config()),
    "MultiFC": Contestant(MultiFC.Config()),
    "FSG, an average in the slow net's place": Contestant(FSG.Config(slow_net=EMA())),
    "FSG, chunk 64": Contestant(FSG.Config(chunk_size=64)),
    "FSG, chunk 8": Contestant(FSG.Config(chunk_size=8)),
    "FSG, chunk 1": Contestant(FSG.Config(chunk_size=1)),
    "full precision, captured": Contestant(FullPrecision.Config(), captured=True),
    "STE, captured": Contestant(STE.Config(), captured=True),
    "MultiFC, captured": Contestant(MultiFC.Config(), captured=True),
    "FSG, an average in the slow net's place, captured": Contestant(FSG.Config(slow_net=EMA()), captured=True),
    "FSG, chunk 64, captured": Contestant(FSG.Config(chunk_size=64), captured=True),
    "FSG, chunk 1, captured": Contestant(FSG.Config(chunk_size=1), captured=True),
    "FSG, chunk 64, the scan in torch": Contestant(FSG.Config(chunk_size=64), "torch"),
    "FSG, chunk 64, the scan of mamba-ssm": Contestant(FSG.Config(chunk_size=64), "mamba-ssm"),
}
BESIDE = {f"FSG, chunk 64, trainings beside each other: {count}": count for count in PROCESSES}
ROWS = {"steps": list(STEPS), "beside": list(BESIDE), "epochs": [EPOCHS]}


def settings(images: Path, device: str) -> TrainConfig:
    """ResNet-20 at batch 128; a dry run on a CPU takes something small."""
    return cpu.config(images, 1) if device != "cpu" else cpu.config(images, 1, depth=8, batch=16)


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


@contextlib.contextmanager
def scan(name: str) -> Iterator[None]:
    """With FSG_SCAN set, where there is a name."""
    before = os.environ.pop("FSG_SCAN", None)
    if name:
        os.environ["FSG_SCAN"] = name
    try:
        yield
    finally:
        os.environ.pop("FSG_SCAN", None)
        if before is not None:
            os.environ["FSG_SCAN"] = before


@dataclass
class Running:
    """A contestant that is warm, what its tensors took at most, and the seconds of a step of each block."""

    step: Step
    scan: str
    megabytes: float | None
    seconds: list[float] = field(default_factory=list)

    def block(self, count: int, device: str) -> None:
        """So many steps, for which the host does not wait one by one."""
        synchronize(device)
        began = time.perf_counter()
        with scan(self.scan):
            for _ in range(count):
                self.step()
        synchronize(device)
        self.seconds.append((time.perf_counter() - began) / count)


def started(contestant: Contestant, config: TrainConfig, device: str) -> Running:
    before = 0
    if device != "cpu":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with scan(contestant.scan):
        if contestant.estimator is None:
            step = cpu.plain(config, device)
        else:
            step = cpu.ours(replace(config, cuda_graph=contestant.captured), contestant.estimator, device)
        for _ in range(WARM_UP):
            step()
    synchronize(device)
    megabytes = None if device == "cpu" else (torch.cuda.max_memory_allocated() - before) / 1e6
    return Running(step, contestant.scan, megabytes)


def steps(images: Path, device: str, seconds: float) -> Iterator[Told]:
    """A step of each: blocks of steps, one contestant's after the other's, again and again; medians."""
    end, config = time.monotonic() + seconds, settings(images, device)
    count = 10 if device != "cpu" else 1
    running: dict[str, Running] = {}
    for name, contestant in STEPS.items():
        why = contestant.missing(device)
        if not why and time.monotonic() > end - 0.25 * seconds:
            why = "the time of this part is over"
        if why:
            yield {"what": name, "not_run": why}
            continue
        try:
            running[name] = started(contestant, config, device)
        except Exception as error:
            yield broken(name, error)
    rounds = 0
    while rounds < 3 or (time.monotonic() < end and rounds < 20):
        for one in running.values():
            one.block(count, device)
        rounds += 1
    plain = statistics.median(running[PLAIN].seconds) if PLAIN in running else None
    for name, one in running.items():
        median = statistics.median(one.seconds)
        figures = {"milliseconds_a_step": 1000 * median, "images_a_second": config.batch_size / median}
        over = {} if plain is None else {"over_plain": median / plain}
        yield {"what": name, **figures, **over, **({} if one.megabytes is None else {"peak_megabytes": one.megabytes})}


def broken(name: str, error: Exception) -> Told:
    """A row that an error took; a GPU whose memory is too small for it is no failure."""
    why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return {"what": name, "not_run": why, "failed": not isinstance(error, torch.OutOfMemoryError)}


_process: dict[str, Barrier] = {}


def _as_one_of_many(barrier: Barrier) -> None:
    torch.set_num_threads(1)
    _process["warm"] = barrier


def _training(images: Path, device: str, seconds: float) -> tuple[int, float, float]:
    """Steps of a training that begins when all are warm, its seconds, and the megabytes of its tensors."""
    warm = _process["warm"]
    try:
        one = started(STEPS["FSG, chunk 64"], settings(images, device), device)
        warm.wait(120)
    except Exception:
        warm.abort()  # the others are not to wait for this one
        raise
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        one.block(10 if device != "cpu" else 1, device)
        done += 10 if device != "cpu" else 1
    return done, time.perf_counter() - began, one.megabytes or 0.0


def beside(images: Path, device: str, seconds: float) -> Iterator[Told]:
    """Trainings in processes of their own on one device, all at once."""
    end, took = time.monotonic() + seconds, 0.0
    batch, measured = settings(images, device).batch_size, 5.0 if device != "cpu" else 1.0
    for name, count in BESIDE.items():
        if time.monotonic() + 2.2 * took > end:  # twice as many may take twice as long
            yield {"what": name, "not_run": "the time of this part is over"}
            continue
        began, context = time.monotonic(), get_context("spawn")
        given = (context.Barrier(count),)
        try:
            with ProcessPoolExecutor(count, mp_context=context, initializer=_as_one_of_many, initargs=given) as many:
                found = list(many.map(_training, [images] * count, [device] * count, [measured] * count))
        except Exception as error:
            yield broken(name, error)
            continue
        took = time.monotonic() - began
        together = sum(batch * done / spent for done, spent, _ in found)
        each = statistics.mean(1000 * spent / done for done, spent, _ in found)
        row: Told = {"what": name, "milliseconds_a_step": each, "images_a_second": together}
        yield row | ({} if device == "cpu" else {"peak_megabytes": sum(megabytes for *_, megabytes in found)})


def epochs(images: Path, device: str, seconds: float) -> Iterator[Told]:
    """One training with everything on until the time is over; of its whole epochs the first warms up."""
    config = replace(settings(images, device), estimator=FSG.Config(chunk_size=64), diagnostics=True)
    training = Training(config, 0, device=device)
    ends: list[float] = []
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        training.advance()
        if training.step % training.steps_per_epoch == 0:
            synchronize(device)
            ends.append(time.monotonic())
    if not ends:
        of, spent = training.steps_per_epoch, time.monotonic() - began
        yield {"what": EPOCHS, "not_run": f"{training.step} of an epoch's {of} steps in {spent:.0f} s"}
        return
    each = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else ends[0] - began
    row: Told = {"what": EPOCHS, "epochs": len(ends), "seconds_an_epoch": each}
    row["milliseconds_a_step"] = 1000 * each / training.steps_per_epoch
    row["images_a_second"] = training.steps_per_epoch * config.batch_size / each
    yield row | ({} if device == "cpu" else {"peak_megabytes": torch.cuda.max_memory_allocated() / 1e6})


PARTS: dict[str, Callable[[Path, str, float], Iterator[Told]]] = {"steps": steps, "beside": beside, "epochs": epochs}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.parts")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--since", type=float, default=time.time(), help="when these began; default: now")
    given = parser.parse_args()
    torch.set_num_threads(1)
    small = {"epochs": 320}.get(given.part, 640)
    with TemporaryDirectory() as folder:
        images = cpu.random_images(Path(folder), small if given.device == "cpu" else 50_000)
        left = given.since + given.seconds - time.time()
        for row in PARTS[given.part](images, given.device, left):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
