import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from launches import SHORT, SPEC, Launched, images

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    """A training sets the process up for itself; the other tests get theirs back."""
    before, environment = torch.get_num_threads(), dict(os.environ)
    yield
    torch.set_num_threads(before)
    torch.set_default_dtype(torch.float32)
    if "MLFLOW_TRACKING_URI" not in environment:  # MLflow sets it to the address that it was given last
        os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a small experiment in it."""
    images(tmp_path / "tiny.npz")
    (tmp_path / "tiny.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def short(folder: Path) -> None:
    """Its trainings are fewer and shorter, and often keep a checkpoint."""
    (folder / "tiny.yaml").write_text(SHORT)


@pytest.fixture
def mlflow_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, where nothing answers (`NO_MLFLOW`), and after 3 seconds where the answer does not come."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")


@pytest.fixture
def launch(folder: Path) -> Iterator[Callable[..., Launched]]:
    """Launches it, and sees that nothing of it outlives the test."""
    started: list[Launched] = []

    def start(*arguments: str, **more: Any) -> Launched:
        started.append(Launched(folder, *arguments, **more))
        return started[-1]

    yield start
    for one in started:
        one.kill()


# A real S3 server, moto's


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://` and the name of an empty bucket, which this process and its children find by their environment."""
    import boto3

    said = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "planted-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    name = f"results-{os.getpid()}-{next(_numbers)}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"
