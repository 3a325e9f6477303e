"""Handing an experiment over to a cluster, as far as no cluster is needed: what is refused, and what is packed."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from orchestration.scheduler.environment import prepare

prepare("http://127.0.0.1:1")

import ray

from orchestration.cli import main
from orchestration.scheduler.connection import _refusing, connect
from orchestration.scheduler.environment import Unusable
from orchestration.scheduler.job_server import JobServer, pack, package_sha256

SPEC = """
name: tiny
train: {epochs: 1}
variants: {ste: {}, fsg: {estimator: fsg}}
seeds: [0]
report: {baseline: ste, primary: fsg}
"""
Answer = tuple[int, str]


@pytest.fixture
def server() -> Iterator[Callable[[Callable[[str | None], Answer]], str]]:
    """A server on loopback that answers by what is in the Authorization header."""
    started: list[ThreadingHTTPServer] = []

    def serve(answer: Callable[[str | None], Answer]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = answer(self.headers.get("Authorization"))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *arguments: object) -> None:
                pass

        started.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=started[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{started[-1].server_address[1]}"

    yield serve
    for one in started:
        one.shutdown()
        one.server_close()


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "no_token"))


def version(of: str = ray.__version__) -> str:
    return json.dumps({"version": "4", "ray_version": of, "ray_commit": "", "session_name": ""})


def guarded(authorization: str | None) -> Answer:
    if authorization is None:
        return 401, "Unauthorized"
    return (200, version()) if authorization == "Bearer right" else (403, "Forbidden")


def test_nothing_answers() -> None:
    with pytest.raises(Unusable, match=r"http://127.0.0.1:1: nothing answers there .*make cluster-up"):
        JobServer("http://127.0.0.1:1")


def test_token_is_missing_wrong_right(
    server: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = server(guarded)
    with pytest.raises(Unusable, match="a token is required, and none is set"):
        JobServer(address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    with pytest.raises(Unusable, match="the token is wrong"):
        JobServer(address)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    (tmp_path / "no_token").write_text("right\n")
    assert JobServer(address + "/").address == address


def test_cluster_whose_ray_is_out_of_range_is_refused(server: Callable[..., str]) -> None:
    for theirs in ("1.0.0", "2.50.1", "2.61.0", "3.0.0.dev0"):
        address = server(lambda _, theirs=theirs: (200, version(theirs)))
        with pytest.raises(Unusable) as told:
            JobServer(address)
        assert str(told.value) == (
            f"{address}: the cluster has Ray {theirs}, here is {ray.__version__} "
            "(expected <2.61,>=2.51.0: build its image anew)"
        )


@pytest.mark.parametrize("theirs", ["2.51.0", "2.55.1", "2.60.9"])
def test_cluster_with_another_ray_in_range_is_used_with_a_warning(
    server: Callable[..., str], capsys: pytest.CaptureFixture[str], tmp_path: Path, theirs: str
) -> None:
    (tmp_path / "no_token").write_text("right\n")  # a Ray of an earlier test may have made one necessary
    address = server(lambda _: (200, version(theirs)))
    assert JobServer(address).address == address
    expected = f"warning: {address}: the cluster has Ray {theirs}, here is {ray.__version__}"
    assert capsys.readouterr() == ("", f"{expected}; the experiment runs on the cluster's\n")


def test_cluster_with_the_same_ray_is_used_without_a_word(
    server: Callable[..., str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "no_token").write_text("right\n")
    JobServer(server(lambda _: (200, version())))
    assert capsys.readouterr() == ("", "")


def test_something_else_answers(server: Callable[..., str]) -> None:
    for answer in ((404, "nothing"), (200, "<html>hello</html>"), (200, "{}")):
        with pytest.raises(Unusable, match="is not a Ray job server"):
            JobServer(server(lambda _, answer=answer: answer))


MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.9.0
    Python: 3.9.1
This process on node 198.18.0.1 was started with:
    Ray: 2.60.0
    Python: 3.11.7
"""


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (
            RuntimeError(MISMATCH),
            "the cluster has Ray 2.9.0 and Python 3.9.1, here is Ray 2.60.0 and Python 3.11.7 (exp",
        ),
        (
            ConnectionError("Could not find any running Ray instance."),
            "no cluster answers that this machine is a node of",
        ),
        (ray.exceptions.AuthenticationError("no\ntoken"), "the cluster refuses the token, or there is none (expected"),
    ],
)
def test_one_line_says_why_a_cluster_is_not_joined(raised: Exception, line: str) -> None:
    with pytest.raises(Unusable) as told, _refusing("198.18.0.1:6379"):
        raise raised
    assert str(told.value).startswith(f"--address 198.18.0.1:6379: {line}")
    with pytest.raises(type(raised)), _refusing(None):
        raise raised


def test_ray_is_not_asked_where_nothing_listens() -> None:
    with pytest.raises(Unusable, match="no cluster answers"), connect("127.0.0.1:1"):
        raise AssertionError("connected to nothing")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "tiny.yaml").write_text(SPEC)
    return tmp_path / "specs" / "tiny.yaml"


def test_one_line_from_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("status", "logs", "attach", "stop"):
        assert run(verb, "tiny", "--address", "http://127.0.0.1:1") == 2
        assert run(verb, "tiny", "--address", "ray://somewhere:10001") == 2
        first, second = capsys.readouterr().err.splitlines()
        assert "nothing answers there" in first
        assert "expected http://HOST:8265" in second


def test_launch_refuses_what_is_no_job_server(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("launch", str(spec), "--submit") == 2
    assert run("launch", str(spec), "--submit", "--address", "auto") == 2
    assert run("launch", str(spec), "--address", "ray://somewhere:10001") == 2
    assert run("launch", str(spec), "--submit", "--address", "http://127.0.0.1:1") == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" (expected ")[2] for line in lines] == [
        "--address http://HOST:8265)",
        "--address http://HOST:8265)",
        "http://HOST:8265, or on a node of the cluster auto or HOST:PORT)",
        "a cluster: make cluster-up)",
    ]


def test_wrong_spec_is_not_handed_over(
    spec: Path, server: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    address = server(lambda _: asked.append(1) or (200, version()))  # type: ignore[func-returns-value]
    assert run("launch", str(spec), "--submit", "--address", address, "--set", "train.epochs=many") == 2
    assert "train.epochs" in capsys.readouterr().err
    assert not asked


def test_password_of_mlflow_is_not_handed_over(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = "http://me:hush@mlflow:5000"
    assert run("launch", str(spec), "--submit", "--address", "http://127.0.0.1:1", "--tracking-uri", uri) == 2
    said = capsys.readouterr().err
    assert "has a password" in said
    assert "hush" not in said


def test_package_has_the_code_the_spec_and_the_users_modules(spec: Path, tmp_path: Path) -> None:
    (spec.parent / "my_idea.py").write_text("IDEA = 1\n")
    (spec.parent / "secret.txt").write_text("hush")
    package = pack(tmp_path / "one" / "package", spec, spec.parent, {"command": "fsg launch tiny.yaml"})
    names = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert {"own-code/tiny.yaml", "own-code/my_idea.py", "submitted.json", "orchestration/cli.py"} <= names
    assert {name.partition("/")[0] for name in names} == {"fsg", "orchestration", "own-code", "submitted.json"}
    assert not {name for name in names if name.endswith((".pyc", ".txt"))}
    again = pack(tmp_path / "two" / "package", spec, spec.parent, {"command": "fsg launch tiny.yaml"})
    assert package_sha256(again) == package_sha256(package)
    (again / "own-code" / "my_idea.py").write_text("IDEA = 2\n")
    assert package_sha256(again) != package_sha256(package)


DRIVER = """
import io, json, os, runpy, sys
from contextlib import redirect_stderr, redirect_stdout

from orchestration.commands.request import LaunchRequest
from orchestration.util import provenance, submission

def ran(results, *words):
    os.environ.pop("FSG_RESULTS", None)
    os.environ |= {"FSG_RESULTS": results} if results else {}
    sys.argv[1:], said = words, [io.StringIO(), io.StringIO()]
    with redirect_stdout(said[0]), redirect_stderr(said[1]):
        try:
            runpy.run_module("orchestration.submitted", run_name="__main__")
        except SystemExit as end:
            return [end.code or 0, *(text.getvalue() for text in said)]

shared, plan, file = sys.argv[1], ["plan", "tiny.yaml", "--no-pilot"], os.path.abspath("submitted.json")
told = {"unset": ran("", *plan), "relative": ran("here", *plan), "planned": ran(shared, *plan)}
told["who"] = [provenance.code()["git_commit"], LaunchRequest(None).command]
record = json.load(open(file))
json.dump(record | {"python": "3.9.1"}, open(file, "w"))
submission.record.cache_clear()
told["other"] = ran(shared, *plan)
print(json.dumps(told))
"""


@pytest.mark.slow
def test_driver_plans_what_was_handed_over_and_refuses_another_python_and_results_that_are_nowhere(
    spec: Path, tmp_path: Path
) -> None:
    """What Ray runs in the cluster: in the package, which is first on the path; several in one process here."""
    record = {"command": "fsg launch tiny.yaml --address http://far:8265", "git_commit": "c" * 40}
    package = pack(tmp_path / "package", spec, None, record)
    (package / "driver.py").write_text(DRIVER)
    keep = {name: value for name, value in os.environ.items() if name not in ("FSG_RESULTS", "PYTHONPATH")}
    ran = subprocess.run(
        [sys.executable, "driver.py", str(tmp_path / "shared")],
        cwd=package, env=keep, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    for which, says in (("unset", "is not set"), ("relative", "says here")):
        assert told[which][0] == 2
        assert f"FSG_RESULTS {says} in the cluster" in told[which][1]
    status, out, err = told["planned"]
    assert status == 0, err
    assert f"2 cells, 2 to run, 1 at a time, into {tmp_path}/shared/tiny" in out.replace("2 at a time", "1 at a time")
    assert told["who"] == ["c" * 40, "fsg launch tiny.yaml --address http://far:8265"]
    assert told["other"][0] == 2
    assert "this was submitted by 3.9.1 (expected" in told["other"][2]
