"""`fsg ui`: what it refuses, and, under the mark `slow`, the server that it starts."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from synthetic_experiment import cells_of, spec_of, trained

from orchestration.cli import main
from orchestration.tracking import server
from orchestration.tracking.sync import Tracker

FSG = [sys.executable, "-c", "from orchestration.cli import main; main()"]


@pytest.fixture
def taken() -> "socket.socket":
    taken = socket.socket()
    taken.bind((server.HOST, 0))
    taken.listen()
    yield taken
    taken.close()


def exit_status(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code)


def test_folder_that_is_not_there_or_was_never_tracked_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(["ui", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'none'}: there is no such folder\n"
    (tmp_path / "ablation").mkdir()
    assert exit_status(["ui", str(tmp_path / "ablation")]) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'mlflow.db'}: nothing was tracked here yet")


def test_database_lies_beside_an_experiment_or_in_the_folder_of_all(tmp_path: Path) -> None:
    (tmp_path / "ablation").mkdir()
    (tmp_path / "mlflow.db").touch()
    assert server.database(tmp_path / "ablation") == server.database(tmp_path)
    assert server.database(tmp_path) == f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_port_that_is_taken_is_passed_over(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    assert server.free_port(port) > port


def test_server_that_cannot_be_reached_is_an_error_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["ui", "results/ablation", "--no-browser", "--tracking-uri", "http://me:s3cret@127.0.0.1:9"]
    assert exit_status(arguments) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1
    assert "s3cret" not in said.out + said.err


def test_what_answers_otherwise_than_a_server_is_none_yet(taken: socket.socket) -> None:
    """As a free port does on loopback that is connected to itself: what is asked comes back as the answer."""

    def echo() -> None:
        client, _ = taken.accept()
        with client:
            client.sendall(client.recv(4096))

    threading.Thread(target=echo, daemon=True).start()
    assert not server._answers(f"http://{server.HOST}:{taken.getsockname()[1]}")


@pytest.mark.slow
@pytest.mark.usefixtures("with_a_database")
@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGHUP])
def test_server_shows_the_experiment_and_ends_with_the_command(
    tmp_path: Path, taken: socket.socket, ended_by: signal.Signals
) -> None:
    spec = spec_of(seeds=(0,))
    Tracker(trained(tmp_path / "ablation", spec), spec).sync()
    port = taken.getsockname()[1]
    words = [*FSG, "ui", str(tmp_path / "ablation"), "--no-browser"]
    command = subprocess.Popen([*words, "--port", str(port)], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert command.stdout is not None
        address = command.stdout.readline().split()[1]
        server, _, place = address.partition("/#/experiments/")
        assert int(server.rpartition(":")[2]) > port
        body = json.dumps({"experiment_ids": [place.split("/")[0]], "max_results": 100}).encode()
        request = urllib.request.Request(
            f"{server}/api/2.0/mlflow/runs/search", body, {"Content-Type": "application/json"}
        )
        answer = json.load(urllib.request.urlopen(request, timeout=30))
        assert {run["info"]["run_name"] for run in answer["runs"]} == {"ablation", *(c.label for c in cells_of(spec))}
        below = psutil.Process(command.pid).children(recursive=True)
        assert below
        assert not any(str(tmp_path) in word for process in below for word in process.cmdline())
        listening = [c for process in below for c in process.net_connections("tcp") if c.status == "LISTEN"]
        assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}
    finally:
        command.send_signal(ended_by)
        assert command.wait(30) == 0
    _, alive = psutil.wait_procs(below, timeout=30)
    assert not alive


@pytest.mark.slow
def test_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database")
    words = [*FSG, "ui", str(tmp_path), "--no-browser"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("MLflow's server did not start: ")
    assert len(ended.stderr.splitlines()) == 1
