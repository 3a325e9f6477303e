"""What is particular to results in an object store: claims, the lock, and what is refused."""

import json
import sys
import threading
from pathlib import Path

import pytest
from launches import SHORT

from orchestration.cli import main
from orchestration.commands.launch import launch
from orchestration.commands.request import LaunchRequest
from orchestration.ledger import store
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.stores import lock as locks
from orchestration.ledger.stores.errors import LockedError, Unwritable
from orchestration.ledger.stores.s3 import S3Store


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


def test_a_folder_whose_name_is_no_text_is_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "a\udcffb"
    with pytest.raises(
        ValueError, match=r"a\\udcffb/results: is no text in UTF-8 \(expected a folder whose name is\)$"
    ):
        store.resolve_path(f"{odd}/results")
    odd.mkdir()
    monkeypatch.chdir(odd)
    with pytest.raises(ValueError, match="is no text in UTF-8"):
        store.resolve_path("results")
