"""Results under any name, and renamed, moved and copied ones: MLflow's artifacts are where the results are."""

import json
import os
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

import pytest
from synthetic_experiment import launched, spec_of, trained
from undrawn import leave_figures_empty

from orchestration.commands.sync import sync
from orchestration.ledger.ledger import Ledger
from orchestration.report.data import build
from orchestration.report.write import write
from orchestration.tracking import artifacts, server
from orchestration.tracking.sync import SyncReport, Tracker
from orchestration.util.databases import sqlite_address, sqlite_file

ALL_AT_ONCE = 'it\'s "a"?b=c&d#e%20f 100% %(here)s:@[x]{y}\\z;$HOME <実験>\n2'
NAMES = [
    "a?b", "a#b", "a%20b", "a b", " a ", "100%", "100% run", "a'b", 'a"b', "ünï", "実験", "a&b", "a=b", "a@b",
    "a:b", "a;b", "a\\b", "{a}", "$HOME", "~a", "[a]", "a+b", "a,b", "a|b", "a*b", "a<b>", "a(b)", "a!b", "a`b`", "a^b",
    "-a", "...", "a?mode=memory", "file:a", "sqlite:", "a%3Fb", "%", "a\tb", "a\nb", "🙂", "e\u0301",
]  # fmt: skip
# Every character is in one of the first two; the others mean something as a whole.
TRACKED = [
    ALL_AT_ONCE,
    "-a+b,c|d*e!f`g`h^i\t🙂e\u0301ünï run %3F ",
    " a ",
    "~a",
    "...",
    "%",
    "sqlite:",
    "file:a?mode=memory",
]
SPEC = spec_of(seeds=(0,))


@pytest.fixture(autouse=True)
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_figures_empty(monkeypatch)


def tracked(results: Path, migrated: Path) -> Path:
    """An experiment that is in MLflow with all it has; returns its folder."""
    results.mkdir()
    shutil.copy(migrated, results / "mlflow.db")
    ledger = trained(results / "ablation", SPEC)
    write(build(ledger))
    tracker = Tracker(ledger, SPEC)
    tracker.sync()
    tracker.log_report(ledger.folder)
    return ledger.folder


def read(results: Path) -> dict[str, bytes]:
    """Every artifact of a run, from where the database of results says that it is."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(sqlite_address(results / "mlflow.db"))
    (one,) = [one for one in client.search_experiments() if one.name == SPEC.folder_name]
    found = {}
    for run in client.search_runs([one.experiment_id]):
        place = Path(url2pathname(urllib.parse.urlsplit(run.info.artifact_uri).path))
        files = [path for path in place.rglob("*") if path.is_file()]
        found |= {f"{run.info.run_name}/{path.relative_to(place)}": path.read_bytes() for path in files}
    return found


def synced(folder: Path) -> int:
    """`fsg sync` in a process of its own: MLflow remembers, by the run, where a process has had its artifacts."""
    words = "import sys; from orchestration.cli import main; main(['sync', sys.argv[1]])"
    return subprocess.run([sys.executable, "-c", words, str(folder)], check=False).returncode


def files(client: Any, run: str, below: str | None = None) -> list[str]:
    found = client.list_artifacts(run, below)
    inner = [path for one in found if one.is_dir for path in files(client, run, one.path)]
    return [one.path for one in found if not one.is_dir] + inner


def everything(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("mlflow.db")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_every_character_is_in_a_name_that_is_tracked() -> None:
    assert set("".join(NAMES)) <= set("".join(TRACKED))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACKED)
def test_results_of_any_name_are_tracked_moved_and_copied(tmp_path: Path, migrated: Path, name: str) -> None:
    results = tmp_path / name
    tracked(results, migrated)
    sent = read(results)
    assert {path.rpartition("/")[2] for path in sent} >= {"as_written.yaml", "resolved.json", "report.html"}
    assert list(tmp_path.iterdir()) == [results], "nothing lies beside it"

    moved = results.rename(tmp_path / f"{name} moved")
    tracker = Tracker(Ledger(moved / "ablation"), SPEC)
    assert tracker.sync() == SyncReport(0, 0, 0)
    assert read(moved) == sent

    copy = Path(shutil.copytree(moved, tmp_path / f"copy of {name}"))
    before = everything(moved)
    (copy / "ablation" / "report.html").write_text("another report")
    assert synced(copy / "ablation") == 0
    assert everything(moved) == before, "nothing is written to where it came from"
    assert read(copy) == sent | {"ablation/report/report.html": b"another report"}
    assert read(moved) == sent
    assert sorted(tmp_path.iterdir()) == sorted([moved, copy])


def test_addresses_name_the_file_that_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    from sqlalchemy import create_engine, text

    for name in [ALL_AT_ONCE, *NAMES]:
        (tmp_path / name).mkdir()
        address = sqlite_address(tmp_path / name / "one.db")
        assert sqlite_file(address) == tmp_path / name / "one.db"
        engine = create_engine(address)
        with engine.begin() as connection:
            connection.execute(text("create table t (name text)"))
            connection.execute(text("insert into t values (:name)"), {"name": name})
        engine.dispose()
        with sqlite3.connect(tmp_path / name / "one.db") as plain:
            assert plain.execute("select name from t").fetchall() == [(name,)]
    assert {path.name for path in tmp_path.iterdir()} == {ALL_AT_ONCE, *NAMES}
    monkeypatch.chdir(tmp_path)
    assert sqlite_file("sqlite:///one.db") == tmp_path / "one.db"
    assert sqlite_file("sqlite+pysqlite:////a/b.db?timeout=3") == Path("/a/b.db")
    assert [sqlite_file(one) for one in ("sqlite://", "sqlite:///:memory:", "postgresql://a/b", "http://a")] == [
        None
    ] * 4


def test_a_database_of_its_own_is_settled_for_what_was_moved_and_refused_to_a_copy(
    tmp_path: Path, migrated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(migrated, tmp_path / "mine.db")
    uri = f"sqlite:///{tmp_path}/mine.db"
    Tracker(trained(tmp_path / "a" / SPEC.name, SPEC), SPEC, uri).sync()
    other = spec_of(name="other", seeds=(0,))
    Tracker(trained(tmp_path / "b" / "other", other), other, uri).sync()

    copy = Path(shutil.copytree(tmp_path / "a", tmp_path / "copy"))
    before = everything(tmp_path / "a")
    assert sync(copy / SPEC.name, uri) == 1
    assert (
        f"has the artifacts of {SPEC.name} in {tmp_path}/a/mlartifacts, beside other results" in capsys.readouterr().err
    )
    assert everything(tmp_path / "a") == before

    shutil.rmtree(copy)
    (tmp_path / "a").rename(tmp_path / "moved")
    assert sync(tmp_path / "moved" / SPEC.name, uri) == 0
    from mlflow.tracking import MlflowClient

    places = {one.name: one.artifact_location for one in MlflowClient(uri).search_experiments()}
    assert places[SPEC.name] == f"file://{tmp_path}/moved/mlartifacts"
    assert places["other"] == f"file://{tmp_path}/b/mlartifacts", "what was not moved stays"


def test_a_recorded_database_that_is_gone_is_not_made_again(
    tmp_path: Path, migrated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone" / "mlflow.db"
    folder = launched(tmp_path / "results" / SPEC.name, SPEC, [], tracking_uri=f"sqlite:///{gone}").folder
    assert sync(folder) == 2
    assert (
        capsys.readouterr().err
        == f"{folder}: {gone} is not there (expected --tracking-uri with the database's place)\n"
    )
    assert not gone.parent.exists()
    shutil.copy(migrated, tmp_path / "results" / "mlflow.db")
    assert sync(folder) == 0, "the one that was moved along"


def test_a_database_that_cannot_be_written_to_is_served_from_a_copy(
    tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tracked(tmp_path / "a", migrated)
    moved = folder.parent.rename(tmp_path / "mounted")
    (tmp_path / "copy").mkdir()
    kept = (moved / "mlflow.db").read_bytes()
    monkeypatch.setattr(
        "os.access", lambda path, mode, access=os.access: "mlflow.db" not in str(path) and access(path, mode)
    )
    address = server._settled(moved / "mlflow.db", tmp_path / "copy")
    assert sqlite_file(address) == tmp_path / "copy" / "mlflow.db"
    assert (moved / "mlflow.db").read_bytes() == kept
    from mlflow.tracking import MlflowClient

    places = {one.name: one.artifact_location for one in MlflowClient(address).search_experiments()}
    assert places[SPEC.name] == (moved / artifacts.FOLDER).as_uri()


BARE = """
import json, sys
from mlflow.tracking import MlflowClient

client, found = MlflowClient(sys.argv[1]), {}
(one,) = client.search_experiments(filter_string=f"name = '{sys.argv[2]}'")
for run in client.search_runs([one.experiment_id]):
    files = [file.path for file in client.list_artifacts(run.info.run_id)]
    found[run.info.run_name] = [run.data.metrics, run.data.params, run.data.tags, files]
print(json.dumps(found))
"""


def seen_by_hand(folder: Path) -> Any:
    """What MLflow alone makes of the database, as `mlflow ui` does that somebody starts himself."""
    words = [sys.executable, "-c", BARE, sqlite_address(folder.parent / "mlflow.db"), SPEC.folder_name]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=folder.parent.parent)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_mlflow_by_hand_has_all_but_the_files_right_after_a_move_and_those_after_a_sync(
    tmp_path: Path, migrated: Path
) -> None:
    folder = tracked(tmp_path / "a", migrated)
    assert synced(folder) == 0, "it is noted that all has arrived"
    before = seen_by_hand(folder)
    assert any(files for *_, files in before.values())
    moved = folder.parent.rename(tmp_path / "moved") / folder.name
    now = seen_by_hand(moved)
    assert {name: [*values, []] for name, (*values, _) in before.items()} == now
    assert synced(moved) == 0
    assert seen_by_hand(moved) == before
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


@pytest.mark.slow
def test_server_over_moved_results_hands_out_what_they_hold(tmp_path: Path, migrated: Path) -> None:
    """Looked at right after the move, before anything else is done."""
    folder = tracked(tmp_path / "a?b", migrated)
    sent = read(folder.parent)
    moved = folder.parent.rename(tmp_path / "it's 100%20 moved")
    words = [sys.executable, "-c", "from orchestration.cli import main; main()", "ui", str(moved / folder.name)]
    command = subprocess.Popen([*words, "--no-browser", "--port", "45300"], stdout=subprocess.PIPE, text=True)
    try:
        assert command.stdout is not None
        address = command.stdout.readline().split()[1].partition("/#/")[0]
        from mlflow.tracking import MlflowClient

        client = MlflowClient(address)
        (one,) = client.search_experiments(filter_string=f"name = '{SPEC.folder_name}'")
        for run in client.search_runs([one.experiment_id]):
            for path in files(client, run.info.run_id):
                query = urllib.parse.urlencode({"path": path, "run_uuid": run.info.run_id})
                answer = urllib.request.urlopen(f"{address}/get-artifact?{query}", timeout=30)
                assert answer.read() == sent.pop(f"{run.info.run_name}/{path}")
    finally:
        command.terminate()
        assert command.wait(30) == 0
    assert sent == {}
    assert json.dumps([path.name for path in tmp_path.iterdir()]) == json.dumps([moved.name])
