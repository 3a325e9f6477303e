"""optuna-dashboard on the study of a search that runs, as docs/search.md starts it: in a journal, in PostgreSQL."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from databases import database
from launches import NO_MLFLOW, Launched, images, ledger_of, until
from playwright.sync_api import Page, expect

from orchestration.ledger.study_records import StudyRecords
from orchestration.tracking.server import free_port

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[2]
SEARCH = """
name: tiny
train:
  data: {name: arrays, file: tiny.npz, validation: 64, crop_padding: 1}
  model: {name: resnet, depth: 8, width: 4}
  estimator: {name: fsg, chunk_size: 8}
  epochs: 4
  batch_size: 16
search:
  trials: 400
  space:
    optimizer.lr: {low: 1.0e-4, high: 0.1, log: true}
    estimator.history_length: {low: 1, high: 16, log: true}
  seeds: [7]
  sampler: random
  OBJECTIVES
  best: 0
seeds: [0]
resources: {max_concurrent: 1}
"""
PRUNED = "pruner: {name: successive_halving, reduction: 2}"
PARETO = "objectives: [validation/accuracy, memory/peak]"


class Running(NamedTuple):
    """A search under way, and the dashboard of its study."""

    launched: Launched
    records: StudyRecords
    address: str

    def ended(self) -> int:
        return sum(trial.end is not None for trial in self.records.trials())


@pytest.fixture
def in_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    yield from _running(tmp_path, monkeypatch, PRUNED)


@pytest.fixture
def in_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    with database() as address:
        yield from _running(tmp_path, monkeypatch, PARETO, address)


def _running(folder: Path, monkeypatch: pytest.MonkeyPatch, what: str, storage: str = "") -> Iterator[Running]:
    """With some trials behind it, and hundreds before it."""
    images(folder / "tiny.npz")
    (folder / "tiny.yaml").write_text(SEARCH.replace("OBJECTIVES", what))
    url = urlsplit(storage)
    monkeypatch.setenv("PGPASSWORD", url.password or "")
    without = storage.replace(f":{url.password}@", "@")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    launched = Launched(folder, *NO_MLFLOW, *(["--study-storage", without] if storage else []))
    records = StudyRecords(ledger_of(folder), "tuned")
    dashboard = None
    try:
        until(lambda: sum(trial.end is not None for trial in records.trials()) >= 3, launched)
        where = without or str(records.journal.relative_to(folder))
        port = free_port(8080)
        words = [*_documented(bool(storage)), where, "--port", str(port)]
        dashboard = subprocess.Popen(words, cwd=folder, start_new_session=True)
        until(lambda: _answers(port), launched, 60)
        yield Running(launched, records, f"http://127.0.0.1:{port}/dashboard")
    finally:
        if dashboard is not None:
            os.killpg(dashboard.pid, signal.SIGTERM)
            dashboard.wait(30)
        launched.ctrl_c()
        launched.wait(120)
        launched.kill()


def _documented(in_database: bool) -> list[str]:
    """The command of docs/search.md, without the study that it opens."""
    text = (ROOT / "docs/search.md").read_text()
    lines = re.findall(r"^\.venv/bin/optuna-dashboard .*$", text, flags=re.MULTILINE)
    (line,) = [one for one in lines if in_database == ("postgresql+psycopg2://" in one)]
    program, *options = shlex.split(line, comments=True)[:-1]
    return [str(Path(sys.executable).parent / Path(program).name), *options]


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def opened(page: Page, running: Running, name: str) -> str:
    """The page of the only study there is; returns its address."""
    page.goto(running.address)
    page.get_by_text(re.compile(rf"^\d+\. {name}")).click()
    page.wait_for_url("**/studies/*")
    return page.url


def see_trials_come(page: Page, running: Running, study: str) -> None:
    """What the ledger has is there, and what ends while the page is open comes by itself."""
    page.goto(f"{study}/trials")
    for trial in running.records.trials()[:3]:
        expect(page.get_by_text(f"Trial {trial.number}", exact=True).first).to_be_visible()
    later = running.ended() + 2
    expect(page.get_by_text(f"Trial {later}", exact=True).first).to_be_attached()
    assert running.launched.process.poll() is None, running.launched.text


def test_running_search_is_followed_in_its_journal(page: Page, in_journal: Running) -> None:
    study = opened(page, in_journal, "tiny$")
    see_trials_come(page, in_journal, study)
    expect(page.get_by_text("Pruned", exact=True).first).to_be_attached()
    page.goto(study)
    for title in ("History", "Hyperparameter Importance", "Intermediate values"):
        expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible()
    expect(page.locator("svg text").filter(has_text="validation/accuracy").first).to_be_attached()
    page.wait_for_timeout(3000)
    assert in_journal.launched.process.poll() is None, in_journal.launched.text


def test_running_search_is_followed_in_postgresql_with_its_pareto_front(page: Page, in_database: Running) -> None:
    study = opened(page, in_database, r"tiny \([0-9a-f]{6}\)$")
    see_trials_come(page, in_database, study)
    page.goto(study)
    expect(page.get_by_role("heading", name="Pareto Front", exact=True)).to_be_visible()
    expect(page.get_by_text("memory/peak").first).to_be_attached()
    page.wait_for_timeout(3000)
    assert in_database.launched.process.poll() is None, in_database.launched.text
