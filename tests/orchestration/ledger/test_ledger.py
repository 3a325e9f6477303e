import errno
import json
import math
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

import pytest

from fsg.train_config import TrainConfig
from orchestration.ledger import attempt as attempts
from orchestration.ledger import ledger as ledgers
from orchestration.ledger import store
from orchestration.ledger.attempt import Attempt, Superseded
from orchestration.ledger.endings import Ending
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.sealed import write_new, write_sealed
from orchestration.ledger.stores import local
from orchestration.ledger.stores import lock as locks
from orchestration.ledger.stores.errors import LockedError, Unreachable, Unwritable
from orchestration.ledger.stores.local import FolderStore
from orchestration.spec.cells import Cell

ID = "0123456789abcdef"
FORKED = multiprocessing.get_context("fork")


class Row(NamedTuple):
    step: int
    values: dict[str, float]


CELL = Cell(ID, "train", "ste", {}, 0, TrainConfig())


@pytest.fixture
def on_disk(tmp_path: Path) -> Ledger:
    filled = Ledger(tmp_path / "experiment")
    filled.add(CELL)
    return filled


@pytest.fixture
def in_bucket(bucket: str) -> Ledger:
    filled = Ledger(f"{bucket}/results/experiment")
    filled.add(CELL)
    return filled


@pytest.fixture(params=["on_disk", pytest.param("in_bucket", marks=pytest.mark.slow)])
def ledger(request: pytest.FixtureRequest) -> Ledger:
    """The same contract, wherever a ledger lies."""
    return cast(Ledger, request.getfixturevalue(request.param))


def rows(*steps: int) -> list[Row]:
    return [Row(step, {"train/loss": step + 0.25}) for step in steps]


def steps(ledger: Ledger, durable_only: bool = True) -> list[int]:
    return [row.step for row in ledger.rows(ID, durable_only)]


def checkpointed(attempt: Attempt, step: int, *recorded: int) -> None:
    attempt.record(rows(*recorded))
    attempt.checkpoint(f"state at {step}".encode(), step)


def damage(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def the(ledger: Ledger, pattern: str) -> Path:
    (found,) = ledger.folder.glob(f"trials/{ID}/{pattern}")
    return found


# cells


def test_cell_comes_back_as_it_was_entered(ledger: Ledger) -> None:
    assert ledger.cells() == [CELL]


def test_cell_that_is_entered_again_is_written_once(ledger: Ledger) -> None:
    ledger.add(CELL)
    assert len(list(ledger.folder.glob(f"trials/{ID}/*"))) == 1


def test_cell_under_another_name_gets_a_newer_record_beside_the_old_one(ledger: Ledger) -> None:
    before = the(ledger, "cell.json").read_bytes()
    ledger.add(replace(CELL, variant="renamed"))
    assert ledger.cells() == [replace(CELL, variant="renamed")] == [ledger.cell(ID)]
    assert the(ledger, "cell.json").read_bytes() == before


def test_damaged_cell_is_entered_anew(ledger: Ledger) -> None:
    damage(the(ledger, "cell.json"))
    assert ledger.cells() == []
    ledger.add(CELL)
    assert ledger.cells() == [CELL]


# rows


def test_rows_are_not_durable_before_a_checkpoint_covers_them(ledger: Ledger) -> None:
    attempt = ledger.claim(ID, {})
    attempt.record(rows(1, 2))
    assert steps(ledger) == []
    attempt.checkpoint(b"state", 2)
    assert steps(ledger) == [1, 2]


def test_rows_of_a_segment_whose_checkpoint_was_never_committed_do_not_count(ledger: Ledger) -> None:
    attempt = ledger.claim(ID, {})
    checkpointed(attempt, 2, 1, 2)
    checkpointed(attempt, 4, 3, 4)
    the(ledger, "0001/checkpoint-00000004.json").unlink()
    assert steps(ledger) == [1, 2]
    assert steps(ledger, durable_only=False) == [1, 2, 3, 4]


def test_row_values_come_back_exactly(ledger: Ledger) -> None:
    values = {
        "a": 0.1 + 0.2,
        "b": 5e-324,
        "c": -0.0,
        "d": math.inf,
        "e": -math.inf,
        "f": math.nan,
        "g": 1.7976931348623157e308,
    }
    attempt = ledger.claim(ID, {})
    attempt.record([Row(1, values)])
    attempt.finish("done")
    (row,) = ledger.rows(ID)
    assert {key: value.hex() for key, value in row.values.items()} == {
        key: value.hex() for key, value in values.items()
    }


def test_row_carries_the_time_at_which_it_was_recorded(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = ledger.claim(ID, {})
    monkeypatch.setattr(attempts, "now_ms", lambda: 1234)
    attempt.record(rows(1))
    monkeypatch.setattr(attempts, "now_ms", lambda: 9999)
    attempt.finish("done")
    assert [row.time_ms for row in ledger.rows(ID)] == [1234]


def test_rows_after_a_step_are_the_end_of_all_rows(on_disk: Ledger) -> None:
    checkpointed(on_disk.claim(ID, {}), 20, 5, 10, 15, 20)
    second = on_disk.claim(ID, {})
    checkpointed(second, 40, 25, 30, 35, 40)
    for step in range(-1, 42):
        assert on_disk.rows(ID, after=step) == [row for row in on_disk.rows(ID) if row.step > step]


def test_ledger_that_was_read_before_sees_what_is_written_after(ledger: Ledger) -> None:
    attempt = ledger.claim(ID, {})
    for step in (10, 20, 30):
        checkpointed(attempt, step, step - 5, step)
        assert steps(ledger)[-2:] == [step - 5, step]
        assert ledger.outcome(ID).step == step
    attempt.weights("final.pt", b"weights")
    attempt.finish("done")
    assert ledger.outcome(ID).state == "done"
    assert steps(ledger) == steps(Ledger(ledger.folder)) == [5, 10, 15, 20, 25, 30]


# splice


def test_rows_are_spliced_where_the_new_attempt_resumed(ledger: Ledger) -> None:
    first = ledger.claim(ID, {})
    checkpointed(first, 10, 5, 10)
    first.record(rows(15))  # lost with the process
    second = ledger.claim(ID, {})
    assert second.resume is not None
    assert (second.resume.attempt, second.resume.step, second.resume.path.read_bytes()) == (1, 10, b"state at 10")
    second.record(rows(15, 20))
    second.finish("done")
    assert steps(ledger) == [5, 10, 15, 20]


def test_tables_of_epochs_are_spliced_like_rows(ledger: Ledger) -> None:
    first = ledger.claim(ID, {})
    for epoch in (1, 2, 3):
        first.diagnostics({"epoch": epoch, "step": 10 * epoch, "seen_by": 1})
        if epoch < 3:
            checkpointed(first, 10 * epoch + 1, 10 * epoch)
    assert [table["epoch"] for table in ledger.diagnostics(ID)] == [1, 2], "nothing covers the third yet"
    second = ledger.claim(ID, {})
    first.diagnostics({"epoch": 4, "step": 40, "seen_by": 1})
    for epoch in (3, 4):
        second.diagnostics({"epoch": epoch, "step": 10 * epoch, "seen_by": 2})
    assert [table["epoch"] for table in ledger.diagnostics(ID)] == [1, 2]
    checkpointed(second, 40, 40)
    assert [(table["epoch"], table["seen_by"]) for table in ledger.diagnostics(ID)] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    damage(the(ledger, "0001/diagnostics-00000010.json"))
    assert [table["epoch"] for table in ledger.diagnostics(ID)] == [2, 3, 4], "a damaged one is as good as absent"


def test_rows_covered_by_an_end_are_kept_and_not_doubled_by_the_attempt_that_resumes_before_them(
    ledger: Ledger,
) -> None:
    first = ledger.claim(ID, {})
    checkpointed(first, 10, 5, 10)
    first.record(rows(15, 20))
    first.finish("failed", "an exception")
    shown = ledger.rows(ID)
    assert [row.step for row in shown] == [5, 10, 15, 20]
    second = ledger.claim(ID, {})
    assert second.resume is not None
    assert second.resume.step == 10
    second.record(rows(15, 20, 25))
    second.finish("done")
    assert steps(ledger) == [5, 10, 15, 20, 25]
    assert ledger.rows(ID)[:4] == shown


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 40))])
def test_rows_are_exact_after_any_sequence_of_deaths(on_disk: Ledger, seed: int) -> None:
    """Attempts that die anywhere, some with damage to a newest file, against a training that is simply written down."""
    draw, total, shown = random.Random(seed), 60, list[tuple[int, int]]()
    while on_disk.outcome(ID).state != "done":
        attempt = on_disk.claim(ID, {})
        step = attempt.resume.step if attempt.resume else 0
        if attempt.resume:
            assert attempt.resume.path.read_bytes() == f"state at {step}".encode()
        dies_at = draw.randint(step, total + 10)
        while step < min(dies_at, total):
            step += 1
            if step % 3 == 0 or step % 10 == 0:
                attempt.record(rows(step))
            if step % 7 == 0:
                attempt.checkpoint(f"state at {step}".encode(), step)
        if dies_at > total:
            attempt.weights("final.pt", b"weights")
            attempt.finish("done")
        elif draw.random() < 0.3:
            attempt.finish("failed", "an exception")
        elif draw.random() < 0.5 and (checkpoints := sorted(attempt.folder.glob("checkpoint-*.pt"))):
            damage(checkpoints[-1])
        now = [(row.step, row.time_ms) for row in on_disk.rows(ID)]
        assert now[: len(shown)] == shown, "what was shown once is never taken back or given another time"
        shown = now
    assert steps(on_disk) == [step for step in range(1, total + 1) if step % 3 == 0 or step % 10 == 0]


def test_cut_off_attempt_that_goes_on_writing_changes_nothing(ledger: Ledger) -> None:
    cut_off = ledger.claim(ID, {})
    checkpointed(cut_off, 10, 10)
    successor = ledger.claim(ID, {})
    cut_off.record(rows(20))
    with pytest.raises(Superseded):
        cut_off.checkpoint(b"late", 20)
    with pytest.raises(Superseded):
        cut_off.finish("done")
    successor.record(rows(20))
    successor.finish("done")
    assert next(attempt["end"] for attempt in ledger.attempts(ID)) is None
    assert steps(ledger) == [10, 20]


def test_checkpoint_that_a_cut_off_attempt_was_just_writing_does_not_count(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off = ledger.claim(ID, {})
    checkpointed(cut_off, 10, 10)
    successor = ledger.claim(ID, {})
    monkeypatch.setattr(Attempt, "_refuse_if_superseded", lambda self: None)
    checkpointed(cut_off, 20, 20)
    assert steps(ledger) == [10]
    point = ledger.resume_point(ID)
    assert point is not None
    assert (point.attempt, point.step) == (1, 10), "the rows up to the late one do not count"
    checkpointed(successor, 15, 15)
    assert steps(ledger) == [10, 15]
    third = ledger.claim(ID, {})
    assert third.resume is not None
    assert (third.resume.attempt, third.resume.step) == (2, 15)


def test_nothing_is_durable_while_an_attempt_is_being_claimed(ledger: Ledger) -> None:
    checkpointed(ledger.claim(ID, {}), 10, 10)
    store.of(ledger.folder).claim(ledger.folder / "trials" / ID / "0002")
    assert steps(ledger) == []
    assert steps(ledger, durable_only=False) == [10]
    assert ledger.resume_point(ID) is not None
    third = ledger.claim(ID, {})
    assert third.number == 3
    assert steps(ledger) == [10]


# damage


def test_newest_checkpoint_is_resumed_from(ledger: Ledger) -> None:
    attempt = ledger.claim(ID, {})
    checkpointed(attempt, 10, 10)
    checkpointed(attempt, 20, 20)
    point = ledger.resume_point(ID)
    assert point is not None
    assert (point.step, point.path.read_bytes()) == (20, b"state at 20")


def test_damaged_checkpoint_is_passed_over_for_the_one_before(ledger: Ledger) -> None:
    attempt = ledger.claim(ID, {})
    checkpointed(attempt, 10, 10)
    checkpointed(attempt, 20, 20)
    damage(the(ledger, "0001/checkpoint-00000020.pt"))
    resumed = ledger.claim(ID, {})
    assert resumed.resume is not None
    assert resumed.resume.step == 10
    resumed.record(rows(20, 30))
    resumed.finish("done")
    assert steps(ledger) == [10, 20, 30]


def test_truncated_files_are_passed_over(ledger: Ledger) -> None:
    attempt = ledger.claim(ID, {})
    checkpointed(attempt, 10, 10)
    attempt.record(rows(20))
    attempt.checkpoint(b"x" * 1000, 20)
    path = the(ledger, "0001/checkpoint-00000020.pt")
    for cut in (100, 1, 0):
        path.write_bytes(path.read_bytes()[:cut])
        point = ledger.resume_point(ID)
        assert point is not None
        assert point.step == 10


def test_checkpoint_whose_rows_are_damaged_is_not_resumed_from(ledger: Ledger) -> None:
    attempt = ledger.claim(ID, {})
    checkpointed(attempt, 10, 10)
    checkpointed(attempt, 20, 20)
    damage(the(ledger, "0001/rows-0001-*"))
    point = ledger.resume_point(ID)
    assert point is not None
    assert point.step == 10
    assert steps(ledger) == [10]


@pytest.mark.parametrize("lose", [damage, lambda path: path.unlink()], ids=["damaged", "missing"])
def test_rows_after_a_segment_that_is_lost_do_not_count(ledger: Ledger, lose: Callable[[Path], None]) -> None:
    attempt = ledger.claim(ID, {})
    for step in (10, 20, 30):
        checkpointed(attempt, step, step)
    lose(the(ledger, "0001/rows-0001-*"))
    assert steps(ledger) == steps(ledger, durable_only=False) == [10]
    again = ledger.claim(ID, {})
    assert again.resume is None, "its checkpoints cover rows that are lost"
    again.record(rows(10, 20, 30))
    again.finish("done")
    assert steps(ledger) == [10, 20, 30]


def test_cell_whose_recorded_rows_are_damaged_is_not_done(ledger: Ledger) -> None:
    first = ledger.claim(ID, {})
    checkpointed(first, 10, 10)
    second = ledger.claim(ID, {})
    second.record(rows(20))
    second.weights("final.pt", b"weights")
    second.finish("done")
    assert ledger.outcome(ID).state == "done"
    damage(the(ledger, "0001/rows-*"))
    ledger = Ledger(ledger.folder)
    assert ledger.outcome(ID).state == "interrupted"
    third = ledger.claim(ID, {})
    assert third.resume is None
    third.record(rows(10, 20))
    third.weights("final.pt", b"weights")
    third.finish("done")
    assert ledger.outcome(ID).state == "done"
    assert steps(ledger) == [10, 20]


def test_damaged_records_are_as_good_as_absent(ledger: Ledger) -> None:
    attempt = ledger.claim(ID, {})
    checkpointed(attempt, 10, 10)
    attempt.weights("final.pt", b"weights")
    attempt.finish("done")
    assert ledger.outcome(ID).state == "done"
    damage(the(ledger, "0001/end.json"))
    assert Ledger(ledger.folder).outcome(ID).state == "running"
    damage(the(ledger, "0001/checkpoint-00000010.json"))
    assert Ledger(ledger.folder).resume_point(ID) is None
    damage(the(ledger, "0001/attempt.json"))
    assert Ledger(ledger.folder).outcome(ID).state == "waiting"


def test_record_that_reads_well_and_is_not_as_written_does_not_count(ledger: Ledger) -> None:
    ledger.claim(ID, {}).finish("diverged", "the loss is nan")
    path = the(ledger, "0001/end.json")
    path.write_text(path.read_text().replace("diverged", "done"))
    assert Ledger(ledger.folder).outcome(ID).state == "running"


def test_damaged_weights_are_not_handed_out(ledger: Ledger) -> None:
    attempt = ledger.claim(ID, {})
    attempt.weights("best-00000005.pt", b"the best")
    attempt.weights("final.pt", b"the last")
    assert ledger.final_weights(ID) is None
    attempt.finish("done")
    final, best = ledger.final_weights(ID), ledger.best_weights(ID)
    assert final is not None
    assert best is not None
    assert (final.read_bytes(), best.read_bytes()) == (b"the last", b"the best")
    damage(final)
    assert ledger.final_weights(ID) is None
    final.unlink()
    assert ledger.outcome(ID).state == "interrupted"


def test_best_weights_are_the_last_ones_where_no_others_were_better(ledger: Ledger) -> None:
    attempt = ledger.claim(ID, {})
    attempt.weights("final.pt", b"the last")
    attempt.finish("done")
    assert ledger.best_weights(ID) == ledger.final_weights(ID) is not None


# files


def test_file_is_never_written_over(tmp_path: Path) -> None:
    write_new(tmp_path / "a", b"one")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "a", b"two")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"one"


def test_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_new(tmp_path / "a", b"one")
    assert list(tmp_path.iterdir()) == []


def test_end_is_the_end(ledger: Ledger) -> None:
    attempt = ledger.claim(ID, {})
    attempt.finish("failed", "no luck")
    with pytest.raises(FileExistsError):
        attempt.finish("interrupted", "stopped")
    assert (ledger.outcome(ID).state, ledger.outcome(ID).reason) == ("failed", "no luck")
    number = ledger.record_launch({"cells": []})
    ledger.record_launch_end(number, {"exit_status": 1})
    with pytest.raises(FileExistsError):
        ledger.record_launch_end(number, {"exit_status": 0})
    assert ledger.launches()[-1]["exit_status"] == 1


def test_what_cannot_be_read_for_now_is_neither_absent_nor_damaged(
    on_disk: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointed(on_disk.claim(ID, {}), 10, 10)
    read = FolderStore.read
    for unread in ("cell.json", "attempt.json", ".pt", ".jsonl"):

        def failing(self: FolderStore, path: Path, unread: str = unread) -> bytes:
            if path.name.endswith(unread):
                raise Unreachable(errno.EIO, "no answer", str(path))
            return read(self, path)

        monkeypatch.setattr(FolderStore, "read", failing)
        fresh = Ledger(on_disk.folder)
        with pytest.raises(Unreachable):
            fresh.cell(ID), fresh.resume_point(ID)


def test_folder_in_whose_place_a_file_is_cannot_be_written_to(on_disk: Ledger) -> None:
    (on_disk.folder / "trials" / "f").write_text("")
    with pytest.raises(Unwritable):
        on_disk.claim("f", {})
    with pytest.raises(Unwritable):
        write_new(on_disk.folder / "trials" / "f" / "deeper" / "a", b"")


def test_two_that_write_the_same_file_at_once_are_not_in_each_others_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, inner = local._write_exclusively, []

    def writing(path: Path, data: bytes) -> None:
        write(path, data)
        if not inner:  # as far as this, when another one comes and is faster
            inner.append(path)
            write_new(tmp_path / "a", b"two")

    monkeypatch.setattr(local, "_write_exclusively", writing)
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "a", b"one")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_every_name_is_flushed_with_the_folder_that_it_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine that loses its power has kept: the folders as they were when they were last flushed."""
    kept: dict[str, set[str]] = {}

    def flush(descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if place.is_dir():
            kept[str(place)] = set(os.listdir(place))

    monkeypatch.setattr(os, "fsync", flush)
    ledger = Ledger(tmp_path / "results" / "experiment")
    with ledger.lock():
        ledger.add(CELL)
        attempt = ledger.claim(ID, {})
        checkpointed(attempt, 10, 10)
        attempt.finish("done", step=10)
    for path in ledger.folder.rglob("*"):
        for one in (path, *path.parents):
            if tmp_path in one.parents and one.name != "lock":
                assert one.name in kept[str(one.parent)], one


def test_what_a_commit_covers_is_durable_before_the_commit_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: set[str] = set()
    link, seen = os.link, []

    def flush(descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if place.is_dir():
            kept.update(str(place / name) for name in os.listdir(place))

    def linking(source: Path, target: Path) -> None:
        if target.name == "end.json" or (target.name.startswith("checkpoint-") and target.suffix == ".json"):
            lacking = {path.name for path in target.parent.iterdir() if str(path) not in kept and path != source}
            seen.append((target.name, lacking))
        link(source, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "link", linking)
    ledger = Ledger(tmp_path / "experiment")
    ledger.add(CELL)
    attempt = ledger.claim(ID, {})
    attempt.diagnostics({"step": 10})
    checkpointed(attempt, 10, 10)
    attempt.record([Row(20, {"loss": 1.0})])
    attempt.weights("final.pt", b"weights")
    attempt.finish("done", step=20)
    assert seen == [("checkpoint-00000010.json", set()), ("end.json", set())]


def test_file_system_without_links_is_written_to_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_new(tmp_path / "a", b"one")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"one"


def test_superseded_checkpoints_are_removed_and_nothing_else(ledger: Ledger) -> None:
    attempt = ledger.claim(ID, {})
    for step in (10, 20, 30, 40):
        checkpointed(attempt, step, step)
    names = sorted(path.name for path in attempt.folder.iterdir())
    assert [name for name in names if name.startswith("checkpoint")] == [
        f"checkpoint-000000{step}.{kind}" for step in (30, 40) for kind in ("json", "pt")
    ]
    assert steps(ledger) == [10, 20, 30, 40]


def test_checkpoint_before_the_first_step_is_refused(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="step 0"):
        ledger.claim(ID, {}).checkpoint(b"state", 0)


# outcomes


def test_outcome_follows_the_newest_attempt(ledger: Ledger) -> None:
    assert ledger.outcome(ID).state == "waiting"
    attempt = ledger.claim(ID, {})
    assert ledger.outcome(ID).state == "running"
    attempt.log.write_text("Traceback")
    attempt.finish("failed", "ValueError: no")
    outcome = ledger.outcome(ID)
    assert (outcome.state, outcome.reason, outcome.log) == ("failed", "ValueError: no", attempt.log)
    attempt = ledger.claim(ID, {})
    attempt.weights("final.pt", b"weights")
    attempt.finish("done", digest="abc", step=7)
    outcome = ledger.outcome(ID)
    assert (outcome.state, outcome.digest, outcome.attempts, outcome.step, outcome.log) == ("done", "abc", 2, 7, None)


def test_attempt_whose_process_is_gone_is_interrupted(on_disk: Ledger) -> None:
    child = FORKED.Process(target=lambda: checkpointed(on_disk.claim(ID, {}), 10, 10))
    child.start()
    child.join()
    outcome = on_disk.outcome(ID)
    assert (outcome.state, outcome.step) == ("interrupted", 10)


@pytest.mark.parametrize(
    ("changed", "state"),
    [({}, "running"), ({"process_started": 1.0}, "interrupted"), ({"host": "elsewhere", "pid": 1}, "running")],
    ids=["this process", "a number that another process has by now", "another host"],
)
def test_attempt_runs_as_long_as_its_process_may_be_alive(
    on_disk: Ledger, monkeypatch: pytest.MonkeyPatch, changed: dict[str, object], state: str
) -> None:
    ours = locks.this_process()
    monkeypatch.setattr(ledgers, "this_process", lambda: ours | changed)
    on_disk.claim(ID, {})
    assert on_disk.outcome(ID).state == state


def test_seconds_are_summed_over_what_counts(ledger: Ledger) -> None:
    first = ledger.claim(ID, {})
    first.record(rows(10))
    first.checkpoint(b"state", 10, seconds=3.0)
    first.finish("interrupted", seconds=3.5)
    second = ledger.claim(ID, {})
    second.weights("final.pt", b"weights")
    second.finish("done", seconds=4.0)
    assert ledger.outcome(ID).seconds == pytest.approx(7.0)


def test_cell_whose_pretraining_failed_has_failed(ledger: Ledger) -> None:
    ledger.add(replace(CELL, id="f" * 16, depends_on=ID))
    assert ledger.outcome("f" * 16).state == "waiting"
    ledger.claim(ID, {}).finish("diverged", "the loss is nan")
    outcome = ledger.outcome("f" * 16)
    assert (outcome.state, outcome.reason) == ("failed", "its pretraining diverged: the loss is nan")


def test_attempt_records_who_made_it_and_what_it_resumed_from(ledger: Ledger) -> None:
    checkpointed(ledger.claim(ID, {"device": "cpu"}), 10, 10)
    ledger.claim(ID, {"device": "cuda"})
    first, second = ledger.attempts(ID)
    assert (first["device"], first["pid"], first["resumed_from"]) == ("cpu", os.getpid(), None)
    assert (second["device"], second["resumed_from"]["attempt"], second["resumed_from"]["step"]) == ("cuda", 1, 10)


# concurrency


def test_concurrent_claims_each_get_a_folder_of_their_own(on_disk: Ledger) -> None:
    def claim_ten(queue: "multiprocessing.Queue[list[int]]") -> None:
        queue.put([on_disk.claim(ID, {}).number for _ in range(10)])

    queue: multiprocessing.Queue[list[int]] = FORKED.Queue()
    children = [FORKED.Process(target=claim_ten, args=(queue,)) for _ in range(4)]
    for child in children:
        child.start()
    numbers = [number for _ in children for number in queue.get(timeout=60)]
    for child in children:
        child.join()
    assert sorted(numbers) == list(range(1, 41))
    assert [attempt["number"] for attempt in on_disk.attempts(ID)] == list(range(1, 41))


def test_killed_writer_leaves_a_ledger_that_reads(on_disk: Ledger) -> None:
    """A writer is killed at a random moment, over and over; after each death the rows are whole and resumable."""
    has_begun = FORKED.Event()

    def write_for_ever() -> None:
        attempt = on_disk.claim(ID, {})
        step = attempt.resume.step if attempt.resume else 0
        while True:
            step += 1
            attempt.record(rows(step))
            attempt.checkpoint(f"state at {step}".encode() * 1000, step)
            has_begun.set()

    draw, before = random.Random(0), 0
    for _ in range(5):
        child = FORKED.Process(target=write_for_ever)
        child.start()
        assert has_begun.wait(60), "the first one writes a checkpoint, however busy the machine is"
        time.sleep(draw.uniform(0.02, 0.15))
        child.kill()
        child.join()
        recorded = steps(on_disk, durable_only=False)
        assert recorded == list(range(1, len(recorded) + 1))
        point = on_disk.resume_point(ID)
        reached = point.step if point else 0
        assert reached >= before
        assert point is None or point.path.read_bytes() == f"state at {reached}".encode() * 1000
        before = reached
    assert before > 0


# launches


def test_launch_records_are_numbered_and_joined_with_their_ends(ledger: Ledger) -> None:
    assert ledger.launches() == []
    first = ledger.record_launch({"spec": {"name": "a"}, "started": 1})
    second = ledger.record_launch({"spec": {"name": "a"}, "started": 2})
    ledger.record_launch_end(second, {"finished": 3, "exit_status": 0})
    assert (first, second) == (1, 2)
    assert ledger.launches() == [
        {"spec": {"name": "a"}, "started": 1, "number": 1},
        {"spec": {"name": "a"}, "started": 2, "number": 2, "finished": 3, "exit_status": 0},
    ]
    assert ledger.launch_problems() == []


def test_every_end_names_its_launch(ledger: Ledger) -> None:
    for own in (None, 7):
        ledger.record_launch({})
        ledger.claim(ID, {} if own is None else {"launch": own}).finish("done", digest="d")
    ledger.claim(ID, {}).finish("failed")
    Ledger(ledger.folder).claim(ID, {}).finish("diverged")
    assert [attempt["end"]["launch"] for attempt in ledger.attempts(ID)] == [1, 7, 2, None]
    assert ledger.endings() == [
        Ending(ID, 1, 1, "done", "d"),
        Ending(ID, 2, 7, "done", "d"),
        Ending(ID, 4, None, "diverged", None),
    ]


def test_no_number_of_a_launch_is_given_twice(ledger: Ledger) -> None:
    ledger.record_launch({})
    ledger.claim(ID, {"launch": 4}).finish("done")
    assert ledger.record_launch({}) == 5, "an end speaks of four"
    ledger.record_launch_end(8, {"exit_status": 0})
    assert ledger.record_launch({}) == 9


def test_records_of_launches_that_do_not_hold_are_named_and_do_not_count(on_disk: Ledger) -> None:
    folder = on_disk.folder / "launches"
    for started in (1, 2, 3, 4):
        write_sealed(folder / f"000{started}.json", {"started": started})  # as an earlier version did, without a number
    shutil.copy(folder / "0001.json", folder / "0005.json")
    shutil.copy(folder / "0002.json", folder / "2.json")
    damage(folder / "0003.json")
    (folder / "0004.json").rename(folder / "0007.json")
    (folder / "20261130-notes.json").write_text("not ours")
    assert [(launch["number"], launch["started"]) for launch in on_disk.launches()] == [(1, 1), (2, 2), (7, 4)]
    assert on_disk.launch_problems() == [
        "launches/0003.json is damaged",
        "launches/0004.json is missing",
        "launches/0005.json is a copy of the record of launch 1",
        "launches/0006.json is missing",
        "launches/2.json is a copy of the record of launch 2",
    ]


def test_experiment_is_held_by_one_and_taken_over_from_the_dead(ledger: Ledger) -> None:
    held = FORKED.Event()

    def hold() -> None:
        with Ledger(ledger.folder).lock():
            held.set()
            time.sleep(60)

    holder = FORKED.Process(target=hold)
    holder.start()
    assert held.wait(60)
    with pytest.raises(LockedError, match=rf"is locked by process {holder.pid} on .* since 20\d\d-"):
        with ledger.lock():
            pass
    holder.kill()
    holder.join()
    with ledger.lock():
        pass
    with ledger.lock():
        pass


def test_lock_of_another_machine_is_taken_over_once_it_has_been_silent(on_disk: Ledger) -> None:
    lock = on_disk.folder / "lock"
    lock.write_text(json.dumps({"host": "elsewhere", "machine": "another", "pid": 1, "since": 0}))
    with pytest.raises(LockedError, match=r"process 1 on elsewhere since .* \(last seen \d+ s ago; its lock expires"):
        with on_disk.lock():
            pass
    os.utime(lock, (0, time.time() - locks.LOCK_TIMEOUT - 1))
    with on_disk.lock():
        pass
    assert not list(on_disk.folder.glob(".clock*"))


def test_lock_that_was_given_up_keeps_no_other_machine_waiting(
    on_disk: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with on_disk.lock():
        pass
    monkeypatch.setattr(local, "machine", lambda: "another")
    with on_disk.lock():
        pass


def test_lock_is_touched_while_it_is_held(on_disk: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "LOCK_TIMEOUT", 0.1)
    lock = on_disk.folder / "lock"
    with on_disk.lock():
        os.utime(lock, (0, 0))
        end = time.monotonic() + 30
        while lock.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert lock.stat().st_mtime > 0


def test_lock_of_another_container_of_this_machine_is_free_when_its_process_is_dead(on_disk: Ledger) -> None:
    """They share the kernel, and with it what is locked, but not the name."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (on_disk.folder / "lock").write_text(json.dumps({"host": "container", "machine": boot, "pid": 1, "since": 0}))
    with on_disk.lock():
        pass


# acceptance


def test_accepted_cell_has_the_attempts_of_the_one_that_it_stands_for(ledger: Ledger) -> None:
    attempt = ledger.claim(ID, {})
    attempt.record(rows(1, 2))
    attempt.weights("final.pt", b"weights")
    attempt.finish("done", digest="d", step=2)
    new = replace(CELL, id="new")
    before = {path: path.read_bytes() for path in ledger.folder.glob("**/*") if path.is_file()}
    ledger.accept(new, ID, {"steps": 50})
    assert ledger.outcome("new") == ledger.outcome(ID)
    assert ledger.rows("new") == ledger.rows(ID) != []
    assert ledger.final_weights("new") == ledger.final_weights(ID) is not None
    assert (ledger.origin("new"), ledger.origin(ID)) == (ID, ID)
    assert {path: path.read_bytes() for path in before} == before, "nothing is rewritten"
    assert ledger.orphans([new]) == ledger.orphans([CELL]) == []
    newer = replace(CELL, id="newer")
    assert [cell.id for cell in ledger.orphans([newer])] == [ID, "new"]
    ledger.accept(newer, "new", {})
    assert ledger.outcome("newer") == ledger.outcome(ID)


def test_attempt_of_its_own_rules_over_an_acceptance(ledger: Ledger) -> None:
    first = ledger.claim(ID, {})
    first.record(rows(1, 2))
    first.checkpoint(b"state", 2)
    first.finish("done", digest="d", step=2)
    ledger.accept(replace(CELL, id="new"), ID, {})
    own = ledger.claim("new", {})
    assert own.resume is None, "the state of other numerics is not gone on from"
    assert ledger.rows("new") == []
    assert ledger.outcome("new").state == "running"
    with pytest.raises(FileExistsError):
        ledger.accept(replace(CELL, id="new"), ID, {})


def test_damaged_acceptance_is_as_good_as_absent(ledger: Ledger) -> None:
    attempt = ledger.claim(ID, {})
    attempt.finish("done", digest="d", step=0)
    ledger.accept(replace(CELL, id="new"), ID, {})
    damage(ledger.folder / "trials" / "new" / "accepted.json")
    assert ledger.outcome("new").state == "waiting"


def test_full_disk_is_told_and_leaves_no_attempt_behind(on_disk: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointed(on_disk.claim(ID, {}), 2, 1, 2)

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(local, "_write_exclusively", full)
        with pytest.raises(Unwritable, match=r"No space left on device: .*attempt\.json"):
            on_disk.claim(ID, {})
    assert steps(on_disk) == [1, 2]
    assert on_disk.claim(ID, {}).number == 2
