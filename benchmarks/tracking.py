"""What tracking costs, and what MLflow on PostgreSQL takes.

    python -m benchmarks.tracking cost [--epochs N]
        CPU seconds of the outbox, beside those of the trainings whose ledger it sends, and of a whole launch of them
    python -m benchmarks.tracking postgres [--runs N]
        N runs × 100 epochs × 20 metrics through ledger and outbox into a PostgreSQL on loopback, and then the seconds
        until the experiment's page shows them in Chromium

PostgreSQL and Chromium are Debian's (`apt-get install postgresql chromium`). PostgreSQL runs as the user `postgres`
where this is root, in a temporary folder, and is gone afterwards.
"""

import argparse
import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from fsg.data import FashionMNISTSubset
from fsg.estimators import FSG, STE
from fsg.models import ResNet
from fsg.train_config import TrainConfig
from orchestration.ledger.ledger import Ledger
from orchestration.runtime.cell_training import CellTraining
from orchestration.spec.cells import Cell, cells
from orchestration.spec.experiment import ExperimentSpec, load_spec
from orchestration.spec.fields import Report, Resources
from orchestration.spec.resolver import Point
from orchestration.tracking.server import HOST, comparison_url, free_port, serving
from orchestration.tracking.sync import Tracker, background

ROOT = Path(__file__).resolve().parents[1]
EPOCHS, STEPS_AN_EPOCH, METRICS = 100, 390, 20
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
CHROMIUM += ["--disable-component-update", "--disable-sync"]


class Row(NamedTuple):
    step: int
    values: dict[str, float]


def cost(epochs: int) -> None:
    """Trainings of the ablation as a worker does them, and the outbox beside them as a launch has it."""
    sets = ["train.init=scratch", "seeds=[0, 1]", f"train.epochs={epochs}"]
    spec = load_spec(ROOT / "configs" / "ablation_hgs.yaml", sets=sets)
    planned = [cell for cell in cells(spec) if cell.variant in ("fsg", "ste")]
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / spec.folder_name)
        tracker = Tracker(ledger, spec)
        spent: list[float] = []
        sync = tracker.sync

        def counted() -> object:
            before = time.thread_time()
            report = sync()
            spent.append(time.thread_time() - before)
            return report

        tracker.sync = counted  # type: ignore[method-assign,assignment]
        tracker.sync()
        train(ledger, planned[0])
        tracker.sync()
        connected, traced = spent
        spent.clear()
        began = time.thread_time()
        with background(tracker, every=15.0):
            for cell in planned[1:]:
                train(ledger, cell)
            trained = time.thread_time() - began
    print(f"once a launch: {connected:.1f} s of CPU to import MLflow and make its database")
    print(f"once a kind of network: {traced:.1f} s to trace it (with the rest of its first run)")
    each, length = sum(spent) / (len(planned) - 1), trained / (len(planned) - 1)
    print(f"each training: {length:.1f} s of CPU; the outbox beside it: {each:.2f} s, {each / length:.2%}")
    for cells_of_it in (24, 100):
        all_of_it = connected + traced + cells_of_it * each
        print(f"a launch of {cells_of_it} such trainings, all of that counted: {all_of_it / cells_of_it / length:.2%}")


def train(ledger: Ledger, cell: Cell) -> None:
    ledger.add(cell)
    training = CellTraining(ledger, cell)
    training.run_for(float("inf"))
    assert training.ended == "done", training.reason


def experiment(runs: int) -> ExperimentSpec:
    """Ten variants by as many seeds as make so many runs."""
    points = [
        Point(
            variant=f"history_{length}" if length else "ste",
            grid={},
            train=TrainConfig(
                data=FashionMNISTSubset(),
                model=ResNet.Config(depth=8, width=8),
                estimator=FSG.Config(history_length=length) if length else STE.Config(),
                epochs=EPOCHS,
            ),
        )
        for length in range(10)
    ]
    return ExperimentSpec(
        name="many_runs",
        question="Does MLflow stay usable?",
        profile=None,
        variants=tuple(point.variant for point in points),
        seeds=tuple(range(-(-runs // len(points)))),
        resources=Resources(),
        report=Report(baseline="ste", primary="history_1"),
        points=tuple(points),
        source=ROOT / "benchmarks" / "tracking.py",
        text="",
    )


def fill(ledger: Ledger, planned: list[Cell]) -> None:
    """Made-up rows, 20 metrics an epoch, as a finished training leaves them."""
    names = ["train/loss", "lr", "epoch", "validation/loss", "validation/accuracy", "time/train_seconds"]
    names += ["weights/flip_rate", "weights/saturated", "weights/never_flipped"]
    names += [f"made_up/metric_{number}" for number in range(METRICS - len(names) - 2)] + ["test/loss", "test/accuracy"]
    for number, cell in enumerate(planned):
        ledger.add(cell)
        attempt = ledger.claim(cell.id, {"device": "none"})
        for epoch in range(1, EPOCHS + 1):
            values = {name: (1 + 0.01 * number + 0.1 * at) / epoch for at, name in enumerate(names)}
            attempt.record([Row(epoch * STEPS_AN_EPOCH, values)])
        attempt.weights("final.pt", b"made up")
        attempt.finish("done", step=EPOCHS * STEPS_AN_EPOCH)


def postgres(runs: int) -> None:
    spec = experiment(runs)
    planned = cells(spec)[:runs]
    with tempfile.TemporaryDirectory() as folder, postgresql() as uri:
        ledger = Ledger(Path(folder) / "many_runs")
        began = time.monotonic()
        fill(ledger, planned)
        print(f"{len(planned)} runs in the ledger after {time.monotonic() - began:.0f} s", flush=True)
        began = time.monotonic()
        empty = Ledger(Path(folder) / "empty")
        Tracker(empty, replace(spec, name="empty"), uri).sync()
        print(f"MLflow imported and its tables made in {time.monotonic() - began:.0f} s", flush=True)
        began, busy = time.monotonic(), time.process_time()
        report = Tracker(ledger, spec, uri).sync()
        spent, busy = time.monotonic() - began, time.process_time() - busy
        assert report.metrics == len(planned) * EPOCHS * METRICS
        rate = f"{report.metrics / spent:,.0f} values a second"
        print(f"PostgreSQL took {report.runs} runs, {report.metrics:,} values in {spent:.0f} s: {rate}", flush=True)
        print(f"the outbox was busy for {busy:.0f} s of it", flush=True)
        began = time.monotonic()
        assert Tracker(ledger, spec, uri).sync().metrics == 0
        print(f"a new driver finds after {time.monotonic() - began:.1f} s that nothing is missing", flush=True)
        with serving(uri, free_port(45300)) as server:
            opened(server + comparison_url(server, spec.folder_name))


def opened(address: str) -> None:
    """Seconds until the experiment's page shows its runs, table and charts, with a fresh browser each."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        print("NOT RUN: the page in a browser (there is no chromium here)")
        return
    with sync_playwright() as playwright:
        for what in ("TABLE", "CHART", "TABLE"):
            browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM)
            page = browser.new_page(viewport={"width": 1600, "height": 1000})
            page.set_default_timeout(300_000)
            began = time.monotonic()
            page.goto(address.replace("=CHART", f"={what}"))
            page.get_by_text("Group: history_1", exact=True).wait_for()
            shown = time.monotonic() - began
            if what == "CHART":
                page.locator(".js-plotly-plot .scatterlayer path.js-line").first.wait_for(state="attached")
            print(
                f"{what.lower():6} runs shown after {shown:.1f} s, all after {time.monotonic() - began:.1f} s",
                flush=True,
            )
            browser.close()


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL of Debian's on loopback, with a database and a password of its own, from its start to its end."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise SystemExit("NOT RUN: there is no PostgreSQL here (apt-get install postgresql)")
    programs = found[-1].parent
    user = "postgres" if os.getuid() == 0 else getpass.getuser()
    as_user = ["runuser", "-u", user, "--"] if os.getuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    try:
        password, port = secrets.token_hex(16), _free_port()
        (folder / "password").write_text(password)
        if as_user:
            for path in (folder, folder / "password"):
                shutil.chown(path, user)
        made = [str(programs / "initdb"), "-D", str(folder / "data"), "-U", "fsg", "--auth=scram-sha-256"]
        made += [f"--pwfile={folder / 'password'}", "--encoding=UTF8", "--no-sync"]
        subprocess.run([*as_user, *made], check=True, stdout=subprocess.DEVNULL, cwd=folder)
        control = [*as_user, str(programs / "pg_ctl"), "-D", str(folder / "data"), "-w"]
        options = f"-c listen_addresses={HOST} -c port={port} -c unix_socket_directories={folder}"
        start = [*control, "-l", str(folder / "log"), "-o", options, "start"]
        subprocess.run(start, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        try:
            yield f"postgresql+psycopg2://fsg:{password}@{HOST}:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "fast", "stop"], check=True, stdout=subprocess.DEVNULL, cwd=folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "postgres"])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=2, help="of the trainings whose tracking is measured")
    arguments = parser.parse_args()
    if arguments.what == "cost":
        cost(arguments.epochs)
    else:
        postgres(arguments.runs)


if __name__ == "__main__":
    main()
