"""An experiment that takes seconds, trained in this process: a pretraining, and two variants that start from it."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import fsg
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.sealed import read_sealed, write_sealed
from orchestration.runtime.cell_training import CellTraining
from orchestration.spec.cells import Cell, cells
from orchestration.spec.experiment import load_spec
from orchestration.util import provenance

SPEC = """
name: tiny
train:
  data: {name: arrays, file: tiny.npz, validation: 16, crop_padding: 1}
  model: {name: resnet, depth: 8, width: 2}
  epochs: 2
  batch_size: 16
  log_every: 2
  init: {name: pretrain, epochs: 1, batch_size: 16}
variants: {fsg: {estimator: {name: fsg, chunk_size: 8}}, ste: {}}
seeds: [0]
report: {baseline: ste, primary: fsg}
"""


def images(path: Path) -> None:
    draw = np.random.default_rng(0)
    pixels, labels = draw.integers(0, 255, (120, 8, 8), dtype=np.uint8), np.arange(120) % 4
    pixels[:, 2, 2] = labels * 60
    np.savez(path, train_images=pixels[:96], train_labels=labels[:96], test_images=pixels[96:], test_labels=labels[96:])


def written(folder: Path) -> Path:
    """The spec, with its images beside it."""
    images(folder / "tiny.npz")
    (folder / "tiny.yaml").write_text(SPEC)
    return folder / "tiny.yaml"


def planned(spec: Path, *sets: str) -> list[Cell]:
    return cells(load_spec(spec, sets=sets))


def trained(spec: Path, folder: Path, *sets: str) -> Ledger:
    """The ledger of the experiment, with every cell done."""
    read, ledger = load_spec(spec, sets=sets), Ledger(folder)
    every = cells(read)
    for cell in every:
        ledger.add(cell)
    ledger.record_launch(
        {
            "started": 1,
            "command": "fsg launch tiny.yaml",
            "spec": read.resolved(),
            "spec_sha256": read.sha256(),
            "spec_text": read.text,
            "spec_source": str(read.source),
            "cells": [cell.id for cell in every],
            "numerics": fsg.NUMERICS,
            "hardware": provenance.hardware(),
            "versions": provenance.versions(),
            **provenance.code(),
        }
    )
    for cell in every:
        training = CellTraining(ledger, cell, record={"launch": 1})
        training.run_for(3600)
        assert (training.ended, training.reason) == ("done", "")
    return ledger


@cache
def finished(below: Path) -> Path:
    """A folder with the spec, and `results/tiny` with every cell done: trained once, to be copied or looked at."""
    folder = below / "tiny_experiment"
    folder.mkdir()
    trained(written(folder), folder / "results" / "tiny")
    return folder


def tamper(path: Path, **changes: Any) -> None:
    """Change a sealed record, and seal it again."""
    record = read_sealed(path)
    assert record is not None
    path.unlink()
    write_sealed(path, record | changes)
