"""One cell trained anew, and held against the ledger."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_experiment import RECORD, spec_of

from fsg.config import to_dict
from fsg.data import Arrays
from fsg.estimators import STE
from fsg.models import ResNet
from fsg.train_config import TrainConfig
from orchestration.commands.reproduce import find, reproduce_cell
from orchestration.commands.verify import verify
from orchestration.ledger.history import LedgerRow
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.study_records import StudyRecords
from orchestration.runtime.cell_training import CellTraining
from orchestration.runtime.determinants import elsewhere
from orchestration.runtime.retrain import rows_of
from orchestration.spec.cells import Cell
from orchestration.util import provenance

STUDY = {"name": "tuned", "train": to_dict(TrainConfig())}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of a training of 8 steps, really trained."""
    folder = tmp_path_factory.mktemp("trained")
    draw = np.random.default_rng(0)
    pixels, labels = draw.integers(0, 255, (80, 8, 8), dtype=np.uint8), np.arange(80) % 4
    file = folder / "tiny.npz"
    np.savez(file, train_images=pixels[:64], train_labels=labels[:64], test_images=pixels[64:], test_labels=labels[64:])
    train = TrainConfig(
        data=Arrays(file=str(file), validation=16, crop_padding=1),
        model=ResNet.Config(depth=8, width=2),
        estimator=STE.Config(),
        epochs=2,
        batch_size=12,
        log_every=2,
    )
    ledger = Ledger(folder / "experiment")
    for seed in (0, 1, 2):
        cell = Cell(f"{seed:016x}", "train", "ste", {}, seed, train)
        ledger.add(cell)
        CellTraining(ledger, cell).run_for(1000)
    launch(ledger)
    return ledger.folder


@pytest.fixture
def experiment(trained: Path, tmp_path: Path) -> Ledger:
    """A copy of it."""
    return Ledger(shutil.copytree(trained, tmp_path / "experiment"))


def launch(ledger: Ledger, **changed: Any) -> None:
    ledger.record_launch(
        RECORD | {"spec": spec_of().resolved(), "spec_source": "configs/x.yaml", "started": 0}
        | {"cells": [f"{seed:016x}" for seed in (0, 1, 2)], "versions": provenance.versions()} | changed
    )  # fmt: skip


def retold(ledger: Ledger, change: Any) -> None:
    """A newer attempt at the first cell that recorded other values."""
    cell = ledger.cells()[0]
    rows, outcome = ledger.rows(cell.id), ledger.outcome(cell.id)
    attempt = ledger.claim(cell.id, {"device": provenance.device_name("cpu"), "versions": provenance.versions()})
    (attempt.folder / "attempt.json").unlink()
    record = {"started_at": 0, "host": "h", "pid": 1, "process_started": 0.0, "resumed_from": None, "rows_from": None}
    from orchestration.ledger.sealed import write_sealed

    write_sealed(attempt.folder / "attempt.json", record | change.get("record", {}))
    attempt.record([LedgerRow(row.step, row.time_ms, change["values"](row.values)) for row in rows])  # type: ignore[misc]
    attempt.weights("final.pt", b"weights")
    attempt.finish("done", digest=change.get("digest", outcome.digest), step=rows[-1].step)


def test_a_cell_agrees_bit_for_bit_with_itself_trained_again(experiment: Ledger) -> None:
    answer = reproduce_cell(experiment.folder, "ste · seed 1")
    assert (answer.agrees, answer.bit_for_bit) == (True, True)
    assert answer.lines[0].startswith("ste · seed 1: agrees bit for bit (state ")
    assert len(experiment.attempts("0" * 15 + "1")) == 1  # the ledger is left as it was


def test_one_value_in_its_last_bit_is_a_difference(experiment: Ledger) -> None:
    def nudged(values: dict[str, float]) -> dict[str, float]:
        return {n: float(np.nextafter(v, 9)) if n == "test/accuracy" else v for n, v in values.items()}

    retold(experiment, {"values": nudged})
    answer = reproduce_cell(experiment.folder, "0" * 16)
    assert (answer.agrees, answer.bit_for_bit) == (False, False)
    text = "\n".join(answer.lines)
    assert "1 of " in text
    assert "the first test/accuracy at step" in text
    assert "the bits should be the same" in text


def test_other_versions_may_give_other_bits_and_agree_by_the_metrics(experiment: Ledger) -> None:
    elsewhere = {"versions": provenance.versions() | {"torch": "1.0"}}

    def near(values: dict[str, float]) -> dict[str, float]:
        return {name: value + 1e-9 * (name == "test/loss") for name, value in values.items()}

    retold(experiment, {"values": near, "digest": "d" * 64, "record": elsewhere})
    answer = reproduce_cell(experiment.folder, "0" * 16)
    assert (answer.agrees, answer.bit_for_bit) == (True, False)
    assert "agrees by its metrics, not bit for bit" in answer.lines[0]
    assert any("trained with torch 1.0" in line for line in answer.lines)


def test_another_kernel_is_named_and_what_was_not_recorded_is_not(
    experiment: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = experiment.cells()[0]
    retold(experiment, {"values": dict, "record": {"cpu_capability": "AVX9", "kernel": "a kernel"}})
    lines = elsewhere(experiment, cell, "cpu")
    ours = torch.backends.cpu.get_cpu_capability()
    assert lines == [
        "trained with slow net kernels a kernel (here none)",
        f"trained with processor features AVX9 (here {ours})",
    ]


def test_metrics_far_from_the_recorded_ones_do_not_agree_anywhere(experiment: Ledger) -> None:
    elsewhere = {"versions": provenance.versions() | {"torch": "1.0"}}
    retold(experiment, {"values": lambda v: {n: x + 90 * (n == "test/loss") for n, x in v.items()}, "record": elsewhere,
                        "digest": "d" * 64})  # fmt: skip
    answer = reproduce_cell(experiment.folder, "0" * 16)
    assert not answer.agrees
    assert any(line.startswith("  test/loss: ") for line in answer.lines)


def test_a_cell_is_found_by_id_beginning_or_label_and_otherwise_named(experiment: Ledger) -> None:
    assert find(experiment, "ste · seed 0").seed == 0
    assert find(experiment, "0000000000000001").seed == 1
    with pytest.raises(ValueError, match=r"several cells begin with that .*'ste · seed 0', 'ste · seed 1'"):
        find(experiment, "0000")
    with pytest.raises(ValueError, match=r"no such cell .*; did you mean ste · seed 2\?"):
        find(experiment, "set · seed 2")
    with pytest.raises(ValueError, match="no launch is recorded"):
        find(Ledger(experiment.folder / "nowhere"), "0")


@pytest.fixture
def searched(experiment: Ledger) -> Ledger:
    """A search beside them: a candidate, really trained, and the cell of the table that went on from its end."""
    train = experiment.cells()[0].train
    candidate = Cell("c" * 16, "candidate", "tuned", {"trial": 3}, 0, replace(train, test="never"))
    chosen = Cell("d" * 16, "train", "tuned", {}, 0, train, continues=candidate.id)
    stopped = Cell("e" * 16, "trial", "tuned", {"trial": 4}, 1000, replace(train, test="never"))
    for cell in (candidate, chosen):
        experiment.add(cell)
        CellTraining(experiment, cell).run_for(1000)
    experiment.add(stopped)
    StudyRecords(experiment, "tuned").choose({"cells": [chosen.id], "chosen": 3, "candidates": {"3": {"0": 0.5}}})
    launch(experiment, spec=spec_of().resolved() | {"studies": [STUDY]})
    return experiment


@pytest.mark.parametrize("name", ["tuned · seed 0", "tuned · trial=3 · seed 0"])
def test_cells_of_a_search_are_trained_from_their_own_start(searched: Ledger, name: str) -> None:
    answer = reproduce_cell(searched.folder, name)
    assert answer.bit_for_bit
    rows = rows_of(searched, find(searched, name))
    assert {step for step, _ in rows} > {2, 4, 6}
    assert answer.lines[0].endswith(f", {len(rows)} values)")


def test_trial_that_has_not_ended_is_named_and_cannot_be_compared(searched: Ledger) -> None:
    with pytest.raises(ValueError, match="tuned · trial=4 · seed 1000: is waiting: there is nothing to compare with"):
        reproduce_cell(searched.folder, "eee")


def test_settings_that_a_search_chose_and_a_line_has_are_one_cell(experiment: Ledger) -> None:
    StudyRecords(experiment, "tuned").choose({"cells": ["0" * 15 + "1"], "chosen": 0, "candidates": {"0": {"1": 0.5}}})
    launch(experiment, spec=spec_of().resolved() | {"studies": [STUDY]})
    assert find(experiment, "0" * 15 + "1").id == find(experiment, "tuned · seed 1").id == "0" * 15 + "1"


def test_verify_trains_again_what_a_search_chose(
    searched: Ledger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(searched, spec=spec_of().resolved() | {"studies": [STUDY]}, cells=[])
    monkeypatch.setenv("COLUMNS", "300")
    assert verify(searched.folder) == 0
    _, said, last = capsys.readouterr().out.splitlines()
    assert said.startswith("same     tuned · seed 0  (killed after step ")
    assert last == "1 of 1 finished cells verified: bit for bit the same"


def test_a_cell_that_is_not_over_cannot_be_compared(experiment: Ledger) -> None:
    experiment.add(Cell("f" * 16, "train", "late", {}, 0, experiment.cells()[0].train))
    launch(experiment, cells=["f" * 16])
    with pytest.raises(ValueError, match="late · seed 0: is waiting: there is nothing to compare with"):
        reproduce_cell(experiment.folder, "ffff")
