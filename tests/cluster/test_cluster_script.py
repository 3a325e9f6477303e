"""What `make cluster-up` says where something is missing; a stand-in for the docker command tells it so."""

import os
import shutil
import socket
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The script in a copy of its folder, so that its secrets are nobody's."""
    (tmp_path / "docker").mkdir()
    for name in ("cluster.sh", "secrets.sh", "compose.yaml"):
        shutil.copy(ROOT / "docker" / name, tmp_path / "docker")
    return tmp_path / "docker" / "cluster.sh"


def run(script: Path, docker: str | None, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """With a `docker` that does as told, or none; the rest of the path is the system's own."""
    tools = script.parents[1] / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "id", "touch", "grep", "od", "tr"):
        os.symlink(str(shutil.which(name)), tools / name)
    if docker is not None:
        (tools / "docker").write_text(f"#!/bin/bash\n{docker}\n")
        (tools / "docker").chmod(0o755)
    return subprocess.run(
        [str(script), *arguments],
        env={"PATH": str(tools), "HOME": str(script.parent), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("docker", "expected"),
    [
        (None, "there is no docker command (expected"),
        ('[ "$1" != compose ]', "Docker has no compose (expected"),
        ('[ "$1" != version ]', "no Docker engine answers at unix:///nowhere (expected"),
        ('[ "$2" != build ]', "its images could not be built"),
        ('[ "$2" != up ]', "it did not become healthy (look at: docker compose -p fsg logs)"),
    ],
)
def test_one_line_says_what_is_missing(script: Path, docker: str | None, expected: str) -> None:
    ran = run(script, docker, "up", DOCKER_HOST="unix:///nowhere", RAY_PORT="1", MLFLOW_PORT="2")
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"cluster: {expected}")


def test_port_in_use_is_named(script: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ran = run(script, "true", "up", RAY_PORT=port, MLFLOW_PORT="2")
    assert ran.returncode == 2
    assert (
        ran.stderr
        == f"cluster: port {port} is in use (expected it free: choose others with RAY_PORT=… MLFLOW_PORT=…)\n"
    )


def test_number_of_workers_is_checked(script: Path) -> None:
    ran = run(script, "true", "up", "none")
    assert ran.returncode == 2
    assert ran.stderr == "cluster: none workers (expected a number from 1 on)\n"


def test_secrets_are_made_once_and_are_their_owners_alone(script: Path) -> None:
    ran = run(script, "true", "up", "3", RAY_PORT="1", MLFLOW_PORT="2")
    assert ran.returncode == 0, ran.stderr
    assert "http://127.0.0.1:1 " in ran.stdout
    secrets = script.parent / ".env"
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o600
    before = secrets.read_text()
    assert len({line.partition("=")[2] for line in before.splitlines()}) == 4
    assert all(len(line.partition("=")[2]) == 48 for line in before.splitlines())
    assert not any(line.partition("=")[2] in ran.stdout + ran.stderr for line in before.splitlines())
    subprocess.run([str(script.parent / "secrets.sh")], check=True)
    assert secrets.read_text() == before
