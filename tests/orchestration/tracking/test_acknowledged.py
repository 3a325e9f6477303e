"""What MLflow acknowledged is not asked for again, unless anything has changed since: here, there, or the place."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from synthetic_experiment import Row, cells_of, finish, launched, rows_of, spec_of, trained

from orchestration.commands.sync import sync
from orchestration.ledger.digest import NOTE, ledger_digest, report_digest
from orchestration.ledger.ledger import Ledger
from orchestration.tracking import acknowledged
from orchestration.tracking.runs import MlflowRuns
from orchestration.tracking.sync import Tracker

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
SPEC = spec_of(seeds=(0,))
LEVEL = "sent 0 runs, 0 metric values and 0 files"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results of which MLflow has acknowledged all, in a database that nobody has to open."""
    folder = tmp_path / "results"
    ledger = trained(folder / "ablation", SPEC)
    (ledger.folder / "report.html").write_text("a report")
    (folder / "mlflow.db").write_bytes(b"rows")
    now = ledger_digest(ledger.folder), report_digest(ledger.folder)
    acknowledged.note(ledger.folder, address(folder), "ablation", "1", *now)
    return folder


def address(results: Path) -> str:
    return f"sqlite:///{results / 'mlflow.db'}"


def is_level(results: Path) -> bool:
    found = acknowledged.noted(results / "ablation", address(results))
    return found is not None and found.is_level


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that MLflow was asked at."""
    found: list[str] = []
    client = MlflowRuns.client

    def counted(self: MlflowRuns) -> Any:
        found.append(self.uri)
        return client(self)

    monkeypatch.setattr(MlflowRuns, "client", counted)
    return found


def test_where_nothing_is_new_mlflow_is_not_asked(
    results: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert is_level(results)
    assert sync(results / "ablation") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{LEVEL}: MLflow is level with {results / 'ablation'}"
    assert "/#/experiments/1/runs?" in said[1]
    tracker = Tracker(Ledger(results / "ablation"), SPEC)
    assert tracker.level() == (0, 0, 0, ())
    tracker.log_report(results / "ablation")
    assert said[1] == f"MLflow   {tracker.ui()}"
    assert (tracker.reached, tracker.behind, asked) == (True, None, [])


def new_row(results: Path) -> None:
    attempt = Ledger(results / "ablation").claim(cells_of(SPEC)[0].id, {"device": "cpu"})
    attempt.record([Row(90, {"train/loss": 0.1})])
    attempt.finish("done", digest="e" * 64, step=90, seconds=1.0)


def new_launch(results: Path) -> None:
    Ledger(results / "ablation").record_launch({"started": 1, "spec": {}, "cells": []})


def new_report(results: Path) -> None:
    (results / "ablation" / "report.html").write_text("another report")


def new_figure(results: Path) -> None:
    (results / "ablation" / "figures").mkdir()
    (results / "ablation" / "figures" / "one.svg").write_text("<svg/>")


def no_database(results: Path) -> None:
    (results / "mlflow.db").unlink()


def empty_database(results: Path) -> None:
    (results / "mlflow.db").write_bytes(b"")


def another_database(results: Path) -> None:
    """Of the same size."""
    no_database(results)
    (results / "mlflow.db").write_bytes(b"none")
    os.utime(results / "mlflow.db", (2e9, 2e9))


def older_database(results: Path) -> None:
    os.utime(results / "mlflow.db", (1, 1))


def rows_beside_the_database(results: Path) -> None:
    (results / "mlflow.db-wal").write_bytes(b"more")


def torn_note(results: Path) -> None:
    note = results / "ablation" / NOTE
    note.write_bytes(note.read_bytes()[:100])


def note_with_another_byte(results: Path) -> None:
    note = results / "ablation" / NOTE
    note.write_text(note.read_text().replace('"experiment_id": "1"', '"experiment_id": "7"'))


def note_of_another_kind(results: Path) -> None:
    (results / "ablation" / NOTE).write_text(json.dumps([1, 2]))


def no_note(results: Path) -> None:
    (results / "ablation" / NOTE).unlink()


CHANGES: list[Callable[[Path], None]] = [
    new_row, new_launch, new_report, new_figure, no_database, empty_database, another_database, older_database,
    rows_beside_the_database, torn_note, note_with_another_byte, note_of_another_kind, no_note,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_has_changed_mlflow_is_asked(change: Callable[[Path], None], results: Path) -> None:
    change(results)
    assert not is_level(results)


def test_results_that_were_moved_or_copied_are_looked_at(results: Path, tmp_path: Path) -> None:
    """MLflow's database has the place of each artifact."""
    shutil.copytree(results, tmp_path / "elsewhere")
    elsewhere = tmp_path / "elsewhere" / "ablation"
    assert acknowledged.noted(elsewhere, address(results)) is None
    assert not is_level(tmp_path / "elsewhere")
    assert is_level(results)


def test_another_address_is_asked(results: Path, tmp_path: Path) -> None:
    shutil.copyfile(results / "mlflow.db", tmp_path / "mlflow.db")
    shutil.copystat(results / "mlflow.db", tmp_path / "mlflow.db")
    assert acknowledged.noted(results / "ablation", address(tmp_path)) is None


def test_of_an_address_that_cannot_say_what_it_has_nothing_is_believed(results: Path) -> None:
    for uri in ("postgresql+psycopg2://user@127.0.0.1:9/mlflow", "sqlite://"):
        acknowledged.note(results / "ablation", uri, "ablation", "1", "", "")
        assert acknowledged.noted(results / "ablation", uri) is None


def test_the_digests_tell_the_ledger_from_its_report(results: Path) -> None:
    folder = results / "ablation"
    before = ledger_digest(folder), report_digest(folder)
    new_report(results)
    no_note(results)
    (folder / "lock").write_text("held")
    assert ledger_digest(folder) == before[0]
    assert report_digest(folder) != before[1]
    new_row(results)
    assert ledger_digest(folder) != before[0]


def test_nothing_heavy_is_imported_to_find_that_nothing_is_new(results: Path) -> None:
    look = "import sys, pathlib, orchestration.commands.sync as one\nprint(one.sync(pathlib.Path(sys.argv[1])))"
    look += "\nprint(*sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", look, str(results / "ablation")], check=True, capture_output=True, text=True
    )
    loaded = set(told.stdout.splitlines()[-1].split())
    assert told.stdout.startswith(LEVEL)
    assert not {"mlflow", "torch", "sqlalchemy", "pydantic", "matplotlib", "scipy", "ray", "optuna"} & loaded


def test_mlflow_is_asked_until_it_has_all_and_asked_to_verify_it_is_mended(
    tmp_path: Path, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, first = tmp_path / "results" / "ablation", cells_of(SPEC)[0]
    ledger = launched(folder, SPEC, cells_of(SPEC))
    attempt = ledger.claim(first.id, {"device": "cpu"})
    tracker = Tracker(ledger, SPEC)
    tracker.level()
    assert not (folder / NOTE).exists()  # what runs may stop without a trace
    attempt.record(rows_of(first))
    attempt.weights("final.pt", b"the final weights")
    attempt.finish("done", digest="d" * 64)
    tracker.level()
    tracker.log_report(folder)
    assert is_level(folder.parent)
    asked.clear()
    assert sync(folder) == 0
    assert asked == []

    def rows() -> list[Any]:
        with closing(sqlite3.connect(folder.parent / "mlflow.db")) as database:
            return sorted(database.execute("SELECT run_uuid, key, step, value FROM metrics"))

    before, run = rows(), tracker.runs.known[first.id][0]
    with closing(sqlite3.connect(folder.parent / "mlflow.db")) as database, database:
        database.execute("DELETE FROM metrics WHERE run_uuid = ? AND key = 'train/loss' AND step < 40", [run])
    (weights,) = folder.parent.glob(f"mlartifacts/{run}/artifacts/checkpoints/final.pt")
    weights.unlink()
    assert sync(folder) == 0  # the database was written to, and its marks say that all is there
    assert "is sent again" not in capsys.readouterr().out
    assert sync(folder, verify=True) == 0
    said = capsys.readouterr().out
    assert f"MLflow's run of {first.label} lacked 3 metric values, checkpoints/final.pt: it is sent again" in said
    assert rows() == before
    assert weights.read_bytes() == b"the final weights"
    asked.clear()
    assert sync(folder, verify=True) == 0
    assert capsys.readouterr().out.startswith(LEVEL)
    assert asked


@pytest.mark.slow
@pytest.mark.parametrize("left", [None, b""])
def test_a_database_that_was_deleted_or_replaced_by_an_empty_one_is_filled_again(
    left: bytes | None, results: Path
) -> None:
    (results / "mlflow.db").unlink()
    if left is not None:
        (results / "mlflow.db").write_bytes(left)
    command = [sys.executable, "-m", "orchestration.cli", "sync", str(results / "ablation")]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    assert told.stdout.startswith("sent 3 runs")
    with closing(sqlite3.connect(results / "mlflow.db")) as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (3,)
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert again.stdout.startswith(LEVEL)


# A server


class Server(BaseHTTPRequestHandler):
    """What MLflow's says of an experiment."""

    said: dict[str, Any] | None = None
    authorization: str | None = None

    def do_GET(self) -> None:
        type(self).authorization = self.headers["Authorization"]
        self.send_response(404 if self.said is None else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"experiment": self.said}).encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Server) as serving:
        Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


def test_a_server_says_itself_which_ledger_it_has(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = launched(tmp_path / "ablation", SPEC, cells_of(SPEC))
    finish(ledger, cells_of(SPEC)[0])
    now = ledger_digest(ledger.folder)
    acknowledged.note(ledger.folder, server, "ablation", "5", now, report_digest(ledger.folder))
    right = {"experiment_id": "5", "lifecycle_stage": "active", "tags": [{"key": acknowledged.TAG, "value": now}]}
    wrong: list[dict[str, Any] | None] = [
        None,  # the database is an empty one
        {},
        right | {"experiment_id": "6"},
        right | {"lifecycle_stage": "deleted"},
        right | {"tags": []},
        right | {"tags": [{"key": acknowledged.TAG, "value": "0" * 64}]},  # an older database was put back
    ]
    for said in [*wrong, right]:
        monkeypatch.setattr(Server, "said", said)
        found = acknowledged.noted(ledger.folder, server)
        assert (found is not None) == (said is right), said
    assert found is not None
    assert found.is_level
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "user")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "word")
    assert acknowledged.noted(ledger.folder, server)
    assert Server.authorization == "Basic dXNlcjp3b3Jk"


def test_a_server_that_does_not_answer_is_asked_by_mlflow(tmp_path: Path) -> None:
    ledger = launched(tmp_path / "ablation", SPEC, cells_of(SPEC))
    acknowledged.note(ledger.folder, "http://127.0.0.1:9", "ablation", "5", ledger_digest(ledger.folder), "")
    assert acknowledged.noted(ledger.folder, "http://127.0.0.1:9") is None


def test_a_password_is_not_noted(tmp_path: Path) -> None:
    ledger = launched(tmp_path / "ablation", SPEC, cells_of(SPEC))
    acknowledged.note(ledger.folder, "http://user:5ecret@127.0.0.1:9", "ablation", "5", "", "")
    assert "5ecret" not in (ledger.folder / NOTE).read_text()
