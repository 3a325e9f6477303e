"""One cell's run in MLflow: its parameters, rows, weights, diagnostics and final network, each sent once."""

import json
import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from fsg import checkpoint
from fsg.config import to_dict
from orchestration.ledger import store
from orchestration.ledger.history import LedgerRow
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.outcome import Outcome
from orchestration.ledger.results import layer_records, same_names
from orchestration.spec.cells import Cell
from orchestration.tracking import model as mlflow_model
from orchestration.tracking.names import mlflow_name
from orchestration.tracking.program import Exporter
from orchestration.tracking.runs import LONGEST_PARAM, Mark, MlflowRuns
from orchestration.util.error_text import one_line
from orchestration.util.nested import flatten
from orchestration.util.output import escaped

_METRICS_A_BATCH = 1000
_PARAMS_A_BATCH = 100
_LONGEST_DATA_NAME = 500
DIAGNOSTICS = "diagnostics.json"
T = TypeVar("T")


class CellRunSender:
    """Sends the cells of one experiment to their runs."""

    def __init__(self, ledger: Ledger, experiment: str, runs: MlflowRuns) -> None:
        self._ledger, self._experiment, self._runs = ledger, experiment, runs
        self._exporter = Exporter()

    def send(self, cell: Cell, outcome: Outcome) -> tuple[int, int]:
        """Send what MLflow lacks of a cell; returns the metric values and the files that were sent."""
        told = (outcome.state, outcome.finished_ms, outcome.attempts)
        if cell.id not in self._runs.known:
            self._start(cell, outcome)
        run, mark = self._runs.known[cell.id]
        if mark.told == told and outcome.state != "running":
            return 0, 0
        rows = self._ledger.rows(cell.id)
        if mark == Mark():
            self._describe(run, cell)
        tags, files, model = _outcome_tags(outcome, rows), 0, None
        if outcome.state == "done":
            files += self._send_weights(run, cell)
            model, tags["model"] = self._send_model(run, cell, rows)
        if outcome.state in ("done", "diverged"):
            tags |= self._send_diagnostics(run, cell)
        files += (model is not None) + ("mlflow.loggedArtifacts" in tags)
        first = mark.step + 1 if model is None else min(mark.step + 1, rows[-1].step)
        sent = self._send_rows(run, [row for row in rows if row.step >= first], model)
        if mark.told != told:
            self._runs.tell_status(run, outcome.state, outcome.finished_ms)
        step = max([mark.step, *(row.step for row in rows)])
        if (step, told) != mark:
            self._runs.write_mark(cell.id, Mark(step, told), tags)
        return sent, files

    def _start(self, cell: Cell, outcome: Outcome) -> None:
        tags = self._runs.common_tags(self._ledger.attempts(cell.id)) | {
            "mlflow.parentRunId": self._runs.parent(),
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
        note = f"`{cell.label}` of **{self._experiment}**, cell `{cell.id}`, in `{folder}`"
        if cell.contaminated:
            note += "\n\nIts starting weights may have seen the validation images: validation figures are contaminated."
        self._runs.start(cell.id, cell.label, note, outcome.started_ms, tags)

    def _describe(self, run: str, cell: Cell) -> None:
        """Parameters and data: sent before the first row, and harmless to send again."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param  # start-up time

        client = self._runs.client()
        params = _as_mlflow_takes_them(flatten(to_dict(cell.train)) | {"seed": str(cell.seed)})
        for batch in _batches([Param(*one) for one in params.items()], _PARAMS_A_BATCH):
            client.log_batch(run, params=batch)
        settings = to_dict(cell.train.data)
        fingerprint = _fingerprint(cell) or "unknown"
        source = json.dumps({"fingerprint": fingerprint, **settings})
        name = str(settings.get("path", settings["name"]))[:_LONGEST_DATA_NAME]
        data = Dataset(name, fingerprint[:36], "local", source, profile=json.dumps(settings))
        client.log_inputs(run, [DatasetInput(data, [InputTag("mlflow.data.context", "train")])])

    def _send_rows(self, run: str, rows: list[LedgerRow], model: str | None) -> int:
        """Send rows, those of the last step to the model too, at once: MLflow is slow to take a row again."""
        from mlflow.entities import Metric  # start-up time

        last = rows[-1].step if rows else 0
        metrics = [
            Metric(mlflow_name(name), value, row.time_ms, row.step, model if row.step == last else None)
            for row in rows
            for name, value in row.values.items()
            if math.isfinite(value)
        ]
        for batch in _batches(metrics, _METRICS_A_BATCH):
            self._runs.client().log_batch(run, metrics=batch)
        return len(metrics)

    def _send_weights(self, run: str, cell: Cell) -> int:
        paths = {self._ledger.best_weights(cell.id), self._ledger.final_weights(cell.id)} - {None}
        for path in paths:
            if path is not None:
                self._runs.log_artifact(run, path, "checkpoints")
        return len(paths)

    def _send_diagnostics(self, run: str, cell: Cell) -> dict[str, str]:
        """Send the tables of all epochs as one; returns the tag that makes MLflow's UI show it as a table."""
        tables = self._ledger.diagnostics(cell.id)
        if not tables:
            return {}
        self._runs.client().log_text(run, json.dumps(one_table(tables), separators=(",", ":")), DIAGNOSTICS)
        return {"mlflow.loggedArtifacts": json.dumps([{"path": DIAGNOSTICS, "type": "table"}])}

    def _send_model(self, run: str, cell: Cell, rows: list[LedgerRow]) -> tuple[str | None, str]:
        """The final network as a model for `mlflow.pyfunc.load_model`: its id, and what the tag `model` says of it."""
        from mlflow.entities import LoggedModelOutput  # start-up time

        path = self._ledger.final_weights(cell.id)
        if path is None:
            return None, "not exported: no weights of the end"
        try:
            program = self._exporter.program(cell.train, checkpoint.from_bytes(store.of(path).read(path)))
        except Exception as error:  # torch's tracing raises what it likes, and so does a network of the user's own
            return None, f"not exported: {type(error).__name__}: {one_line(error)[:300]}"
        client, model = self._runs.client(), self._logged_model(run, cell)
        with tempfile.TemporaryDirectory() as folder:
            mlflow_model.write(Path(folder), program, run, model)
            client.log_model_artifacts(model, folder)
        client.finalize_logged_model(model, "READY")
        if self._runs.is_new(run) or not client.get_run(run).outputs.model_outputs:
            client.log_outputs(run, [LoggedModelOutput(model, rows[-1].step)])
        return model, f"models:/{model}"

    def _logged_model(self, run: str, cell: Cell) -> str:
        """The model of a run: the one that it has, if a sync that was cut off made it."""
        client, experiment = self._runs.client(), self._runs.experiment_id
        known = [] if self._runs.is_new(run) else client.search_logged_models([experiment], f"source_run_id = '{run}'")
        if known:
            return str(known[0].model_id)
        name = re.sub(r"[^\w \-=·]", "_", cell.label)
        tags = {"variant": cell.variant, "seed": str(cell.seed), "fsg.cell_id": cell.id}
        params = _as_mlflow_takes_them(flatten(to_dict(cell.train.model), "model."))
        made = client.create_logged_model(experiment, name, run, tags, params, model_type=cell.train.model.name)
        return str(made.model_id)


def one_table(tables: list[dict[str, Any]]) -> dict[str, Any]:
    """The tables of several epochs as columns and rows, a row an epoch and layer; numbers to six digits."""
    records = same_names(list(layer_records(tables)))
    rows = [[float(f"{v:.6g}") if isinstance(v, float) else v for v in record.values()] for record in records]
    return {"columns": list(records[0]), "data": rows}


def _outcome_tags(outcome: Outcome, rows: list[LedgerRow]) -> dict[str, str]:
    """State and reason, and the metrics of which MLflow was not sent a value because it is not finite."""
    lost = sorted({name for row in rows for name, value in row.values.items() if not math.isfinite(value)})
    reason = {"reason": outcome.reason} if outcome.reason else {}
    return {"outcome": outcome.state} | reason | ({"not_finite": ", ".join(lost)} if lost else {})


def _as_mlflow_takes_them(params: dict[str, str]) -> dict[str, str]:
    """Parameters under names that MLflow takes, with values that every database holds."""
    return {mlflow_name(name): escaped(value)[:LONGEST_PARAM] for name, value in params.items()}


def _fingerprint(cell: Cell) -> str | None:
    try:
        return str(cell.train.data.fingerprint())
    except (OSError, ValueError):  # a ledger read where its images are not
        return None


def _batches(items: list[T], size: int) -> Iterator[list[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
