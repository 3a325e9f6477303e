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
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from orchestration.ledger import store
from orchestration.ledger.digest import ledger_digest, report_digest
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.outcome import Outcome
from orchestration.ledger.study_records import StudyRecords, study_names
from orchestration.spec.experiment import ExperimentSpec
from orchestration.tracking import acknowledged, saved_view, server
from orchestration.tracking.cell_run import CellRunSender
from orchestration.tracking.completeness import lacking_of_cell, lacking_of_experiment
from orchestration.tracking.runs import PARENT, Mark, MlflowRuns
from orchestration.util.clock import now_ms
from orchestration.util.directory import staying
from orchestration.util.error_text import first_line, one_line
from orchestration.util.passwords import hide_passwords
from orchestration.util.program import AT_WORK

logger = logging.getLogger(__name__)

_SILENT = 2.0  # seconds of waiting of which nothing is said
_SPARED = 4.0  # times as long as a sync took nothing is sent


class SyncReport(NamedTuple):
    """What one `sync` sent, and a line for each item that MLflow refused: it is tried again by the next."""

    runs: int
    metrics: int
    files: int
    refused: tuple[str, ...] = ()


class Tracker:
    """Sends one experiment's ledger to MLflow; constructing it touches nothing and imports nothing.

    `uri` is any tracking URI of MLflow's; without one, SQLite in `mlflow.db` beside the experiment's folder. `behind`
    says why MLflow is not level with the ledger, where the last `sync` was not complete; `reached` that it came to its
    end.
    """

    def __init__(self, ledger: Ledger, spec: ExperimentSpec, uri: str | None = None) -> None:
        self._ledger, self._spec = ledger, spec
        self.runs = MlflowRuns(ledger, spec, uri)
        self._sender = CellRunSender(ledger, spec.folder_name, self.runs)
        self._lock = threading.Lock()
        self._settled = False  # whether what was last sent can change only with the ledger's files
        self._ledger_sent = ""
        self.behind: str | None = None
        self.reached = False

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
                self.reached, self.behind = False, hide_passwords(first_line(error), self.uri)[:200]
                raise
            self.reached, self.behind = True, _told(tuple(hide_passwords(one, self.uri) for one in report.refused))
            if report.refused:
                self.runs.forget()
            sent = report.metrics, report.files, report.runs
            logger.info("MLflow was sent %d metric values and %d files; %d runs are new", *sent)
            return report

    def level(self) -> SyncReport:
        """`sync`, but where MLflow is known to have it all already: then nothing is imported and nobody asked."""
        folder, remote = self._ledger.folder, store.is_remote(self._ledger.folder)
        now = "" if remote else ledger_digest(folder)  # before it is read: what comes meanwhile makes another digest
        known = None if self.runs.connected else acknowledged.noted(folder, self.uri)
        if known is not None and known.ledger == now:
            self.runs.experiment_id, self._ledger_sent = known.experiment_id, now
            self.reached, self.behind = True, None
            return SyncReport(0, 0, 0)
        report = self.sync()
        self._ledger_sent = now if self._settled and not report.refused else ""
        self._note(known.report if known is not None else "")
        return report

    def verify(self) -> list[str]:
        """Ask MLflow for every value and file; a line for each run that lacks some, which the next sync sends anew."""
        with self._lock:
            client, lines = self.runs.client(), []
            for key, (run, mark) in self.runs.known.items():
                cell = None if key == PARENT else self._ledger.find(key)
                if cell is not None:
                    lacks = lacking_of_cell(client, run, self._ledger, cell, mark.step)
                else:
                    lacks = lacking_of_experiment(client, run) if key == PARENT else ""
                if lacks and mark != Mark():
                    self.runs.known[key] = (run, Mark())
                    lines.append(f"{self._spec.folder_name if cell is None else cell.label} lacked {lacks}")
            return lines

    def log_report(self, folder: Path) -> None:
        """Keep the report (`report.*` and `figures/`) that lies in a folder as an artifact of the parent run."""
        now = "" if store.is_remote(folder) else report_digest(folder)
        known = acknowledged.noted(folder, self.uri)
        if known is not None and known.report == now and known.ledger == self._ledger_sent:
            return
        with self._lock:
            self.runs.client()
            parent = self.runs.parent()
            for file in store.matching(folder, "report.*"):
                self.runs.log_artifact(parent, file, "report")
            for file in store.matching(folder / "figures", "*"):
                self.runs.log_artifact(parent, file, "report/figures")
        self._note(now)

    def give_up(self, seconds: float) -> None:
        """MLflow took longer than it is waited for."""
        self.reached, self.behind = False, f"it took longer than {seconds:.0f} s"

    def ui(self) -> str:
        """What to type, and the address that it opens: this experiment's comparison by variant."""
        return server.where(self._ledger.folder, self.uri, self.runs.experiment_id)

    def _note(self, report: str) -> None:
        """That MLflow has all of the ledger, and of a report; a server is told as well, so that it can say so."""
        if not self._ledger_sent:
            return
        if server.is_server(self.uri):
            self.runs.tag_experiment(acknowledged.TAG, self._ledger_sent)
        name, found = self._spec.folder_name, self.runs.experiment_id
        acknowledged.note(self._ledger.folder, self.uri, name, found, self._ledger_sent, report)

    def _sync(self) -> SyncReport:
        self.runs.client()
        known = len(self.runs.known)
        self.runs.parent()
        metrics = files = 0
        refused: list[str] = []
        cells = {cell.id: (cell, self._ledger.outcome(cell.id)) for cell in self._ledger.cells()}
        for cell, outcome in cells.values():
            if outcome.state != "waiting" and self._ledger.origin(cell.id) == cell.id:
                with self._noting_refusal(cell.label, refused):
                    sent = self._sender.send(cell, outcome)
                    metrics, files = metrics + sent[0], files + sent[1]
        self._settled = all(outcome.state != "running" for _, outcome in cells.values())
        with self._noting_refusal(self._spec.folder_name, refused):
            files += self._sync_parent({cell_id: outcome for cell_id, (_, outcome) in cells.items()})
        return SyncReport(len(self.runs.known) - known, metrics, files, tuple(refused))

    @contextmanager
    def _noting_refusal(self, name: str, refused: list[str]) -> Iterator[None]:
        """Within, what MLflow refuses is noted under a name, as long as it answers at all."""
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | PermissionError):
                raise  # a connection, a full disk: all that would follow fails, too
            try:
                self.runs.client().get_experiment(self.runs.experiment_id)
            except Exception:
                raise error from None
            refused.append(f"{name}: {one_line(error)[:300]}")

    def _sync_parent(self, every: dict[str, Outcome]) -> int:
        launches = self._ledger.launches()
        finished = bool(launches) and "finished" in launches[-1]
        outcomes = [every[cell] for cell in _cells_of(self._ledger, launches) & every.keys()] or list(every.values())
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


def _told(refused: Sequence[str]) -> str | None:
    more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
    return f"refused: {refused[0]}{more}" if refused else None


def _cells_of(ledger: Ledger, launches: Sequence[dict[str, Any]]) -> set[str]:
    """The ids of what the last launch wants, with those of its searches' trials: what lies beside it counts no more."""
    if not launches:
        return set()
    names = study_names(launches[-1])
    trials = {cell for name in names for trial in StudyRecords(ledger, name).trials() for cell in trial.cells.values()}
    return {*launches[-1]["cells"], *trials}


def _state_of_all(states: list[str], finished: bool) -> str:
    if all(state in ("done", "pruned") for state in states):
        return "done"
    if "running" in states or ("waiting" in states and not finished):
        return "running"
    return "failed" if {"failed", "diverged"} & set(states) else "interrupted"


class Patience:
    """How long the end of a launch waits for MLflow, all in all: seconds that are used up by waiting."""

    def __init__(self, seconds: float, say: Callable[[str], None]) -> None:
        self.seconds, self._left, self._say = seconds, seconds, say

    def wait(self, thread: threading.Thread) -> bool:
        """Wait for a thread; returns whether it has ended."""
        began = time.monotonic()
        thread.join(min(_SILENT, self._left))
        if thread.is_alive() and self._left > _SILENT:
            self._say(f"MLflow is being updated: it is waited for, {self._left:.0f} s at most")
            thread.join(self._left - _SILENT)
        self._left = max(0.0, self._left - (time.monotonic() - began))
        return not thread.is_alive()

    def run(self, work: Callable[[], None]) -> bool:
        """Do some work in a thread; returns whether it has ended. Raises what it raised."""
        failed: list[Exception] = []

        def attempt() -> None:
            try:
                work()
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=attempt, name=AT_WORK, daemon=True)
        thread.start()
        ended = self.wait(thread)
        if failed:
            raise failed[0]
        return ended


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


@contextmanager
def background(
    tracker: Tracker, every: float, patience: Patience | None = None, warn: Callable[[str], None] = _to_stderr
) -> Iterator[None]:
    """Sync in a thread of its own every so many seconds, or for a fifth of the time at most, and once more at the end.

    Where MLflow fails, `warn` gets one line, once, and the next time it is tried again; the same with every item that
    it refuses. The last is waited for as long as there is patience.
    """
    stop = threading.Event()
    thread = threading.Thread(target=_keep_syncing, args=(tracker, every, stop, warn), name=AT_WORK, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        if patience is None:
            thread.join()
        elif not patience.wait(thread):
            tracker.give_up(patience.seconds)


def _keep_syncing(tracker: Tracker, every: float, stop: threading.Event, warn: Callable[[str], None]) -> None:
    warned, told, took = False, set[str](), 0.0
    while True:
        last = stop.wait(max(every, _SPARED * took))
        began = time.monotonic()
        try:
            refused = set((tracker.level() if last else tracker.sync()).refused)
            for line in sorted(refused - told):
                warn(hide_passwords(f"MLflow refused {line}. The ledger is complete; it is retried.", tracker.uri))
            told |= refused
        except Exception as error:
            if not warned:
                why = tracker.behind or first_line(error)
                line = f"MLflow ({tracker.uri}) cannot be written to: {why}. The ledger is complete; MLflow is retried."
                warn(hide_passwords(line, tracker.uri))
            warned = True
        took = time.monotonic() - began
        if last:
            return
