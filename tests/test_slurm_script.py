"""What the batch script of Slurm leaves open to other users of its nodes: nothing. Slurm is stand-ins here."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestration.util.put_away import processes_with

SCRIPT = Path(__file__).resolve().parents[1] / "docker" / "slurm.sh"
STAND_INS = {
    "scontrol": "echo n1; echo n2",
    # The words of Slurm go to a log; what is to run on a node runs here.
    "srun": """
        case "$*" in *mkdir*) [ -z "${FOREIGN:-}" ] || exit 1 ;; esac
        words=
        while [ "${1#--}" != "$1" ]; do words="$words$1 "; shift; done
        echo "$words| $1 ${2:-} $(stat -c %a "$TMPDIR" 2>/dev/null)" >>"$LOG"
        exec "$@" """,
    "python": f"""
        case "$*" in
          *ray.scripts*--head*) exec {sys.executable} -c "
import socket, sys, time
one = socket.create_server(('127.0.0.1', int(sys.argv[1])))
time.sleep(60)" "$PORT" ;;
          *ray.scripts*) exec sleep 60 ;;
          *find_spec*|*put_away*) exec {sys.executable} "$@" ;;
          *) for _ in $(seq 300); do  # a driver takes longer than the steps beside it to be begun
               [ "$(grep -c "$PYTHON" "$LOG")" -lt 3 ] || break
               sleep 0.1
             done
             echo "driver $(stat -c %a "$TMPDIR") $TMPDIR" >>"$LOG" ;;
        esac""",
}


def free_job_number() -> int:
    """One whose port nobody has."""
    for number in range(os.getpid() % 10_000, 10_000):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", 20_000 + number)):
                return number
    raise OSError("no port is free")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    number = free_job_number()
    return os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHON": str(tmp_path / "python"),
        "LOG": str(tmp_path / "log.txt"),
        "PORT": str(20_000 + number),
        "SLURM_JOB_ID": str(number),
        "SLURM_JOB_NODELIST": "n[1-2]",
        "FSG_HEAD_ADDRESS": "127.0.0.1",
    }


def run(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = ["bash", "-c", 'umask 0; exec "$0" spec.yaml', str(SCRIPT)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_folder_of_ray_is_made_for_this_user_alone_on_every_node_before_ray_comes(environment: dict[str, str]) -> None:
    done = run(environment)
    assert done.returncode == 0, done.stderr
    first, *others = Path(environment["LOG"]).read_text().splitlines()
    assert first == "--overlap --ntasks-per-node=1 | bash -c 700", "one task on each node of the allocation"
    assert sum("ray.scripts" in line or environment["PYTHON"] in line for line in others) == 3
    (driver,) = [line for line in others if line.startswith("driver ")]
    assert driver.startswith("driver 700 /tmp/fsg-"), "temporary files of the driver lie there, too"
    assert not Path(driver.split()[2]).exists()


def test_folder_that_cannot_be_made_on_every_node_is_told_in_a_line_before_anything_starts(
    environment: dict[str, str],
) -> None:
    done = run(environment | {"FOREIGN": "yes"})
    assert done.returncode == 2
    assert done.stderr.startswith("slurm.sh: /tmp/fsg-")
    assert done.stderr.endswith("cannot be made on every node (expected room in /tmp)\n")
    assert not Path(environment["LOG"]).exists()
    assert not Path(done.stderr.split()[1]).exists()


def test_script_that_is_killed_leaves_nothing_on_its_nodes(environment: dict[str, str], tmp_path: Path) -> None:
    driver = (
        (tmp_path / "python")
        .read_text()
        .replace('echo "driver', 'echo "$$ driver')
        .replace('LOG" ;;', 'LOG"; exec sleep 60 ;;')
    )
    (tmp_path / "python").write_text(driver)
    script = subprocess.Popen([str(SCRIPT), "spec.yaml"], env=environment)
    log, end = Path(environment["LOG"]), time.monotonic() + 60
    while "driver" not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < end
        time.sleep(0.1)
    (folder,) = [Path(line.split()[3]) for line in log.read_text().splitlines() if "driver" in line]
    assert len(processes_with(folder)) >= 3, "Ray on both nodes and the driver"
    script.kill()
    script.wait()
    while folder.exists() or processes_with(folder):
        assert time.monotonic() < end
        time.sleep(0.1)
