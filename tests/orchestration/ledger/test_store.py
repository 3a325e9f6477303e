"""What is particular to results in an object store: claims, the lock, what is refused, and a launch that dies."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from launches import SEARCH, SHORT, Launched, assert_exact, checkpoints, compared, until

from orchestration.cli import main
from orchestration.commands.launch import launch
from orchestration.commands.request import LaunchRequest
from orchestration.ledger import store
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.stores import lock as locks
from orchestration.ledger.stores.errors import LockedError, Unwritable
from orchestration.ledger.stores.s3 import S3Store
from orchestration.ledger.study_records import StudyRecords
from orchestration.spec.cells import cells
from orchestration.spec.experiment import load_spec


def test_of_several_that_claim_an_attempt_at_once_each_gets_one_of_its_own(bucket: str) -> None:
    got: list[int] = []

    def claim() -> None:
        ledger = Ledger(f"{bucket}/e")
        got.extend(ledger.claim("a" * 16, {}).number for _ in range(2))

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(1, 9))


def test_object_is_never_written_over_and_an_answer_that_got_lost_is_none_the_worse(bucket: str) -> None:
    path = store.resolve_path(f"{bucket}/e/a")
    store.of(path).create(path, b"one")
    with pytest.raises(FileExistsError):
        store.of(path).create(path, b"two")
    store.of(path).create(path, b"one")  # what a request that is sent twice comes to
    assert store.of(path).read(path) == b"one"


def test_bucket_that_is_not_there_is_told_apart_from_a_record_that_is_not(bucket: str) -> None:
    assert Ledger(f"{bucket}/e").launches() == []
    with pytest.raises(Unwritable, match="no such bucket"):
        Ledger(f"{bucket}-other/e").launches()
    with pytest.raises(Unwritable, match="no such bucket"):
        Ledger(f"{bucket}-other/e").record_launch({})


# the lock


def test_lock_of_another_machine_is_taken_over_once_it_has_been_silent(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(f"{bucket}/e")
    lock = ledger.folder / "lock"
    lock.write_text(json.dumps({"host": "elsewhere", "machine": "another", "pid": 1, "since": 0}))
    with pytest.raises(LockedError, match=r"process 1 on elsewhere since .* \(last seen \d+ s ago; its lock expires"):
        with ledger.lock():
            pass
    monkeypatch.setattr(locks, "LOCK_TIMEOUT", 0.0)
    with ledger.lock():
        pass
    assert store.of(lock).names(ledger.folder) == ["lock"]


def test_lock_that_others_have_taken_over_is_theirs(bucket: str) -> None:
    ledger = Ledger(f"{bucket}/e")
    theirs = json.dumps({"host": "elsewhere", "machine": "another", "pid": 1, "since": 0})
    with ledger.lock():
        (ledger.folder / "lock").write_text(theirs)
    assert (ledger.folder / "lock").read_text() == theirs


def test_lock_is_written_again_while_it_is_held(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = threading.Event()
    replaced = S3Store._replaced

    def noted(self: S3Store, path: Path, data: bytes, tag: str) -> str:
        written.set()
        return replaced(self, path, data, tag)

    monkeypatch.setattr(locks, "LOCK_TIMEOUT", 0.1)
    monkeypatch.setattr(S3Store, "_replaced", noted)
    with Ledger(f"{bucket}/e").lock():
        assert written.wait(30)


# what is refused


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["report", "gs://bucket/e"], "gs://…: not known (expected a folder or s3://BUCKET/PREFIX)"),
        (["report", "s3://key:secret@bucket/e"], "s3://: credentials do not belong there"),
        (["report", "s3://"], "s3://: names no bucket"),
        (["verify", "s3://bucket/e"], "s3://bucket/e: this command works on a folder (expected a copy on a disk"),
        (["bundle", "s3://bucket/e"], "s3://bucket/e: this command works on a folder"),
        (["ui", "s3://bucket/e"], "s3://bucket/e: MLflow's database does not lie there (expected --tracking-uri"),
        (
            ["launch", "tiny.yaml", "--results", "s3://bucket/r", "--address", "http://127.0.0.1:8265"],
            "--results s3://bucket/r: not with a job server (expected --address auto",
        ),
    ],
)
def test_what_an_object_store_cannot_do_is_refused_in_one_line(
    folder: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert told in said
    assert said.count("\n") == 1


def test_missing_library_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ValueError, match=r"s3fs is not installed \(expected pip install 's3fs=="):
        store.resolve_path("s3://bucket/e")


def test_launch_into_a_bucket_wants_places_for_the_databases(
    folder: Path, bucket: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    results = store.resolve_path(f"{bucket}/r")
    assert launch(LaunchRequest(Path("tiny.yaml"), results=store.resolve_path(f"{bucket}-other/r"))) == 2
    assert "there is no such bucket" in capsys.readouterr().err
    assert launch(LaunchRequest(Path("tiny.yaml"), results=results)) == 2
    assert "MLflow's database cannot lie there (expected --tracking-uri" in capsys.readouterr().err
    Path("tiny.yaml").write_text(SHORT.replace("seeds: [0]", "seeds: [0]\ntuning: {budget: 2}"))
    assert launch(LaunchRequest(Path("tiny.yaml"), results=results, tracking_uri="sqlite:////nowhere/mlflow.db")) == 2
    assert "Optuna's journal cannot lie there (expected --study-storage" in capsys.readouterr().err
    monkeypatch.setattr("orchestration.commands.launch.run", lambda *arguments: 0)
    storage = "seeds: [0]\ntuning: {budget: 2, storage: 'sqlite:////nowhere/study.db'}"
    Path("tiny.yaml").write_text(SHORT.replace("seeds: [0]", storage))
    assert launch(LaunchRequest(Path("tiny.yaml"), results=results, tracking_uri="sqlite:////nowhere/mlflow.db")) == 0


# a launch


@pytest.mark.slow
def test_launch_into_a_bucket_whose_driver_is_killed_goes_on_and_ends_exactly(
    folder: Path, bucket: str, launch: Callable[..., Launched]
) -> None:
    Path("tiny.yaml").write_text(SHORT)
    tracking = f"sqlite:///{folder}/tracked/mlflow.db"
    (folder / "tracked").mkdir()
    words = ("--results", f"{bucket}/results", "--tracking-uri", tracking)
    planned, ledger = cells(load_spec(Path("tiny.yaml"))), Ledger(f"{bucket}/results/tiny")
    first = launch(*words)
    until(lambda: checkpoints(ledger), first)
    os.killpg(first.process.pid, signal.SIGKILL)
    first.process.wait()

    second = launch(*words)
    assert second.wait() == 0, second.text
    assert_exact(ledger, planned, folder)
    assert any(len(ledger.attempts(cell.id)) > 1 for cell in planned)
    assert f"report   {bucket}/results/tiny/report.html" in second.text
    for name in ("report.html", "report.md", "report.csv"):
        assert (ledger.folder / name).read_bytes()
    told = [sys.executable, "-m", "orchestration.cli", "report", f"{bucket}/results/tiny"]
    report = subprocess.run(told, capture_output=True, text=True, check=True)
    assert "ste" in report.stdout
    assert not (folder / "results").exists()
    everything = [path for path in [*folder.rglob("*"), *ledger.folder.glob("**/*")] if path.is_file()]
    assert len(everything) > 40
    assert [path for path in everything if b"planted-secret" in path.read_bytes()] == []


@pytest.mark.slow
def test_search_into_a_bucket_whose_driver_is_killed_goes_on_and_is_sent_to_mlflow_later(
    folder: Path, bucket: str, launch: Callable[..., Launched]
) -> None:
    (folder / "tiny.yaml").write_text(SEARCH)
    (folder / "studies").mkdir()
    here = launch("--results", "here", "--study-storage", f"sqlite:///{folder}/studies/here.db")
    assert here.wait(480) == 0, here.text
    expected = StudyRecords(Ledger(folder / "here" / "tiny"), "tuned")

    ledger, tracking = Ledger(f"{bucket}/results/tiny"), f"sqlite:///{folder}/studies/mlflow.db"
    records = StudyRecords(ledger, "tuned")
    words = ("--results", f"{bucket}/results", "--tracking-uri", "http://127.0.0.1:9")
    words += ("--study-storage", f"sqlite:///{folder}/studies/study.db")
    first = launch(*words)
    until(lambda: len(records.trials()) >= 2, first, 480)
    os.killpg(first.process.pid, signal.SIGKILL)
    first.wait()
    second = launch(*words)
    assert second.wait(480) == 0, second.text
    assert [(t.params, t.state, t.intermediate) for t in records.trials()] == [
        (t.params, t.state, t.intermediate) for t in expected.trials()
    ]
    assert [choice["chosen"] for choice in records.choices()] == [expected.choices()[-1]["chosen"]]
    assert b"Search: tuned" in (ledger.folder / "report.html").read_bytes()

    sync = [sys.executable, "-m", "orchestration.cli", "sync", f"{bucket}/results/tiny", "--tracking-uri", tracking]
    for sent_again in (False, True):
        said = subprocess.run(sync, capture_output=True, text=True, check=True).stdout
        assert ("sent 0 runs" in said) is sent_again, said
    assert compared(ledger, folder / "studies" / "mlflow.db") == (0, 0)
