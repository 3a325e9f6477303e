"""Provenance: code, versions, hardware. Recorded with launches and attempts; part of no cell's id."""

import hashlib
import os
import platform
import re
import socket
import subprocess
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestration.util import submission

LONGEST_CHANGES = 200_000  # characters
# What an attempt records of where it ran, beside its device and versions, and what a table calls it.
DETERMINANTS = {
    "kernel": "slow net kernels",
    "cpu": "CPU types",
    "cpu_capability": "processor features",
    "threads": "threads",
    "blas": "BLAS libraries",
    "cuda": "CUDA versions",
    "cudnn": "cuDNN versions",
    "driver": "GPU drivers",
}
_PACKAGES = ("torch", "torchvision", "pillow", "numpy", "ray", "mlflow", "optuna", "pydantic")


@cache
def code() -> dict[str, Any]:
    """Commit and changes of the repository that this package lies or lay in, if any, and the hash of its source."""
    package = Path(__file__).resolve().parents[2]
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "diff", "HEAD") if commit else None
    handed_over = submission.record()
    return {
        "git_commit": handed_over.get("git_commit", commit),
        "git_diff_sha256": handed_over.get(
            "git_diff_sha256", hashlib.sha256(changes.encode()).hexdigest() if changes else None
        ),
        "fsg_source_sha256": source_sha256(package / "fsg"),
        "orchestration_source_sha256": source_sha256(package / "orchestration"),
    }


@cache
def uncommitted() -> str | None:
    """The changes themselves, as far as they are no book."""
    changes = submission.record().get("git_diff") or _git(Path(__file__).resolve().parents[2], "diff", "HEAD") or None
    over = "\n[cut off: the rest is not kept]\n"
    return changes if changes is None or len(changes) <= LONGEST_CHANGES else changes[:LONGEST_CHANGES] + over


@cache
def versions() -> dict[str, str]:
    """Of Python and of what numbers hang on or pass through."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def hardware() -> dict[str, Any]:
    """Of this machine: CPU model, cores that may be used, memory, GPUs."""
    return {
        "host": socket.gethostname(),
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_gb": round(_memory() / 2**30, 1),
        "gpus": gpu_names(),
    }


@cache
def cores() -> int:
    """CPUs that this process may use: its affinity, within the quota of its control group."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):  # no control group, or no quota in it
        return allowed


@cache
def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


@cache
def device_name(device: str) -> str:
    """What computes: the GPU's or the CPU's model."""
    import torch  # start-up time

    return cpu_model() if device == "cpu" else torch.cuda.get_device_name(device)


def determinants(device: str) -> dict[str, str]:
    """What the bits of a training hang on beside its settings, versions and device, of this process as it is now."""
    import torch  # start-up time

    found = {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "blas": _blas(),
    }
    if device != "cpu":
        found |= {"cpu": cpu_model(), "cuda": str(torch.version.cuda), "driver": _driver()}
        found["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    return found


@cache
def library_versions(modules: frozenset[str]) -> dict[str, str]:
    """Of the distributions that top-level modules belong to."""
    owners = metadata.packages_distributions()
    names = sorted({name for module in modules for name in owners.get(module, [])})
    return {name: metadata.distribution(name).version for name in names if name not in _PACKAGES}


@cache
def _blas() -> str:
    """The libraries of linear algebra that torch was built with, as it tells them."""
    import torch  # start-up time

    lines = [line.strip(" -") for line in torch.__config__.show().splitlines()]
    made = ("Intel(R) oneAPI Math Kernel", "Intel(R) MKL-DNN", "OpenBLAS")
    told = [line for line in lines if line.startswith(made)]
    named = re.findall(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return ", ".join([*named, *told]) or "none"


@cache
def _driver() -> str:
    """The version of NVIDIA's driver; empty where it does not say."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return (_output(command) or "").partition("\n")[0]


def computes_bf16() -> bool:
    """Whether this processor multiplies in bfloat16: others only pretend to, and are slower for it."""
    import torch  # start-up time

    has = torch.cpu.get_capabilities()
    return bool(has.get("amx_bf16") or has.get("avx512_bf16"))


def gpu_names() -> list[str]:
    """Of the GPUs that torch can use: a driver that is too old lists some nevertheless."""
    import torch  # start-up time

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _memory() -> int:
    import psutil  # type: ignore[import-untyped]  # start-up time

    return int(psutil.virtual_memory().total)


def source_sha256(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.cpp")]):
        total.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return total.hexdigest()


def _git(folder: Path, *arguments: str) -> str | None:
    return _output(["git", "-C", str(folder), *arguments])


def _output(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
