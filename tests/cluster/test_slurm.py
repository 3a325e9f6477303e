"""The batch script on a real Slurm of two nodes: the time limit comes, and it goes on after it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from exactness import assert_same
from single_process import train

from orchestration.ledger.ledger import Ledger
from orchestration.util.put_away import processes_with

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
THROW_AWAY = ROOT.parent / "shared" / "slurm" / "slurm.sh"
SPEC = """
name: queued
train:
  data: {name: arrays, file: tiny.npz, validation: 64, crop_padding: 1}
  model: {name: resnet, depth: 8, width: 4}
  epochs: 100
  batch_size: 16
  log_every: 50
  estimator: {name: fsg, chunk_size: 8}
variants: {fsg: {}, no_history: {estimator.history_length: 1}}
seeds: [0, 1]
resources: {checkpoint_every: 5}
report: {baseline: no_history, primary: fsg}
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Runs one of Slurm's commands."""
    if not THROW_AWAY.exists() or os.geteuid() != 0:
        pytest.skip("no Slurm can be started here")
    folder = Path(os.environ.get("FSG_TEST_SLURM", "/var/tmp/fsg-slurm"))
    shutil.rmtree(folder, ignore_errors=True)
    up = subprocess.run([str(THROW_AWAY), "up", str(folder)], capture_output=True, text=True, timeout=400, check=False)
    assert up.returncode == 0, up.stdout + up.stderr
    environment = {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf"}

    def command(*words: str, **more: str) -> str:
        done = subprocess.run(words, env=environment | more, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    try:
        yield command
    finally:
        subprocess.run(["scancel", "--user=root", "--full"], env=environment, check=False, timeout=60)
        time.sleep(2)
        subprocess.run([str(THROW_AWAY), "down", str(folder)], check=False, timeout=60)


def until(condition: Callable[[], Any], what: str, output: Path, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        told = output.read_text() if output.exists() else "nothing was printed"
        assert time.monotonic() < end, f"not within {seconds} s: {what}\n{told}"
        time.sleep(0.5)


def test_script_says_what_it_wants() -> None:
    for arguments, expected in (([], "no spec"), (["a.yaml"], "not in a Slurm job")):
        outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
        script = [str(ROOT / "docker" / "slurm.sh"), *arguments]
        ran = subprocess.run(script, env=outside, capture_output=True, text=True, timeout=30, check=False)
        assert ran.returncode == 2
        assert expected in ran.stderr


OUR_FOLDER = re.compile(r"TMPDIR=(/tmp/fsg-\w{6})")


def submitted(slurm: Callable[..., str], folder: Path, output: Path) -> str:
    """The number of a job that trains in a folder."""
    draw = np.random.default_rng(0)
    pixels, labels = draw.integers(0, 255, (384, 12, 12), dtype=np.uint8), np.arange(384) % 4
    pixels[:, 2, 2] = labels * 60
    np.savez(
        folder / "tiny.npz",
        train_images=pixels[:320], train_labels=labels[:320], test_images=pixels[320:], test_labels=labels[320:],
    )  # fmt: skip
    (folder / "queued.yaml").write_text(SPEC)
    how = ["--nodes=2", "--cpus-per-task=1", "--time=10", "--signal=B:USR1@30", f"--chdir={folder}"]
    return slurm(
        "sbatch", "--parsable", *how, f"--output={output}", str(ROOT / "docker" / "slurm.sh"), "queued.yaml",
        PYTHON=sys.executable, PYTHONPATH=str(ROOT), FSG_HEAD_ADDRESS="127.0.0.1", OBJECT_STORE_BYTES="80000000",
    )  # fmt: skip


def test_batch_script_that_is_killed_leaves_no_process_and_no_folder_on_its_nodes(
    slurm: Callable[..., str], tmp_path: Path
) -> None:
    output = tmp_path / "output.txt"
    job = submitted(slurm, tmp_path, output)
    until(lambda: output.exists() and "0/4 cells" in output.read_text(), "Ray is there", output)
    of_the_job = [words for words in environments().values() if f"SLURM_JOB_ID={job}" in words]
    (folder,) = {Path(found[1]) for words in of_the_job for found in map(OUR_FOLDER.fullmatch, words) if found}
    script = min(number for number, words in environments().items() if f"SLURM_JOB_ID={job}" in words)
    assert "slurm_script" in Path(f"/proc/{script}/cmdline").read_text()
    assert len(processes_with(folder)) > 4
    os.kill(script, signal.SIGKILL)
    until(lambda: not folder.exists() and not processes_with(folder), "all is put away", output, 10)
    until(lambda: not named_by_a_command(folder), "those that see to it have ended, too", output)


def named_by_a_command(folder: Path) -> list[int]:
    found = []
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            found += [one.pid] if str(folder) in " ".join(one.cmdline()) else []
    return found


def environments() -> dict[int, list[str]]:
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            found[int(path.parent.name)] = path.read_text(errors="replace").split("\0")
    return found


def test_experiment_outlives_its_time_limit(slurm: Callable[..., str], tmp_path: Path) -> None:
    output = tmp_path / "output.txt"
    job = submitted(slurm, tmp_path, output)
    ledger = Ledger(tmp_path / "results" / "queued")
    until(lambda: any(ledger.resume_point(cell.id) for cell in ledger.cells()), "a training has a checkpoint", output)

    # Slurm counts in minutes and looks now and then: the limit is drawn near, and the rest is Slurm's doing.
    def minutes() -> int:
        hours, gone, seconds = (f"0:{slurm('squeue', '-h', '-j', job, '-o', '%M')}").split(":")[-3:]
        return int(hours) * 60 + int(gone) + (int(seconds) > 0)

    slurm("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes()}")
    until(lambda: "goes back into the queue" in output.read_text(), "the signal has come", output)
    until(lambda: slurm("squeue", "-h", "-j", job, "-o", "%T") == "PENDING", "it is queued again", output)
    states = [ledger.outcome(cell.id).state for cell in ledger.cells()]
    assert "interrupted" in states
    assert set(states) <= {"interrupted", "done", "waiting"}

    # Slurm lets a job that comes back wait for two minutes; and it has time now.
    slurm("scontrol", "update", f"JobId={job}", "TimeLimit=10", "StartTime=now")
    until(lambda: "report" in output.read_text().rpartition("goes back into the queue")[2], "it is done", output, 400)
    until(lambda: slurm("squeue", "-h", "-j", job, "-o", "%T") == "", "the job is over", output)
    assert len(ledger.launches()) == 2
    assert_same(ledger, train(tmp_path / "queued.yaml", tmp_path / "oracle"))
    assert any(len(ledger.attempts(cell.id)) == 2 for cell in ledger.cells())
