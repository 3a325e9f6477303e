"""MLflow's own server over a results folder, on loopback and with what trainings have no use for switched off."""

import base64
import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orchestration.ledger import store
from orchestration.tracking import artifacts, pages
from orchestration.util.databases import sqlite_address, sqlite_file
from orchestration.util.error_text import first_line
from orchestration.util.passwords import hide_passwords, without_password
from orchestration.util.program import stops
from orchestration.util.scratch import scratch

HOST, PORT = "127.0.0.1", 5000
_STARTED_WITHIN = 120.0  # seconds; a database of an older version is migrated first
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # for judges of language models, and a gigabyte of memory
    "MLFLOW_ENABLE_AI_GATEWAY": "false",
}


def is_server(uri: str) -> bool:
    """Whether a tracking URI is that of a server that runs already."""
    return uri.startswith(("http://", "https://"))


def command(folder: Path, uri: str | None = None) -> str:
    """What to type to see an experiment's folder in MLflow; `uri` where it is not in the file beside the folder."""
    fsg = Path(sys.prefix) / "bin" / "fsg"
    words = [os.path.relpath(fsg) if fsg.is_relative_to(Path.cwd()) else str(fsg), "ui", str(folder)]
    return shlex.join([*words, *(["--tracking-uri", uri] if uri else [])])


def database(folder: Path) -> str:
    """The tracking URI of the database that an experiment's folder, or a folder of such folders, has."""
    folder = folder.resolve()
    return sqlite_address((folder if (folder / "mlflow.db").exists() else folder.parent) / "mlflow.db")


def show(folder: Path, uri: str | None, port: int, open_browser: bool, say: Callable[[str], None]) -> int:
    """Serve a folder until interrupted, or open the server that there is. Returns the exit status.

    Raises OSError or ValueError, in one line, where there is nothing to show.
    """
    if uri is not None and is_server(uri):
        server = uri.rstrip("/")
        _tell(server + comparison_url(server, folder.name), open_browser, say)
        return 0
    if store.is_remote(folder):
        if uri is None:
            raise ValueError(
                f"{folder}: MLflow's database does not lie there (expected --tracking-uri, as in the launch)"
            )
    elif not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder")
    beside = uri in (None, database(folder))
    uri = uri or database(folder)
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise ValueError(f"{file}: nothing was tracked here yet (fsg launch does)")
    with suppress(KeyboardInterrupt), _terminated_like_interrupted(), serving(uri, free_port(port), beside) as server:
        _tell(server + comparison_url(server, folder.name), open_browser, say)
        say("Ctrl-C ends it")
        while True:
            time.sleep(3600)
    return 0


@contextmanager
def serving(uri: str, port: int, beside: bool = False) -> Iterator[str]:
    """A server of MLflow's over a database, from when it answers until it is ended; gives its address.

    `beside` says that the database and the artifacts lie in one folder, wherever that is now.

    Raises OSError, with the last line that it wrote, where it does not start.
    """
    words = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    given = uri
    file, server = sqlite_file(uri), f"http://{HOST}:{port}"
    with scratch("fsg-ui-") as empty, tempfile.TemporaryFile() as said:  # the server imports from where it runs
        (empty / "copy").mkdir()
        if file is not None:
            try:
                uri = _settled(file, empty / "copy") if beside else sqlite_address(file)
            except Exception as error:  # MLflow's or SQLAlchemy's
                why = hide_passwords(first_line(error), given)
                raise OSError(f"MLflow's server did not start: {file}: {why}") from error
        environment = _ENVIRONMENT | os.environ | {"MLFLOW_BACKEND_STORE_URI": uri}  # a list of processes shows words
        environment["PYTHONSAFEPATH"] = "1"
        process = subprocess.Popen(words, env=environment, cwd=empty, stdout=said, stderr=said, start_new_session=True)
        try:
            until = time.monotonic() + _STARTED_WITHIN
            while not _answers(server):
                if process.poll() is not None or time.monotonic() > until:
                    said.seek(0)
                    lines = said.read().decode(errors="replace").strip().splitlines()
                    raise OSError(
                        f"MLflow's server did not start: {hide_passwords(lines[-1], given) if lines else 'silent'}"
                    )
                time.sleep(0.1)
            yield server
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _settled(file: Path, folder: Path) -> str:
    """The address of a database whose artifacts are found where it is now; of a copy, where it cannot be written to."""
    from mlflow.exceptions import MlflowException  # start-up time
    from mlflow.tracking import MlflowClient  # start-up time

    address = sqlite_address(file) if os.access(file, os.W_OK) else artifacts.copied(file, folder)
    with suppress(MlflowException):  # of a version before ours, which the server brings up to date first
        artifacts.settle(MlflowClient(address), address, file.parent / artifacts.FOLDER, None)
    return address


def free_port(wanted: int) -> int:
    """The port wanted, or the next one that is free."""
    for port in range(wanted, min(wanted + 100, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                return port
            except OSError:
                continue
    raise OSError(f"no port from {wanted} on is free")


def _answers(server: str) -> bool:
    try:
        with urllib.request.urlopen(f"{server}/health", timeout=1):
            return True
    except (OSError, http.client.HTTPException):  # nobody, or not yet a server: a free port may even connect to itself
        return False


def comparison_url(server: str, experiment: str) -> str:
    """Where on a server the experiment of a name is compared; all experiments where it has none of that name."""
    try:
        return pages.comparison(str(experiment_at(server, experiment)["experiment_id"]))
    except urllib.error.HTTPError:
        return pages.comparison("")


def experiment_at(server: str, name: str, timeout: float = 20) -> dict[str, Any]:
    """What a server says of an experiment, by MLflow's REST API. Raises OSError, as HTTPError is, or ValueError."""
    parts = urllib.parse.urlsplit(server.rstrip("/"))
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    query = urllib.parse.urlencode({"experiment_name": name})
    request = urllib.request.Request(f"{plain}/api/2.0/mlflow/experiments/get-by-name?{query}")
    user, password = parts.username, parts.password or ""
    if user is None:
        user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    if user is not None:
        both = f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(password)}".encode()
        request.add_header("Authorization", f"Basic {base64.b64encode(both).decode()}")
    elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return dict(json.load(answer)["experiment"])
    except (http.client.HTTPException, KeyError, TypeError) as error:
        raise ValueError(f"{plain}: gives no answer of MLflow's") from error


def where(folder: Path, uri: str, experiment_id: str) -> str:
    """What to type to see an experiment, and the address that it opens: its comparison by variant."""
    own = not store.is_remote(folder) and uri == database(folder)
    shown = without_password(uri)
    address = shown.rstrip("/") if is_server(uri) else f"http://{HOST}:{PORT}"
    return f"{command(folder, None if own else shown)}   ({address}{pages.comparison(experiment_id)})"


def _tell(address: str, open_browser: bool, say: Callable[[str], None]) -> None:
    say(f"MLflow   {without_password(address)}")
    if open_browser:
        webbrowser.open(address)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP are a KeyboardInterrupt, so that the server ends with us."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in stops()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
