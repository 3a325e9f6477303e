"""A launch that is ended, whenever and however: no process, no folder and no cell of it is left over or lost.

FSG_TEST_ENDINGS=all tries every combination beside a spread, each in an experiment of its own; a number, so many of
them, drawn with that number as the seed.
"""

import itertools
import os
import random
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from launches import (
    LAUNCH,
    NO_MLFLOW,
    assert_exact,
    checkpoints,
    ledger_of,
    planned_here,
)

from orchestration.ledger.ledger import Ledger

pytestmark = pytest.mark.usefixtures("short", "mlflow_gives_up")
WITHIN = 10.0  # seconds


class Ending(NamedTuple):
    """When a launch is ended and by what; `to_all` that was started with it, as a terminal does; how it is read."""

    phase: str
    how: signal.Signals
    to_all: bool
    encoding: str
    closed: str


ENDINGS = [
    Ending("imports", signal.SIGINT, True, "ascii", "<&-"),
    Ending("is recorded", signal.SIGTERM, False, "latin-1", ""),
    Ending("starts Ray's head", signal.SIGKILL, False, "utf-8", ">&-"),
    Ending("starts Ray's raylet", signal.SIGHUP, True, "ascii", "2>&-"),
    Ending("starts its workers", signal.SIGINT, True, "latin-1", ">&- 2>&-"),
    Ending("trains", signal.SIGKILL, False, "ascii", ""),
    Ending("has trained a cell", signal.SIGTERM, False, "utf-8", "<&- >&-"),
    Ending("reports", signal.SIGHUP, True, "latin-1", ""),
]


ENCODINGS = ("utf-8", "ascii", "latin-1")
CLOSED = ("", "<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-")
HOW = ((signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, True), (signal.SIGKILL, False))


def asked_for() -> list[Ending]:
    said = os.environ.get("FSG_TEST_ENDINGS", "0")
    phases = [ending.phase for ending in ENDINGS]
    every = [Ending(a, *b, c, d) for a, b, c, d in itertools.product(phases, HOW, ENCODINGS, CLOSED)]
    return every if said == "all" else random.Random(int(said)).sample(every, int(said))


class Observed:
    """A launch whose processes are written down while it runs, and whose temporary files have a place of their own."""

    def __init__(self, folder: Path, encoding: str = "utf-8", closed: str = "") -> None:
        self.temporary = folder / "temporary"
        self.temporary.mkdir(exist_ok=True)
        self.errors = folder / "errors.txt"
        words = f"exec {sys.executable} {LAUNCH} tiny.yaml {' '.join(NO_MLFLOW)} >output.txt 2>errors.txt {closed}"
        environment = os.environ | {"TMPDIR": str(self.temporary), "PYTHONIOENCODING": encoding}
        self.process = subprocess.Popen(["bash", "-c", words], cwd=folder, env=environment, start_new_session=True)
        self.seen: set[psutil.Process] = {psutil.Process(self.process.pid)}
        self.sessions: set[Path] = set()

    def look(self) -> list[str]:
        """Write down what runs now; returns the names of its processes."""
        found = []
        with suppress(psutil.Error):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    found.append(process.name())
                    self.sessions |= {Path(path) for path in re.findall(r"/tmp/fsg-\w+", " ".join(process.cmdline()))}
                    self.seen.add(process)
        return found

    def end(self, how: signal.Signals, to_all: bool) -> int:
        self.look()
        if to_all:
            os.killpg(self.process.pid, how)
        else:
            self.process.send_signal(how)
        return self.process.wait(300)

    def folders(self) -> list[Path]:
        return [path for path in (*self.sessions, *self.temporary.iterdir()) if path.exists()]

    def left(self) -> list[str]:
        """Processes that run, those that are there to put things away too, and folders."""
        alive = [process for process in self.seen if runs(process)]
        places = [str(path).encode() for path in (*self.sessions, self.temporary)]
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                told = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
                alive += [psutil.Process(int(path.name))] if any(place in told for place in places) else []
        return [*map(str, alive), *map(str, self.folders())]


def runs(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def has_come(phase: str, one: Observed, ledger: Ledger, launches: int) -> bool:
    names = one.look()
    over = [cell for cell in ledger.cells() if ledger.outcome(cell.id).state == "done"]
    asked: dict[str, Callable[[], bool]] = {
        "imports": lambda: "pydantic_core" in Path(f"/proc/{one.process.pid}/maps").read_text(),
        "is recorded": lambda: len(ledger.launches()) > launches,
        "starts Ray's head": lambda: "gcs_server" in names,
        "starts Ray's raylet": lambda: "raylet" in names,
        "starts its workers": lambda: sum("ray::" in name for name in names) > 2,
        "trains": lambda: bool(checkpoints(ledger)),
        "has trained a cell": lambda: bool(over),
        "reports": lambda: len(over) == len(planned_here()),
    }
    return asked[phase]()


@pytest.fixture
def begun() -> Iterator[list[Observed]]:
    made: list[Observed] = []
    yield made
    for one in made:
        for process in filter(runs, one.seen):
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    "endings",
    [ENDINGS, *([one] for one in asked_for())],
    ids=lambda of: "spread" if len(of) > 1 else "-".join(map(str, of[0])),
)
def test_whenever_and_however_it_is_ended_a_launch_leaves_nothing_and_loses_nothing(
    folder: Path, begun: list[Observed], endings: list[Ending]
) -> None:
    for ending in endings:
        ended(folder, ending, begun)
    finished(folder, begun)


def ended(folder: Path, ending: Ending, begun: list[Observed]) -> None:
    """Launch it, end that as it is said, and see that nothing is left over or lost."""
    ledger = ledger_of(folder)
    done = {cell.id for cell in ledger.cells() if ledger.outcome(cell.id).state == "done"}
    launches = len(ledger.launches())
    one = Observed(folder, ending.encoding, ending.closed)
    begun.append(one)
    end = time.monotonic() + 300
    while not has_come(ending.phase, one, ledger, launches):
        assert one.process.poll() is None, (ending, one.errors.read_text())
        assert time.monotonic() < end, ending
        time.sleep(0.05)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in one.folders()), ending
    status, since = one.end(ending.how, ending.to_all), time.monotonic()
    assert status in {-ending.how, 130} | ({0} if ending.phase == "reports" else set()), ending
    while left := one.left():
        assert time.monotonic() < since + WITHIN, (ending, left)
        time.sleep(0.1)
    assert "Traceback" not in one.errors.read_text(), (ending, one.errors.read_text())
    assert {cell.id for cell in ledger.cells() if ledger.outcome(cell.id).state == "done"} >= done, ending


def finished(folder: Path, begun: list[Observed]) -> None:
    one = Observed(folder)
    begun.append(one)
    assert one.process.wait(600) == 0, one.errors.read_text()
    assert_exact(ledger_of(folder), planned_here())
