"""`fsg sync`: bring MLflow level with an experiment's ledger."""

import os
import sys
from pathlib import Path

from orchestration.commands.exit_status import BAD_INPUT, DONE, FAILED
from orchestration.ledger import store
from orchestration.ledger.ledger import Ledger
from orchestration.spec.experiment import recorded_spec
from orchestration.tracking.sync import Tracker
from orchestration.util.databases import sqlite_file
from orchestration.util.error_text import first_line
from orchestration.util.passwords import HIDDEN, hide_passwords


def sync(folder: Path, tracking_uri: str | None = None) -> int:
    """Bring MLflow level with an experiment's folder. Returns the exit status."""
    ledger = Ledger(folder)
    try:
        launches = ledger.launches()
    except OSError as error:
        print(first_line(error), file=sys.stderr)
        return BAD_INPUT
    if not launches:
        why = "; ".join(ledger.launch_problems()) or "no launch is recorded there"
        print(f"{folder}: {why}", file=sys.stderr)
        return BAD_INPUT
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or launches[-1].get("tracking_uri")
    if uri and HIDDEN in uri:
        print(f"{folder}: the password of {uri} is not kept (expected --tracking-uri with it)", file=sys.stderr)
        return BAD_INPUT
    if not tracking_uri and uri and (file := sqlite_file(uri)) and not file.exists():
        uri = None if (folder.resolve().parent / "mlflow.db").exists() else uri
        if uri is not None:  # MLflow would make one there
            print(f"{folder}: {file} is not there (expected --tracking-uri with the database's place)", file=sys.stderr)
            return BAD_INPUT
    tracker = Tracker(ledger, recorded_spec(launches[-1]), uri)
    try:
        sent = tracker.sync()
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
    print(f"sent {sent.runs} runs, {sent.metrics} metric values and {sent.files} files: MLflow is level with {folder}")
    print(f"MLflow   {tracker.ui()}")
    return DONE
