"""Which versions of Ray, MLflow, Optuna and pydantic are supported: pyproject.toml says it, and nothing else does."""

import shlex
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

LIBRARIES = ("ray", "mlflow", "optuna", "pydantic")


@cache
def supported() -> dict[str, Requirement]:
    """The requirement on each: the installed package's, or that of the clone in which this code lies; else none."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    try:
        declared = metadata.requires("fsg") or []
    except metadata.PackageNotFoundError:
        declared = (
            tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"] if project.exists() else []
        )
    return {one.name: one for one in map(Requirement, declared) if one.name in LIBRARIES}


def supports(name: str, version: str) -> bool:
    """Whether a version of a library is in its range."""
    return name not in supported() or supported()[name].specifier.contains(version, prereleases=True)


def installed(name: str) -> str | None:
    """The version of a library here; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def unsupported() -> str | None:
    """What to say where a library is not installed, or in a version that is not supported; all of them in one line."""
    wrong = {}
    for name in supported():
        version = installed(name)
        if version is None:
            wrong[name] = "is not installed"
        elif not supports(name, version):
            wrong[name] = f"{version} is not supported"
    if not wrong:
        return None
    found = ", ".join(f"{name} {what}" for name, what in wrong.items())
    return f"{found} (expected: pip install {shlex.join(str(supported()[name]) for name in wrong)})"
