"""What dies, fills up or hangs on the way, for real, and that a launch comes through it with nothing lost."""

import os
import random
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from launches import (
    SPEC,
    Launched,
    assert_exact,
    assert_level,
    checkpoints,
    ledger_of,
    leftovers,
    planned_here,
    processes,
    stands_still,
    until,
)

from orchestration.commands.launch import launch as launch_here
from orchestration.commands.request import LaunchRequest
from orchestration.ledger.ledger import Ledger
from orchestration.spec.cells import Cell

pytestmark = pytest.mark.usefixtures("short")


@pytest.mark.slow(minutes=4)
def test_whatever_dies_or_stops_it_an_experiment_goes_on_and_ends_exactly(
    folder: Path, launch: Callable[..., Launched], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each death hits a training that has a checkpoint, and the whole is compared once, at the end."""
    (folder / "tiny.yaml").write_text(SPEC.replace("epochs: 20", "epochs: 16").replace("every: 0.3", "every: 0.1"))
    planned, ledger = planned_here(), ledger_of(folder)

    number = 0

    def started(*arguments: str, **more: Any) -> Launched:
        nonlocal number
        number = len(ledger.launches()) + 1
        return launch(*arguments, **more)

    def training() -> list[dict[str, Any]]:
        """The attempts of this launch that are under way and have a checkpoint."""
        newest = (ledger.attempts(cell.id)[-1] for cell in checkpoints(ledger))
        return [attempt for attempt in newest if attempt["launch"] == number]

    # A launch survives the death of a worker, and starts its Ray anew, in the same process, where that dies.
    one = started()
    until(ledger.launches, one)
    assert launch_here(LaunchRequest(Path("tiny.yaml"))) == 2
    assert f"is locked by process {one.process.pid} on " in capsys.readouterr().err
    until(lambda: len(training()) == 2, one)
    for attempt, sent in zip(training(), (signal.SIGKILL, signal.SIGTERM), strict=True):
        os.kill(attempt["pid"], sent)
    until(lambda: one.text.count("is retried: the worker's process died") == 2, one)
    for name in ("raylet", "gcs_server"):
        (victim,) = until(lambda name=name: training() and processes(one, name), one)  # type: ignore[misc]
        number += 1
        victim.kill()
        until(lambda name=name: f"Ray's {name} died: restarting from the ledger" in one.text, one)  # type: ignore[misc]

    # `timeout` and batch systems terminate Ray's own processes, too: it stops then.
    raylets = until(lambda: training() and processes(one, "raylet"), one)
    for process in (one.process, *raylets):
        os.kill(process.pid, signal.SIGTERM)
    assert one.wait() == 130, one.text
    assert "Interrupted. To resume: " in one.text
    assert one.text.count("restarting from the ledger") == 2

    # A Ray that does not start in the half minute that it gives itself is started again; then the driver dies in
    # mid-checkpoint.
    one = started("--set", "resources.checkpoint_every=0.01")
    (raylet,) = until(lambda: processes(one, "raylet"), one)
    raylet.suspend()
    until(training, one)
    assert not raylet.is_running()
    assert len(processes(one, "raylet")) == 1
    session = sessions_of(one)
    assert list(session.glob("ray/session_*"))
    die_in_the_middle_of_a_checkpoint(one, ledger, training)
    wait_for_none(partial(leftovers, one))
    wait_for_none(lambda: [str(session)] if session.exists() else [])

    # The driver alone is killed: its workers are left to themselves.
    one = started()
    until(training, one)
    one.process.kill()
    one.wait()

    # Ctrl-C stops at a checkpoint.
    one = started()
    until(training, one)
    one.ctrl_c()
    assert one.wait() == 130, one.text
    assert one.text.splitlines()[-1] == "Interrupted. To resume: fsg launch tiny.yaml"
    assert leftovers(one) == []
    states = {ledger.outcome(cell.id).state for cell in planned}
    assert "interrupted" in states
    assert "running" not in states

    # Ctrl-C, twice, ends at once, whatever the workers do.
    one = started()
    worker = psutil.Process(until(training, one)[0]["pid"])
    worker.suspend()
    one.ctrl_c()
    until(lambda: ledger.stop_file(len(ledger.launches())).exists(), one)
    one.ctrl_c()
    assert one.wait(120) == 130, one.text
    assert "Traceback" not in one.text
    with suppress(psutil.Error):
        worker.kill()

    one = started()
    assert one.wait() == 0, one.text
    assert "report   results/tiny/report.html" in one.text
    assert Path("results/tiny/report.html").exists()
    assert_exact(ledger, planned)
    assert_resumed(ledger, planned)
    assert_level(ledger, folder / "results" / "mlflow.db")
    ends = [(record.get("exit_status"), record.get("reason")) for record in ledger.launches()]
    assert ends[:2] == [(1, "raylet died"), (1, "gcs_server died")]
    assert [status for status, _ in ends[2:]] == [130, None, None, 130, 130, 0]

    attempts = {cell.id: len(ledger.attempts(cell.id)) for cell in planned}
    assert launch_here(LaunchRequest(Path("tiny.yaml"))) == 0
    assert {cell.id: len(ledger.attempts(cell.id)) for cell in planned} == attempts
    assert len(ledger.launches()) == len(ends), "a launch with nothing to do and nothing new to say leaves no record"
    assert "6 cells, all done, in results/tiny" in capsys.readouterr().out


def sessions_of(one: Launched) -> Path:
    """The folder of Ray's sessions that is a launch's, as its processes tell."""
    tree = psutil.Process(one.process.pid).children()
    (path,) = {word for child in tree for word in re.findall(r"/tmp/fsg-\w+", " ".join(child.cmdline()))}
    return Path(path)


def wait_for_none(found: Callable[[], list[str]]) -> None:
    end = time.monotonic() + 120
    while left := found():
        assert time.monotonic() < end, left
        time.sleep(0.1)


def die_in_the_middle_of_a_checkpoint(
    one: Launched, ledger: Ledger, training: Callable[[], list[dict[str, Any]]]
) -> None:
    """A worker whose checkpoint has no name yet, and its driver."""
    draw, half = random.Random(0), list[Path]()
    while not half:
        worker = psutil.Process(until(training, one)[0]["pid"])
        worker.suspend()
        until(partial(stands_still, worker), one)
        half = list(ledger.folder.glob(f"trials/*/*/.checkpoint-*.pt.{worker.pid}.*"))
        if not half:
            worker.resume()
            time.sleep(draw.uniform(0.01, 0.1))
    (path,) = half
    psutil.Process(one.process.pid).suspend()  # so that it cannot answer its worker's death
    worker.kill()
    one.process.kill()
    one.process.wait()
    psutil.wait_procs([worker], timeout=60)
    assert path.exists(), "the checkpoint has no name yet"
    assert not path.with_name(path.name.split(".pt")[0][1:] + ".json").exists()


def assert_resumed(ledger: Ledger, planned: list[Cell]) -> None:
    """No training that had a checkpoint began at zero again."""
    resumed = 0
    for cell in planned:
        for attempt in ledger.attempts(cell.id):
            segments = ledger.folder.glob(f"trials/{cell.id}/{attempt['number']:04d}/rows-*.jsonl")
            first = min((int(path.name.split("-")[2]) for path in segments), default=None)
            if attempt["resumed_from"] is not None and first is not None:
                assert first > attempt["resumed_from"]["step"], cell.label
                resumed += 1
    assert resumed > 4


@pytest.mark.slow(minutes=1)
def test_ray_that_never_starts_is_told_in_one_line(folder: Path, launch: Callable[..., Launched]) -> None:
    one = launch()
    while one.process.poll() is None:
        for raylet in processes(one, "raylet"):
            raylet.kill()
        time.sleep(0.02)
    assert one.process.returncode == 2, one.text
    told = one.text.splitlines()
    assert told[-1].startswith(
        "Ray does not start on this machine, tried 2 times: its raylet died (expected some memory"
    )
    assert "Traceback" not in one.text
    assert ledger_of(folder).launches()[0]["exit_status"] == 2


DIES_IN_ITS_SETUP = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "orchestration.runtime.worker" and sys.argv[0].endswith("default_worker.py"):
            raise ImportError("libsomething.so is missing")

sys.meta_path.insert(0, Missing())
"""


@pytest.mark.slow(minutes=1)
def test_workers_that_die_in_their_setup_are_told_in_one_line(
    folder: Path, launch: Callable[..., Launched], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = folder / "installed"  # the spec's folder itself is on nobody's path
    installed.mkdir()
    (installed / "sitecustomize.py").write_text(DIES_IN_ITS_SETUP)
    monkeypatch.setenv("PYTHONPATH", str(installed))
    one = launch()
    assert one.wait() == 2, one.text
    assert one.text.splitlines()[-1] == "no worker starts, tried 3 times: ImportError: libsomething.so is missing"
    assert "Traceback" not in one.text
    assert ledger_of(folder).launches()[0]["exit_status"] == 2
    assert all(not ledger_of(folder).attempts(cell.id) for cell in planned_here()), "nothing was begun"
