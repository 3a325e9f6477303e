"""The outbox from the ledger to MLflow: what is durable there arrives here, exactly once.

An experiment a spec, a parent run for all of it, below that a run a cell. A row is sent once a checkpoint or the end
covers it, with the time at which it was recorded. MLflow keeps one row for each (run, metric, time, step, value), so a
batch that is sent twice is kept once.

MLflow takes seconds to import and is imported when it is first needed. While it cannot be reached, nothing waits for
it and nothing is lost.
"""

import io
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ruamel.yaml import YAML

from orchestration.ledger import store
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.outcome import Outcome
from orchestration.spec.experiment import ExperimentSpec
from orchestration.tracking import saved_view, server
from orchestration.tracking.cell_run import CellRunSender
from orchestration.tracking.runs import PARENT, Mark, MlflowRuns
from orchestration.util.clock import now_ms
from orchestration.util.directory import staying
from orchestration.util.error_text import first_line
from orchestration.util.passwords import without_password

logger = logging.getLogger(__name__)


class SyncReport(NamedTuple):
    """What one `sync` sent."""

    runs: int
    metrics: int
    files: int


class Tracker:
    """Sends one experiment's ledger to MLflow; constructing it touches nothing and imports nothing.

    `uri` is any tracking URI of MLflow's; without one, SQLite in `mlflow.db` beside the experiment's folder. `behind`
    says why MLflow is not level with the ledger, where the last `sync` failed.
    """

    def __init__(self, ledger: Ledger, spec: ExperimentSpec, uri: str | None = None) -> None:
        self._ledger, self._spec = ledger, spec
        self.runs = MlflowRuns(ledger, spec, uri)
        self._sender = CellRunSender(ledger, spec.folder_name, self.runs)
        self._lock = threading.Lock()
        self.behind: str | None = None

    @property
    def uri(self) -> str:
        return self.runs.uri

    def sync(self) -> SyncReport:
        """Send whatever the ledger holds and MLflow lacks. Raises what MLflow raises; nothing is lost by it."""
        with self._lock, staying():
            try:
                report = self._sync()
            except Exception as error:
                self.runs.forget()
                self.behind = first_line(error)[:200]
                raise
            self.behind = None
            sent = report.metrics, report.files, report.runs
            logger.info("MLflow was sent %d metric values and %d files; %d runs are new", *sent)
            return report

    def log_report(self, folder: Path) -> None:
        """Keep the report (`report.*` and `figures/`) that lies in a folder as an artifact of the parent run."""
        with self._lock:
            self.runs.client()
            parent = self.runs.parent()
            for file in store.matching(folder, "report.*"):
                self.runs.log_artifact(parent, file, "report")
            for file in store.matching(folder / "figures", "*"):
                self.runs.log_artifact(parent, file, "report/figures")

    def ui(self) -> str:
        """What to type, and the address that it opens: this experiment's comparison by variant."""
        uri, folder = without_password(self.uri), self._ledger.folder
        own = not store.is_remote(folder) and uri == server.database(folder)
        address = uri.rstrip("/") if server.is_server(self.uri) else f"http://{server.HOST}:{server.PORT}"
        return (
            f"{server.command(folder, None if own else uri)}   ({address}{saved_view.address(self.runs.experiment_id)})"
        )

    def _sync(self) -> SyncReport:
        self.runs.client()
        known = len(self.runs.known)
        self.runs.parent()
        metrics = files = 0
        cells = [(cell, self._ledger.outcome(cell.id)) for cell in self._ledger.cells()]
        for cell, outcome in cells:
            if outcome.state != "waiting" and self._ledger.origin(cell.id) == cell.id:
                sent = self._sender.send(cell, outcome)
                metrics, files = metrics + sent[0], files + sent[1]
        files += self._sync_parent([outcome for _, outcome in cells])
        return SyncReport(len(self.runs.known) - known, metrics, files)

    def _sync_parent(self, outcomes: list[Outcome]) -> int:
        launches = self._ledger.launches()
        finished = bool(launches) and "finished" in launches[-1]
        state = _state_of_all([outcome.state for outcome in outcomes], finished)
        ended = max((outcome.finished_ms or 0 for outcome in outcomes), default=0) or None
        told = (state, ended, self._spec.sha256())
        parent, mark = self.runs.known[PARENT]
        if mark.told == told:
            return 0
        files = 0
        if mark.told[2:] != told[2:]:
            files = self._send_spec(parent)
            self.runs.offer_view(saved_view.TAG, saved_view.saved_view(self._spec, now_ms()))
        self.runs.tell_status(parent, state, ended)
        self.runs.write_mark(PARENT, Mark(0, told), {"outcome": state, "kind": PARENT})
        return files

    def _send_spec(self, parent: str) -> int:
        resolved, text = self._spec.resolved(), io.StringIO()
        YAML(typ="safe").dump(resolved, text)
        files = {"as_written.yaml": self._spec.text, "resolved.yaml": text.getvalue()}
        files["resolved.json"] = json.dumps(resolved, indent=1)
        for name, content in files.items():
            self.runs.client().log_text(parent, content, f"spec/{name}")
        return len(files)


def _state_of_all(states: list[str], finished: bool) -> str:
    if all(state in ("done", "pruned") for state in states):
        return "done"
    if "running" in states or ("waiting" in states and not finished):
        return "running"
    return "failed" if {"failed", "diverged"} & set(states) else "interrupted"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


@contextmanager
def background(tracker: Tracker, every: float, warn: Callable[[str], None] = _to_stderr) -> Iterator[None]:
    """Sync in a thread of its own every so many seconds, and once more at the end.

    Where MLflow fails, `warn` gets one line, once, and the next time it is tried again.
    """
    stop = threading.Event()
    thread = threading.Thread(target=_keep_syncing, args=(tracker, every, stop, warn), name="tracking", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _keep_syncing(tracker: Tracker, every: float, stop: threading.Event, warn: Callable[[str], None]) -> None:
    warned = False
    while True:
        last = stop.wait(every)
        try:
            tracker.sync()
        except Exception as error:
            if not warned:
                why = tracker.behind or first_line(error)
                line = f"MLflow ({tracker.uri}) cannot be written to: {why}. The ledger is complete; MLflow is retried."
                warn(without_password(line))
            warned = True
        if last:
            return
