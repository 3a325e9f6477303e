"""System metrics of a training: CPU and memory of its process, and its GPU, sampled every few seconds.

    system/cpu_percent            of one core, by this process, since the last sample
    system/memory_megabytes       resident, of this process
    system/gpu_memory_megabytes   of the GPU, that this process has reserved
    system/gpu_percent            of the GPU, all its processes, where NVIDIA's library can be asked

A sample takes well under a millisecond, and these numbers stand outside every comparison of bits.
"""

import time
from contextlib import suppress

import psutil  # type: ignore[import-untyped]
import torch

from orchestration.util.metric_names import SYSTEM_PREFIX

_MEGABYTE = 1e6


class SystemMetrics:
    """Samples of this process, `every` so many seconds, the first one a tenth of that after the start."""

    def __init__(self, device: torch.device, every: float = 10.0) -> None:
        self._gpu = device if device.type == "cuda" else None
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first answer is about nothing: it counts from here
        self._every, self._next = every, time.monotonic() + every / 10

    def due(self) -> dict[str, float]:
        """A sample where it is time for one; otherwise nothing."""
        if time.monotonic() < self._next:
            return {}
        self._next = time.monotonic() + self._every
        return self.sample()

    def sample(self) -> dict[str, float]:
        """Values by metric name."""
        resident = self._process.memory_info().rss
        found = {"cpu_percent": self._process.cpu_percent(), "memory_megabytes": resident / _MEGABYTE}
        if self._gpu is not None:
            found["gpu_memory_megabytes"] = torch.cuda.memory_reserved(self._gpu) / _MEGABYTE
            with suppress(Exception):  # no library, no right to ask it, a part of a GPU: each raises its own
                found["gpu_percent"] = float(torch.cuda.utilization(self._gpu))
        return {f"{SYSTEM_PREFIX}{name}": float(value) for name, value in found.items()}
