"""How the benchmarks measure: interleaved medians, memory of a process of its own, the machine."""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Step = Callable[[], object]
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Row:
    """A ratio (or a peak) and what it must and should be; `at_least` says in which direction.

    Without `must` it is there to compare with.
    """

    name: str
    value: float
    must: float | None = None
    aim: float | None = None
    at_least: bool = False
    unit: str = ""
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        if self.must is None:
            return True
        return self.value >= self.must if self.at_least else self.value <= self.must

    def wanted(self, bound: float | None) -> str:
        sign = "≥" if self.at_least else "≤"
        return "" if bound is None else f"{sign} {number(bound)}{self.unit}"


def number(value: float) -> str:
    """Three figures."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def interleaved(contestants: dict[str, Step], repetitions: int, warm_up: int = 2) -> dict[str, float]:
    """Median seconds of a step of each: a step of one, a step of the next, and so on, again and again."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repetition in range(repetitions + warm_up):
        for name, step in contestants.items():
            began = time.perf_counter()
            step()
            if repetition >= warm_up:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def in_a_process(module: str, *arguments: object) -> dict[str, Any]:
    """The JSON that `python -m benchmarks.<module>` prints last."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return result


def memory(kind: str) -> int:
    """Bytes of this process, VmRSS (now) or VmHWM (the most since `forget_peak`). Linux alone has them."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def machine(threads: int) -> dict[str, Any]:
    """What it ran on."""
    try:
        models = re.findall(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        models = []
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
