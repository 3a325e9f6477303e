"""The libraries that are supported, oldest or newest, laid over the installed ones: torch is not installed again."""

import json
import os
import site
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from orchestration.util.requirements import LIBRARIES

ROOT = Path(__file__).resolve().parents[2]
_VERSIONS = (
    f"import json; from importlib.metadata import version; print(json.dumps({{n: version(n) for n in {LIBRARIES}}}))"
)


class NotToBeHad(Exception):
    """Why packages cannot be had here, in one line."""


class Environment(NamedTuple):
    """An interpreter with its libraries, and a folder to work in."""

    python: Path
    folder: Path

    def run(self, *words: str, seconds: float = 240) -> str:
        """What a program prints that has to succeed."""
        ran = subprocess.run(
            [str(self.python), *words],
            cwd=self.folder,
            env=os.environ | {"PYTHONFAULTHANDLER": "1"},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert ran.returncode == 0, f"exit status {ran.returncode}\n{ran.stdout}{ran.stderr}"
        return ran.stdout

    def versions(self) -> dict[str, str]:
        return dict(json.loads(self.run("-c", _VERSIONS)))


def requirements(end: str) -> Iterator[str]:
    """The project's own, with the lower bounds of the ranges for `oldest`."""
    for one in map(Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]):
        lowest = [bound.version for bound in one.specifier if bound.operator == ">="]
        extras = f"[{','.join(one.extras)}]" if one.extras else ""
        yield f"{one.name}{extras}=={lowest[0]}" if end == "oldest" and one.name in LIBRARIES else str(one)


def installed(end: str, folder: Path) -> Environment:
    """The `oldest` or the `newest` libraries, and of what they need the rest. Raises NotToBeHad."""
    place = ROOT / ".venv" / "versions" / end
    venv.create(place, clear=True, symlinks=True)
    environment = Environment(place / "bin" / "python", folder)
    own = environment.run("-c", "import site; print(site.getsitepackages()[0])").strip()
    (Path(own) / "below.pth").write_text("\n".join([str(ROOT), *site.getsitepackages()]))
    pip = [sys.executable, "-m", "pip", "--python", str(environment.python), "--retries", "1", "--timeout", "20"]
    newest = ["--upgrade"] if end == "newest" else []
    ran = subprocess.run(
        [*pip, "install", "--quiet", "--disable-pip-version-check", *newest, *requirements(end)],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode != 0:
        assert "ResolutionImpossible" not in ran.stderr, ran.stderr
        raise NotToBeHad([line for line in ran.stderr.splitlines() if line.startswith("ERROR")][-1])
    return environment
