"""C++ beside the Python: compiled once a machine, on first use, and done without where there is no compiler."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd",
         "-fPIC", "-shared", "-pthread")  # fmt: skip


class Built(NamedTuple):
    """A library, or None; `how` says by which compiler and flags, or why there is none."""

    library: ctypes.CDLL | None
    how: str


BUILT: dict[str, Built] = {}


def library(name: str) -> ctypes.CDLL | None:
    """The shared library of `fsg/<name>.cpp`, or None where it cannot be had."""
    return build(name).library


def build(name: str) -> Built:
    """The shared library of `fsg/<name>.cpp`. Where it cannot be had, a warning and the log say so, once a process.

    `FSG_NATIVE=0` in the environment does without.
    """
    if name not in BUILT:  # a dictionary, which torch.compile sees through: it does not through functools.cache
        BUILT[name] = _build(name)
    return BUILT[name]


def _build(name: str) -> Built:
    if os.environ.get("FSG_NATIVE") == "0":
        return Built(None, "FSG_NATIVE=0")
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return _without(name, "no C++ compiler")
    source = Path(__file__).with_name(f"{name}.cpp")
    try:
        how = f"{_version(compiler)}, {' '.join(FLAGS)}"
        key = hashlib.sha256(source.read_bytes() + repr((compiler, how, platform.machine(), _processor())).encode())
        built = _cache() / f"{name}-{key.hexdigest()[:16]}.so"
        if not built.exists():
            _compile(compiler, source, built)
            logger.info("%s compiled by %s to %s", source.name, compiler, built)
        return Built(ctypes.CDLL(str(built)), how)
    except subprocess.CalledProcessError as error:
        return _without(name, (error.stderr.strip().splitlines() or [f"{compiler} fails"])[0])
    except OSError as error:
        return _without(name, str(error))


def _without(name: str, reason: str) -> Built:
    said = f"{name}.cpp cannot be compiled here ({reason}): plain torch is used, which is slower"
    logger.warning(said)
    warnings.warn(said, stacklevel=2)
    return Built(None, reason)


def _version(compiler: str) -> str:
    """What a compiler says that it is. Raises OSError, CalledProcessError."""
    said = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    return said.partition("\n")[0].strip()


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
