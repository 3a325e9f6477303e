"""SYNC"""

import getpass
import io
import json
import logging
import math
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ruamel.yaml import YAML

from fsg import checkpoint
from fsg.config import to_dict
from orchestration.ledger import store
from orchestration.ledger.history import LedgerRow
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.outcome import Outcome
from orchestration.spec.cells import Cell
from orchestration.spec.experiment import ExperimentSpec
from orchestration.tracking import model as mlflow_model
from orchestration.tracking import saved_view
from orchestration.tracking import server as mlflow_server
from orchestration.tracking.program import Exporter
from orchestration.tracking.server import is_server
from orchestration.util.nested import flatten
from orchestration.util.passwords import without_password

_STATUS = {
    "running": "RUNNING",
    "done": "FINISHED",
    "failed": "FAILED",
    "diverged": "FAILED",
    "interrupted": "KILLED",
    "pruned": "KILLED",
}
_METRICS_A_BATCH = 1000
_TAGS_A_BATCH = 100
_LONGEST_PARAM = 6000
_LONGEST_TAG = 5000
_PARENT = "experiment"
_DIAGNOSTICS = "diagnostics.json"
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # the UI shows what belongs to trainings alone
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # its own seven would hold up the end of a launch for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
T = TypeVar("T")


class SyncReport(NamedTuple):
    """What one `sync` sent."""

    runs: int
    metrics: int
    files: int


class _Mark(NamedTuple):
    """How far MLflow has got with a run: the last step sent, and the state that was told."""

    step: int = -1
    told: tuple[Any, ...] = ()


class Tracker:
    """Sends one experiment's ledger to MLflow; constructing it touches nothing and imports nothing.

    `uri` is any tracking URI of MLflow's; without one, SQLite in `mlflow.db` beside the experiment's folder. `behind`
    says why MLflow is not level with the ledger, where the last `sync` failed.
    """

    def __init__(self, ledger: Ledger, spec: ExperimentSpec, uri: str | None = None) -> None:
        self._ledger, self._spec = ledger, spec
        self._results = ledger.folder.resolve().parent
        self.uri = uri or f"sqlite:///{self._results / 'mlflow.db'}"
        self._lock = threading.Lock()
        self.behind: str | None = None
        self._connected: Any = None
        self._experiment_id = ""
        self._runs: dict[str, tuple[str, _Mark]] = {}
        self._started: set[str] = set()  # runs that are known to have nothing but what was sent from here
        self._exporter = Exporter()

    def sync(self) -> SyncReport:
        """Send whatever the ledger holds and MLflow lacks. Raises what MLflow raises; nothing is lost by it."""
        with self._lock:
            try:
                report = self._sync()
            except Exception as error:
                self._connected = None  # what is known of MLflow may be wrong: ask it again next time
                self.behind = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                raise
            self.behind = None
            return report

    def log_report(self, folder: Path) -> None:
        """Keep the report (`report.*` and `figures/`) that lies in a folder as an artifact of the parent run."""
        with self._lock:
            client = self._client()
            parent = self._parent(client)
            for file in store.matching(folder, "report.*"):
                _log_artifact(client, parent, file, "report")
            for file in store.matching(folder / "figures", "*"):
                _log_artifact(client, parent, file, "report/figures")

    def ui(self) -> str:
        """What to type, and the address that it opens: this experiment's comparison by variant."""
        uri = without_password(self.uri)
        own = not store.is_remote(self._results) and uri == mlflow_server.database(self._ledger.folder)
        server = uri.rstrip("/") if self._remote else f"http://{mlflow_server.HOST}:{mlflow_server.PORT}"
        typed = mlflow_server.command(self._ledger.folder, None if own else uri)
        return f"{typed}   ({server}{saved_view.address(self._experiment_id)})"

    @property
    def _artifacts(self) -> Path | None:
        """The folder of MLflow's artifacts, where it is not for a server to say: beside the results or the database."""
        if self._remote:
            return None
        if not store.is_remote(self._results):
            return self._results / "mlartifacts"
        database = self.uri.removeprefix("sqlite:///")
        return None if database == self.uri else Path(database).resolve().parent / "mlartifacts"

    @property
    def _remote(self) -> bool:
        return is_server(self.uri)

    # what there is in MLflow

    def _client(self) -> Any:
        if self._connected is None:
            for name, value in _SETTINGS.items():
                os.environ.setdefault(name, value)
            from mlflow.tracking import MlflowClient  # start-up time

            logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # the tracker tells it in a line
            client = MlflowClient(self.uri)
            self._experiment_id = self._find_experiment(client)
            self._runs, self._started = self._find_runs(client), set()
            self._connected = client
        return self._connected

    def _find_experiment(self, client: Any) -> str:
        found = client.get_experiment_by_name(self._spec.folder_name)
        if found is None:
            place = None if self._artifacts is None else self._artifacts.as_uri()
            tags = {"mlflow.note.content": self._spec.question, **_KIND}
            return str(client.create_experiment(self._spec.folder_name, artifact_location=place, tags=tags))
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _find_runs(self, client: Any) -> dict[str, tuple[str, _Mark]]:
        """The run of each cell that has one. Of two (a slow server made one after all, two drivers started one each) it
        is the one that got further, the same for all who ask; the other one is put away if it got nowhere.
        """
        found: dict[str, list[tuple[str, _Mark]]] = {}
        token = None
        while True:
            page = client.search_runs([self._experiment_id], max_results=1000, page_token=token)
            for run in page:
                step, told = json.loads(run.data.tags.get("fsg.synced", "[-1, []]"))
                if "fsg.cell_id" in run.data.tags:
                    mark = _Mark(step, tuple(told))
                    found.setdefault(run.data.tags["fsg.cell_id"], []).append((run.info.run_id, mark))
            token = page.token
            if not token:
                break
        runs = {}
        for key, several in found.items():
            runs[key], *others = sorted(several, key=lambda run: (-run[1].step, not run[1].told, run[0]))
            for run_id, mark in others:
                if mark == _Mark() != runs[key][1]:
                    client.delete_run(run_id)
        return runs

    # what is sent

    def _sync(self) -> SyncReport:
        client = self._client()
        known = len(self._runs)
        parent = self._parent(client)
        metrics = files = 0
        cells = [(cell, self._ledger.outcome(cell.id)) for cell in self._ledger.cells()]
        for cell, outcome in cells:
            if outcome.state != "waiting" and self._ledger.origin(cell.id) == cell.id:
                sent = self._sync_cell(client, parent, cell, outcome)
                metrics, files = metrics + sent[0], files + sent[1]
        files += self._sync_parent(client, parent, [outcome for _, outcome in cells])
        return SyncReport(len(self._runs) - known, metrics, files)

    def _parent(self, client: Any) -> str:
        if _PARENT not in self._runs:
            launches = self._ledger.launches()
            began = launches[0]["started"] if launches else None
            self._start(client, _PARENT, self._spec.folder_name, _note(self._spec), began, self._common_tags(launches))
        return self._runs[_PARENT][0]

    def _start(self, client: Any, key: str, name: str, note: str, began: int | None, tags: dict[str, str]) -> None:
        tags = {"fsg.cell_id": key, "mlflow.note.content": note, **tags}
        short = {tag: value[:_LONGEST_TAG] for tag, value in tags.items()}
        run = client.create_run(self._experiment_id, began, short, run_name=name)
        self._runs[key] = (run.info.run_id, _Mark())
        self._started.add(run.info.run_id)

    def _common_tags(self, records: list[dict[str, Any]]) -> dict[str, str]:
        commit = next((str(r["git_commit"]) for r in reversed(records) if r.get("git_commit")), None)
        return {
            "experiment": self._spec.folder_name,
            "spec_sha256": self._spec.sha256(),
            "mlflow.user": _user(),
            "mlflow.source.name": str(self._spec.source),
            "mlflow.source.type": "LOCAL",
            **({"git_commit": commit, "mlflow.source.git.commit": commit} if commit else {}),
        }

    def _sync_cell(self, client: Any, parent: str, cell: Cell, outcome: Outcome) -> tuple[int, int]:
        told = (outcome.state, outcome.finished_ms, outcome.attempts)
        if cell.id not in self._runs:
            self._start_cell(client, parent, cell, outcome)
        run, mark = self._runs[cell.id]
        if mark.told == told and outcome.state != "running":
            return 0, 0
        rows = self._ledger.rows(cell.id)
        if mark == _Mark():
            self._describe(client, run, cell)
        tags, files, model = _outcome_tags(outcome, rows), 0, None
        if outcome.state == "done":
            files += self._send_weights(client, run, cell)
            model, tags["model"] = self._send_model(client, run, cell, rows)
        if outcome.state in ("done", "diverged"):
            tags |= self._send_diagnostics(client, run, cell)
        files += (model is not None) + ("mlflow.loggedArtifacts" in tags)
        first = mark.step + 1 if model is None else min(mark.step + 1, rows[-1].step)
        sent = self._send_rows(client, run, [row for row in rows if row.step >= first], model)
        if mark.told != told:
            _tell_status(client, run, outcome.state, outcome.finished_ms)
        step = max([mark.step, *(row.step for row in rows)])
        if (step, told) != mark:
            self._write_mark(client, run, cell.id, _Mark(step, told), tags)
        return sent, files

    def _start_cell(self, client: Any, parent: str, cell: Cell, outcome: Outcome) -> None:
        tags = self._common_tags(self._ledger.attempts(cell.id)) | {
            "mlflow.parentRunId": parent,
            "variant": cell.variant,
            "seed": str(cell.seed),
            "grid": json.dumps(cell.grid),
            "kind": cell.kind,
            "contaminated": str(cell.contaminated).lower(),
        }
        fingerprint = _fingerprint(cell)
        if fingerprint:
            tags["data_fingerprint"] = fingerprint
        folder = self._ledger.folder / "trials" / cell.id
        note = f"`{cell.label}` of **{self._spec.folder_name}**, cell `{cell.id}`, in `{folder}`"
        if cell.contaminated:
            note += "\n\nIts starting weights may have seen the validation images: validation figures are contaminated."
        self._start(client, cell.id, cell.label, note, outcome.started_ms, tags)

    def _describe(self, client: Any, run: str, cell: Cell) -> None:
        """Parameters and data: sent before the first row, and harmless to send again."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param  # start-up time

        params = [Param(name, value[:_LONGEST_PARAM]) for name, value in flatten(to_dict(cell.train)).items()]
        for batch in _batches([*params, Param("seed", str(cell.seed))], _TAGS_A_BATCH):
            client.log_batch(run, params=batch)
        settings = to_dict(cell.train.data)
        fingerprint = _fingerprint(cell) or "unknown"
        source = json.dumps({"fingerprint": fingerprint, **settings})
        name = str(settings.get("path", settings["name"]))
        data = Dataset(name, fingerprint[:36], "local", source, profile=json.dumps(settings))
        client.log_inputs(run, [DatasetInput(data, [InputTag("mlflow.data.context", "train")])])

    def _send_rows(self, client: Any, run: str, rows: list[LedgerRow], model: str | None) -> int:
        """What is of the last step is the model's too: said at once, as a row that MLflow has is slow to send again."""
        from mlflow.entities import Metric  # start-up time

        last = rows[-1].step if rows else 0
        metrics = [
            Metric(name, value, row.time_ms, row.step, model if row.step == last else None)
            for row in rows
            for name, value in row.values.items()
            if math.isfinite(value)
        ]
        for batch in _batches(metrics, _METRICS_A_BATCH):
            client.log_batch(run, metrics=batch)
        return len(metrics)

    def _send_weights(self, client: Any, run: str, cell: Cell) -> int:
        paths = {self._ledger.best_weights(cell.id), self._ledger.final_weights(cell.id)} - {None}
        for path in paths:
            if path is not None:
                _log_artifact(client, run, path, "checkpoints")
        return len(paths)

    def _send_diagnostics(self, client: Any, run: str, cell: Cell) -> dict[str, str]:
        """The tables of all epochs as one, a row a layer; returns the tag that makes MLflow's UI show it as a table."""
        tables = self._ledger.diagnostics(cell.id)
        if not tables:
            return {}
        client.log_text(run, json.dumps(one_table(tables), separators=(",", ":")), _DIAGNOSTICS)
        return {"mlflow.loggedArtifacts": json.dumps([{"path": _DIAGNOSTICS, "type": "table"}])}

    def _send_model(self, client: Any, run: str, cell: Cell, rows: list[LedgerRow]) -> tuple[str | None, str]:
        """The final network as a model for `mlflow.pyfunc.load_model`: its id, and what the tag `model` says of it."""
        from mlflow.entities import LoggedModelOutput  # start-up time

        path = self._ledger.final_weights(cell.id)
        try:
            program = (
                self._exporter.program(cell.train, checkpoint.from_bytes(store.of(path).read(path))) if path else None
            )
        except Exception as error:  # torch's tracing raises what it likes, and so does a network of the user's own
            return None, f"not exported: {_one_line(error)}"
        if program is None:
            return None, "not exported: no weights of the end"
        model = self._logged_model(client, run, cell)
        with tempfile.TemporaryDirectory() as folder:
            mlflow_model.write(Path(folder), program, run, model)
            client.log_model_artifacts(model, folder)
        client.finalize_logged_model(model, "READY")
        if run in self._started or not client.get_run(run).outputs.model_outputs:
            client.log_outputs(run, [LoggedModelOutput(model, rows[-1].step)])
        return model, f"models:/{model}"

    def _logged_model(self, client: Any, run: str, cell: Cell) -> str:
        """The model of a run: the one that it has, if a sync that was cut off made it."""
        of_the_run = f"source_run_id = '{run}'"
        known = [] if run in self._started else client.search_logged_models([self._experiment_id], of_the_run)
        if known:
            return str(known[0].model_id)
        name = re.sub(r"[^\w \-=·]", "_", cell.label)
        tags = {"variant": cell.variant, "seed": str(cell.seed), "fsg.cell_id": cell.id}
        params = {name: value[:_LONGEST_PARAM] for name, value in flatten(to_dict(cell.train.model), "model.").items()}
        made = client.create_logged_model(
            self._experiment_id, name, run, tags, params, model_type=cell.train.model.name
        )
        return str(made.model_id)

    def _sync_parent(self, client: Any, parent: str, outcomes: list[Outcome]) -> int:
        launches = self._ledger.launches()
        finished = bool(launches) and "finished" in launches[-1]
        state = _state_of_all([outcome.state for outcome in outcomes], finished)
        ended = max((outcome.finished_ms or 0 for outcome in outcomes), default=0) or None
        told = (state, ended, self._spec.sha256())
        mark = self._runs[_PARENT][1]
        if mark.told == told:
            return 0
        files = 0
        if mark.told[2:] != told[2:]:
            files = self._send_spec(client, parent)
            view = saved_view.saved_view(self._spec, time.time_ns() // 1_000_000)
            client.set_experiment_tag(self._experiment_id, saved_view.TAG, view)
        _tell_status(client, parent, state, ended)
        self._write_mark(client, parent, _PARENT, _Mark(0, told), {"outcome": state, "kind": _PARENT})
        return files

    def _send_spec(self, client: Any, parent: str) -> int:
        resolved, text = self._spec.resolved(), io.StringIO()
        YAML(typ="safe").dump(resolved, text)
        files = {"as_written.yaml": self._spec.text, "resolved.yaml": text.getvalue()}
        files["resolved.json"] = json.dumps(resolved, indent=1)
        for name, content in files.items():
            client.log_text(parent, content, f"spec/{name}")
        return len(files)

    def _write_mark(self, client: Any, run: str, key: str, mark: _Mark, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag  # start-up time

        tags = tags | {"fsg.synced": json.dumps(mark)}
        client.log_batch(run, tags=[RunTag(name, value[:_LONGEST_TAG]) for name, value in tags.items()])
        self._runs[key] = (run, mark)


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
                why = tracker.behind or str(error).splitlines()[0]
                line = f"MLflow ({tracker.uri}) cannot be written to: {why}. The ledger is complete; MLflow is retried."
                warn(without_password(line))
            warned = True
        if last:
            return


def one_table(tables: list[dict[str, Any]]) -> dict[str, Any]:
    """The tables of several epochs as columns and rows, a row an epoch and layer; numbers to six digits."""
    named = dict.fromkeys(name for table in tables for name in table)
    by_layer = [name for name in named if any(isinstance(table.get(name), list) for table in tables)]
    columns = list(dict.fromkeys(["epoch", *by_layer, *named]))

    def cell(table: dict[str, Any], name: str, layer: int) -> Any:
        value = table.get(name)
        value = value[layer] if isinstance(value, list) else value
        return float(f"{value:.6g}") if isinstance(value, float) else value

    rows = [[cell(table, name, i) for name in columns] for table in tables for i in range(len(table["layer"]))]
    return {"columns": columns, "data": rows}


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _outcome_tags(outcome: Outcome, rows: list[LedgerRow]) -> dict[str, str]:
    """State and reason, and the metrics of which MLflow was not sent a value because it is not finite."""
    lost = sorted({name for row in rows for name, value in row.values.items() if not math.isfinite(value)})
    reason = {"reason": outcome.reason} if outcome.reason else {}
    return {"outcome": outcome.state} | reason | ({"not_finite": ", ".join(lost)} if lost else {})


def _log_artifact(client: Any, run: str, path: Path, folder: str) -> None:
    with store.of(path).on_disk(path) as file:
        client.log_artifact(run, str(file), folder)


def _tell_status(client: Any, run: str, state: str, ended: int | None) -> None:
    if state == "running":
        client.update_run(run, status="RUNNING")
    else:
        client.set_terminated(run, _STATUS[state], ended)


def _state_of_all(states: list[str], finished: bool) -> str:
    if all(state in ("done", "pruned") for state in states):
        return "done"
    if "running" in states or ("waiting" in states and not finished):
        return "running"
    return "failed" if {"failed", "diverged"} & set(states) else "interrupted"


def _note(spec: ExperimentSpec) -> str:
    seeds = ", ".join(map(str, spec.seeds))
    return f"{spec.question}\n\nVariants: {', '.join(spec.variants)}. Seeds: {seeds}. One run a cell below."


def _fingerprint(cell: Cell) -> str | None:
    try:
        return str(cell.train.data.fingerprint())
    except (OSError, ValueError):  # a ledger read where its images are not
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _batches(items: list[T], size: int) -> Iterator[list[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
