"""Measures how many trainings should share a GPU, or the CPUs of this machine, where a spec says `gpus: auto`.

The measure is the throughput of all of them together: 1, 2, 4, … pilots run beside each other, until memory or CPUs are
full; their clocks start when all of them are warm. The number with the most steps a second wins; of two within 5 %, the
smaller. `train.threads` is never changed: another number of threads gives other bits.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from statistics import mean
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from orchestration.runtime.pilot import run_pilot
from orchestration.scheduler import environment
from orchestration.spec.cells import Cell
from orchestration.spec.experiment import ExperimentSpec
from orchestration.util.provenance import cores

_AS_GOOD = 0.95
_MOST = 8
_OF_MEMORY = 0.9
_WARM_WITHIN = 600  # seconds


@dataclass(frozen=True)
class Sharing:
    """A number of concurrent trainings, their steps a second together, and the megabytes of each."""

    concurrent: int
    steps_a_second: float
    megabytes: float


def candidates(most: int) -> list[int]:
    """The numbers that are measured: 1, 2, 4, 8 as far as `most`, and `most` itself where it is less than 8."""
    found = [number for number in (1, 2, 4, _MOST) if number <= most]
    return found if most in found or most > _MOST else [*found, most]


def best(measured: Sequence[Sharing]) -> Sharing:
    """The most steps a second; of two that are as good, the fewer trainings. Raises ValueError where there is none."""
    if not measured:
        raise ValueError("not even one training could be measured")
    most = max(one.steps_a_second for one in measured)
    return min((one for one in measured if one.steps_a_second >= _AS_GOOD * most), key=lambda one: one.concurrent)


def measure(most: int, room: float, pilots: Callable[[int], tuple[float, float]]) -> list[Sharing]:
    """What each number of pilots beside each other gives, as far as `room` megabytes go.

    `pilots` runs so many and returns the seconds of a step and the megabytes of one; it raises where they do not fit.
    """
    found: list[Sharing] = []
    for number in candidates(most):
        if found and number * found[-1].megabytes > room:
            break
        try:
            seconds, megabytes = pilots(number)
            if not seconds:
                raise ValueError("too few steps in an epoch")
        except Exception:
            if not found:
                raise
            break
        found.append(Sharing(number, number / seconds, megabytes))
    return found


def measure_sharing(spec: ExperimentSpec, cells: Sequence[Cell]) -> tuple[ExperimentSpec, str]:
    """The spec with its `auto` measured on this machine, and what was measured in words.

    The pilot is of the primary variant. Raises what its training raises.
    """
    wanted = [cell for cell in cells if cell.kind == "train"] or list(cells)
    cell = next((one for one in wanted if one.variant == spec.report.primary), wanted[0])
    if torch.cuda.is_available():
        room = torch.cuda.get_device_properties(0).total_memory / 1e6 * _OF_MEMORY
        found = measure(_MOST, room, lambda number: _beside(cell, "cuda", number))
        chosen = best(found)
        resources = replace(spec.resources, gpus=1 / chosen.concurrent)
        where = "a GPU"
    else:
        room = psutil.virtual_memory().available / 1e6 * _OF_MEMORY
        most = max(1, cores() // (spec.resources.cpus or cell.train.threads))
        found = measure(most, room, lambda number: _beside(cell, "cpu", number))
        chosen = best(found)
        least = min(chosen.concurrent, spec.resources.max_concurrent or chosen.concurrent)
        resources = replace(spec.resources, gpus=0.0, max_concurrent=least)
        where = "these CPUs"
    told = ", ".join(
        f"{one.concurrent}: {one.steps_a_second:.3g} steps/s, {one.megabytes:.0f} MB each" for one in found
    )
    text = f"gpus: auto: {chosen.concurrent} trainings share {where} ({told})"
    return replace(spec, resources=resources), text


def _beside(cell: Cell, device: str, number: int) -> tuple[float, float]:
    """Seconds of a step and megabytes of one of so many pilots that run beside each other."""
    torch.set_num_threads(1)  # a pool of threads would not survive a fork
    context = get_context("fork" if device == "cpu" else "spawn")
    warm = context.Barrier(number)
    with ProcessPoolExecutor(number, mp_context=context, initializer=_as_a_worker, initargs=(warm,)) as processes:
        measured = list(processes.map(_pilot, [cell] * number, [device] * number))
    return mean(seconds for seconds, _ in measured), max(megabytes for _, megabytes in measured)


_process: dict[str, Any] = {}  # what a pilot's process was given at its start


def _as_a_worker(warm: Barrier) -> None:
    """Import what a worker imports, so that its memory counts."""
    environment.prepare(None)
    for name in ("ray", "orchestration.runtime.worker"):
        import_module(name)
    _process["warm"] = warm


def _pilot(cell: Cell, device: str) -> tuple[float, float]:
    """Seconds of a step and megabytes; of a GPU an equal part of all that is taken, each process's context too."""
    warm: Barrier = _process["warm"]
    try:
        cost = run_pilot(cell, device, together=lambda: warm.wait(_WARM_WITHIN))
        if device == "cpu":
            return cost.step, cost.megabytes
        warm.wait(_WARM_WITHIN)  # none has ended yet
        free, total = torch.cuda.mem_get_info()
        warm.wait(_WARM_WITHIN)
        return cost.step, (total - free) / 1e6 / warm.parties
    except Exception:
        with suppress(Exception):
            warm.abort()  # the others are not to wait for this one
        raise
