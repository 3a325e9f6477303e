"""What `fsg launch` and `fsg plan` do, as functions, and the results as records."""

import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from rich.console import Console

from orchestration.commands.exit_status import BAD_INPUT, DONE, INTERRUPTED
from orchestration.commands.plan import ExperimentPlan, compare, load_checked, make_plan
from orchestration.commands.request import LaunchRequest, Refused
from orchestration.ledger import store
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.results import Results
from orchestration.spec.experiment import ExperimentSpec, SpecErrors, load_spec
from orchestration.util.output import Unfailing

__all__ = ["Refused", "Results", "SpecErrors", "load_spec", "open_results", "plan", "run"]

LAUNCH = Path(__file__).with_name("launch.py")


def plan(
    spec: ExperimentSpec | Path | str,
    *,
    profile: str | None = None,
    sets: Sequence[str] = (),
    results: Path | str = "results",
    address: str | None = None,
) -> ExperimentPlan:
    """An experiment against what `results` has of it: what is done, and what would run. Trains nothing.

    `profile` and `sets` (`PATH=VALUE`) are for a spec that is named by its path. Raises SpecErrors for mistakes in the
    spec, and Refused for anything else that stands in the way of a launch.
    """
    loaded = _loaded(spec, profile, sets)
    place, quiet = store.resolve_path(results), Console(quiet=True)
    request = LaunchRequest(loaded.source, loaded.profile, loaded.sets, place, address=address, console=quiet)
    return make_plan(request, *load_checked(request))


def run(
    spec: ExperimentSpec | Path | str,
    *,
    profile: str | None = None,
    sets: Sequence[str] = (),
    results: Path | str = "results",
    tracking_uri: str | None = None,
    address: str | None = None,
    study_storage: str | None = None,
    yes: bool = False,
) -> Results:
    """Run what is missing of an experiment, and return its results. The arguments are the options of `fsg launch`.

    The launch is a process of its own; its progress is printed here. An interrupt stops it at checkpoints and raises
    KeyboardInterrupt; a second one ends it at once. A cell that fails raises nothing: its record says so.
    Raises SpecErrors for mistakes in the spec, Refused where nothing was started, and RuntimeError where the launch
    ended with cells left to train.
    """
    loaded = _loaded(spec, profile, sets)
    folder = store.resolve_path(results) / loaded.folder_name
    options = {
        "--profile": loaded.profile,
        "--results": str(results),
        "--tracking-uri": tracking_uri,
        "--address": address,
        "--study-storage": study_storage,
    }
    words = [word for name, value in options.items() if value is not None for word in (name, value)]
    words += [word for one in loaded.sets for word in ("--set", one)] + ["--yes"] * yes
    status, told = _follow([sys.executable, str(LAUNCH), str(loaded.source), *words])
    if status == BAD_INPUT:
        raise Refused(*told)
    try:
        found = Results(folder)
    except ValueError as error:
        raise RuntimeError("\n".join(told) or str(error)) from None
    statuses = compare(loaded, Ledger(folder)).statuses
    if status != DONE and any(not one.over and one.outcome.state != "failed" for one in statuses):
        raise RuntimeError("\n".join(told) or f"the launch ended with status {status} (expected to resume: run again)")
    for line in told:
        print(line, file=sys.stderr)
    return found


def open_results(folder: Path | str) -> Results:
    """The results of an experiment, from its folder or `s3://BUCKET/PREFIX/NAME`. Raises ValueError where none is."""
    return Results(folder)


def _loaded(spec: ExperimentSpec | Path | str, profile: str | None, sets: Sequence[str]) -> ExperimentSpec:
    """The spec as its file says now, which is what is launched."""
    if not isinstance(spec, ExperimentSpec):
        return load_spec(spec, profile, sets)
    if profile is not None or sets:
        raise Refused("profile, sets: the spec is loaded already (expected them in load_spec)")
    now = load_spec(spec.source, spec.profile, spec.sets)
    if now.sha256() != spec.sha256():
        raise Refused(f"{spec.source}: has changed since it was loaded (expected another load_spec)")
    return now


def _follow(command: Sequence[str]) -> tuple[int, list[str]]:
    """Run a command and pass on what it prints; returns its exit status, and the lines of its standard error.

    It is a session of its own, so that an interrupt reaches it once, from here. Raises KeyboardInterrupt.
    """
    terminal = sys.stdout.isatty()  # where its live view can be drawn
    interrupted = False
    output = Unfailing(sys.stdout)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=None if terminal else subprocess.PIPE,
            stderr=complaints,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        ) as process:
            while process.returncode is None:
                try:
                    for line in process.stdout or ():
                        with redirect_stdout(output):
                            print(line, end="")
                    process.wait()
                except KeyboardInterrupt:
                    interrupted = True
                    process.send_signal(signal.SIGINT)
                except BaseException:
                    process.terminate()
                    raise
        complaints.seek(0)
        told = complaints.read().splitlines()
    if interrupted or process.returncode == INTERRUPTED:
        raise KeyboardInterrupt(*told[-1:])
    return process.returncode, told
