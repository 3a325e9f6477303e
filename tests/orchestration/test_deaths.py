"""What dies, fills up or hangs on the way, for real, and that a launch comes through it with nothing lost."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from launches import SHORT, Launched, assert_exact, checkpoints, ledger_of, until

from benchmarks.chaos import TrackingServer, in_mlflow, multiset, values_of
from orchestration.launching import sync_of
from orchestration.ledger import Ledger
from orchestration.plan import cells
from orchestration.specs import load_spec


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
    (victim,) = (child for child in psutil.Process(one.process.pid).children() if child.name() == name)
    victim.kill()
    assert one.wait() == 0, one.text
    assert f"Ray's {told} died: starting anew from the ledger" in one.text
    assert_exact(ledger, planned, folder)
    assert [record["exit_status"] for record in ledger.launches()] == [1, 0]
    assert ledger.launches()[0]["reason"] == f"{told} died"


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
        until(lambda: in_mlflow(server)[1].total() > 1, one)
        server.kill()
        assert one.wait() == 0, one.text
        assert one.text.count("cannot be written to") == 1
        assert "the ledger has it all. Later: fsg sync results/tiny" in one.text
        missing = compared(ledger, server)
        assert missing[0] > 0, "or there is nothing to bring level"
        assert missing[1] == 0

        assert sync_of(Path("results/tiny")) == 1
        assert f"MLflow ({server.uri}) cannot be written to" in capsys.readouterr().err
        server.start()
        server.wait()
        for _ in range(2):
            assert sync_of(Path("results/tiny")) == 0
            assert "MLflow is level with results/tiny" in capsys.readouterr().out
        assert compared(ledger, server) == (0, 0)
        _, runs, statuses = in_mlflow(server)
        assert runs == Counter([*(cell.id for cell in planned), "experiment"])
        assert statuses == {"FINISHED"}
    finally:
        server.kill()


def compared(ledger: Ledger, server: TrackingServer) -> tuple[int, int]:
    """Rows of the ledger that MLflow lacks, and that it has once too often."""
    sent, _, _ = in_mlflow(server)
    lost = doubled = 0
    for cell in ledger.cells():
        kept = values_of(ledger, cell.id, whole=True)
        names = {name for _, name, _ in kept}
        got = [(step, name, value) for step, name, value, _ in sent.get(cell.id, []) if name in names]
        one = multiset(got, kept)
        lost, doubled = lost + one[0], doubled + one[1]
    return lost, doubled
