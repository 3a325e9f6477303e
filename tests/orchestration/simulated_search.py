"""A search whose trainings are made up: what it asks for is recorded as done, and nothing is trained."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from synthetic_experiment import RECORD

from fsg.data import FashionMNISTSubset
from fsg.estimators import FSG
from fsg.models import ResNet
from fsg.optimizers import Adam
from fsg.train_config import TrainConfig
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.study_records import StudyRecords, TrialRecord
from orchestration.runtime import peak_memory
from orchestration.search.source import SearchManager
from orchestration.spec import search_config as settings
from orchestration.spec.cells import Cell, WorkItem, total_steps
from orchestration.spec.experiment import ExperimentSpec
from orchestration.spec.fields import Report, Resources
from orchestration.spec.study import Condition, Dimension, StudySpec

EPOCHS, STEPS = 9, 5


TRAIN = TrainConfig(
    data=FashionMNISTSubset(validation=100, train_limit=640),
    model=ResNet.Config(depth=8, width=2),
    estimator=FSG.Config(),
    optimizer=Adam(lr=1e-3),
    epochs=EPOCHS,
    batch_size=128,
)
LR = Dimension("optimizer.lr", "float", low=1e-4, high=1e-1, log=True)
WEIGHT = Dimension("estimator.slow_weight", "float", low=0.0, high=1.0, open_low=False, open_high=False)
NET = Dimension("estimator.slow_net", "choice", choices=("mamba", "ema"))
STATES = Dimension("estimator.slow_net.d_state", "int", low=4, high=16)
CHUNK = Dimension(
    "estimator.chunk_size", "choice", choices=(8, 64), when=(Condition("estimator.slow_weight", above=0.5),)
)


class Row(NamedTuple):
    step: int
    values: dict[str, float]


def accuracy(cell: Cell, epoch: float) -> float:
    """The best learning rate is 10^-2.5; seeds differ a little, and every training gets better."""
    lr = cell.train.optimizer.lr
    return 0.9 - 0.1 * (math.log10(lr) + 2.5) ** 2 - 0.3 / epoch + 0.001 * (cell.seed % 7)


def megabytes(cell: Cell) -> float:
    """More weight on the slow net takes more of it, and a better learning rate does not help."""
    return 20 + 10 * getattr(cell.train.estimator, "slow_weight", 0.0)


def study(**changes: Any) -> StudySpec:
    return replace(
        StudySpec(
            name="tuned",
            train=TRAIN,
            dimensions=(LR, WEIGHT),
            trials=8,
            seeds=(1000, 1001),
            objectives=("validation/accuracy",),
            sampler=settings.TPE(startup=3),
            pruner=settings.NoPruning(),
            seed=0,
            best=0,
            table_seeds=(0, 1, 2),
        ),
        **changes,
    )


def spec_of(*studies: StudySpec) -> ExperimentSpec:
    return ExperimentSpec(
        name="searched",
        question="",
        profile=None,
        variants=tuple(one.name for one in studies),
        seeds=studies[0].table_seeds,
        resources=Resources(),
        report=Report(baseline="default", primary="tuned"),
        points=(),
        studies=studies,
        source=Path("searched.yaml"),
        text="search: {}\n",
    )


class Killed(Exception):
    pass


class Work:
    """Trains what a search asks for, one leg after the other, without training anything."""

    counts_memory = True

    def __init__(self, folder: Path, *studies: StudySpec, fate: Callable[[Cell], str] = lambda cell: "done") -> None:
        self.ledger, self.spec, self.fate = Ledger(folder), spec_of(*studies), fate
        self.searches = self.opened()
        self.legs: list[WorkItem] = []

    def opened(self, **options: Any) -> SearchManager:
        return SearchManager(self.spec, self.ledger, **options)

    def go(self, until: int | None = None) -> "Work":
        """To the end, or until so many legs are over: then the driver is killed, and opened again."""
        idle = 0
        while not self.searches.finished:
            legs = self.searches.more()
            idle = 0 if legs else idle + 1
            assert idle < 20, "a search that waits for nothing would wait for ever"
            for leg in legs:
                self.legs.append(leg)
                state, reason = self.train(leg)
                if until is not None and len(self.legs) >= until:
                    self.searches = self.opened()
                    return self
                self.searches.ended(leg.cell, state, reason)
        return self

    def train(self, leg: WorkItem) -> tuple[str, str]:
        cell = leg.cell
        attempt = self.ledger.claim(cell.id, {})
        begun = attempt.resume.step if attempt.resume else 0
        steps = leg.until or total_steps(cell)
        for epoch in range(begun // STEPS + 1, steps // STEPS + 1):
            values = {"validation/accuracy": accuracy(cell, epoch), "train/loss": 1 / epoch}
            attempt.record([Row(epoch * STEPS, values | {"time/train_seconds": 0.1 * epoch * STEPS})])
            if epoch == 1 and self.counts_memory:
                attempt.record([Row(STEPS, {peak_memory.PEAK_MEMORY: megabytes(cell)})])
        fate = self.fate(cell)
        if fate != "done":
            attempt.finish(fate, "no luck", step=steps)  # type: ignore[arg-type]
            return fate, "no luck"
        if steps < total_steps(cell):
            attempt.checkpoint(b"", steps)
            attempt.finish("interrupted", "paused", step=steps)
            return "paused", ""
        if cell.train.test == "end":
            attempt.record([Row(steps, {"test/accuracy": accuracy(cell, EPOCHS)})])
        attempt.weights("final.pt", b"")
        attempt.finish("done", step=steps)
        return "done", ""

    def train_whole(self, cell: Cell) -> None:
        assert self.train(WorkItem(cell))[0] == "done"

    def launched(self, cells: Sequence[Cell]) -> None:
        """The record of a launch that planned some cells besides."""
        record = RECORD | {"spec": self.spec.resolved(), "spec_sha256": "", "spec_text": "", "spec_source": ""}
        self.ledger.record_launch(record | {"command": "", "cells": [cell.id for cell in cells], "started": 0})

    @property
    def records(self) -> StudyRecords:
        return StudyRecords(self.ledger, self.spec.studies[0].name)

    @property
    def params(self) -> list[dict[str, Any]]:
        return [trial.params for trial in self.records.trials()]

    @property
    def states(self) -> list[str]:
        return [trial.state for trial in self.records.trials()]

    def stored(self, path: Path | None = None) -> list[optuna.trial.FrozenTrial]:
        """The trials in Optuna's journal."""
        backend = optuna.storages.journal.JournalFileBackend(str(path or self.records.journal))
        return trials_in(optuna.storages.JournalStorage(backend))


def trials_in(storage: optuna.storages.BaseStorage) -> list[optuna.trial.FrozenTrial]:
    """As another process, a dashboard say, reads them, of the one study that there is."""
    (summary,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=summary.study_name, storage=storage).get_trials()


def assert_told(work: Work) -> None:
    assert_same(work.stored(), work.records.trials())


def assert_same(stored: list[optuna.trial.FrozenTrial], records: list[TrialRecord]) -> None:
    """Optuna has what the ledger has, trial by trial."""
    assert [one.number for one in stored] == [record.number for record in records]
    for record, frozen in zip(records, stored, strict=True):
        assert frozen.state.name == record.state
        assert frozen.params == record.params
        assert frozen.intermediate_values == record.intermediate
        if record.state == "COMPLETE":
            assert record.end is not None
            assert frozen.values == record.end["values"]


HALVING = settings.SuccessiveHalving(first_epoch=1, reduction=3)
SAMPLERS = [settings.TPE(startup=3), settings.Random(), settings.QuasiRandom(), settings.NSGA2(population=4)]
