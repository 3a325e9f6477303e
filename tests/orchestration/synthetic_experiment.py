"""A real ledger, filled with made-up rows: what the tests of tracking and report read."""

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fsg.data import FashionMNISTSubset
from fsg.estimators import FSG, STE
from fsg.train_config import TrainConfig
from orchestration.ledger.ledger import Ledger
from orchestration.spec.cells import Cell
from orchestration.spec.experiment import ExperimentSpec
from orchestration.spec.fields import Report, Resources
from orchestration.spec.resolver import Point
from orchestration.util.metric_names import PEAK_MEMORY

STEPS_AN_EPOCH = 20
ACCURACY = {"fsg": 0.846, "no_history": 0.839, "fast_only": 0.842, "slow_only": 0.792, "ema": 0.836, "ste": 0.838}
RECORD = {
    "git_commit": "0123456789abcdef0123456789abcdef01234567",
    "git_diff_sha256": None,
    "fsg_source_sha256": "f" * 64,
    "versions": {"python": "3.11.7", "torch": "2.14.1"},
    "hardware": {"host": "laptop", "cpu": "A CPU", "cores": 2, "memory_gb": 16.0, "gpus": []},
}


class Row(NamedTuple):
    step: int
    values: dict[str, float]


def spec_of(
    variants: Sequence[str] = ("fsg", "ste"),
    seeds: Sequence[int] = (0, 1, 2),
    grid: Mapping[str, Sequence[Any]] = {},
    epochs: int = 4,
    validation: int = 1000,
    profile: str | None = None,
    metric: str = "test/accuracy",
    name: str = "ablation",
) -> ExperimentSpec:
    points = []
    for variant in variants:
        for place, value in enumerate(next(iter(grid.values()), [None])):
            estimator = STE.Config() if variant == "ste" else FSG.Config(history_length=1 + len(points))
            train = TrainConfig(
                data=FashionMNISTSubset(validation=validation),
                estimator=estimator,
                epochs=epochs,
                batch_size=100 + place,
            )
            points.append(Point(variant=variant, grid=dict.fromkeys(grid, value), train=train))
    return ExperimentSpec(
        name=name,
        question="Does the history of gradients help?",
        profile=profile,
        variants=tuple(variants),
        seeds=tuple(seeds),
        resources=Resources(),
        report=Report(baseline="ste", primary="fsg", metric=metric),
        points=tuple(points),
        source=Path("configs/ablation.yaml"),
        text="# as it was written\nname: ablation\n",
    )


def cells_of(spec: ExperimentSpec, contaminated: bool = False, numerics: int = 1) -> list[Cell]:
    return [
        Cell(_id(point, seed, numerics), "train", point.variant, point.grid, seed, point.train, None, contaminated)
        for seed in spec.seeds
        for point in spec.points
    ]


def _id(point: Point, seed: int, numerics: int) -> str:
    text = json.dumps([point.variant, point.grid, seed, numerics])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def launched(folder: Path, spec: ExperimentSpec, cells: Sequence[Cell], **record: Any) -> Ledger:
    """The ledger of an experiment of which no cell has begun."""
    ledger = Ledger(folder)
    for cell in cells:
        ledger.add(cell)
    ledger.record_launch(
        {
            "spec": spec.resolved(),
            "spec_sha256": spec.sha256(),
            "spec_text": spec.text,
            "spec_source": str(spec.source),
            "command": f"fsg launch {spec.source}",
            "cells": [cell.id for cell in cells],
            "started": 1_790_000_000_000,
            **RECORD,
            **record,
        }
    )
    return ledger


def rows_of(cell: Cell, accuracy: float | None = None, until: int | None = None) -> list[Row]:
    """What a training of the cell would record, up to a step: made up, but of the right form."""
    draw = random.Random(f"{cell.variant} {cell.grid} {cell.seed}")
    reached = ACCURACY.get(cell.variant, 0.83) if accuracy is None else accuracy
    steps = cell.train.epochs * STEPS_AN_EPOCH
    protocol = cell.train.data.validation == 0
    rows = []
    for step in range(10, (steps if until is None else until) + 1, 10):
        epoch = step / STEPS_AN_EPOCH
        loss = 0.35 + 1.9 * math.exp(-epoch / 1.3) + 1.5 * (0.9 - reached) + draw.gauss(0, 0.02)
        values = {
            "train/loss": loss,
            "lr": 1e-3 * (1 - step / (steps + 1)),
            "epoch": epoch,
            "time/train_seconds": 0.1 * step,
        }
        rows.append(Row(step, values))
        if step % STEPS_AN_EPOCH == 0:
            now = reached - 0.5 * math.exp(-epoch) + draw.gauss(0, 0.004)
            seen = (
                {"papers_protocol/test_accuracy": now}
                if protocol
                else {"validation/loss": loss, "validation/accuracy": now}
            )
            rows.append(Row(step, seen))
    if until is None:
        rows.append(
            Row(
                steps,
                {"test/loss": 0.5, "test/accuracy": reached + draw.gauss(0, 0.003), "time/evaluation_seconds": 1.5},
            )
        )
    return rows


def finish(ledger: Ledger, cell: Cell, accuracy: float | None = None, peak: float | None = None, **record: Any) -> None:
    """Train it: rows, weights, end."""
    attempt = ledger.claim(cell.id, RECORD | {"device": "cpu"} | record)
    rows = (
        rows_of(cell)
        if accuracy is None
        else [*rows_of(cell)[:-1], Row(rows_of(cell)[-1].step, {"test/accuracy": accuracy})]
    )
    attempt.record(rows)
    attempt.record([Row(STEPS_AN_EPOCH, {PEAK_MEMORY: peak})] if peak is not None else [])
    attempt.weights("best-00000040.pt", b"the best weights")
    attempt.weights("final.pt", b"the final weights")
    attempt.finish("done", digest="d" * 64, step=rows[-1].step, seconds=75.0)


def diverge(ledger: Ledger, cell: Cell, at: int = 30) -> None:
    attempt = ledger.claim(cell.id, RECORD | {"device": "cpu"})
    attempt.record(rows_of(cell, until=at))
    attempt.finish("diverged", f"the loss is nan at step {at + 10}", seconds=20.0)


def fail(ledger: Ledger, cell: Cell) -> None:
    attempt = ledger.claim(cell.id, RECORD | {"device": "cpu"})
    attempt.log.write_text("Traceback …\n")
    attempt.finish("failed", "RuntimeError: no | such thing <b>", seconds=1.0)


def trained(folder: Path, spec: ExperimentSpec) -> Ledger:
    """The ledger of an experiment of which every cell is done."""
    cells = cells_of(spec)
    ledger = launched(folder, spec, cells)
    for cell in cells:
        finish(ledger, cell)
    return ledger
