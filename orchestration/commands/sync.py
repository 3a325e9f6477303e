"""`fsg sync`: bring MLflow level with an experiment's ledger."""

import os
import sys
from pathlib import Path

from orchestration.commands.exit_status import BAD_INPUT, DONE, FAILED
from orchestration.ledger import store
from orchestration.ledger.launches import LaunchRecords
from orchestration.tracking import acknowledged, server
from orchestration.util.databases import sqlite_address, sqlite_file
from orchestration.util.error_text import first_line
from orchestration.util.passwords import HIDDEN, hide_passwords


def sync(folder: Path, tracking_uri: str | None = None, verify: bool = False) -> int:
    """Bring MLflow level with an experiment's folder. Returns the exit status.

    `verify` asks MLflow for all that it was ever sent; otherwise what it has acknowledged counts.
    """
    records = LaunchRecords(folder)
    try:
        launches = records.launches()
    except OSError as error:
        print(first_line(error), file=sys.stderr)
        return BAD_INPUT
    if not launches:
        why = "; ".join(records.launch_problems()) or "no launch is recorded there"
        print(f"{folder}: {why}", file=sys.stderr)
        return BAD_INPUT
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or launches[-1].get("tracking_uri")
    if uri and HIDDEN in uri:
        print(f"{folder}: the password of {uri} is not kept (expected --tracking-uri with it)", file=sys.stderr)
        return BAD_INPUT
    beside = folder.resolve().parent / "mlflow.db"
    if not tracking_uri and uri and (file := sqlite_file(uri)) and not file.exists():
        uri = None if beside.exists() else uri
        if uri is not None:  # MLflow would make one there
            print(f"{folder}: {file} is not there (expected --tracking-uri with the database's place)", file=sys.stderr)
            return BAD_INPUT
    known = None if verify else acknowledged.noted(folder, uri or sqlite_address(beside))
    if known is None or not known.is_level:
        return _send(folder, uri, verify)
    _tell(folder, (0, 0, 0))
    print(f"MLflow   {server.where(folder, uri or sqlite_address(beside), known.experiment_id)}")
    return DONE


def _send(folder: Path, uri: str | None, verify: bool) -> int:
    from orchestration.ledger.ledger import Ledger  # start-up time
    from orchestration.spec.experiment import recorded_spec  # start-up time
    from orchestration.tracking.sync import Tracker  # start-up time

    ledger = Ledger(folder)
    tracker = Tracker(ledger, recorded_spec(ledger.last_launch()), uri)
    try:
        for line in tracker.verify() if verify else ():
            print(f"MLflow's run of {line}: it is sent again")
        sent = tracker.level()
        if store.exists(folder / "report.html"):
            tracker.log_report(folder)
    except Exception as error:
        print(
            hide_passwords(f"MLflow ({tracker.uri}) cannot be written to: {first_line(error)}", tracker.uri),
            file=sys.stderr,
        )
        return FAILED
    for line in sent.refused:
        print(hide_passwords(f"MLflow refused {line}", tracker.uri), file=sys.stderr)
    if sent.refused:
        print(f"sent {sent.runs} runs, {sent.metrics} metric values and {sent.files} files: all but what was refused")
        return FAILED
    _tell(folder, sent[:3])
    print(f"MLflow   {tracker.ui()}")
    return DONE


def _tell(folder: Path, sent: tuple[int, int, int]) -> None:
    runs, metrics, files = sent
    print(f"sent {runs} runs, {metrics} metric values and {files} files: MLflow is level with {folder}")
