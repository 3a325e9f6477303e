"""What dies, fills up or hangs on the way, for real, and that a launch comes through it with nothing lost."""

import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from late import Late
from launches import SHORT, Launched, assert_exact, checkpoints, compared, ledger_of, processes, until

from benchmarks.chaos import TrackingServer, in_mlflow, serving
from orchestration.commands.sync import sync
from orchestration.ledger.ledger import Ledger
from orchestration.scheduler import environment
from orchestration.spec.cells import cells
from orchestration.spec.experiment import load_spec
from orchestration.util.scratch import scratch


@pytest.fixture
def folder(folder: Path) -> Path:
    (folder / "tiny.yaml").write_text(SHORT)
    return folder


# Ray


@pytest.mark.slow
@pytest.mark.parametrize(("name", "told"), [("raylet", "raylet"), ("gcs_server", "gcs_server")])
def test_launch_whose_ray_dies_starts_it_anew_and_ends_exactly(
    folder: Path, launch: Callable[..., Launched], name: str, told: str
) -> None:
    """By itself, in the same process: whoever waits for it sees one launch that ends well."""
    planned, ledger = cells(load_spec(Path("tiny.yaml"))), ledger_of(folder)
    one = launch()
    until(lambda: checkpoints(ledger), one)
    (victim,) = processes(one, name)
    victim.kill()
    assert one.wait() == 0, one.text
    assert f"Ray's {told} died: restarting from the ledger" in one.text
    assert_exact(ledger, planned, folder)
    assert [record["exit_status"] for record in ledger.launches()] == [1, 0]
    assert ledger.launches()[0]["reason"] == f"{told} died"


@pytest.mark.slow
def test_launch_that_is_terminated_with_all_of_its_processes_stops_and_goes_on_exactly(
    folder: Path, launch: Callable[..., Launched]
) -> None:
    """As `timeout` and batch systems do it: Ray's own processes get the signal, too."""
    planned, ledger = cells(load_spec(Path("tiny.yaml"))), ledger_of(folder)
    one = launch()
    until(lambda: checkpoints(ledger), one)
    for process in (one.process, *processes(one, "raylet")):
        os.kill(process.pid, signal.SIGTERM)
    assert one.wait() == 130, one.text
    assert "Interrupted. To resume: " in one.text
    assert "starting anew" not in one.text
    assert [record["exit_status"] for record in ledger.launches()] == [130]
    assert launch().wait() == 0
    assert_exact(ledger, planned, folder)


@pytest.mark.slow
def test_ray_that_takes_longer_to_start_than_it_gives_itself_is_waited_for(
    folder: Path, launch: Callable[..., Launched]
) -> None:
    planned, ledger = cells(load_spec(Path("tiny.yaml"))), ledger_of(folder)
    one = launch()
    until(lambda: processes(one, "raylet"), one)
    (raylet,) = processes(one, "raylet")
    raylet.suspend()
    time.sleep(40)  # Ray gives up after 30 s
    raylet.resume()
    until(lambda: checkpoints(ledger), one)
    assert processes(one, "raylet") == [raylet], "another one was started"
    assert one.wait() == 0, one.text
    assert_exact(ledger, planned, folder)


@pytest.mark.slow
def test_ray_that_never_starts_is_told_in_one_line(folder: Path, launch: Callable[..., Launched]) -> None:
    one = launch()
    while one.process.poll() is None:
        for raylet in processes(one, "raylet"):
            raylet.kill()
        time.sleep(0.02)
    assert one.process.returncode == 2, one.text
    told = one.text.splitlines()
    assert told[-1].startswith(
        "Ray does not start on this machine, tried 3 times: its raylet died (expected some memory"
    )
    assert "Traceback" not in one.text
    assert ledger_of(folder).launches()[0]["exit_status"] == 2


@pytest.mark.slow
def test_folders_that_a_dead_launch_left_behind_are_removed_by_the_next(
    folder: Path, launch: Callable[..., Launched]
) -> None:
    def left() -> set[Path]:
        """Folders of Ray's sessions that are its, as its processes tell."""
        tree = psutil.Process(one.process.pid).children()
        named = {word for child in tree for word in child.cmdline() for word in re.findall(r"/tmp/fsg-\w+", word)}
        return {Path(path) for path in named}

    one = launch()
    until(lambda: checkpoints(ledger_of(folder)), one)
    (session,) = left()
    assert list(session.glob("session_*"))
    one.kill()
    assert session.exists(), "nothing was put away"
    one = launch()
    assert one.wait() == 0, one.text
    assert not session.exists()


def stands_still(process: psutil.Process) -> bool:
    """A stop is a request: a thread inside a call to the system first ends it."""
    return all(psutil.Process(thread.id).status() == psutil.STATUS_STOPPED for thread in process.threads())


@pytest.mark.slow
def test_driver_that_is_killed_while_a_checkpoint_is_being_written_goes_on_exactly(
    folder: Path, launch: Callable[..., Launched]
) -> None:
    (folder / "tiny.yaml").write_text(SHORT.replace("checkpoint_every: 0.3", "checkpoint_every: 0.01"))
    planned, ledger = cells(load_spec(Path("tiny.yaml"))), ledger_of(folder)
    one = launch()
    draw, half = random.Random(0), list[Path]()
    while not half:
        until(lambda: checkpoints(ledger), one)
        newest = [ledger.attempts(cell.id)[-1]["pid"] for cell in checkpoints(ledger)]
        worker = psutil.Process(newest[0])
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
    last = launch()
    assert last.wait() == 0, last.text
    assert_exact(ledger, planned, folder)
    assert max(len(ledger.attempts(cell.id)) for cell in planned) == 2


# memory

HUNGRY = SHORT.replace("{fsg: ", "{hungry: {estimator: {import: 'own:Unlucky', what: eats, at: 40}}, fsg: ").replace(
    "checkpoint_every: 0.3}", "checkpoint_every: 0.3, max_retries: 1}"
)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray takes this machine to be short of memory as soon as 4 GB more are in use than are now."""
    if sys.platform != "linux":
        pytest.skip("NOT RUN: Ray looks after memory on Linux alone")
    environment.prepare(None)
    from ray._common.utils import get_system_memory
    from ray._private.utils import get_used_memory

    whole, used = get_system_memory(), get_used_memory()
    if whole - used < 10 * 2**30:
        pytest.skip(f"NOT RUN: 10 GB of free memory are wanted, and {(whole - used) / 2**30:.1f} are there")
    monkeypatch.setenv("RAY_memory_usage_threshold", str((used + 4 * 2**30) / whole))
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")


@pytest.mark.slow
@pytest.mark.usefixtures("little_memory")
def test_cell_that_is_killed_for_want_of_memory_is_tried_so_often_and_the_others_are_done(
    folder: Path, launch: Callable[..., Launched]
) -> None:
    (folder / "tiny.yaml").write_text(HUNGRY)
    shutil.copy(Path(__file__).parents[1] / "unlucky.py", folder / "own.py")
    planned, ledger = cells(load_spec(Path("tiny.yaml"))), ledger_of(folder)
    (hungry,) = (cell for cell in planned if cell.variant == "hungry")
    one = launch()
    assert one.wait() == 1, one.text

    why = "the worker was killed: the machine ran low on memory"
    assert one.text.count(f"hungry · seed 0 is retried: {why}") == 1, one.text
    assert f"failed: hungry · seed 0: {why} (2 times)" in one.text
    (row,) = (line for line in one.text.splitlines() if line.startswith("hungry "))
    assert row.split()[1:3] == ["0/1", "–"]
    outcome = ledger.outcome(hungry.id)
    assert (outcome.state, outcome.reason) == ("failed", f"{why} (2 times)")
    trained = [attempt for attempt in ledger.attempts(hungry.id) if attempt.get("by") != "driver"]
    assert len(trained) == 2
    assert all(attempt["end"] is None for attempt in trained), "one that is killed writes nothing more"
    assert_exact(ledger, [cell for cell in planned if cell is not hungry], folder)
    assert compared(ledger, folder / "results" / "mlflow.db") == (0, 0)


# the disk


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """Where the results are: a file system of 48 MB."""
    results = folder / "results"
    results.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=48m", "none", str(results)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"NOT RUN: {error}")
    if mounted.returncode:
        pytest.skip(f"NOT RUN: no file system can be mounted here: {mounted.stderr.strip()}")
    yield results
    subprocess.run(["umount", "--lazy", str(results)], check=True)


@pytest.mark.slow
def test_launch_whose_disk_is_full_then_read_only_goes_on_exactly_once_there_is_room(
    folder: Path, small_disk: Path, launch: Callable[..., Launched]
) -> None:
    planned, ledger = cells(load_spec(Path("tiny.yaml"))), ledger_of(folder)
    one = launch()
    until(lambda: checkpoints(ledger), one)
    with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    assert one.wait() == 1, one.text
    (told,) = (line for line in one.text.splitlines() if "broke off" in line)
    assert told.startswith("The launch stopped: No space left on device (")
    assert told.endswith("; the results in results are intact. Once there is room, to resume: fsg launch tiny.yaml"), (
        told
    )
    assert "Traceback" not in one.text

    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused = launch()
    assert refused.wait() == 2
    assert refused.text == "results/tiny: cannot be written to (Read-only file system)\n"

    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    (small_disk / "filler").unlink()
    last = launch()
    assert last.wait() == 0, last.text
    assert_exact(ledger, planned, folder)
    assert compared(ledger, small_disk / "mlflow.db") == (0, 0)


# nodes


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without processors, on loopback."""
    noticed = {"initial_delay_ms": "1000", "period_ms": "1000", "timeout_ms": "1000", "failure_threshold": "3"}
    for name, value in noticed.items():
        monkeypatch.setenv(f"RAY_health_check_{name}", value)
    environment.prepare(None)
    from ray.cluster_utils import Cluster

    with scratch("fsg-", "/tmp") as sessions:
        monkeypatch.setenv("RAY_TMPDIR", str(sessions))
        (sessions / "ray").mkdir()
        head = {"num_cpus": 0, "node_ip_address": "127.0.0.1", "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=head)
        yield made
        made.shutdown()


@pytest.mark.slow
def test_nodes_that_leave_and_others_that_join_change_nothing(
    folder: Path, cluster: Any, launch: Callable[..., Launched]
) -> None:
    planned, ledger = cells(load_spec(Path("tiny.yaml"))), ledger_of(folder)
    first = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    one = launch("--address", cluster.address)
    until(lambda: checkpoints(ledger), one)
    cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    before = {cell.id for cell in checkpoints(ledger)}
    cluster.remove_node(first, allow_graceful=False)
    until(lambda: any(len(ledger.attempts(name)) > 1 for name in before), one)
    cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    assert one.wait() == 0, one.text
    assert "goes again" in one.text
    assert_exact(ledger, planned, folder)
    assert compared(ledger, folder / "results" / "mlflow.db") == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("resources.gpus=1", "a training asks for 1 (expected ≤ 0, the most that a node of the cluster has)"),
        ("resources.cpus=2", "a training asks for 2 CPUs (expected ≤ 1, the most that a node of the cluster has)"),
    ],
)
def test_more_than_a_cluster_has_is_refused_before_anything_starts(
    folder: Path, cluster: Any, launch: Callable[..., Launched], asked: str, told: str
) -> None:
    for _ in range(2):
        cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    one = launch("--address", cluster.address, "--set", asked)
    assert one.wait(120) == 2, one.text
    assert one.text.splitlines()[-1] == f"--set {asked}: {asked.partition('=')[0]}: {told}"
    assert all(not ledger_of(folder).attempts(cell.id) for cell in ledger_of(folder).cells())


# MLflow


@pytest.mark.slow
def test_mlflow_that_is_down_at_the_start_dies_on_the_way_and_is_down_at_the_end_is_brought_level_later(
    folder: Path, launch: Callable[..., Launched], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (folder / "tiny.yaml").write_text(SHORT.replace("seeds: [0]", "seeds: [0, 1, 2]"))
    planned, ledger = cells(load_spec(Path("tiny.yaml"))), ledger_of(folder)
    server = TrackingServer(folder / "mlflow")
    try:
        server.wait()
        server.kill()
        one = launch("--tracking-uri", server.uri)
        until(lambda: any(ledger.outcome(cell.id).state == "done" for cell in planned), one)
        server.start()
        until(lambda: in_mlflow(server.database)[1].total() > 1, one)
        server.kill()
        assert one.wait() == 0, one.text
        assert one.text.count("cannot be written to") == 1
        assert "the ledger is complete. Later: fsg sync results/tiny" in one.text
        missing = compared(ledger, server.database)
        assert missing[0] > 0, "or there is nothing to bring level"
        assert missing[1] == 0

        assert sync(Path("results/tiny")) == 1
        assert f"MLflow ({server.uri}) cannot be written to" in capsys.readouterr().err
        server.start()
        server.wait()
        assert_brought_level(ledger, server.database, capsys)
    finally:
        server.kill()


@pytest.mark.slow
def test_locked_database_of_mlflow_holds_nothing_up_and_is_brought_level_later(
    folder: Path, launch: Callable[..., Launched], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tiny.yaml").write_text(SHORT.replace("seeds: [0]", "seeds: [0, 1, 2]"))
    planned, ledger = cells(load_spec(Path("tiny.yaml"))), ledger_of(folder)
    database = folder / "results" / "mlflow.db"

    def done() -> int:
        return sum(ledger.outcome(cell.id).state == "done" for cell in planned)

    def begun() -> bool:
        with suppress(sqlite3.Error):  # there is none yet
            return done() > 0 and in_mlflow(database)[1].total() > 1
        return False

    one = launch()
    until(begun, one)
    with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as other:
        other.execute("begin exclusive")
        before = done()
        assert before < len(planned), "or there is nothing to hold up"
        assert one.wait() == 0, one.text
        other.execute("rollback")
    assert done() == len(planned)
    assert one.text.count("database is locked") == 2, one.text
    assert "the ledger is complete. Later: fsg sync results/tiny" in one.text
    assert "Traceback" not in one.text
    missing = compared(ledger, database)
    assert missing[0] > 0, "or there is nothing to bring level"
    assert missing[1] == 0
    assert_brought_level(ledger, database, capsys)


@pytest.mark.slow
def test_slow_mlflow_holds_no_training_up_and_is_level_at_the_end(
    folder: Path, launch: Callable[..., Launched]
) -> None:
    planned, ledger = cells(load_spec(Path("tiny.yaml"))), ledger_of(folder)
    with serving(folder / "mlflow") as server, closing(Late(server.port, answering=3.0)) as late:
        one = launch("--tracking-uri", late.uri)
        until(lambda: all(ledger.outcome(cell.id).state == "done" for cell in planned), one)
        assert compared(ledger, server.database)[0] > 0, "the trainings have not waited for MLflow"
        late.answering = 0.0
        assert one.wait() == 0, one.text
        assert "cannot be written to" not in one.text
        assert_level(ledger, server.database)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["asking", "answering"])
def test_mlflow_that_is_too_slow_to_be_waited_for_is_brought_level_later(
    folder: Path,
    launch: Callable[..., Launched],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    way: str,
) -> None:
    """What it was asked for and given up, it may still do, late."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    planned, ledger = cells(load_spec(Path("tiny.yaml"))), ledger_of(folder)
    with serving(folder / "mlflow") as server, closing(Late(server.port)) as late:
        one = launch("--tracking-uri", late.uri)
        until(lambda: in_mlflow(server.database)[1].total() > 1, one)
        setattr(late, way, 6.0)
        assert one.wait() == 0, one.text
        assert all(ledger.outcome(cell.id).state == "done" for cell in planned)
        assert one.text.count("cannot be written to") == 1, one.text
        assert "the ledger is complete. Later: fsg sync results/tiny" in one.text
        setattr(late, way, 0.0)
        assert_brought_level(ledger, server.database, capsys)


def assert_brought_level(ledger: Ledger, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert sync(Path("results/tiny")) == 0
        assert "MLflow is level with results/tiny" in capsys.readouterr().out
    assert_level(ledger, database)


def assert_level(ledger: Ledger, database: Path) -> None:
    """Every row once, a run a cell, all finished."""
    assert compared(ledger, database) == (0, 0)
    _, runs, statuses = in_mlflow(database)
    assert runs == Counter([*(cell.id for cell in ledger.cells()), "experiment"])
    assert statuses == {"FINISHED"}
