"""What runs out, is lost or hangs around a launch, for real, and that it comes through with nothing lost."""

import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from late import Late
from launches import (
    NO_MLFLOW,
    SHORT,
    Launched,
    assert_exact,
    assert_level,
    bring_own_code,
    checkpoints,
    compared,
    ledger_of,
    planned_here,
    stands_still,
    until,
)

from benchmarks.chaos import in_mlflow, serving
from orchestration.commands.sync import sync
from orchestration.ledger.ledger import Ledger
from orchestration.scheduler import environment
from orchestration.spec.cells import Cell
from orchestration.util.scratch import scratch

pytestmark = pytest.mark.usefixtures("short")


# memory

UNLUCKY = "{estimator: {import: 'own:Unlucky', what: %s, at: 40}}"


@pytest.fixture
def why_not_little_memory(monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Ray takes this machine to be short of memory as soon as 8 GB more are in use than are now; or why it cannot.

    That is so much that other tests, whose launches begin meanwhile, do not use it up.
    """
    if sys.platform != "linux":
        return "Ray looks after memory on Linux alone"
    whole, used = psutil.virtual_memory().total, psutil.virtual_memory().used
    if whole - used < 12 * 2**30:
        return f"12 GB of free memory are wanted, and {(whole - used) / 2**30:.1f} are there"
    monkeypatch.setenv("RAY_memory_usage_threshold", str((used + 8 * 2**30) / whole))
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    return None


@pytest.mark.slow(minutes=1)
def test_cells_that_are_killed_for_want_of_memory_or_always_die_are_tried_so_often_and_the_others_are_done(
    folder: Path, why_not_little_memory: str | None, launch: Callable[..., Launched]
) -> None:
    fates = {
        "hungry": ("eats", "the worker was killed: the machine ran low on memory"),
        "dies": ("dies", "the worker's process died"),
        "faults": ("faults", "the device failed: CUDA error: an illegal memory access was encountered"),
    }
    if why_not_little_memory is not None:
        del fates["hungry"]
    unlucky = "".join(f"{name}: {UNLUCKY % what}, " for name, (what, _) in fates.items())
    text = SHORT.replace("{fsg: ", f"{{{unlucky}fsg: ").replace("every: 0.1}", "every: 0.1, max_retries: 1}")
    (folder / "tiny.yaml").write_text(text)
    bring_own_code(folder)
    planned, ledger = planned_here(), ledger_of(folder)
    one = launch()
    assert one.wait() == 1, one.text

    for name, (_, why) in fates.items():
        (cell,) = (cell for cell in planned if cell.variant == name)
        assert one.text.count(f"{name} · seed 0 is retried: {why}") == 1, one.text
        outcome = ledger.outcome(cell.id)
        assert outcome.state == "failed"
        assert re.fullmatch(rf"{re.escape(why)}.* \(2 times\)", outcome.reason), outcome.reason
        assert f"failed: {name} · seed 0: {outcome.reason}" in one.text
        (row,) = (line for line in one.text.splitlines() if line.startswith(f"{name} "))
        assert row.split()[1:3] == ["0/1", "–"]
        trained = [attempt for attempt in ledger.attempts(cell.id) if attempt.get("by") != "driver"]
        assert 2 <= len(trained) <= 4, "two that died by themselves; memory ends whatever runs beside it, twice at most"
        assert len({attempt["pid"] for attempt in trained}) == len(trained), "each in a process of its own"
        assert outcome.attempts == len(trained) + 1, "one is the driver's, and says that it failed"
        assert all(attempt["end"] is None for attempt in trained), "one that is killed writes nothing more"
    assert_exact(ledger, [cell for cell in planned if cell.variant not in fates])
    assert compared(ledger, folder / "results" / "mlflow.db") == (0, 0)
    if why_not_little_memory is not None:
        pytest.skip(f"NOT RUN: {why_not_little_memory}")


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


@pytest.mark.slow(minutes=1)
def test_launch_whose_disk_is_full_then_read_only_goes_on_exactly_once_there_is_room(
    folder: Path, small_disk: Path, launch: Callable[..., Launched]
) -> None:
    planned, ledger = planned_here(), ledger_of(folder)
    one = launch()
    until(lambda: checkpoints(ledger), one)
    with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    assert one.wait() == 1, one.text
    (told,) = (line for line in one.text.splitlines() if "The launch stopped" in line)
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
    assert_exact(ledger, planned)
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


def suspended_in_mid_training(one: Launched, ledger: Ledger) -> tuple[str, psutil.Process]:
    """The id of a cell that has a checkpoint and no end, and its worker, which stands still."""
    while True:
        cell = until(lambda: checkpoints(ledger), one)[0]
        with suppress(psutil.Error):
            worker = psutil.Process(ledger.attempts(cell.id)[-1]["pid"])
            worker.suspend()
            until(partial(stands_still, worker), one)
            if cell in checkpoints(ledger):
                return cell.id, worker
            worker.resume()


@pytest.mark.slow(minutes=1)
def test_nodes_that_leave_and_others_that_join_change_nothing(
    folder: Path, cluster: Any, launch: Callable[..., Launched]
) -> None:
    """And what none of them has is refused before anything starts."""
    planned, ledger = planned_here(), ledger_of(folder)
    first = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    one = launch("--address", cluster.address, "--set", "resources.cpus=2", *NO_MLFLOW)
    assert one.wait(120) == 2, one.text
    told = "a training asks for 2 CPUs (expected ≤ 1, the most that a node of the cluster has)"
    assert one.text.splitlines()[-1] == f"--set resources.cpus=2: resources.cpus: {told}"
    assert all(not ledger.attempts(cell.id) for cell in ledger.cells())

    one = launch("--address", cluster.address)
    name, worker = suspended_in_mid_training(one, ledger)
    cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    cluster.remove_node(first, allow_graceful=False)
    worker.kill()  # a process that stands still does not see that its node is gone
    until(lambda: len(ledger.attempts(name)) > 1, one)
    cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    assert one.wait() == 0, one.text
    assert "is retried" in one.text
    assert_exact(ledger, planned)
    assert compared(ledger, folder / "results" / "mlflow.db") == (0, 0)


# MLflow

WAITING = "{fsg: {estimator: {import: 'own:Unlucky', what: waits, at: 40}}"


@pytest.fixture
def waiting(folder: Path) -> list[Cell]:
    """The cells of an experiment of which one is trained to its end only once there is a file `go`."""
    (folder / "tiny.yaml").write_text(SHORT.replace("{fsg: {estimator: {name: fsg, chunk_size: 8}}", WAITING))
    bring_own_code(folder)
    return planned_here()


def count_done(ledger: Ledger, planned: list[Cell]) -> int:
    return sum(ledger.outcome(cell.id).state == "done" for cell in planned)


@pytest.mark.slow(minutes=1)
@pytest.mark.usefixtures("mlflow_gives_up")
def test_mlflow_that_is_down_at_the_start_and_too_slow_at_the_end_holds_nothing_up_and_is_brought_level_later(
    folder: Path, waiting: list[Cell], launch: Callable[..., Launched], capsys: pytest.CaptureFixture[str]
) -> None:
    """What it was asked for and given up, it still does, late."""
    ledger = ledger_of(folder)
    with serving(folder / "mlflow") as server, closing(Late(server.port)) as late:
        server.kill()
        one = launch("--tracking-uri", late.uri)
        until(lambda: count_done(ledger, waiting) == len(waiting) - 1 and "cannot be written to" in one.text, one)
        server.start()
        until(lambda: in_mlflow(server.database)[1].total() == len(waiting) + 1, one)
        late.asking = 6.0
        (folder / "go").touch()
        until(lambda: count_done(ledger, waiting) == len(waiting), one)
        assert compared(ledger, server.database)[0] > 0, "the trainings have not waited for MLflow"
        assert one.wait() == 0, one.text
        assert one.text.count("cannot be written to") == 1, one.text
        assert "the ledger is complete. Later: fsg sync results/tiny" in one.text

        server.kill()
        late.asking = 0.0
        missing = compared(ledger, server.database)
        assert missing[0] > 0, "or there is nothing to bring level"
        assert missing[1] == 0
        assert sync(Path("results/tiny")) == 1
        assert f"MLflow ({late.uri}) cannot be written to" in capsys.readouterr().err
        server.start()
        server.wait()
        assert_brought_level(ledger, server.database, capsys)
    assert_exact(ledger, waiting)


@pytest.mark.slow(minutes=1)
def test_locked_database_of_mlflow_holds_nothing_up_and_is_brought_level_later(
    folder: Path, waiting: list[Cell], launch: Callable[..., Launched], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger, database = ledger_of(folder), folder / "results" / "mlflow.db"

    def begun() -> bool:
        with suppress(sqlite3.Error):  # there is none yet
            return count_done(ledger, waiting) > 0 and in_mlflow(database)[1].total() > 1
        return False

    one = launch()
    until(begun, one)
    with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as other:
        other.execute("begin exclusive")
        (folder / "go").touch()
        assert one.wait() == 0, one.text
        other.execute("rollback")
    assert count_done(ledger, waiting) == len(waiting)
    assert "database is locked" in one.text or "it took longer than 20 s" in one.text, one.text
    assert "the ledger is complete. Later: fsg sync results/tiny" in one.text
    assert "Traceback" not in one.text
    missing = compared(ledger, database)
    assert missing[0] > 0, "or there is nothing to bring level"
    assert missing[1] == 0
    assert_brought_level(ledger, database, capsys)


def assert_brought_level(ledger: Ledger, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert sync(Path("results/tiny")) == 0
        assert "MLflow is level with results/tiny" in capsys.readouterr().out
    assert_level(ledger, database)
