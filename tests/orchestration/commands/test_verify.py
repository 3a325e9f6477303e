"""`fsg verify`, on cells that are what they say and on cells that are not."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny_experiment
import torch
from tiny_experiment import tamper

import fsg
from benchmarks import chaos
from fsg import checkpoint
from fsg.train_config import TrainConfig
from fsg.trainer import Row
from orchestration.commands import verify as module
from orchestration.commands.verify import Verdict, verify
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.sealed import read_sealed, seal_of
from orchestration.runtime.retrain import other_rows, rows_of, to_train_again, train_until_killed
from orchestration.spec.cells import Cell


@pytest.fixture
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_experiment.finished(tmp_path_factory.getbasetemp()) / "results" / "tiny"


@pytest.fixture
def results(experiment: Path, tmp_path: Path) -> Path:
    """A copy, to be tampered with."""
    return Path(shutil.copytree(experiment, tmp_path / "tiny"))


def cell(results: Path, variant: str) -> Cell:
    return next(cell for cell in Ledger(results).cells() if cell.variant == variant)


def test_finished_cells_verify_after_a_death_in_the_middle(
    experiment: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The killed process is gone, its checkpoint is there, and no end: what goes on is another."""
    before = {path: path.stat().st_mtime_ns for path in experiment.rglob("*")}
    deaths = []

    def watched(command: Sequence[str], steps: int, draw: random.Random) -> int | None:
        killed_at = train_until_killed(command, steps, draw)
        folder, one = command[command.index("orchestration.runtime.retrain") + 1 :][:2]
        scratch = Ledger(Path(folder))
        (attempt,) = scratch.attempts(one)
        assert attempt["end"] is None
        assert scratch.outcome(one).state == "interrupted", "its process is dead"
        assert attempt["pid"] != os.getpid()
        point = scratch.resume_point(one)
        assert point is not None
        assert killed_at is not None
        assert 1 <= point.step <= killed_at + 1
        assert checkpoint.from_bytes(point.path.read_bytes())["training"]["step"] == point.step
        deaths.append(killed_at)
        return killed_at

    monkeypatch.setattr(module, "train_until_killed", watched)
    monkeypatch.setenv("COLUMNS", "300")
    assert verify(experiment, cells=1, seed=3) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"torch {torch.__version__.split('+')[0]}" in lines[0]
    assert "1 thread, fp32" in lines[0]
    assert f"NUMERICS {fsg.NUMERICS}" in lines[0]
    assert lines[1].startswith("same ")
    assert f"(killed after step {deaths[0]} of " in lines[1]
    assert lines[2] == "1 of 3 finished cells verified: bit for bit the same"
    assert {path: path.stat().st_mtime_ns for path in experiment.rglob("*")} == before, "nothing is touched"


def copied(monkeypatch: pytest.MonkeyPatch, experiment: Path, killed: int | None = 3, resumed: int | None = 2) -> None:
    """In place of the two processes: what they would write is what was recorded."""

    def to_the_end(command: Sequence[str]) -> str:
        folder, name, *_ = command[command.index("orchestration.runtime.retrain") + 1 :]
        again = Path(folder) / "trials" / name
        shutil.copytree(experiment / "trials" / name, again, dirs_exist_ok=True)
        attempt = again / "0001" / "attempt.json"
        tamper(attempt, resumed_from=resumed and {"attempt": 1, "step": resumed, "seconds": 0.0})
        return ""

    monkeypatch.setattr(module, "train_until_killed", lambda *arguments: killed)
    monkeypatch.setattr(module, "train_to_the_end", to_the_end)


def test_planted_differences_are_found_and_named(
    experiment: Path, results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another digest, and one bit of one row; and what was different when it was trained."""
    copied(monkeypatch, experiment)
    one = cell(results, "ste")
    attempt = results / "trials" / one.id / "0001"
    tamper(attempt / "end.json", digest="0" * 64)
    tamper(attempt / "attempt.json", versions={"torch": "1.13.0"}, device="A CPU", kernel="a kernel")
    tamper(results / "launches" / "0001.json", cells=[one.id])
    (segment,) = attempt.glob("rows-0000-*")
    head, *lines = segment.read_bytes().splitlines()
    step, time_ms, values = json.loads(lines[0])
    values["train/loss"] *= 1 + 2**-52
    body = b"\n".join([json.dumps([step, time_ms, values]).encode(), *lines[1:]]) + b"\n"
    segment.write_bytes(json.dumps(json.loads(head) | seal_of(body)).encode() + b"\n" + body)
    assert verify(results, cells=1) == 1
    out = capsys.readouterr().out
    assert "DIFFERS  ste · seed 0" in out
    assert f"final state: {'0' * 64} in the ledger, " in out
    assert f"train/loss at step {step}: {values['train/loss']!r} in the ledger, " in out
    assert out.count("in the ledger") == 2, "one row, and the state"
    assert "trained with torch 1.13.0 (here " in out
    assert "trained with device A CPU (here " in out
    assert "trained with slow net kernels a kernel (here none)" in out
    assert "1 of 1 cells differ; what was trained here is kept in " in out
    kept = Path(out.split("kept in ")[1].strip())
    assert (kept / "trials" / one.id / "0001" / "final.pt").exists()
    shutil.rmtree(kept)


def test_nothing_to_verify_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tmp_path / "none") == 2
    assert capsys.readouterr().err == f"{tmp_path / 'none'}: no launch is recorded there\n"
    folder = tmp_path / "x"
    Ledger(folder).record_launch({"cells": ["a"], "spec": {}, "spec_source": "x"})
    assert verify(folder) == 2
    assert "there is nothing to verify" in capsys.readouterr().err


# what it may not call the same


def test_finished_cell_that_has_lost_a_file_is_no_cell_that_is_the_same(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are missing, rows that are damaged, a record that is: each is named, and the status is 1."""
    monkeypatch.setattr(module, "_verified", lambda ledger, one, *rest: Verdict(one, 9, 3, 2, "d", 5, ()))
    (results / "trials" / cell(results, "ste").id / "0001" / "final.pt").unlink()
    assert verify(results) == 1
    out = capsys.readouterr().out
    assert "DAMAGED  ste · seed 0: the file of the final weights is missing or cut short" in out
    assert "2 of 2 finished cells verified" in out
    (rows,) = (results / "trials" / cell(results, "fsg").id / "0001").glob("rows-0000-*")
    rows.write_bytes(rows.read_bytes()[:-1])
    (record,) = (results / "trials" / cell(results, "pretrain").id).glob("cell.json")
    record.write_text("{")
    assert verify(results) == 2
    told = capsys.readouterr().err
    assert "fsg · seed 0: a file of recorded rows is damaged" in told
    assert f"{record.parent.name}: its record is missing or damaged" in told
    assert "there is nothing to verify" in told


def test_weights_whose_file_is_not_what_was_trained_differ(
    experiment: Path, results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped byte, which leaves the size as it was; and other weights under a seal that holds."""
    copied(monkeypatch, experiment)
    one = cell(results, "ste")
    tamper(results / "launches" / "0001.json", cells=[one.id])
    assert verify(results) == 0
    attempt = results / "trials" / one.id / "0001"
    content = bytearray((attempt / "final.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (attempt / "final.pt").write_bytes(content)
    assert verify(results) == 1
    assert "final weights: their file is missing or damaged" in capsys.readouterr().out
    other = (results / "trials" / str(one.depends_on) / "0001" / "final.pt").read_bytes()
    (attempt / "final.pt").write_bytes(other)
    end = read_sealed(attempt / "end.json")
    assert end is not None
    tamper(attempt / "end.json", weights=end["weights"] | {"final.pt": seal_of(other)})
    assert verify(results) == 1
    out = capsys.readouterr().out
    assert "final weights: others in final.pt" in out
    for kept in re.findall("kept in (.*)", out):
        shutil.rmtree(kept)


def test_cells_that_did_not_end_are_told_apart_from_those_verified(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_verified", lambda ledger, one, *rest: Verdict(one, 9, 3, 2, "d", 5, ()))
    end = results / "trials" / cell(results, "ste").id / "0001" / "end.json"
    tamper(end, state="diverged", reason="the loss is nan")
    assert verify(results) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "2 of 2 finished cells verified: bit for bit the same"
    assert lines[-1] == "not done, and not verified: 1 diverged"
    with pytest.raises(ValueError, match="got 0 cells"):
        verify(results, cells=0)


def test_training_that_was_not_interrupted_proves_nothing(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All else is the same."""
    for killed, resumed, told in (
        (None, 2, "it ended by itself before it could be killed"),
        (3, None, "no checkpoint was gone on from"),
    ):
        copied(monkeypatch, experiment, killed, resumed)
        arguments = Ledger(experiment), cell(experiment, "ste"), tmp_path / told, "cpu", ".", random.Random(0)
        (line,) = module._verified(*arguments).differences
        assert line.startswith(told)


@pytest.mark.slow
def test_training_whose_verifier_is_killed_ends_too(results: Path, tmp_path: Path) -> None:
    one = cell(results, "ste")
    again = to_train_again(Ledger(results), one, tmp_path / "again")
    command = [sys.executable, "-m", "orchestration.runtime.retrain", str(again.folder), one.id, "cpu", "[]", "1", "2"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdin is not None
    assert any(line == "2\n" for line in child.stdout)
    assert child.poll() is None, "it waits to be killed"
    child.stdin.close()  # as the kernel does when its owner dies
    assert child.wait(60) == 1
    assert again.outcome(one.id).state == "interrupted"


# what is compared


def test_what_the_machine_has_a_say_in_is_compared_by_nobody(tmp_path: Path) -> None:
    """Neither by `fsg verify` and `fsg accept`, which share their rows, nor by the chaos run."""
    for name in ("system/memory_megabytes", "system/cpu_percent", "time/step"):
        ledgers = Ledger(tmp_path / name / "a"), Ledger(tmp_path / name / "b")
        one = Cell("a" * 16, "train", "one", {}, 0, TrainConfig())
        for value, ledger in enumerate(ledgers):
            ledger.add(one)
            attempt = ledger.claim(one.id, {})
            attempt.record([Row(1, {"train/loss": 0.5, name: float(value), "systematic/x": 1.0}), Row(2, {name: 1.0})])
            attempt.finish("done")
        a, b = (rows_of(ledger, one) for ledger in ledgers)
        assert a == b == {(1, "train/loss"): 0.5, (1, "systematic/x"): 1.0}
        first, second = (chaos.values_of(ledger, one.id) for ledger in ledgers)
        assert first == second == [(1, "systematic/x", 1.0), (1, "train/loss", 0.5)]
        whole = chaos.values_of(ledgers[1], one.id, whole=True)
        assert (1, name, 1.0) in whole, "MLflow has to have them, too"
        assert chaos.multiset(chaos.values_of(ledgers[0], one.id, whole=True), whole) == (1, 1)


def test_rows_are_compared_to_the_last_bit() -> None:
    assert other_rows({(1, "a"): 0.0}, {(1, "a"): 0.0}) == []
    assert other_rows({(1, "a"): float("nan")}, {(1, "a"): float("nan")}) == []
    assert other_rows({(1, "a"): 0.0}, {(1, "a"): -0.0}) == ["a at step 1: 0.0 in the ledger, -0.0 here"]
    assert other_rows({(1, "a"): 1.0}, {}) == ["a at step 1: 1.0 in the ledger, None here"]
    many = {(step, "a"): 1.0 for step in range(9)}
    assert other_rows(many, {})[-1] == "and 6 more values"
