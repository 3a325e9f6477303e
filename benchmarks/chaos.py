"""Nothing lost, nothing twice: `python -m benchmarks.chaos --kills 20 --seed 0` (make chaos).

An experiment is run twice: once in peace, and once while random processes of it are killed (SIGKILL) at random times:
its driver, its workers, the raylet and the head of its Ray, and MLflow's server. It is launched again until it is done,
MLflow is brought level, and the two are compared to the last byte and row. The time that was lost is measured in the
same run as what a launch takes from its start to its first training.

Exit status 1 where anything differs, is lost or is there twice. Time is told and not judged.
"""

import argparse
import json
import os
import random
import re
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil  # type: ignore[import-untyped]
import torch

from fsg import checkpoint
from orchestration.ledger.ledger import Ledger
from orchestration.util.metric_names import OF_THE_MACHINE

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("driver", "worker", "raylet", "head", "tracking server")
_FSG = "from orchestration.cli import main; main()"
_NAMES = {"raylet": "raylet", "head": "gcs_server"}


class TrackingServer:
    """MLflow's server on loopback, over a SQLite database in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.start()

    @property
    def database(self) -> Path:
        return self.folder / "mlflow.db"

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.database}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "log.txt").open("a") as log:
            self.process = subprocess.Popen(
                command, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self) -> None:
        """Until it answers."""
        end = time.monotonic() + 180
        while time.monotonic() < end:
            with suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            time.sleep(0.3)
        raise TimeoutError(f"MLflow's server does not answer: {self.folder / 'log.txt'}")


@contextmanager
def serving(folder: Path) -> Iterator[TrackingServer]:
    server = TrackingServer(folder)
    try:
        server.wait()
        yield server
    finally:
        server.kill()


@dataclass
class Run:
    """An experiment in a folder, launched as often as it takes."""

    folder: Path
    command: Sequence[str]
    server: TrackingServer
    output: IO[str]
    kills: Counter[str] = field(default_factory=Counter)
    launched: list[float] = field(default_factory=list)
    killed: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ledger(self) -> Ledger:
        (folder,) = (path.parent for path in self.folder.glob("*/launches"))
        return Ledger(folder)

    def launch(self) -> subprocess.Popen[str]:
        self.launched.append(time.time())
        command = [*self.command, "--results", str(self.folder), "--tracking-uri", self.server.uri]
        return subprocess.Popen(
            command, cwd=ROOT, stdout=self.output, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def run(self, gaps: Sequence[float], draw: random.Random, cells: int = 0) -> None:
        """Until it is done, with a kill after each of these gaps of seconds.

        Of so many `cells`, each kill comes at the latest when its part is done: all of them come before the end.
        """
        began, left = time.monotonic(), list(gaps)
        driver, last = self.launch(), time.monotonic()
        while True:
            with suppress(subprocess.TimeoutExpired):
                if driver.wait(0.1) == 0:
                    break
                if len(self.launched) > len(gaps) + 10:
                    raise RuntimeError(f"it does not come to an end: {self.output.name}")
                driver = self.launch()
            late = cells * (1 + len(gaps) - len(left)) / (len(gaps) + 1)
            if left and (time.monotonic() - last >= left[0] or self._done() >= late):
                left.pop(0)
                self._kill(driver, draw)
                last = time.monotonic()
        self.seconds = time.monotonic() - began

    def _done(self) -> int:
        return len({path.parent.parent for path in self.folder.glob("*/trials/*/*/final.pt")})

    def _kill(self, driver: subprocess.Popen[str], draw: random.Random) -> None:
        kind = draw.choice(KINDS)
        victims = self._processes(driver, kind)
        if not victims:  # not started yet, or gone: then whoever starts it
            kind, victims = "driver", self._processes(driver, "driver")
        print(f"  {time.strftime('%H:%M:%S')}  kills {kind}", file=self.output, flush=True)
        self.kills[kind] += 1
        self.killed.append(time.time())
        if kind == "tracking server":
            self.server.kill()
            self.server.start()
        for victim in victims:
            with suppress(psutil.Error):
                victim.kill()

    def _processes(self, driver: subprocess.Popen[str], kind: str) -> list[psutil.Process]:
        try:
            whole = psutil.Process(driver.pid)
            below = whole.children(recursive=True)
            if kind == "driver":
                return [whole]
            if kind == "tracking server":
                return [psutil.Process(self.server.process.pid)]
            if kind == "worker":
                return [one for one in below if re.match(r"ray::.*Trainable", " ".join(one.cmdline()))][:1]
            return [one for one in below if one.name() == _NAMES[kind]]
        except psutil.Error:
            return []

    def first_trainings(self) -> list[float]:
        """Seconds from each launch to the first attempt at a cell, where nothing was killed before that."""
        attempts = sorted(a["started_at"] / 1000 for c in self.ledger.cells() for a in self.ledger.attempts(c.id))
        found = []
        for launched in self.launched:
            first = next((at for at in attempts if at > launched), None)
            if first is not None and not any(launched < at < first for at in [*self.killed, *self.launched]):
                found.append(first - launched)
        return found


# What is compared


def values_of(ledger: Ledger, cell_id: str, whole: bool = False) -> list[tuple[int, str, float]]:
    """Every value of a cell, as often as it is there; `whole`, with those in which the machine has a say."""
    rows = ((row.step, name, value) for row in ledger.rows(cell_id) for name, value in row.values.items())
    return sorted(row for row in rows if whole or not row[1].startswith(OF_THE_MACHINE))


def tensors_of(ledger: Ledger, cell_id: str) -> dict[str, bytes]:
    """The bytes of every tensor of the final weights and of the best ones."""
    found = {}
    for which, path in (("final", ledger.final_weights(cell_id)), ("best", ledger.best_weights(cell_id))):
        leaves = checkpoint.leaves(checkpoint.from_bytes(path.read_bytes())) if path is not None else []
        for name, value in leaves:
            if isinstance(value, torch.Tensor):
                found[f"{which}{name}"] = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return found


def differing(ours: dict[str, bytes], theirs: dict[str, bytes]) -> int:
    """Bytes that are not the same; of a tensor that only one has, all."""
    count = 0
    for name in {*ours, *theirs}:
        a, b = ours.get(name, b""), theirs.get(name, b"")
        count += sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b)) if a != b else 0
    return count


def multiset(found: Sequence[object], expected: Sequence[object]) -> tuple[int, int]:
    """What is missing of what is expected, and what is there once too often or not expected at all."""
    have, want = Counter(found), Counter(expected)
    return (want - have).total(), (have - want).total()


def in_mlflow(database: Path) -> tuple[dict[str, list[tuple[int, str, float, int]]], Counter[str], set[str]]:
    """Rows by cell, runs by cell, and statuses, as they stand in MLflow's database."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as asked:
        cell_of = dict(asked.execute("select run_uuid, value from tags where key = 'fsg.cell_id'").fetchall())
        metrics = asked.execute("select run_uuid, step, key, value, timestamp from metrics where is_nan = 0")
        rows: dict[str, list[tuple[int, str, float, int]]] = {cell: [] for cell in cell_of.values()}
        for run, *row in metrics:
            rows[cell_of[run]].append((row[0], row[1], row[2], row[3]))
        return rows, Counter(cell_of.values()), {row[0] for row in asked.execute("select status from runs")}


def compare(calm: Ledger, chaos: Ledger, server: TrackingServer) -> dict[str, tuple[int, int]]:
    """For each thing that must be 0: how many, and of how many."""
    cells = [cell.id for cell in calm.cells()]
    done = [cell_id for cell_id in cells if chaos.outcome(cell_id).state == "done"]
    results = {"cells not done": (len(cells) - len(done), len(cells))}
    bytes_of = {cell_id: tensors_of(calm, cell_id) for cell_id in cells}
    total = sum(len(content) for tensors in bytes_of.values() for content in tensors.values())
    results["bytes that differ"] = sum(differing(bytes_of[i], tensors_of(chaos, i)) for i in cells), total
    states = sum(calm.outcome(i).digest != chaos.outcome(i).digest for i in cells)
    results["states that differ"] = states, len(cells)
    rows = {i: multiset(values_of(chaos, i), values_of(calm, i)) for i in cells}
    count = sum(len(values_of(calm, i)) for i in cells)
    results["rows lost"] = sum(lost for lost, _ in rows.values()), count
    results["rows doubled"] = sum(doubled for _, doubled in rows.values()), count
    sent, runs, statuses = in_mlflow(server.database)
    kept = {i: values_of(chaos, i, whole=True) for i in cells}
    names = {name for values in kept.values() for _, name, _ in values}
    in_runs = {i: [(s, name, v) for s, name, v, _ in sent.get(i, []) if name in names] for i in cells}
    told = {i: multiset(in_runs[i], kept[i]) for i in cells}
    count = sum(len(values) for values in kept.values())
    results["rows lost in MLflow"] = sum(lost for lost, _ in told.values()), count
    results["rows doubled in MLflow"] = sum(doubled for _, doubled in told.values()), count
    results["runs missing"] = len({*cells, "experiment"} - runs.keys()), len(cells) + 1
    results["runs doubled"] = runs.total() - len(runs), len(cells) + 1
    results["runs not finished"] = len(statuses - {"FINISHED"}), len(statuses)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of what is killed, and when")
    parser.add_argument("--spec", type=Path, default=ROOT / "configs" / "ablation_hgs.yaml")
    parser.add_argument("--profile", default="quick", help="of the spec; empty: none")
    parser.add_argument("--checkpoint-every", type=float, default=1.0, help="seconds; a cell takes a few")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fsg-chaos-"))
    command = [sys.executable, str(ROOT / "orchestration" / "launch.py"), str(chosen.spec.resolve())]
    command += ["--profile", chosen.profile] if chosen.profile else []
    command += ["--set", f"resources.checkpoint_every={chosen.checkpoint_every}"]
    draw = random.Random(chosen.seed)
    print(f"everything is kept in {folder}", flush=True)
    with (folder / "calm.txt").open("w") as output, serving(folder / "calm-mlflow") as server:
        calm = Run(folder / "calm", command, server, output)
        calm.run([], draw)
    cold = calm.first_trainings()[0]
    print(f"in peace: {calm.seconds:.0f} s, {cold:.1f} s from launch to first training", flush=True)
    typical = 0.7 * (cold + calm.seconds / max(chosen.kills, 1))
    gaps = [draw.uniform(0.0, 2.0) * typical for _ in range(chosen.kills)]
    with (folder / "chaos.txt").open("w") as output, serving(folder / "chaos-mlflow") as server:
        chaos = Run(folder / "chaos", command, server, output)
        chaos.run(gaps, draw, len(calm.ledger.cells()))
        server.wait()
        sync = [sys.executable, "-c", _FSG, "sync", str(chaos.ledger.folder)]
        subprocess.run([*sync, "--tracking-uri", server.uri], cwd=ROOT, stdout=output, stderr=output, check=True)
        results = compare(calm.ledger, chaos.ledger, server)

    colds = [*calm.first_trainings(), *chaos.first_trainings()]
    cold, kills, lost = statistics.median(colds), chaos.kills.total(), chaos.seconds - calm.seconds
    restarts = sum("goes_on_from" in launch for launch in chaos.ledger.launches())
    by_kind = ", ".join(f"{kind} {chaos.kills[kind]}" for kind in KINDS if chaos.kills[kind])
    print(f"{'kills':<24}{kills} of {chosen.kills} ({by_kind})")
    print(f"{'relaunches':<24}{len(chaos.launched) - 1}, and {restarts} times a launch started its Ray anew by itself")
    print(f"{'cells':<24}{len(calm.ledger.cells())}")
    for what, (number, of) in results.items():
        print(f"{what:<24}{number} of {of}")
    part = lost / (kills * cold) if kills else 0.0
    print(
        f"{'time lost':<24}{lost:.0f} s ({calm.seconds:.0f} s in peace, {chaos.seconds:.0f} s): {part:.2f} × "
        f"({kills} kills × {cold:.1f} s from launch to first training)"
    )
    if chosen.json:
        figures = {what: number for what, (number, _) in results.items()}
        figures |= {"kills": kills, "relaunches": len(chaos.launched) - 1, "lost_per_kill_and_cold_start": part}
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(kills < chosen.kills or any(number for number, _ in results.values()))


if __name__ == "__main__":
    sys.exit(main())
