"""The experiment and the runs that MLflow has of a ledger: found by their tags, started, and marked as they advance.

How far a run has come stands in MLflow itself, in the run's tag `fsg.synced`, written after what it speaks of. A driver
that starts anew finds its runs by their tag `fsg.cell_id`, and goes on there.
"""

import getpass
import json
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

from orchestration.ledger import store
from orchestration.ledger.ledger import Ledger
from orchestration.spec.experiment import ExperimentSpec
from orchestration.tracking import artifacts
from orchestration.tracking.server import is_server
from orchestration.util.databases import sqlite_address, sqlite_file

PARENT = "experiment"  # the key of the run above those of the cells
LONGEST_PARAM = 6000
_LONGEST_TAG = 5000
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # the UI shows what belongs to trainings alone
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # its own seven would hold up the end of a launch for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
_STATUS = {
    "running": "RUNNING",
    "done": "FINISHED",
    "failed": "FAILED",
    "diverged": "FAILED",
    "interrupted": "KILLED",
    "pruned": "KILLED",
}


class Mark(NamedTuple):
    """How far MLflow has got with a run: the last step sent, and the state that was told."""

    step: int = -1
    told: tuple[Any, ...] = ()


class MlflowRuns:
    """The runs of one experiment, by cell id; `PARENT` is the run above them. Constructing it touches nothing."""

    def __init__(self, ledger: Ledger, spec: ExperimentSpec, uri: str | None) -> None:
        self._ledger, self._spec = ledger, spec
        self._results = ledger.folder.resolve().parent
        self.uri = uri or sqlite_address(self._results / "mlflow.db")
        self.experiment_id = ""
        self.known: dict[str, tuple[str, Mark]] = {}
        self._connected: Any = None
        self._new: set[str] = set()

    def client(self) -> Any:
        """MLflow's client, connected, and the runs found. Raises what MLflow raises."""
        if self._connected is None:
            for name, value in _SETTINGS.items():
                os.environ.setdefault(name, value)
            from mlflow.tracking import MlflowClient  # start-up time

            logging.getLogger("alembic").setLevel(logging.WARNING)  # older MLflow lists its migrations
            logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # the tracker tells it in a line
            client = MlflowClient(self.uri)
            if (here := self._artifacts()) is not None:
                beside = sqlite_file(self.uri) == here.parent / "mlflow.db"
                artifacts.settle(client, self.uri, here, None if beside else self._spec.folder_name)
            self.experiment_id = self._find_experiment(client)
            self.known, self._new = self._find_runs(client), set()
            self._connected = client
        return self._connected

    @property
    def connected(self) -> bool:
        return self._connected is not None

    def forget(self) -> None:
        """What is known of MLflow may be wrong: ask it again next time."""
        self._connected = None

    def is_new(self, run: str) -> bool:
        """Whether a run is known to have nothing but what was sent from here."""
        return run in self._new

    def parent(self) -> str:
        """The run above those of the cells, started if there is none."""
        if PARENT not in self.known:
            launches = self._ledger.launches()
            began = launches[0]["started"] if launches else None
            self.start(PARENT, self._spec.folder_name, _note(self._spec), began, self.common_tags(launches))
        return self.known[PARENT][0]

    def start(self, key: str, name: str, note: str, began: int | None, tags: dict[str, str]) -> None:
        """Start a run for a cell id, or for `PARENT`."""
        tags = {"fsg.cell_id": key, "mlflow.note.content": note, **tags}
        short = {tag: value[:_LONGEST_TAG] for tag, value in tags.items()}
        run = self.client().create_run(self.experiment_id, began, short, run_name=name)
        self.known[key] = (run.info.run_id, Mark())
        self._new.add(run.info.run_id)

    def common_tags(self, records: list[dict[str, Any]]) -> dict[str, str]:
        """The tags of every run; `records` of launches or attempts say the commit."""
        commit = next((str(r["git_commit"]) for r in reversed(records) if r.get("git_commit")), None)
        return {
            "experiment": self._spec.folder_name,
            "spec_sha256": self._spec.sha256(),
            "mlflow.user": _user(),
            "mlflow.source.name": str(self._spec.source),
            "mlflow.source.type": "LOCAL",
            **({"git_commit": commit, "mlflow.source.git.commit": commit} if commit else {}),
        }

    def tell_status(self, run: str, state: str, ended: int | None) -> None:
        if state == "running":
            self.client().update_run(run, status="RUNNING")
        else:
            self.client().set_terminated(run, _STATUS[state], ended)

    def write_mark(self, key: str, mark: Mark, tags: dict[str, str]) -> None:
        """Keep how far a run has come, with its other tags."""
        from mlflow.entities import RunTag  # start-up time

        run, _ = self.known[key]
        tags = tags | {"fsg.synced": json.dumps(mark)}
        self.client().log_batch(run, tags=[RunTag(name, value[:_LONGEST_TAG]) for name, value in tags.items()])
        self.known[key] = (run, mark)

    def tag_experiment(self, tag: str, value: str) -> None:
        self.client().set_experiment_tag(self.experiment_id, tag, value)

    def offer_view(self, tag: str, view: str) -> None:
        """Keep a saved view of the experiment. MLflow refuses one that is too long, before 3.16 nearly every one."""
        from mlflow.exceptions import MlflowException  # start-up time

        try:
            self.tag_experiment(tag, view)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise

    def log_artifact(self, run: str, path: Path, folder: str) -> None:
        with store.of(path).on_disk(path) as file:
            self.client().log_artifact(run, str(file), folder)

    def _find_experiment(self, client: Any) -> str:
        found = client.get_experiment_by_name(self._spec.folder_name)
        if found is None:
            here = self._artifacts()
            location = None if here is None else here.as_uri()
            tags = {"mlflow.note.content": self._spec.question, **_KIND}
            return str(client.create_experiment(self._spec.folder_name, artifact_location=location, tags=tags))
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _artifacts(self) -> Path | None:
        """The folder of MLflow's artifacts, beside the results or the database; None where a server decides."""
        if is_server(self.uri):
            return None
        if not store.is_remote(self._results):
            return self._results / artifacts.FOLDER
        file = sqlite_file(self.uri)
        return None if file is None else file.parent / artifacts.FOLDER

    def _find_runs(self, client: Any) -> dict[str, tuple[str, Mark]]:
        """The run of each cell that has one. A cell may have two: a slow server made one after all, or two drivers
        started one each. The run that got further counts, the same for all who ask; one that got nowhere is deleted.
        """
        found: dict[str, list[tuple[str, Mark]]] = {}
        token = None
        while True:
            page = client.search_runs([self.experiment_id], max_results=1000, page_token=token)
            for run in page:
                step, told = json.loads(run.data.tags.get("fsg.synced", "[-1, []]"))
                if "fsg.cell_id" in run.data.tags:
                    mark = Mark(step, tuple(told))
                    found.setdefault(run.data.tags["fsg.cell_id"], []).append((run.info.run_id, mark))
            token = page.token
            if not token:
                break
        runs = {}
        for key, several in found.items():
            runs[key], *others = sorted(several, key=lambda run: (-run[1].step, not run[1].told, run[0]))
            for run_id, mark in others:
                if mark == Mark() != runs[key][1]:
                    client.delete_run(run_id)
        return runs


def _note(spec: ExperimentSpec) -> str:
    seeds = ", ".join(map(str, spec.seeds))
    return f"{spec.question}\n\nVariants: {', '.join(spec.variants)}. Seeds: {seeds}. One run a cell below."


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
