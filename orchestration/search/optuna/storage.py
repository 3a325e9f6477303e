"""Optuna's own storage of a study, a journal or a database, kept in agreement with the ledger."""

import hashlib
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna import distributions
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from orchestration.ledger.study_records import StudyRecords, TrialRecord
from orchestration.search.optuna.errors import SearchError
from orchestration.search.optuna.sampling import directions_of, pruner_of, sampler_of, suggest_settings
from orchestration.spec.study import StudySpec
from orchestration.util.passwords import hide_passwords

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Suggestion(NamedTuple):
    """Optuna's suggestion for a trial; `reason` says why the settings exclude each other, where they do."""

    number: int
    params: dict[str, Any]
    distributions: dict[str, str]
    attributes: dict[str, Any]
    reason: str


@contextmanager
def storage_errors(url: str | None) -> Iterator[None]:
    """Within, a lost database raises SearchError."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise _unkept(url or "", error.__cause__ or error) from error


class OptunaStudy:
    """Optuna's record of a study: `study`, and those of its trials that are under way.

    Only the process that asked Optuna for a trial can report on it. So where an earlier driver left a trial under way,
    or where Optuna disagrees with the ledger, the study is made anew from the ledger. Raises SearchError.
    """

    def __init__(
        self, name: str, spec: StudySpec, records: StudyRecords, url: str | None, trials: Sequence[TrialRecord]
    ) -> None:
        self._spec = spec
        try:
            storage: Any = _journal(records.journal) if url is None else database_storage(url)
            if url is not None:  # others may have an experiment of that name there
                owner = f"{socket.gethostname()} {records.folder.resolve()}"
                name = f"{name} ({hashlib.sha256(owner.encode()).hexdigest()[:6]})"
            self.study = _created(name, spec, storage)
            stored = self.study.get_trials()
            agreed = {frozen.number for frozen, record in zip(stored, trials, strict=False) if _agrees(frozen, record)}
            if len(agreed) < len(stored):
                optuna.delete_study(study_name=name, storage=storage)
                self.study = _created(name, spec, storage)
            for record in trials[len(self.study.get_trials(deepcopy=False)) :]:
                kept = record.number in agreed  # with its times
                self.study.add_trial(stored[record.number] if kept else to_frozen_trial(record))
            under_way = [self.study.ask() for record in trials if record.end is None]
        except Exception as error:
            raise _unkept(url or str(records.journal), error) from error
        self._under_way = {trial.number: trial for trial in under_way}

    def ask(self, number: int, concurrent: bool, first: dict[str, Any] | None) -> Suggestion:
        """Optuna's next trial; with `first`, of just these settings."""
        self.study.sampler = sampler_of(self._spec, number, concurrent)
        if first is not None:
            self.study.enqueue_trial(first)
        trial = self.study.ask()
        self._under_way[trial.number] = trial
        reason = ""
        try:
            params = suggest_settings(trial, self._spec)
        except ValueError as error:
            params, reason = dict(trial.params), " ".join(str(error).split())[:300]
        in_words = {name: distributions.distribution_to_json(one) for name, one in trial.distributions.items()}
        return Suggestion(trial.number, params, in_words, self.attributes(trial.number), reason)

    def attributes(self, number: int) -> dict[str, Any]:
        """Optuna's own notes on a trial."""
        return dict(self.study.get_trials(deepcopy=False)[number].system_attrs)

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Report a value after an epoch; returns whether Optuna's pruner stops the trial there."""
        trial = self._under_way[number]
        trial.report(value, epoch)
        return bool(trial.should_prune())

    def tell(self, number: int, state: str, values: Sequence[float] | None) -> None:
        """Tell Optuna how a trial ended: COMPLETE with its values, PRUNED or FAIL."""
        self.study.tell(number, values if state == "COMPLETE" else None, state=TrialState[state])
        del self._under_way[number]


def _unkept(where: str, error: BaseException) -> SearchError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return SearchError(hide_passwords(f"the study cannot be kept in {where}: {reason}", where))


def database_storage(url: str) -> optuna.storages.RDBStorage:
    """Optuna's storage in a database. No connection stays open after a query: trainings last for hours."""
    driver = url.replace("postgresql://", "postgresql+psycopg2://", 1)  # the driver that is installed
    return optuna.storages.RDBStorage(driver, engine_kwargs={"poolclass": NullPool})


def _journal(path: Path) -> optuna.storages.JournalStorage:
    """The journal in the results, written by this process alone; a damaged one is begun anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        path.unlink()  # cut short: what is appended to it would be lost
    for left in path.parent.glob(f"{path.name}.lock*"):  # a driver that was killed may have held it
        left.unlink(missing_ok=True)
    try:
        return optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    except Exception:
        path.unlink()
        return optuna.storages.JournalStorage(JournalFileBackend(str(path)))


def _created(name: str, spec: StudySpec, storage: Any) -> optuna.Study:
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        directions=directions_of(spec.objectives),
        sampler=optuna.samplers.RandomSampler(),  # each trial is asked for with one of its own
        pruner=pruner_of(spec),
        load_if_exists=True,
    )
    with warnings.catch_warnings():  # names for a dashboard are called experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if study.metric_names != list(spec.objectives):
            study.set_metric_names(list(spec.objectives))
    return study


def _agrees(frozen: FrozenTrial, record: TrialRecord) -> bool:
    """Whether Optuna has the end of a trial that the ledger has."""
    return frozen.state.is_finished() and frozen.state.name == record.state and frozen.params == record.params


def to_frozen_trial(record: TrialRecord) -> FrozenTrial:
    """A trial of the ledger as Optuna's; one under way waits to be asked for."""
    state = TrialState.WAITING if record.end is None else TrialState[record.state]
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
