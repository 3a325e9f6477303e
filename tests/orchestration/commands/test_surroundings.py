"""A whole launch in bad surroundings: its folder's name, its terminal, its reader; and a move between two launches."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launches import LAUNCH, SHORT, checkpoints, until

from orchestration.ledger.ledger import Ledger
from orchestration.util.databases import sqlite_address


class Hidden:
    """A launch whose output is read by nobody after its first line."""

    def __init__(self, folder: Path, results: str) -> None:
        reader, writer = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, str(LAUNCH), "tiny.yaml", "--results", results],
            cwd=folder, stdout=writer, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env=os.environ | {"PYTHONIOENCODING": "ascii"},
        )  # fmt: skip
        os.close(writer)
        with os.fdopen(reader) as said:
            self.text = said.readline()


@pytest.mark.slow
def test_a_launch_survives_its_terminal_its_reader_its_place_and_its_name(folder: Path) -> None:
    from mlflow.tracking import MlflowClient

    (folder / "tiny.yaml").write_text(SHORT.replace("does it hold?", "größer → ✓?"), encoding="utf-8")
    name = "it's a?b#c %20 (größer)"
    one = Hidden(folder, name)
    ledger = Ledger(folder / name / "tiny")
    until(lambda: checkpoints(ledger), one)  # type: ignore[arg-type]
    os.killpg(one.process.pid, signal.SIGHUP)  # as a terminal that closes, to all that was started from it
    assert one.process.wait(300) == 130
    assert one.process.stderr is not None
    assert "Traceback" not in one.process.stderr.read()
    (launch,) = ledger.launches()
    assert (launch["exit_status"], launch["reason"]) == (130, "stopped by SIGHUP")
    states = {cell.id: ledger.outcome(cell.id) for cell in ledger.cells()}
    assert "interrupted" in {outcome.state for outcome in states.values()}
    assert not any("process died" in outcome.reason for outcome in states.values()), "each stopped by itself"

    moved = (folder / name).rename(folder / "ünder another näme?")
    words = f"exec {sys.executable} {LAUNCH} tiny.yaml --results '{moved.name}' >&- 2>&- <&-"
    assert subprocess.run(["bash", "-c", words], cwd=folder, check=False).returncode == 0
    ledger = Ledger(moved / "tiny")
    assert {ledger.outcome(cell.id).state for cell in ledger.cells()} == {"done"}
    resumed = [
        ledger.attempts(cell.id)[-1]["resumed_from"] for cell in ledger.cells() if len(ledger.attempts(cell.id)) > 1
    ]
    assert resumed
    assert all(step is not None for step in resumed)
    assert not (folder / name).exists()

    client = MlflowClient(sqlite_address(moved / "mlflow.db"))
    (experiment,) = [one for one in client.search_experiments() if one.name == "tiny"]
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) == len(ledger.cells()) + 1
    for run in runs:
        place = "report" if run.info.run_name == "tiny" else "checkpoints"
        assert client.list_artifacts(run.info.run_id, place)
        assert run.info.artifact_uri.startswith(moved.as_uri())
    assert json.loads(client.get_run(runs[0].info.run_id).data.tags["fsg.synced"])
