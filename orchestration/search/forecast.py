"""The cells that a search will train, as far as they are known before it runs."""

from collections.abc import Sequence
from dataclasses import replace

from fsg.starting_points import Pretrain
from fsg.train_config import pretraining
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.study_records import StudyRecords
from orchestration.spec.cells import Cell
from orchestration.spec.experiment import ExperimentSpec
from orchestration.spec.study import StudySpec

PLACEHOLDER_ID = ""  # the id of a cell that a search will find


def expected_cells(spec: ExperimentSpec, ledger: Ledger) -> list[Cell]:
    """The cells of the searches: those that exist, and a cell with `PLACEHOLDER_ID` for each that will follow."""
    found: list[Cell] = []
    for study in spec.studies:
        records = StudyRecords(ledger, study.name)
        trials = records.trials()
        own = [trial for trial in trials if trial.origin is None]
        there = [cell for trial in own for cell_id in trial.cells.values() if (cell := ledger.find(cell_id))]
        missing = max(0, study.trials - len(own)) * len(study.seeds)
        train, seeds = study.trial_train, study.table_seeds
        if not own and isinstance(train.init, Pretrain):
            found += _pretrainings(study, [*study.seeds, *(seeds if study.best else [])])
        found += there
        found += [Cell(PLACEHOLDER_ID, "trial", study.name, {}, study.seeds[0], train)] * missing
        choice = records.choices()[-1:]
        if choice and choice[0]["trials"] == len(trials) and not missing:
            ids = [*choice[0]["candidate_cells"], *choice[0]["cells"]]
            found += [cell for cell_id in ids if (cell := ledger.find(cell_id))]
            continue
        best = min(study.best, study.trials)
        found += [Cell(PLACEHOLDER_ID, "candidate", study.name, {}, seed, train) for seed in seeds for _ in range(best)]
        if best:
            end = replace(train, test="end")
            found += [
                Cell(PLACEHOLDER_ID, "train", study.name, {}, seed, end, continues=PLACEHOLDER_ID) for seed in seeds
            ]
    return found


def _pretrainings(study: StudySpec, seeds: Sequence[int]) -> list[Cell]:
    train = pretraining(study.trial_train)
    return [Cell(PLACEHOLDER_ID, "pretrain", "pretrain", {}, seed, train) for seed in seeds]
