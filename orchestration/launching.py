"""A launch: what is missing of an experiment is trained, tracked and reported."""

import os
import shlex
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil  # type: ignore[import-untyped]
from rich import box
from rich.console import Console
from rich.table import Table

import fsg
from orchestration import provenance, ray_settings, store, submitted
from orchestration.checks import other_study, unplaceable, unrunnable
from orchestration.duration import duration
from orchestration.ledger import Held, Ledger, Outcome, Unwritable, write_new
from orchestration.passwords import without_password
from orchestration.pilot import Pilots, predicted, wall_clock
from orchestration.plan import Cell, Standing, cells, imported, standings
from orchestration.progress import LiveView, PlainLines, view
from orchestration.ray_settings import Unusable
from orchestration.specs import ExperimentSpec, SpecErrors, load_spec, recorded_spec
from orchestration.study_records import SearchError, expected_cells
from orchestration.tracking import flat

if TYPE_CHECKING:
    from orchestration.search import Guarded
    from orchestration.tracking import Tracker

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
SYNC_EVERY = 15.0
_MOST_NAMED = 4
_DEATHS, _MOST_DEATHS = "FSG_RAY_DEATHS", 5


class _Refused(Exception):
    """What ends a launch before it starts: the lines say why."""

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines = lines


@dataclass(frozen=True)
class Launch:
    """What was asked for on the command line."""

    source: Path
    profile: str | None = None
    sets: Sequence[str] = ()
    results: Path = Path("results")
    tracking_uri: str | None = None
    address: str | None = None
    submit: bool = False
    study_storage: str | None = None
    yes: bool = False
    console: Console = field(default_factory=lambda: Console(file=sys.stdout))

    def plan(self, with_pilot: bool = True) -> int:
        """Print what would run. Returns the exit status."""
        if ray_settings.is_job_server(self.address):
            return self._guarded(lambda: self._hand_over(["plan"] + ([] if with_pilot else ["--no-pilot"])))
        return self._guarded(lambda: self._plan(with_pilot))

    def run(self) -> int:
        """Run it. Returns the exit status."""
        if ray_settings.is_job_server(self.address):
            return self._guarded(lambda: self._hand_over(["launch"]))
        return self._guarded(self._run)

    @property
    def command(self) -> str:
        """The same again, but for a password in the tracking URI: it is kept in records, and printed."""
        if submitted.record():
            return str(submitted.record()["command"])
        words = ["fsg", "launch", str(self.source)]
        words += ["--profile", self.profile] if self.profile else []
        words += [word for one in self.sets for word in ("--set", one)]
        words += ["--results", str(self.results)] if self.results != Path("results") else []
        words += ["--tracking-uri", without_password(self.tracking_uri)] if self.tracking_uri else []
        words += ["--address", self.address] if self.address else []
        words += ["--study-storage", without_password(self.study_storage)] if self.study_storage else []
        return shlex.join(words)

    @property
    def _mlflow(self) -> str | None:
        return self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")

    def _guarded(self, work: Any) -> int:
        try:
            return int(work())
        except (SpecErrors, _Refused) as refused:
            for line in refused.lines:
                print(line, file=sys.stderr)
            return BAD_INPUT
        except (Held, Unusable) as refused:
            print(refused, file=sys.stderr)
            return BAD_INPUT
        except OSError as error:
            print(f"{self._broken_off(error)} It goes on with: {self.command}", file=sys.stderr)
            return FAILED
        except KeyboardInterrupt:
            print(f"Interrupted. It goes on with: {self.command}", file=sys.stderr)
            return INTERRUPTED

    def _broken_off(self, error: OSError) -> str:
        what = f"{error.strerror} ({error.filename})" if error.filename else error.strerror or str(error)
        return f"The launch broke off: {what}; what is in {self.results} is whole."

    def _prepared(self) -> tuple[ExperimentSpec, list[Cell], Ledger]:
        if self.address and self.address.startswith("ray://"):
            hint = "expected http://HOST:8265, or on a node of the cluster auto or HOST:PORT"
            raise _Refused(f"--address: {self.address}: Ray's client mode is not supported ({hint})")
        if self.submit:
            raise _Refused("--submit: wants the job server of a cluster (expected --address http://HOST:8265)")
        if wrong := submitted.other_python():
            raise _Refused(wrong)
        spec = load_spec(self.source, self.profile, self.sets)
        problems = unrunnable(spec, self.source, self.sets, remote=self.address is not None)
        if problems:
            raise _Refused(*problems)
        ledger = Ledger(self.results / spec.folder_name)
        with _refusing_oserrors(ledger.folder):
            store.of(ledger.folder).names(ledger.folder)  # one that does not answer is told before anything else
        others = other_study(spec, ledger, self.source, self.sets)
        if others:
            raise _Refused(*others)
        planned = cells(spec)
        if spec.resources.gpus == "auto":
            from orchestration.sharing import shared

            try:
                with self.console.status("measuring how many trainings do best beside each other"):
                    spec, measured = shared(spec, [*planned, *expected_cells(spec, ledger)])
            except Exception as error:  # what a training of the user's own may raise
                text = f"auto cannot be measured: {_first_line(error)} (expected a number)"
                raise _Refused(f"{self.source}: resources.gpus: {text}") from error
            self._say(measured)
        return spec, planned, ledger

    def _own(self, spec: ExperimentSpec) -> Path | None:
        """The folder of the user's own components, if there are any."""
        return spec.source.parent if any(imported(train) for train in spec.trains) else None

    # handing over

    def _hand_over(self, words: list[str]) -> int:
        if store.is_remote(self.results):
            hint = "expected --address auto, on a node of the cluster, or a folder that all nodes share"
            raise _Refused(f"--results {self.results}: not with a job server ({hint})")
        spec = load_spec(self.source, self.profile, self.sets)
        ray_settings.prepare(self.address)
        from orchestration import handover

        assert self.address is not None
        words = [words[0], spec.source.name, *words[1:], "--address", "auto"]
        words += ["--profile", self.profile] if self.profile else []
        words += [word for one in self.sets for word in ("--set", one)]
        words += ["--yes"] if self.yes and words[0] == "launch" else []
        environment = {} if self.results == Path("results") else {"FSG_RESULTS": str(self.results)}
        if self.tracking_uri:
            if without_password(self.tracking_uri) != self.tracking_uri:
                what = "has a password, which a job would show (expected it in the environment of the cluster's nodes)"
                raise _Refused(f"--tracking-uri: {what}")
            environment["MLFLOW_TRACKING_URI"] = self.tracking_uri
        if self.study_storage:
            if without_password(self.study_storage) != self.study_storage:
                what = "has a password, which a job would show (expected a .pgpass on the cluster's nodes)"
                raise _Refused(f"--study-storage: {what}")
            words += ["--study-storage", self.study_storage]
        record = {"command": self.command, "spec_source": str(spec.source)}
        wanted = handover.Wanted(spec.folder_name, spec.source, self._own(spec), words, environment, record)
        return handover.hand_over(self.address, wanted, stay=not self.submit)

    # plan

    def _plan(self, with_pilot: bool) -> int:
        spec, planned, ledger = self._prepared()
        found = standings([*planned, *expected_cells(spec, ledger)], ledger)
        at_a_time = slots(spec)
        if with_pilot:
            device = "cuda" if spec.resources.gpu_share else "cpu"
            status = self.console.status("measuring a few steps of each kind of cell")
            with status, Pilots(device, at_a_time) as pilots:
                found = predicted(
                    found, pilots.measure, lambda label: status.update(f"measuring a few steps of {label}")
                )
        self.console.print(plan_table(spec, found))
        self._say(_summary(found, ledger, at_a_time))
        waiting = Counter(one.cell.depends_on for one in found if one.cell.depends_on and not one.over)
        before = [one for one in found if one.cell.id in waiting and not one.over]
        if before:
            self._say(f"{sum(waiting[one.cell.id] for one in before)} cells wait for {len(before)} pretrainings")
        if with_pilot and any(not one.over for one in found):
            self._say(_expected(found, at_a_time))
            with suppress(OSError):  # where nothing can be written, a plan can still be read
                ledger.record_plan({"made": _now_ms(), "cells": _foretold(found)})
        for cell in ledger.orphans(planned):
            state = ledger.outcome(cell.id).state
            self.console.print(
                f"orphan: {cell.label} ({cell.id}, {state}) has other settings, code or data", style="yellow"
            )
        return DONE

    # run

    def _run(self) -> int:
        spec, planned, ledger = self._prepared()
        if store.is_remote(ledger.folder):
            self._refuse_databases_in_a_bucket(spec)
        with _refusing_oserrors(ledger.folder), ExitStack() as stack:
            stack.enter_context(ledger.held())
            self._agree_to_orphans(planned, ledger)
            for cell in planned:
                ledger.add(cell)
            number = ledger.record_launch(self._record(spec, planned))
            held = stack.pop_all()
        with held:
            return self._run_held(spec, planned, ledger, number)

    def _refuse_databases_in_a_bucket(self, spec: ExperimentSpec) -> None:
        if self._mlflow is None:
            hint = "expected --tracking-uri or MLFLOW_TRACKING_URI: a server's address, or sqlite:////FOLDER/mlflow.db"
            raise _Refused(f"--results {self.results}: MLflow's database cannot lie there ({hint})")
        if spec.studies and (self.study_storage or spec.study_storage) is None:
            hint = "expected --study-storage postgresql://… or sqlite:////FOLDER/study.db"
            raise _Refused(f"--results {self.results}: Optuna's journal cannot lie there ({hint})")

    def _agree_to_orphans(self, planned: list[Cell], ledger: Ledger) -> None:
        """Finished cells that counted until now and would no longer: asks, and without an answer refuses."""
        launches = ledger.launches()
        counted = set(launches[-1]["cells"]) if launches else set()
        lost = [cell for cell in ledger.orphans(planned) if cell.id in counted and _is_over(ledger.outcome(cell.id))]
        if not lost:
            return
        lines = _orphans_told(lost, planned, ledger, launches[-1].get("numerics"))
        if self.yes:
            for line in lines:
                self._say(line)
        elif not (self.console.is_terminal and sys.stdin.isatty()):
            raise _Refused(*lines, "nothing was started (expected --yes, or an experiment of another name)")
        else:
            for line in lines:
                self._say(line)
            try:
                answer = self.console.input("Train the new ones? [y/N] ", markup=False)
            except EOFError:
                answer = ""
            if answer.strip().lower() not in ("y", "yes"):
                raise _Refused("nothing was started")

    def _run_held(self, spec: ExperimentSpec, planned: list[Cell], ledger: Ledger, number: int) -> int:
        from orchestration.tracking import Tracker, background

        left = [one.cell for one in standings(planned, ledger) if not one.over]
        found = standings([*planned, *expected_cells(spec, ledger)], ledger)
        self._say(_summary(found, ledger, slots(spec)))
        abandoned = ledger.orphans(planned)
        if abandoned:
            self._say(f"{len(abandoned)} earlier cells of the same names are orphans; --plan lists them")
        tracker = Tracker(ledger, spec, self._mlflow)
        shown = view(found, spec.folder_name, slots(spec), self.console)
        waiting = self.console.status("bringing MLflow and the report up to date")
        status = INTERRUPTED
        try:
            with background(tracker, SYNC_EVERY, shown.message):
                try:
                    to_do = left or any(not one.over for one in found)
                    status = self._train(spec, left, ledger, number, shown) if to_do else DONE
                except (_Refused, Unusable):
                    status = BAD_INPUT
                    raise
                finally:
                    with suppress(Unwritable):
                        ledger.record_launch_end(number, {"finished": _now_ms(), "exit_status": status})
                    waiting.start()
            if status == INTERRUPTED:
                raise KeyboardInterrupt
            self._conclude(planned, ledger, tracker, shown)
        finally:
            waiting.stop()
        return status

    def _train(
        self, spec: ExperimentSpec, left: list[Cell], ledger: Ledger, number: int, shown: LiveView | PlainLines
    ) -> int:
        """Train what is left; returns the exit status. What breaks it off goes to a log, and is told in one line."""
        stop_file = ledger.stop_file(number)
        try:
            with stopping_at(stop_file, shown), shown.shown(), Path(os.devnull).open("w") as nowhere:
                with redirect_stdout(nowhere):  # Ray prints advice on every worker that dies
                    trained, unsettled = self._train_on_ray(spec, left, ledger, number, shown)
        except (_Refused, Unusable):
            raise
        except Unwritable as error:
            print(f"{self._broken_off(error)} Once there is room, it goes on with: {self.command}", file=sys.stderr)
            return FAILED
        except SearchError as error:
            print(f"The launch broke off: {error}. It goes on with: {self.command}", file=sys.stderr)
            return FAILED
        except Exception as error:
            log = ledger.folder / "launches" / f"{number:04d}-log.txt"
            with suppress(FileExistsError):
                write_new(log, traceback.format_exc().encode())
            print(f"the launch broke off: {type(error).__name__}: {_first_line(error)} (log: {log})", file=sys.stderr)
            return FAILED
        short = [(cell, ledger.outcome(cell.id)) for cell in trained]
        short = [(cell, outcome) for cell, outcome in short if outcome.state not in ("done", "diverged", "pruned")]
        if not unsettled and not short:
            return DONE
        if store.exists(stop_file):
            return INTERRUPTED
        why = falling_short(short, unsettled)
        if why:
            print(f"The launch ended short: {why}. It goes on with: {self.command}", file=sys.stderr)
        return FAILED

    def _train_on_ray(
        self, spec: ExperimentSpec, left: list[Cell], ledger: Ledger, number: int, shown: LiveView | PlainLines
    ) -> tuple[list[Cell], list[str]]:
        """What was trained, and the searches that did not come to their end."""
        ray_settings.prepare(self.address)
        from orchestration import ray_connection, tuner

        own = self._own(spec)
        taken = tuner.Slots(
            gpus=spec.resources.gpu_share,
            cpus=spec.resources.cpus,
            max_concurrent=spec.resources.max_concurrent,
            max_retries=spec.resources.max_retries,
            checkpoint_every=spec.resources.checkpoint_every,
            python_path=[str(own)] if own else [],
        )
        stop_file = ledger.stop_file(number)
        packages = [Path(fsg.__file__).parent, Path(__file__).parent]
        with (
            ray_connection.connected(self.address, packages, own, lambda name: self._start_anew(name, ledger, number)),
            stopping_at(stop_file, shown),
        ):  # Ray has put its own in place
            self._refuse_what_no_node_has(spec)
            if self.address is not None:
                shown.tally.phase = "looking at the nodes"
                self._refuse_unlike_nodes([*left, *expected_cells(spec, ledger)], ledger, taken.python_path, number)
            fits = tuner.in_parallel([*left, *expected_cells(spec, ledger)], taken)
            shown.tally.at_a_time = fits.largest
            source = self._searches(spec, ledger, fits.largest, shown) if spec.studies else None
            shown.tally.phase = "starting workers"
            trained = tuner.run(
                ledger,
                left,
                taken,
                shown,
                stop_file=stop_file,
                record=_of_attempts(number),
                source=source,
                fits=fits,
            )
            if source is None:
                return trained, []
            if source.broken is not None:
                raise source.broken
            return trained, source.searches.unsettled

    def _searches(
        self, spec: ExperimentSpec, ledger: Ledger, at_a_time: int, shown: LiveView | PlainLines
    ) -> "Guarded":
        from orchestration.search import Guarded, Searches

        try:
            searches = Searches(
                spec,
                ledger,
                storage=self.study_storage,
                at_a_time=at_a_time,
                pruned=shown.pruned,
                say=shown.message,
            )
            return Guarded(searches)
        except SearchError as error:
            raise _Refused(f"{self.source}: {error}") from error

    def _start_anew(self, what: str, ledger: Ledger, number: int) -> None:
        """In place of this process, whose own Ray has died: a call to it may wait for ever, and so would the user.

        What was running goes on from its checkpoints; so often only, since what killed it may do so again. Where the
        launch was asked to stop already, it has: the signal went to Ray's processes, too.
        """
        deaths = int(os.environ.get(_DEATHS, "0")) + 1
        stopped = store.exists(ledger.stop_file(number))
        again = deaths <= _MOST_DEATHS and not stopped
        status = INTERRUPTED if stopped else FAILED
        with suppress(OSError):
            ledger.record_launch_end(number, {"finished": _now_ms(), "exit_status": status, "reason": f"{what} died"})
        children = psutil.Process().children(recursive=True)
        for process in children:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(children, timeout=10)  # or the program that takes this one's place would inherit them
        how = "starting anew from the ledger" if again else f"{deaths} times. It goes on with: {self.command}"
        restored = "\x1b[?25h\r\n" if self.console.is_terminal else ""  # the live view hides the cursor
        if stopped:
            os.write(2, f"{restored}Interrupted. It goes on with: {self.command}\n".encode())
        else:
            os.write(2, f"{restored}Ray's {what} died: {how}\n".encode())
        if not again:
            os._exit(status)
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                os.set_inheritable(int(name), int(name) <= 2)
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {_DEATHS: str(deaths)})

    def _refuse_what_no_node_has(self, spec: ExperimentSpec) -> None:
        from orchestration import nodes

        problems = unplaceable(spec, self.source, self.sets, nodes.resources())
        if problems:
            raise _Refused(*problems)

    def _refuse_unlike_nodes(self, left: list[Cell], ledger: Ledger, python_path: Sequence[str], number: int) -> None:
        from orchestration import nodes

        problems = nodes.unlike(ledger.folder, left, python_path, number)
        if problems:
            raise _Refused(*problems)

    def _record(self, spec: ExperimentSpec, planned: list[Cell]) -> dict[str, Any]:
        return {
            "started": _now_ms(),
            "command": self.command,
            "spec": spec.resolved(),
            "spec_sha256": spec.sha256(),
            "spec_text": spec.text,
            "spec_source": submitted.record().get("spec_source", str(spec.source)),
            "profile": self.profile,
            "sets": list(self.sets),
            "tracking_uri": without_password(self._mlflow) if self._mlflow else None,
            "cells": [cell.id for cell in planned],
            "numerics": fsg.NUMERICS,
            "versions": provenance.versions(),
            "hardware": provenance.hardware(),
            "data": dict(sorted((c.train.data.title(), c.train.data.fingerprint()) for c in planned)),
            "git_diff": provenance.uncommitted(),
            **provenance.code(),
        }

    def _conclude(self, planned: list[Cell], ledger: Ledger, tracker: "Tracker", shown: LiveView | PlainLines) -> None:
        """The report, and what went wrong. Neither a report nor MLflow that fails takes anything from a run."""
        from orchestration import report

        try:
            built = report.build(ledger)
            page = next(path for path in report.write(built) if path.suffix == ".html")
            self.console.print(report.table(built))
            self._say(f"report   {page}")
        except Exception as error:
            print(f"the report is not complete: {type(error).__name__}: {_first_line(error)}", file=sys.stderr)
        try:
            if tracker.behind is None:
                tracker.log_report(ledger.folder)
                self._say(f"MLflow   {tracker.ui()}")
        except Exception as error:
            tracker.behind = _first_line(error)
        if tracker.behind is not None:
            lacks = without_password(f"MLflow lacks a part of it ({tracker.behind})")
            self._say(f"{lacks}; the ledger has it all. Later: fsg sync {shlex.quote(str(ledger.folder))}")
        for cell in planned:
            if ledger.outcome(cell.id).state == "diverged":
                self._say(f"diverged: {cell.label}: {ledger.outcome(cell.id).reason}")
        for cell, reason, log in shown.tally.failed:
            self._say(f"failed: {cell.label}: {reason}" + (f" (log: {log})" if log else ""))

    def _say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)


def report_of(folder: Path) -> int:
    """Write and print the report of an experiment's folder. Returns the exit status."""
    from orchestration import report

    try:
        built = report.build(Ledger(folder))
    except (OSError, ValueError) as error:
        print(_first_line(error), file=sys.stderr)
        return BAD_INPUT
    paths = report.write(built)
    console = Console()
    console.print(report.table(built))
    for path in paths:
        if path.parent == built.folder:
            console.print(str(path), soft_wrap=True, highlight=False)
    return DONE


def sync_of(folder: Path, tracking_uri: str | None = None) -> int:
    """Bring MLflow level with an experiment's folder. Returns the exit status."""
    from orchestration.tracking import Tracker

    ledger = Ledger(folder)
    try:
        launches = ledger.launches()
    except OSError as error:
        print(_first_line(error), file=sys.stderr)
        return BAD_INPUT
    if not launches:
        print(f"{folder}: no launch is recorded there", file=sys.stderr)
        return BAD_INPUT
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or launches[-1].get("tracking_uri")
    if uri and ":***@" in uri:
        print(f"{folder}: the password of {uri} is not kept (expected --tracking-uri with it)", file=sys.stderr)
        return BAD_INPUT
    tracker = Tracker(ledger, recorded_spec(launches[-1]), uri)
    try:
        sent = tracker.sync()
        if store.exists(folder / "report.html"):
            tracker.log_report(folder)
    except Exception as error:
        print(without_password(f"MLflow ({tracker.uri}) cannot be written to: {_first_line(error)}"), file=sys.stderr)
        return FAILED
    print(f"sent {sent.runs} runs, {sent.metrics} metric values and {sent.files} files: MLflow is level with {folder}")
    print(f"MLflow   {tracker.ui()}")
    return DONE


def slots(spec: ExperimentSpec) -> int:
    """How many trainings fit on this machine at a time."""
    from orchestration.provenance import cores, gpu_names

    cpus = spec.resources.cpus or max(train.threads for train in spec.trains)
    fit = cores() // cpus
    if spec.resources.gpu_share:
        fit = min(fit, int(len(gpu_names()) / spec.resources.gpu_share))
    return max(1, min(fit, spec.resources.max_concurrent or fit))


@contextmanager
def _refusing_oserrors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Refused(f"{folder}: cannot be written to ({error.strerror or error})") from error


@contextmanager
def stopping_at(stop_file: Path, shown: LiveView | PlainLines) -> Iterator[None]:
    """Within, the first SIGINT or SIGTERM asks the workers to stop at a checkpoint; the second ends it all at once."""

    def stop(signum: int, frame: FrameType | None) -> None:
        try:
            if store.exists(stop_file):
                raise KeyboardInterrupt
            write_new(stop_file, b"")
        except OSError:  # a full disk
            raise KeyboardInterrupt from None
        shown.stopping()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def falling_short(short: Sequence[tuple[Cell, Outcome]], unsettled: Sequence[str]) -> str:
    """What a launch ends without, in a line, but for cells that failed: each of these is told with its reason."""
    left = [f"{cell.label} is {outcome.state}" for cell, outcome in short if outcome.state != "failed"]
    more = [f"{len(left) - _MOST_NAMED} more"] if len(left) > _MOST_NAMED else []
    return ", ".join([*left[:_MOST_NAMED], *more, *(f"the search of {name} came to no choice" for name in unsettled)])


def _is_over(outcome: Outcome) -> bool:
    return outcome.state in ("done", "diverged")


def _orphans_told(lost: Sequence[Cell], planned: Sequence[Cell], ledger: Ledger, numerics: int | None) -> list[str]:
    """Which finished cells a launch would no longer count, by what is different about them now."""
    planned_by_label = {(cell.kind, cell.label): cell for cell in planned}
    whys: dict[str, list[Cell]] = {}
    order = list(planned_by_label)
    for cell in sorted(lost, key=lambda cell: order.index((cell.kind, cell.label))):
        now = planned_by_label[cell.kind, cell.label]
        before, after = flat(cell.train.identity()), flat(now.train.identity())
        changed = [
            f"train.{path}: {before.get(path, 'absent')} before, {after.get(path, 'absent')} now"
            for path in {**before, **after}
            if before.get(path) != after.get(path)
        ]
        whys.setdefault("; ".join(changed) or _unseen_why(numerics, ledger), []).append(cell)
    spent = duration(sum(ledger.outcome(cell.id).seconds for cell in lost))
    head = f"{ledger.folder}: {len(lost)} finished cells ({spent} of training) would no longer count; they are kept:"
    lines = [head]
    for why, group in whys.items():
        named = ", ".join(cell.label for cell in group[:_MOST_NAMED])
        more = f" and {len(group) - _MOST_NAMED} more" if len(group) > _MOST_NAMED else ""
        lines.append(f"  {named}{more}: {why}")
    return lines


def _unseen_why(numerics: int | None, ledger: Ledger) -> str:
    if numerics is not None and numerics != fsg.NUMERICS:
        hint = f"`fsg accept {shlex.quote(str(ledger.folder))}` keeps those whose first steps replay bit for bit"
        return f"fsg.NUMERICS was {numerics} and is {fsg.NUMERICS}; {hint}"
    return "the images, the starting weights, or the pretraining are others now"


def plan_table(spec: ExperimentSpec, found: Sequence[Standing]) -> Table:
    """The cells of a plan, a line a variant."""
    table = Table(box=box.SIMPLE_HEAD, title=spec.folder_name, title_justify="left", caption=spec.question or None)
    table.add_column("variant", overflow="fold")
    for name in ("cells", "done", "failed", "to run", "steps", "a cell", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    variants: dict[str, list[Standing]] = {}
    for one in found:
        what = {"trial": " (trials)", "candidate": " (best, anew)"}.get(one.cell.kind, "")
        variants.setdefault(one.cell.variant + what, []).append(one)
    for variant, group in variants.items():
        states = [one.outcome.state for one in group]
        left = [one for one in group if not one.over]
        table.add_row(
            variant,
            str(len(group)),
            str(states.count("done")),
            str(states.count("failed") + states.count("diverged") or ""),
            str(len(left) or ""),
            _range([one.steps for one in group]),
            _range_of_durations([one.seconds for one in group if one.seconds is not None]),
            duration(sum(one.left or 0.0 for one in left))
            if left and all(one.left is not None for one in left)
            else "",
        )
    return table


def _summary(found: Sequence[Standing], ledger: Ledger, at_a_time: int) -> str:
    left = sum(not one.over for one in found)
    if not left:
        return f"{len(found)} cells, all done, in {ledger.folder}"
    done = f", {len(found) - left} done" if left < len(found) else ""
    return f"{len(found)} cells{done}, {left} to run, {at_a_time} at a time, into {ledger.folder}"


def _expected(found: Sequence[Standing], at_a_time: int) -> str:
    left = [one for one in found if not one.over]
    unknown = [one.cell.label for one in left if one.left is None]
    training = duration(sum(one.left or 0.0 for one in left))
    text = f"expected: {training} of training, {duration(wall_clock(left, at_a_time))} on the clock"
    return text + (f"; not known for {len(unknown)} cells, such as {unknown[0]}" if unknown else "")


def _foretold(found: Sequence[Standing]) -> dict[str, Any]:
    return {
        one.cell.id: {"seconds": one.seconds, "peak_megabytes": one.peak_megabytes}
        for one in found
        if one.cell.id and not one.over and one.seconds is not None
    }


def _of_attempts(number: int) -> dict[str, Any]:
    return {"launch": number, "git_commit": provenance.code()["git_commit"]}


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low}-{high}"


def _range_of_durations(values: Sequence[float]) -> str:
    if not values:
        return ""
    low, high = duration(min(values)), duration(max(values))
    return low if low == high else f"{low} to {high}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
