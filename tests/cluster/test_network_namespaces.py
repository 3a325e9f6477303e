"""Ray nodes, each in a network namespace of its own: one joins, one is lost, one is cut off and meets them again."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exactness import assert_same
from single_process import train

from orchestration.ledger.ledger import Ledger

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
NETWORK = "198.18.77"  # set aside for benchmarks; seen from inside the namespaces alone
DEATH_NOTICED = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
SPEC = """
name: apart
train:
  data: {name: arrays, file: DATA/tiny.npz, validation: 64, crop_padding: 1}
  model: {name: resnet, depth: 8, width: 4}
  epochs: 12
  batch_size: 16
  log_every: 3
  init: {name: pretrain, epochs: 1}
variants:
  sleeper: {estimator: {import: "spell:Sleeper", folder: FOLDER}}
  fsg: {estimator: {name: fsg, chunk_size: 8}}
  ste: {}
seeds: [0, 1, 2, 3, 4, 5, 6, 7]
resources: {checkpoint_every: 0.3}
report: {baseline: ste, primary: fsg}
"""


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=30).stdout


def why_not() -> str | None:
    if shutil.which("ip") is None:
        return "there is no `ip` (Debian's iproute2)"
    probe = f"fsg-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespaces here: {made.stderr.strip()}"
    ip("netns", "delete", probe)
    return None


class Nodes:
    """A switch and what hangs on it; the switch is a namespace, too: the machine's own network is not touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tag = f"fsg{os.getpid()}"
        self.sessions = Path(f"/tmp/{self.tag}")  # sockets lie below it, and their paths must be short
        self.environment = {
            **os.environ,
            **DEATH_NOTICED,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # a Ray of our own in this process may have said 0
            "PYTHONPATH": str(ROOT),
        }
        self.numbers: dict[str, int] = {}
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.switch, "link", "set", "bridge", "up")

    @property
    def switch(self) -> str:
        return f"{self.tag}-switch"

    def space(self, name: str) -> str:
        return f"{self.tag}-{name}"

    def address(self, name: str) -> str:
        return f"{NETWORK}.{self.numbers[name]}"

    def plug_in(self, name: str) -> None:
        self.numbers[name] = len(self.numbers) + 1
        space = self.space(name)
        ip("netns", "add", space)
        ip("-n", space, "link", "set", "lo", "up")
        ip("-n", self.switch, "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("-n", self.switch, "link", "set", f"to-{name}", "master", "bridge", "up")
        ip("-n", space, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")

    def cable(self, name: str, state: str) -> None:
        """`down` cuts a node off, `up` heals it."""
        ip("-n", self.switch, "link", "set", f"to-{name}", state)

    def start(self, name: str, *arguments: str, first: str = "") -> None:
        """Ray in a node's namespace, after a command that sets the scene there. Returns when it has joined.

        On a busy machine Ray may give up waiting for its own processes: it is started again then.
        """
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        ray += ["--node-ip-address", self.address(name), "--object-store-memory", "80000000", *arguments]
        told = self.folder / f"ray-{name}.txt"
        for _ in range(4):
            told.unlink(missing_ok=True)
            started = self.inside(name, ["sh", "-c", f'{first}exec "$@"', "sh", *ray], told)
            while started.poll() is None:
                if "will now block forever" in told.read_text():
                    return
                time.sleep(0.1)
            self.kill(name)
        raise AssertionError(told.read_text())

    def inside(self, name: str, command: list[str], output: Path) -> subprocess.Popen[bytes]:
        with output.open("ab") as out:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.space(name), *command],
                cwd=self.folder,
                env=self.environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def pids(self, name: str) -> list[int]:
        return [int(pid) for pid in ip("netns", "pids", self.space(name)).split()]

    def kill(self, name: str) -> None:
        """Everything that runs on a node, at once."""
        for _ in range(50):
            pids = self.pids(name)
            if not pids:
                return
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.1)

    def close(self) -> None:
        for name in self.numbers:
            self.kill(name)
            ip("netns", "delete", self.space(name))
        ip("netns", "delete", self.switch)
        shutil.rmtree(self.sessions, ignore_errors=True)


def until(condition: Callable[[], Any], what: str, seconds: float = 180) -> float:
    """Wait for it; returns how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - began


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    made = Nodes(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    pixels, labels = draw.integers(0, 255, (384, 12, 12), dtype=np.uint8), np.arange(384) % 4
    pixels[:, 2, 2] = labels * 60
    (tmp_path / "data").mkdir()
    np.savez(
        tmp_path / "data" / "tiny.npz",
        train_images=pixels[:320], train_labels=labels[:320], test_images=pixels[320:], test_labels=labels[320:],
    )  # fmt: skip
    (tmp_path / "specs").mkdir()
    shutil.copy(Path(__file__).with_name("spell.py"), tmp_path / "specs")
    text = SPEC.replace("DATA", str(tmp_path / "data")).replace("FOLDER", str(tmp_path))
    (tmp_path / "specs" / "apart.yaml").write_text(text)
    return tmp_path / "specs" / "apart.yaml"


def newest(ledger: Ledger, cell_id: str) -> int:
    return len(ledger.attempts(cell_id))


def test_a_node_joins_one_is_lost_and_another_cut_off(nodes: Nodes, spec: Path, tmp_path: Path) -> None:
    for name in ("head", "a", "b", "late", "blind"):
        nodes.plug_in(name)
    head = ["--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={nodes.sessions}"]
    joining = [f"--address={nodes.address('head')}:6379", "--num-cpus=1"]
    output = tmp_path / "output.txt"
    fsg = [sys.executable, "-m", "orchestration.cli", "launch", str(spec), "--results", str(tmp_path / "results")]
    fsg += ["--address", f"{nodes.address('head')}:6379"]

    nodes.start("head", *head)

    # A node that does not have the data is told of before anything starts.
    nodes.start("blind", *joining, first=f"mount -t tmpfs none {tmp_path / 'data'} && ")
    refused = nodes.inside("head", fsg, tmp_path / "refused.txt")
    assert refused.wait(180) == 2, (tmp_path / "refused.txt").read_text()
    lines = [line for line in (tmp_path / "refused.txt").read_text().splitlines() if line.startswith("node ")]
    assert len(lines) == 1, (tmp_path / "refused.txt").read_text()
    assert lines[0].startswith(f"node {nodes.address('blind')}: train.data: {tmp_path}/data/tiny.npz: there is no such")
    nodes.kill("blind")

    for name in ("a", "b"):
        nodes.start(name, *joining)
    ledger = Ledger(tmp_path / "results" / "apart")
    launch = nodes.inside("head", fsg, output)

    def still(condition: Callable[[], Any]) -> Callable[[], bool]:
        def ask() -> bool:
            assert launch.poll() is None, output.read_text()
            return bool(condition())

        return ask

    # The node where the sleeper sleeps is cut off; elsewhere the cell goes on.
    until(still((tmp_path / "asleep").exists), "a training is asleep")
    asleep_in = (tmp_path / "asleep").read_text()
    spaces = {name: f"net:[{Path('/run/netns', nodes.space(name)).stat().st_ino}]" for name in ("a", "b")}
    (cut_off,) = (name for name, space in spaces.items() if space == asleep_in)
    (other,) = {"a", "b"} - {cut_off}
    (cell,) = (
        cell.id for cell in ledger.cells()
        if cell.variant == "sleeper" and ledger.outcome(cell.id).state == "running"
    )  # fmt: skip
    nodes.cable(cut_off, "down")
    print(f"elsewhere after {until(still(lambda: newest(ledger, cell) == 2), 'the cell runs elsewhere'):.1f} s")
    folder = ledger.folder / "trials" / cell
    before = {path.name for path in (folder / "0001").iterdir()}

    # A node that joins is used.
    def trains_on_the_late_one() -> bool:
        pids = set(nodes.pids("late"))
        return any(attempt["pid"] in pids for one in ledger.cells() for attempt in ledger.attempts(one.id)[-1:])

    nodes.start("late", *joining)
    until(still(trains_on_the_late_one), "a node that joined trains")

    # The one that was cut off wakes: two writers, of which the newer counts and the older writes no more.
    (tmp_path / "wake").touch()
    until(still((tmp_path / "awake").exists), "the sleeper is awake")
    time.sleep(3)
    assert {path.name for path in (folder / "0001").iterdir()} == before
    nodes.cable(cut_off, "up")

    # The other one is lost in the middle of a training.
    def trains() -> bool:
        running = [c for c in ledger.cells() if c.id != cell and ledger.outcome(c.id).state == "running"]
        points = [ledger.resume_point(c.id) for c in running]
        return any(p is not None and p.attempt == newest(ledger, c.id) for p, c in zip(points, running, strict=True))

    until(still(trains), "a training has a checkpoint")
    nodes.kill(other)
    until(still(lambda: not nodes.pids(cut_off)), "a node that was taken for dead leaves")
    for name in (cut_off, other):
        nodes.start(name, *joining)

    assert launch.wait(300) == 0, output.read_text()
    assert output.read_text().count("is retried") >= 2, output.read_text()
    oracle = train(spec, tmp_path / "oracle")
    assert_same(ledger, oracle)
