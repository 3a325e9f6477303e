"""Studies in a real PostgreSQL, Debian's: drivers that are killed, a study that is lost there, and the password."""

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import optuna
import psycopg2
import pytest
from databases import database as started
from launches import SEARCH, Launched, ledger_of, until
from optuna.trial import FrozenTrial
from simulated_search import HALVING, SAMPLERS, Work, assert_same, study, trials_in

from orchestration.ledger.ledger import Ledger
from orchestration.ledger.study_records import StudyRecords
from orchestration.search.optuna.errors import SearchError
from orchestration.search.optuna.storage import database_storage
from orchestration.spec import search_config as settings

pytestmark = pytest.mark.slow(minutes=0.2)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of a database, with its password."""
    with started() as address:
        yield address.replace("postgresql+psycopg2://", "postgresql://")


@pytest.fixture
def empty(database: str) -> str:
    """The same, without any study in it."""
    storage = database_storage(database)
    for one in optuna.get_all_study_summaries(storage):
        optuna.delete_study(study_name=one.study_name, storage=storage)
    return database


def stored(address: str) -> list[FrozenTrial]:
    return trials_in(database_storage(address))


class InDatabase(Work):
    """A driver whose study is there, and that does not die by leaving its connections open."""

    address = ""

    def opened(self, **options: object) -> object:  # type: ignore[override]
        return super().opened(storage=self.address, **options)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda one: one.name)
def test_driver_may_die_at_any_leg_and_the_database_lose_its_study(
    tmp_path: Path, empty: str, sampler: settings.SamplerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InDatabase, "address", empty)
    pruner = settings.NoPruning() if isinstance(sampler, settings.NSGA2) else HALVING
    one = study(sampler=sampler, pruner=pruner, trials=6, seeds=(1000,))
    undisturbed = Work(tmp_path / "journal", one).go()
    work = InDatabase(tmp_path / "database", one)
    legs = 0
    while not work.searches.finished:
        legs += 1
        work.go(until=legs)
        if legs == 3:
            storage = database_storage(empty)
            (summary,) = optuna.get_all_study_summaries(storage)
            optuna.delete_study(study_name=summary.study_name, storage=storage)
            work.searches = work.opened()
    assert (work.params, work.states) == (undisturbed.params, undisturbed.states)
    assert_same(stored(empty), work.records.trials())


def test_study_holds_no_connection_between_two_queries(
    tmp_path: Path, empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InDatabase, "address", empty)
    with psycopg2.connect(empty) as own, own.cursor() as cursor:
        work = InDatabase(tmp_path, study(trials=2)).go(until=1)
        cursor.execute("select pid from pg_stat_activity where client_port > 0 and pid <> pg_backend_pid()")
        assert cursor.fetchall() == []
        assert len(work.records.trials()) == 1  # work is alive until here: nothing was closed by being forgotten


def test_experiments_of_one_name_share_a_database_but_no_study(
    tmp_path: Path, empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InDatabase, "address", empty)
    works = [InDatabase(tmp_path / folder, study(trials=2, seed=seed)).go() for seed, folder in enumerate("ab")]
    summaries = optuna.get_all_study_summaries(database_storage(empty))
    assert sorted(one.n_trials for one in summaries) == [2, 2]
    assert works[0].params[1] != works[1].params[1]


def test_wrong_password_is_one_line_without_it(tmp_path: Path, empty: str) -> None:
    password = urlsplit(empty).password
    assert password is not None
    with pytest.raises(SearchError, match="password authentication failed") as refused:
        Work(tmp_path, study()).opened(storage=empty.replace(password, "planted-wrong"))
    assert "planted-wrong" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_database_that_goes_away_is_told_in_one_line_and_the_search_goes_on_later(
    folder: Path, launch: Callable[..., Launched]
) -> None:
    (folder / "tiny.yaml").write_text(SEARCH.replace("trials: 4", "trials: 3"))
    records = StudyRecords(ledger_of(folder), "tuned")
    with started() as address:
        one = launch("--study-storage", address)
        until(lambda: len(records.trials()) >= 2, one, 480)
    assert one.wait(480) == 1, one.text
    (told,) = [line for line in one.text.splitlines() if line.startswith("The launch stopped: ")]
    assert "the study cannot be kept in postgresql+psycopg2://fsg:***@127.0.0.1:" in told
    assert told.endswith(f"To resume: {ledger_of(folder).launches()[-1]['command']}")
    assert "Traceback" not in one.text
    before = records.trials()
    with started() as address:  # another one, and empty
        again = launch("--study-storage", address)
        assert again.wait(480) == 0, again.text
        assert_same(stored(address), records.trials())
    assert len(records.trials()) == 3
    assert [trial.params for trial in records.trials()[: len(before)]] == [trial.params for trial in before]


def test_launch_that_is_killed_goes_on_with_the_study_in_the_database(
    folder: Path, launch: Callable[..., Launched], empty: str
) -> None:
    password = urlsplit(empty).password
    assert password is not None
    said = []

    def finished(trials: int, *more: str) -> StudyRecords:
        (folder / "tiny.yaml").write_text(SEARCH.replace("trials: 4", f"trials: {trials}"))
        last = launch("--study-storage", empty, *more)
        assert last.wait(480) == 0, last.text
        said.append(last.text)
        return StudyRecords(ledger_of(folder), "tuned")

    (folder / "tiny.yaml").write_text(SEARCH)
    records = StudyRecords(ledger_of(folder), "tuned")
    one = launch("--study-storage", empty)
    until(lambda: len(records.trials()) >= 2, one, 480)
    one.process.kill()
    one.wait(480)
    said.append(one.text)
    before = records.trials()
    finished(4)
    assert [trial.params for trial in records.trials()[: len(before)]] == [trial.params for trial in before]
    assert_same(stored(empty), records.trials())
    assert len(stored(empty)) == 4
    assert not records.journal.exists()

    storage = database_storage(empty)
    (summary,) = optuna.get_all_study_summaries(storage)
    optuna.delete_study(study_name=summary.study_name, storage=storage)
    four = records.trials()
    finished(5)
    assert [trial.params for trial in records.trials()[:4]] == [trial.params for trial in four]
    assert_same(stored(empty), records.trials())
    assert len(stored(empty)) == 5
    cells = [cell for trial in records.trials() for cell in trial.cells.values()]
    assert len(cells) == len(set(cells)) == 10
    assert {Ledger(ledger_of(folder).folder).outcome(cell).state for cell in cells} <= {"done", "pruned"}

    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "report.html" for path in files)
    assert any(path.name == "mlflow.db" for path in files)
    assert [str(path) for path in files if password.encode() in path.read_bytes()] == []
    assert not any(password in text for text in said)
    assert "postgresql://fsg:***@" in str(ledger_of(folder).launches()[-1]["command"])
