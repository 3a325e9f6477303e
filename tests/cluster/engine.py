"""A Docker engine with the shipped image on it: the one that runs here, or a throw-away one."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
THROW_AWAY = ROOT.parent / "shared" / "docker" / "engine.sh"
WHEELS = ROOT / "docker" / "wheels"
BASE, POSTGRES = "python:3.11-slim-bookworm", "postgres:17.6-bookworm"


def compose() -> str | None:
    """Compose on its own; the one that pip installs without the script around it, which loses the exit status."""
    spec = importlib.util.find_spec("compose")
    inner = Path(spec.origin).with_name("docker-compose") if spec and spec.origin else None
    return str(inner) if inner and inner.exists() else shutil.which("docker-compose")


class NotHere(Exception):
    """Why there can be no engine on this machine."""


def run(*command: str, seconds: float = 120, **more: object) -> str:
    """The output of a command that has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, **more)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return str(done.stdout)


@dataclass
class Engine:
    """What `DOCKER_HOST` and the build have to be given here."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    started: bool = False

    @classmethod
    def found(cls, folder: Path) -> "Engine":
        """The engine that answers, or one of our own in a folder. Raises NotHere."""
        if shutil.which("docker") and _succeeds("docker", "version"):
            return cls(folder)
        if not THROW_AWAY.exists() or os.geteuid() != 0:
            raise NotHere("no Docker engine answers, and none can be started here")
        folder.mkdir(parents=True, exist_ok=True)
        run(str(THROW_AWAY), "base", str(folder), seconds=600)
        return cls(folder, {"DOCKER_HOST": f"unix://{folder}/docker.sock"}, started=True)

    def prepare(self, override: Path) -> list[str]:
        """Make an override of compose.yaml for what cannot be pulled or fetched here; returns what that was."""
        missing = []
        services: dict[str, object] = {}
        if self._lacks(POSTGRES):
            services["postgres"] = {
                "image": "fsg-test-postgres",
                "build": {"context": str(ROOT / "tests/cluster/postgres")},
            }
            missing.append(f"{POSTGRES} (Debian's package in its place)")
        if self.started:
            missing.append(f"{BASE} (Debian's packages in its place)")
        if _torch_lies_here():
            _gather_wheels()
            self.environment |= {"PIP_NO_INDEX": "1", "ACCELERATOR": "cuda"}
            missing.append("torch's build for CPUs alone (the wheel that this machine has is CUDA's, on CPUs)")
        override.write_text(json.dumps({"services": services}))
        return missing

    def docker(self, *arguments: str, seconds: float = 120) -> str:
        return run("docker", *arguments, seconds=seconds, env={**os.environ, **self.environment})

    def close(self) -> None:
        """Stop an engine of our own; of what earlier runs built on it, only what the newest images need is kept."""
        if self.started:
            self.docker("image", "prune", "--force")
            self.docker("builder", "prune", "--force", "--keep-storage", "12GB")
            run(str(THROW_AWAY), "down", str(self.folder), seconds=60)

    def _lacks(self, image: str) -> bool:
        environment = {**os.environ, **self.environment}
        asked: Sequence[Sequence[str]] = (("image", "inspect", image), ("pull", "--quiet", image))
        return not any(_succeeds("docker", *words, environment=environment) for words in asked)


def _succeeds(*command: str, environment: dict[str, str] | None = None) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=120, check=False, env=environment).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _gather_wheels() -> None:
    """Fill docker/wheels with what is locked and not there yet: a wheel that stays as it is need not be sent again."""
    locked = {}
    for lock in ("requirements.lock", "docker/requirements.lock"):
        for line in (ROOT / lock).read_text().splitlines():
            if match := re.match(r"([\w.-]+)(?:\[\w+\])?==([\w.]+)", line):
                locked[_plain(match[1]), match[2]] = f"{match[1]}=={match[2]}"
    have = {(_plain(name), version) for name, version, *_ in (p.name.split("-") for p in WHEELS.glob("*.whl"))}
    missing = [wanted for key, wanted in locked.items() if key not in have]
    if missing:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(WHEELS)]
        run(*pip, *missing, seconds=900)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _torch_lies_here() -> bool:
    """Whether pip finds the locked torch in a folder of this machine."""
    (wanted,) = (line for line in (ROOT / "requirements.lock").read_text().splitlines() if line.startswith("torch=="))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed"]
    report = json.loads(run(*pip, "--report", "-", wanted, seconds=300))
    return bool(report["install"][0]["download_info"]["url"].startswith("file:"))
