"""The results as records: what each cell shows in each state, against what was written; and what is refused."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from synthetic_experiment import Row, cells_of, diverge, fail, finish, launched, rows_of, spec_of, trained

from fsg import checkpoint
from fsg.train_config import TrainConfig
from orchestration.ledger import store
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.results import Results
from orchestration.ledger.study_records import StudyRecords, TrialRecord
from orchestration.spec.cells import Cell
from orchestration.spec.cells import cells_of as cells_of_training

ABOUT = ["id", "label", "kind", "variant", "seed"]


def test_each_state_of_a_cell_is_told(tmp_path: Path) -> None:
    spec = spec_of(("fsg", "no_history", "fast_only", "slow_only", "ema", "ste"), seeds=(0,))
    cells = cells_of(spec)
    done, diverged, failed, pruned, running, waiting = cells
    ledger = launched(tmp_path, spec, cells)
    finish(ledger, done, accuracy=0.75)
    diverge(ledger, diverged, at=30)
    fail(ledger, failed)
    ledger.claim(pruned.id, {}).finish("pruned", "its trial was stopped", seconds=2.0)
    attempt = ledger.claim(running.id, {})
    attempt.record([Row(10, {"train/loss": 1.5})])
    attempt.checkpoint(b"a state", 10, seconds=4.0)
    attempt.record([Row(20, {"train/loss": 0.5})])
    attempt.checkpoint(b"another state", 20, seconds=8.0)
    next(tmp_path.rglob("checkpoint-00000020.json")).unlink()  # as if it had died before: the row does not count
    records = Results(tmp_path).cells()
    assert [(r["id"], r["state"], r["reason"], r["steps"], r["seconds"], r["attempts"]) for r in records] == [
        (done.id, "done", "", 80, 75.0, 1),
        (diverged.id, "diverged", "the loss is nan at step 40", 30, 20.0, 1),
        (failed.id, "failed", "RuntimeError: no | such thing <b>", 0, 1.0, 1),
        (pruned.id, "pruned", "its trial was stopped", 0, 2.0, 1),
        (running.id, "running", "", 10, 4.0, 1),
        (waiting.id, "waiting", "", 0, 0.0, 0),
    ]
    assert [r["test/accuracy"] for r in records] == [0.75, None, None, None, None, None]
    assert [r["train/loss"] for r in records][3:] == [None, 1.5, None]
    assert records[5]["started"] is records[5]["finished"] is records[4]["finished"] is None
    assert abs((records[0]["finished"] - datetime.now(UTC)).total_seconds()) < 600


def test_a_record_names_the_cell_and_its_grid_and_all_have_the_same_names(tmp_path: Path) -> None:
    spec = spec_of(("fsg", "ste"), seeds=(0, 3), grid={"batch_size": [100, 101]})
    trained(tmp_path, spec)
    records = Results(tmp_path).cells()
    assert [(r["label"], r["kind"], r["variant"], r["seed"], r["batch_size"]) for r in records] == [
        (f"{variant} · batch_size={size} · seed {seed}", "train", variant, seed, size)
        for seed in (0, 3)
        for variant in ("fsg", "ste")
        for size in (100, 101)
    ]
    assert list(records[0])[:6] == [*ABOUT, "batch_size"]
    assert len({tuple(record) for record in records}) == 1
    names = {name for name in records[0] if "." not in name and "/" not in name}
    assert not (names - {"batch_size"}) & {field.name for field in fields(TrainConfig)}  # what a grid can be named by


def test_curves_have_one_record_a_step_with_all_that_was_recorded_there(tmp_path: Path) -> None:
    spec = spec_of(("fsg", "ste"), seeds=(0,), epochs=2)
    trained(tmp_path, spec)
    records = Results(tmp_path).curves()
    written = {(cell.id, row.step, name): value
               for cell in cells_of(spec) for row in rows_of(cell) for name, value in row.values.items()}  # fmt: skip
    about = {"cell", "kind", "variant", "seed", "step"}
    read = {(r["cell"], r["step"], name): value
            for r in records for name, value in r.items() if name not in about and value is not None}  # fmt: skip
    assert read == written
    assert [(r["variant"], r["step"]) for r in records] == [(v, s) for v in ("fsg", "ste") for s in (10, 20, 30, 40)]
    assert len({tuple(record) for record in records}) == 1


def test_layers_have_one_record_an_epoch_and_layer_each_epoch_once(tmp_path: Path) -> None:
    spec = spec_of(("fsg",), seeds=(0,))
    (cell,) = cells_of(spec)
    ledger = launched(tmp_path, spec, [cell])
    attempt = ledger.claim(cell.id, {})
    for epoch in (1, 2):
        attempt.diagnostics(
            {"epoch": epoch, "step": 20 * epoch, "layer": ["a", "b"], "flip_rate": [0.1 * epoch, 0.2 * epoch]}
        )
        attempt.record([Row(20 * epoch, {"train/loss": 1.0})])
        attempt.checkpoint(f"state {epoch}".encode(), 20 * epoch)
    again = ledger.claim(cell.id, {})  # it resumes, and has no third epoch yet
    again.diagnostics({"epoch": 3, "step": 60, "layer": ["a", "b"], "flip_rate": [0.5, 0.5]})
    shared = {"cell": cell.id, "kind": "train", "variant": "fsg", "seed": 0}
    assert Results(tmp_path).layers() == [
        shared | {"epoch": epoch, "layer": layer, "flip_rate": rate * epoch, "step": 20 * epoch}
        for epoch in (1, 2)
        for layer, rate in (("a", 0.1), ("b", 0.2))
    ]


def test_weights_are_those_of_the_end(tmp_path: Path) -> None:
    spec = spec_of(("fsg", "ste"), seeds=(0,))
    done, waiting = cells_of(spec)
    ledger = launched(tmp_path, spec, [done, waiting])
    kept = {"conv1.weight": torch.arange(6.0).reshape(2, 3), "bn.count": torch.tensor(3)}
    attempt = ledger.claim(done.id, {})
    attempt.weights("best-00000010.pt", checkpoint.to_bytes({"conv1.weight": torch.zeros(2, 3)}))
    attempt.weights("final.pt", checkpoint.to_bytes(kept))
    attempt.finish("done", step=20)
    results = Results(tmp_path)
    for name in (done.id, done.id[:6], "fsg · seed 0"):
        got = results.weights(name)
        assert list(got) == list(kept)
        assert all(torch.equal(got[one], kept[one]) for one in kept)
    with pytest.raises(ValueError, match=r"^ste · seed 0: is waiting: there are no final weights \(.* done\)$"):
        results.weights("ste · seed 0")
    with pytest.raises(ValueError, match=r"^fgs · seed 0: no such cell \(.*\); did you mean fsg · seed 0\?$"):
        results.weights("fgs · seed 0")
    path = next(tmp_path.rglob("final.pt"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"^fsg · seed 0: its file is damaged: there are no final weights"):
        Results(tmp_path).weights(done.id)


def test_orphans_are_left_out(tmp_path: Path) -> None:
    spec = spec_of(("fsg",), seeds=(0,))
    before, now = cells_of(spec), cells_of(spec, numerics=2)
    ledger = launched(tmp_path, spec, before)
    finish(ledger, before[0])
    launched(tmp_path, spec, now)
    assert [(record["id"], record["state"]) for record in Results(tmp_path).cells()] == [(now[0].id, "waiting")]
    assert Results(tmp_path).curves() == []


def test_a_searchs_trials_come_with_their_settings(tmp_path: Path) -> None:
    spec = spec_of(("ste",), seeds=(0,))
    train = spec.points[0].train
    ledger = launched(tmp_path, spec, cells_of(spec))
    trials = [
        Cell(f"{kind}{number}{seed}", kind, "tuned", {"trial": number}, seed, train)
        for number, kind in ((1, "candidate"), (1, "trial"), (0, "trial"))
        for seed in (8, 7)
    ]
    _, final = cells_of_training(train, "train", "tuned", {}, 0)
    for cell in [*trials, final, Cell("other", "trial", "of no search", {"trial": 0}, 7, train)]:
        ledger.add(cell)
    record = ledger.last_launch()
    ledger.record_launch(record | {"spec": record["spec"] | {"studies": [{"name": "tuned"}]}})
    records = StudyRecords(ledger, "tuned")
    for number in (0, 1):
        records.add(TrialRecord(number, {"optimizer.lr": 0.1 * number}, {}, {}, {}, None))
    records.choose({"cells": [final.id]})
    shown = [(r["variant"], r["kind"], r["trial"], r["seed"], r["optimizer.lr"]) for r in Results(tmp_path).cells()]
    assert shown == [
        ("ste", "train", None, 0, None),
        ("tuned", "train", None, 0, None),
        ("tuned", "trial", 0, 7, 0.0),
        ("tuned", "trial", 0, 8, 0.0),
        ("tuned", "trial", 1, 7, 0.1),
        ("tuned", "trial", 1, 8, 0.1),
        ("tuned", "candidate", 1, 7, 0.1),
        ("tuned", "candidate", 1, 8, 0.1),
    ]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("results", "results/ablation"),
        ("results/ablaton", "results/ablation"),
        ("results/tunned", "results/tuned"),
        ("results/ablation/trials", "results/ablation"),
        ("results/something", "results/ablation"),
        ("elsewhere/ablation", None),
    ],
)
def test_a_folder_that_is_no_experiment_is_told_with_the_nearest_that_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, meant: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ablation", "tuned"):
        launched(Path("results") / name, spec_of(), cells_of(spec_of()))
    hint = f"; did you mean {meant}?" if meant else ""
    told = f"{asked}: no launch is recorded there (expected the folder of an experiment{hint})"
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        Results(asked)


def test_results_in_an_object_store_are_the_same(tmp_path: Path, bucket: str) -> None:
    spec = spec_of(("fsg", "ste"), seeds=(0,))
    trained(tmp_path, spec)
    there = trained(store.resolve_path(f"{bucket}/ablation"), spec)
    assert isinstance(there, Ledger)
    here, remote = Results(tmp_path), Results(f"{bucket}/ablation")
    assert remote.curves() == here.curves() != []
    assert [cell["test/accuracy"] for cell in remote.cells()] == [cell["test/accuracy"] for cell in here.cells()]
    with pytest.raises(ValueError, match=rf"^{bucket}/abl: no launch .*; did you mean {bucket}/ablation\?\)$"):
        Results(f"{bucket}/abl")


def test_pandas_is_not_needed_and_takes_the_records_as_they_are(tmp_path: Path) -> None:
    ledger = trained(tmp_path, spec_of(("fsg", "ste"), seeds=(0,)))
    program = (
        "import sys\nsys.modules['pandas'] = None\n"
        "from orchestration.ledger.results import Results\n"
        f"import json; results = Results({str(tmp_path)!r}); results.cells(); print(json.dumps(results.curves()))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment)
    assert json.loads(said.stdout) == Results(tmp_path).curves()
    if importlib.util.find_spec("pandas") is None:
        pytest.skip("NOT RUN: pandas is not installed")
    import pandas

    table = pandas.DataFrame(Results(ledger.folder).curves())
    validated = table.dropna(subset="validation/accuracy")
    assert (table["validation/accuracy"].dtype, len(table), len(validated)) == (float, 16, 8)
    assert str(pandas.DataFrame(Results(ledger.folder).cells())["finished"].dtype).startswith("datetime64")
