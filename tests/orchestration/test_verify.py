"""`fsg verify`, on cells that are what they say and on cells that are not."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_experiment
import torch

import fsg
from fsg import checkpoint
from orchestration import ledger as ledger_module
from orchestration import verify as module
from orchestration.ledger import Ledger
from orchestration.plan import Cell
from orchestration.verify import other_rows, verify


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    threads = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("experiment")
    tiny_experiment.trained(tiny_experiment.written(folder), folder / "tiny")
    yield folder / "tiny"
    torch.set_num_threads(threads)


@pytest.fixture
def results(experiment: Path, tmp_path: Path) -> Path:
    """A copy, to be tampered with."""
    return Path(shutil.copytree(experiment, tmp_path / "tiny"))


def cell(results: Path, variant: str) -> Cell:
    return next(cell for cell in Ledger(results).cells() if cell.variant == variant)


def tamper(path: Path, **changes: Any) -> None:
    """Change a sealed record, and seal it again."""
    record = ledger_module.read_sealed(path)
    assert record is not None
    path.unlink()
    ledger_module.write_sealed(path, record | changes)


def test_finished_cells_verify_after_a_death_in_the_middle(
    experiment: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in experiment.rglob("*")}
    monkeypatch.setenv("COLUMNS", "300")
    assert verify(experiment, cells=1, seed=3) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"torch {torch.__version__.split('+')[0]}" in lines[0]
    assert "1 thread, fp32" in lines[0]
    assert f"NUMERICS {fsg.NUMERICS}" in lines[0]
    assert lines[1].startswith("same ")
    assert "(killed after step " in lines[1]
    assert lines[2] == "1 of 3 finished cells verified: bit for bit the same"
    assert {path: path.stat().st_mtime_ns for path in experiment.rglob("*")} == before, "nothing is touched"


def test_planted_differences_are_found_and_named(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another digest, and one bit of one row; and what was different when it was trained."""
    one = cell(results, "ste")
    attempt = results / "trials" / one.id / "0001"
    tamper(attempt / "end.json", digest="0" * 64)
    tamper(attempt / "attempt.json", versions={"torch": "1.13.0"}, device="A CPU")
    tamper(results / "launches" / "0001.json", cells=[one.id])
    (segment,) = attempt.glob("rows-0000-*")
    head, *lines = segment.read_bytes().splitlines()
    step, time_ms, values = json.loads(lines[0])
    values["train/loss"] *= 1 + 2**-52
    body = b"\n".join([json.dumps([step, time_ms, values]).encode(), *lines[1:]]) + b"\n"
    segment.write_bytes(json.dumps(json.loads(head) | ledger_module._seal_of(body)).encode() + b"\n" + body)
    assert verify(results, cells=1) == 1
    out = capsys.readouterr().out
    assert "DIFFERS  ste · seed 0" in out
    assert f"final state: {'0' * 64} in the ledger, " in out
    assert f"train/loss at step {step}: {values['train/loss']!r} in the ledger, " in out
    assert out.count("in the ledger") == 2, "one row, and the state"
    assert "trained with torch 1.13.0 (here " in out
    assert "trained with device A CPU (here " in out
    assert "1 of 1 cells differ; what was trained here is kept in " in out
    kept = Path(out.split("kept in ")[1].strip())
    assert list(kept.glob("trials/*/0002/final.pt"))
    shutil.rmtree(kept)


def test_killed_training_dies_where_it_was_to(results: Path, tmp_path: Path) -> None:
    """The process is gone, its checkpoint is there, and no end: what goes on is another."""
    one, scratch = cell(results, "ste"), Ledger(tmp_path / "scratch")
    scratch.add(one)
    shutil.copytree(results / "trials" / str(one.depends_on), scratch.folder / "trials" / str(one.depends_on))
    command = [module.sys.executable, "-m", "orchestration.verify", str(scratch.folder), one.id, "cpu", "."]
    killed_at = module._train_until_killed(command, 10, module.random.Random(0))
    (attempt,) = scratch.attempts(one.id)
    assert attempt["end"] is None
    assert scratch.outcome(one.id).state == "interrupted", "its process is dead"
    assert attempt["pid"] != os.getpid()
    point = scratch.resume_point(one.id)
    assert point is not None
    assert 1 <= point.step <= killed_at + 1
    assert checkpoint.from_bytes(point.path.read_bytes())["training"]["step"] == point.step


def test_nothing_to_verify_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tmp_path / "none") == 2
    assert capsys.readouterr().err == f"{tmp_path / 'none'}: no launch is recorded there\n"
    folder = tmp_path / "x"
    Ledger(folder).record_launch({"cells": ["a"], "spec": {}, "spec_source": "x"})
    assert verify(folder) == 2
    assert "there is nothing to verify" in capsys.readouterr().err


def test_rows_are_compared_to_the_last_bit() -> None:
    assert other_rows({(1, "a"): 0.0}, {(1, "a"): 0.0}) == []
    assert other_rows({(1, "a"): float("nan")}, {(1, "a"): float("nan")}) == []
    assert other_rows({(1, "a"): 0.0}, {(1, "a"): -0.0}) == ["a at step 1: 0.0 in the ledger, -0.0 here"]
    assert other_rows({(1, "a"): 1.0}, {}) == ["a at step 1: 1.0 in the ledger, None here"]
    many = {(step, "a"): 1.0 for step in range(9)}
    assert other_rows(many, {})[-1] == "and 6 more values"
