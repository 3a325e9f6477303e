"""Planted secrets, looked for in all that is written and printed; and what the processes of a launch listen on."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import tiny_experiment
import torch
from launches import SHORT, Launched, checkpoints, ledger_of, until

from orchestration.commands.launch import launch
from orchestration.commands.request import LaunchRequest
from orchestration.commands.sync import sync
from orchestration.ledger.ledger import Ledger
from orchestration.report.data import build
from orchestration.report.write import write
from orchestration.scheduler.environment import lacks_token
from orchestration.spec.experiment import load_spec
from orchestration.tracking.sync import Tracker

PLANTED = {
    "MLFLOW_TRACKING_PASSWORD": "planted-tracking-password",
    "MLFLOW_TRACKING_TOKEN": "planted-tracking-token",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-key",
    "AWS_SESSION_TOKEN": "planted-aws-token",
    "RAY_AUTH_TOKEN": "planted-ray-token-0123456789abcdef",
    "POSTGRES_PASSWORD": "planted-postgres-password",
}
IN_THE_URI = "planted-uri-password"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)


def found_in(folder: Path) -> list[str]:
    """Files that hold a planted secret, whatever they are: text, databases, weights."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert paths
    return [str(path) for path in paths if b"planted-" in path.read_bytes()]


def test_planted_secrets_are_found_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\x00" + PLANTED["AWS_SECRET_ACCESS_KEY"].encode())
    assert found_in(tmp_path) == [str(tmp_path / "a")]


@pytest.mark.slow
def test_no_secret_of_the_environment_is_in_the_ledger_the_report_or_mlflow(
    tmp_path: Path, planted: None, capfd: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    spec = tiny_experiment.written(tmp_path)
    ledger = tiny_experiment.trained(spec, tmp_path / "results" / "tiny", "train.epochs=1")
    torch.set_num_threads(threads)
    tracker = Tracker(ledger, load_spec(spec, sets=["train.epochs=1"]))
    write(build(ledger))
    tracker.sync()
    tracker.log_report(ledger.folder)
    assert (tmp_path / "results" / "mlflow.db").exists()
    assert found_in(tmp_path) == []
    said = capfd.readouterr()
    assert "planted-" not in said.out + said.err


def test_password_of_the_uri_is_neither_recorded_nor_printed(
    tmp_path: Path, planted: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does `fsg sync` know it: it says that it has to be given again."""
    monkeypatch.chdir(tmp_path)
    spec = tiny_experiment.written(tmp_path)
    monkeypatch.setattr("orchestration.commands.launch.run", lambda *arguments: 0)
    uri = f"http://ada:{IN_THE_URI}@127.0.0.1:9"
    assert launch(LaunchRequest(spec, tracking_uri=uri)) == 0
    assert found_in(tmp_path) == []
    (record,) = Ledger(Path("results/tiny")).launches()
    assert record["tracking_uri"] == "http://ada:***@127.0.0.1:9"
    assert sync(Path("results/tiny")) == 2
    assert "the password of http://ada:***@127.0.0.1:9 is not kept (expected --tracking-uri" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert sync(Path("results/tiny"), uri) == 1
    said = capsys.readouterr()
    assert "planted-" not in said.out + said.err


# Ray's token

PREPARE = """
import json, os, sys
from orchestration.scheduler.environment import prepare
prepare(json.loads(sys.argv[1]))
print(json.dumps([os.environ["RAY_AUTH_MODE"], os.environ.get("RAY_AUTH_TOKEN")]))
"""


@pytest.mark.parametrize(
    ("address", "token", "mode"),
    [
        (None, None, "token"),
        ("auto", "t" * 64, "token"),
        ("10.0.0.1:6379", "t" * 64, "token"),
        ("auto", None, "disabled"),
    ],
)
def test_authentication_of_ray_is_always_set(tmp_path: Path, address: str | None, token: str | None, mode: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path)}
    environment |= {"RAY_AUTH_TOKEN": token} if token else {}
    words = [sys.executable, "-c", PREPARE, json.dumps(address)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    set_to, drawn = json.loads(done.stdout)
    assert set_to == mode
    if address is None:
        assert len(drawn) == 64


@pytest.mark.parametrize(("ray", "warned"), [("2.51.2", True), ("2.52.0", False), ("2.60.0", False), (None, False)])
def test_ray_that_knows_no_token_is_warned_of(monkeypatch: pytest.MonkeyPatch, ray: str | None, warned: bool) -> None:
    monkeypatch.setattr("orchestration.util.requirements.installed", lambda name: ray)
    said = f"warning: Ray {ray} knows no token: other users of this machine can reach it (expected ray>=2.52)"
    assert lacks_token() == (said if warned else None)


# a real launch


@pytest.mark.slow
def test_running_launch_listens_on_loopback_alone_and_tells_no_secret(
    folder: Path, launch: Callable[..., Launched], planted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tiny.yaml").write_text(SHORT)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    one = launch("--tracking-uri", f"http://ada:{IN_THE_URI}@127.0.0.1:9")
    until(lambda: checkpoints(ledger_of(folder)), one)
    tree = [psutil.Process(one.process.pid)]
    tree += tree[0].children(recursive=True)
    names = {process.name() for process in tree}
    assert {"raylet", "gcs_server"} <= names
    listening = {
        (process.name(), socket.laddr.ip)
        for process in tree
        for socket in process.net_connections("inet")
        if socket.status == psutil.CONN_LISTEN
    }
    assert listening, "or nothing was looked at"
    assert {ip.removeprefix("::ffff:") for _, ip in listening} <= {"127.0.0.1", "::1"}, listening  # IPv4 in IPv6's form
    tokens = {process.environ().get("RAY_AUTH_TOKEN") for process in tree if process.name() == "raylet"}
    modes = {process.environ().get("RAY_AUTH_MODE") for process in tree if process.name() in ("raylet", "gcs_server")}
    assert modes == {"token"}
    assert all(len(token or "") == 64 for token in tokens)
    assert one.wait() == 0, one.text
    assert "planted-" not in one.text
    assert not any(token in one.text for token in tokens if token)
    assert found_in(folder) == []
