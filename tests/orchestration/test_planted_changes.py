"""Ten changes beneath a finished experiment, each planted, and named by the command that meets it first.

| what changes | plan, launch | resume | verify, reproduce | report, diff |
|---|---|---|---|---|
| code of `fsg` | | | here | `test_report`: code of another launch; `test_diff` |
| a helper of a component | `test_own_code` | `test_own_code` | `test_own_code` | `test_own_code` |
| a package that it imports | | here | here | `test_report`: versions of what a component imports |
| the images | here | | | here |
| the slow net's kernel | | `test_cell_training` | `test_verify`, `test_reproduce` | `test_report` |
| the clock | | | | `report/test_planted_plans`: it decides nothing |
| the record of a launch | `test_launch` | | `report/test_planted_plans` | `report/test_planted_plans` |
| the record of an attempt | here | | here | here |
| the starting weights | here | | | |
| versions of libraries | | here | `test_verify`, `test_reproduce` | here; `test_diff` |
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_experiment
from rich.console import Console
from tiny_experiment import tamper

from orchestration.commands.diff import differences
from orchestration.commands.launch import launch
from orchestration.commands.plan import plan
from orchestration.commands.request import LaunchRequest
from orchestration.commands.verify import verify
from orchestration.ledger.ledger import Ledger
from orchestration.report.data import build
from orchestration.runtime.determinants import elsewhere, moves
from orchestration.spec.cells import Cell, cells
from orchestration.spec.experiment import load_spec

SPEC, RESULTS = Path("tiny.yaml"), Path("results/tiny")
ELSE = "the images, the starting weights, or the pretraining are others now"


@pytest.fixture
def ledger(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    shutil.copytree(tiny_experiment.finished(tmp_path_factory.getbasetemp()), tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Ledger(RESULTS)


def ste(ledger: Ledger) -> Cell:
    return next(cell for cell in ledger.cells() if cell.variant == "ste")


def record_of_attempt(ledger: Ledger) -> Path:
    return ledger.folder / "trials" / ste(ledger).id / "0001" / "attempt.json"


def quiet() -> Console:
    return Console(width=200, color_system=None)


def test_code_of_another_source_is_named_where_a_cell_is_trained_again(ledger: Ledger) -> None:
    assert elsewhere(ledger, ste(ledger), "cpu") == []
    tamper(ledger.folder / "launches" / "0001.json", fsg_source_sha256="e" * 64)
    (line,) = elsewhere(ledger, ste(ledger), "cpu")
    assert line.startswith(f"trained with source of fsg {'e' * 12} (here ")


@pytest.mark.parametrize(
    ("record", "said", "warned"),
    [
        ({"libraries": {"numpy": "0.1"}}, f"trained with numpy 0.1 (here {np.__version__})", ""),
        ({"versions": {"torch": "0.1"}}, "trained with torch 0.1 (here ", "Cells of different versions stand in one"),
    ],
    ids=["of a component", "of all"],
)
def test_versions_are_named_by_verify_at_resume_and_by_the_report(
    ledger: Ledger, record: dict[str, Any], said: str, warned: str
) -> None:
    now = ledger.attempts(ste(ledger).id)[0] | {"libraries": {"numpy": np.__version__}}
    tamper(record_of_attempt(ledger), **record)
    ledger = Ledger(RESULTS)
    (line,) = elsewhere(ledger, ste(ledger), "cpu")
    assert line.startswith(said)
    (moved,) = moves(ledger.attempts(ste(ledger).id)[0], now)
    assert moved.endswith("(before: 0.1)")
    assert any(one.startswith(warned) for one in build(ledger).warnings) or not warned


def test_one_pixel_of_the_images_is_named_by_plan_launch_and_diff(
    ledger: Ledger, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(RESULTS, tmp_path / "before")
    with np.load("tiny.npz") as file:
        images = dict(file)
    images["train_images"][0, 0, 0] ^= 1
    np.savez("tiny.npz", **images)
    plan(LaunchRequest(SPEC, console=quiet()), with_pilot=False)
    assert capsys.readouterr().out.count("has other settings, code or data") == 3
    assert launch(LaunchRequest(SPEC, console=quiet())) == 2
    assert f"pretrain · seed 0, fsg · seed 0, ste · seed 0: {ELSE}" in capsys.readouterr().err
    data = {one.train.data.title(): one.train.data.fingerprint() for one in cells(load_spec(SPEC))}
    ledger.record_launch(ledger.launches()[0] | {"data": data})
    (change,) = differences(Ledger(tmp_path / "before"), ledger).changes["Data"]
    assert change.field == "images"


def test_starting_weights_of_other_bytes_are_named_by_plan_and_launch(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = next(ledger.folder.glob("trials/*/0001/final.pt"))
    shutil.copy(weights, "start.pt")
    text = (
        SPEC.read_text()
        .replace("name: tiny", "name: file")
        .replace("init: {name: pretrain, epochs: 1, batch_size: 16}", "init: {name: file, path: start.pt}")
    )
    SPEC.write_text(text)
    planned = cells(load_spec(SPEC))
    started = Ledger("results/file")
    for cell in planned:
        started.add(cell)
        attempt = started.claim(cell.id, {})
        attempt.weights("final.pt", b"weights")
        attempt.finish("done")
    started.record_launch(ledger.launches()[0] | {"cells": [cell.id for cell in planned]})
    other = next(path for path in ledger.folder.glob("trials/*/0001/final.pt") if path != weights)
    shutil.copy(other, "start.pt")
    plan(LaunchRequest(SPEC, console=quiet()), with_pilot=False)
    assert capsys.readouterr().out.count("has other settings, code or data") == 2
    assert launch(LaunchRequest(SPEC, console=quiet())) == 2
    assert f"fsg · seed 0, ste · seed 0: {ELSE}" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [lambda text: text[:-20], lambda text: text.replace('"pid": ', '"pid": 1')])
def test_the_record_of_an_attempt_is_named_by_plan_report_and_verify(
    ledger: Ledger, capsys: pytest.CaptureFixture[str], damage: Any
) -> None:
    path, label = record_of_attempt(ledger), ste(ledger).label
    path.write_text(damage(path.read_text()))
    plan(LaunchRequest(SPEC, console=quiet()), with_pilot=False)
    assert f"{label} is trained again: the record of attempt 1 is damaged or another's\n" in capsys.readouterr().out
    (lost,) = build(Ledger(RESULTS)).unfinished
    assert (lost.cell.label, lost.state, lost.outcome.reason) == (
        label,
        "waiting",
        "the record of attempt 1 is damaged or another's",
    )
    for trial in Path(RESULTS / "trials").iterdir():  # nothing is left to be trained again
        if trial.name != lost.cell.id:
            shutil.rmtree(trial / "0001")
    assert verify(RESULTS) == 2
    assert f"{label}: the record of attempt 1 is damaged or another's" in capsys.readouterr().err
