"""The cells that a search will train, as far as they are known before it runs."""

from dataclasses import replace

from fsg.starting_points import Pretrain
from fsg.train_config import TrainConfig, pretraining
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.study_records import StudyRecords
from orchestration.spec.cells import Cell, cell_id
from orchestration.spec.experiment import ExperimentSpec

PLACEHOLDER_ID = ""  # the id of a cell that a search will find


def expected_cells(spec: ExperimentSpec, ledger: Ledger) -> list[Cell]:
    """The cells of the searches: those that exist, and a cell with `PLACEHOLDER_ID` for each that will follow."""
    found: list[Cell] = []
    begins = [point.train for point in spec.points if isinstance(point.train.init, Pretrain)]
    starts = {_start(train, seed) for train in begins for seed in spec.seeds}
    for study in spec.studies:
        records = StudyRecords(ledger, study.name)
        trials = records.trials()
        own = [trial for trial in trials if trial.origin is None]
        there = [cell for trial in own for cell_id in trial.cells.values() if (cell := ledger.find(cell_id))]
        missing = max(0, study.trials - len(own)) * len(study.seeds)
        train, seeds = study.trial_train, study.table_seeds
        if not own and isinstance(train.init, Pretrain):
            for seed in [*study.seeds, *(seeds if study.best else [])]:
                known = {_start(train, seed), cell_id(pretraining(train), seed)}
                if not starts & known and not any(map(ledger.find, known)):
                    found.append(Cell(PLACEHOLDER_ID, "pretrain", "pretrain", {}, seed, pretraining(train)))
                starts |= known
        found += there
        found += [Cell(PLACEHOLDER_ID, "trial", study.name, {}, study.seeds[0], train)] * missing
        choice = records.choices()[-1:]
        if choice and choice[0]["trials"] == len(trials) and not missing:
            lost = Cell(PLACEHOLDER_ID, "train", study.name, {}, seeds[0], train, continues=PLACEHOLDER_ID)
            found += [cell for cell_id in choice[0]["candidate_cells"] if (cell := ledger.find(cell_id))]
            found += [ledger.find(cell_id) or lost for cell_id in choice[0]["cells"]]  # one whose record is lost
            continue
        best = min(study.best, study.trials)
        found += [Cell(PLACEHOLDER_ID, "candidate", study.name, {}, seed, train) for seed in seeds for _ in range(best)]
        if best:
            end = replace(train, test="end")
            found += [
                Cell(PLACEHOLDER_ID, "train", study.name, {}, seed, end, continues=PLACEHOLDER_ID) for seed in seeds
            ]
    return found


def _start(train: TrainConfig, seed: int) -> str:
    """The id of the pretraining that a training with a seed begins with, if the table asks for it."""
    return cell_id(replace(pretraining(train), test="end"), seed)
