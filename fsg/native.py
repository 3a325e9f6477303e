"""C++ beside the Python: compiled once a machine, on first use, and done without where there is no compiler."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

logger = logging.getLogger(__name__)

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd",
         "-fPIC", "-shared", "-pthread")  # fmt: skip


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """The shared library of `fsg/<name>.cpp`, or None, with a warning, where it cannot be had.

    `FSG_NATIVE=0` in the environment does without.
    """
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if os.environ.get("FSG_NATIVE") == "0":
        return None
    if compiler is None:
        warnings.warn(f"no C++ compiler found: {name} runs in plain torch, which is slower", stacklevel=2)
        return None
    source = Path(__file__).with_name(f"{name}.cpp")
    key = hashlib.sha256(source.read_bytes() + repr((compiler, FLAGS, platform.machine(), _processor())).encode())
    built = _cache() / f"{name}-{key.hexdigest()[:16]}.so"
    try:
        if not built.exists():
            _compile(compiler, source, built)
            logger.info("%s compiled by %s to %s", source.name, compiler, built)
        return ctypes.CDLL(str(built))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip().splitlines()[:1] if isinstance(error, subprocess.CalledProcessError) else error
        warnings.warn(
            f"{name}.cpp does not compile here ({reason}): plain torch is used, which is slower", stacklevel=2
        )
        return None


def _compile(compiler: str, source: Path, built: Path) -> None:
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        fresh = Path(folder) / built.name
        subprocess.run([compiler, *FLAGS, str(source), "-o", str(fresh)], check=True, capture_output=True, text=True)
        os.replace(fresh, built)  # two processes may compile at once; either result serves


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fsg"


def _processor() -> str:
    """What `-march=native` depends on: a shared home folder may serve unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
