"""Optuna's own record of a study, in a journal or a database: opened, made to agree with the ledger, asked and told."""

import hashlib
import itertools
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna import distributions
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from orchestration.ledger.study_records import StudyRecords, TrialRecord
from orchestration.search.optuna.errors import SearchError
from orchestration.search.optuna.sampling import directions_of, pruner_of, sampler_of, suggest_settings
from orchestration.spec.study import StudySpec
from orchestration.util.passwords import without_password

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Suggestion(NamedTuple):
    """What Optuna suggests for a trial; `reason` says why the settings exclude each other, where they do."""

    number: int
    params: dict[str, Any]
    distributions: dict[str, str]
    attributes: dict[str, Any]
    reason: str


@contextmanager
def storage_errors(url: str | None) -> Iterator[None]:
    """Within, what is asked of a study or told to it raises SearchError where its database is lost."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise _unkept(url or "", error.__cause__ or error) from error


def open_study(
    name: str, spec: StudySpec, records: StudyRecords, url: str | None, trials: Sequence[TrialRecord]
) -> optuna.Study:
    """Optuna's study, as it is where it agrees with the ledger, made anew where it does not."""
    try:
        storage: Any = _journal(records.journal) if url is None else optuna.storages.RDBStorage(_sqlalchemy(url))
        if url is not None:  # others may have an experiment of that name there
            owner = f"{socket.gethostname()} {records.folder.resolve()}"
            name = f"{name} ({hashlib.sha256(owner.encode()).hexdigest()[:6]})"
        study = _created(name, spec, storage)
        if not _agrees(study, trials):
            if url is None:
                _put_aside(records.journal)
                storage = _journal(records.journal)
            else:
                optuna.delete_study(study_name=name, storage=storage)
            study = _created(name, spec, storage)
    except Exception as error:
        raise _unkept(url or str(records.journal), error) from error
    _filled(study, spec, trials)
    return study


def _unkept(where: str, error: BaseException) -> SearchError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return SearchError(without_password(f"the study cannot be kept in {where}: {reason}"))


def _sqlalchemy(url: str) -> str:
    """psycopg2 is what is installed; SQLAlchemy would look for its successor."""
    return url.replace("postgresql://", "postgresql+psycopg2://", 1)


def _journal(path: Path) -> optuna.storages.JournalStorage:
    """The journal in the results, of which this process is the only writer; a damaged one is put aside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):
        _put_aside(path)  # cut short: what is appended to it would be lost
    for left in path.parent.glob(f"{path.name}.lock*"):  # a driver that was killed may have held it
        left.unlink(missing_ok=True)
    try:
        return optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    except Exception:
        _put_aside(path)
        return optuna.storages.JournalStorage(JournalFileBackend(str(path)))


def _put_aside(path: Path) -> None:
    taken = next(n for n in itertools.count(1) if not path.with_name(f"{path.name}.damaged-{n}").exists())
    with suppress(FileNotFoundError):
        path.rename(path.with_name(f"{path.name}.damaged-{taken}"))


def _created(name: str, spec: StudySpec, storage: Any) -> optuna.Study:
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        directions=directions_of(spec.objectives),
        pruner=pruner_of(spec),
        load_if_exists=True,
    )
    with warnings.catch_warnings():  # names for a dashboard are called experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if study.metric_names != list(spec.objectives):
            study.set_metric_names(list(spec.objectives))
    return study


def _agrees(study: optuna.Study, trials: Sequence[TrialRecord]) -> bool:
    """Whether every trial of the ledger is there as it was; one more may have been asked for when the driver died."""
    stored = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
    if not len(trials) <= len(stored) <= len(trials) + 1:
        return not stored and not trials
    for record, frozen in zip(trials, stored, strict=False):
        over = frozen.state.is_finished()
        if frozen.params != record.params or (over and frozen.state.name != record.state):
            return False
    return not any(frozen.state.is_finished() for frozen in stored[len(trials) :])


def _filled(study: optuna.Study, spec: StudySpec, trials: Sequence[TrialRecord]) -> None:
    """Tell Optuna what the ledger has and it lacks."""
    stored = study.get_trials(deepcopy=False)
    for record in trials[len(stored) :]:
        study.add_trial(to_frozen_trial(record))
    for record in trials[: len(stored)]:
        frozen = stored[record.number]
        if frozen.state == TrialState.RUNNING:
            for epoch, value in record.intermediate.items():
                if epoch not in frozen.intermediate_values:
                    report_value(study, spec, record.number, epoch, value)
            if record.end is not None:
                tell(study, record.number, record.state, record.end["values"])


def ask(
    study: optuna.Study, spec: StudySpec, number: int, concurrent: bool, first: dict[str, Any] | None
) -> Suggestion:
    """Optuna's next trial; with `first`, of just these settings."""
    study.sampler = sampler_of(spec, number, concurrent)
    in_storage = study.get_trials(deepcopy=False)
    waiting = [trial for trial in in_storage if trial.state == TrialState.WAITING]
    if len(in_storage) > number and in_storage[number].state == TrialState.RUNNING:
        trial = Trial(study, in_storage[number]._trial_id)  # asked for, when the driver died
    else:
        if first is not None and not waiting:
            study.enqueue_trial(first)
        trial = study.ask()
    reason = ""
    try:
        params = suggest_settings(trial, spec)
    except ValueError as error:
        params, reason = dict(trial.params), " ".join(str(error).split())[:300]
    frozen = study._storage.get_trial(trial._trial_id)
    in_words = {name: distributions.distribution_to_json(one) for name, one in frozen.distributions.items()}
    return Suggestion(trial.number, params, in_words, dict(frozen.system_attrs), reason)


def to_frozen_trial(record: TrialRecord) -> FrozenTrial:
    """A trial of the ledger as Optuna's."""
    state = TrialState[record.state]
    values = record.end["values"] if record.end is not None else None
    if state == TrialState.PRUNED and record.rungs:
        values = [record.intermediate[max(record.rungs)]]
    return optuna.trial.create_trial(
        state=state,
        values=values,
        params=record.params,
        distributions={path: distributions.json_to_distribution(text) for path, text in record.distributions.items()},
        user_attrs={"taken over from": record.origin} if record.origin else {},
        system_attrs=record.last_attributes,
        intermediate_values=record.intermediate,
    )


def _stored(study: optuna.Study, number: int) -> FrozenTrial:
    storage = study._storage
    return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study._study_id, number))


def trial_attributes(study: optuna.Study, number: int) -> dict[str, Any]:
    """Optuna's own notes on a trial."""
    return dict(_stored(study, number).system_attrs)


def report_value(study: optuna.Study, spec: StudySpec, number: int, epoch: int, value: float) -> bool:
    """Report a value after an epoch; whether Optuna's pruner would stop the trial there."""
    trial_id = _stored(study, number)._trial_id
    study._storage.set_trial_intermediate_value(trial_id, epoch, value)
    return bool(study.pruner.prune(study, study._storage.get_trial(trial_id)))


def tell(study: optuna.Study, number: int, state: str, values: Sequence[float] | None) -> None:
    """How a trial has ended: COMPLETE with its values, PRUNED or FAIL."""
    study.tell(number, values if state == "COMPLETE" else None, state=TrialState[state])
