"""`fsg launch`: load the spec, make the plan, train what is pending, track it, report it. Each is done once."""

import json
import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import fsg
from orchestration.commands.exit_status import BAD_INPUT, DONE, FAILED, INTERRUPTED
from orchestration.commands.orphans import confirm_orphans
from orchestration.commands.plan import ExperimentPlan, load_checked, make_plan, say_damage, say_weaknesses
from orchestration.commands.progress import view_for
from orchestration.commands.request import LaunchRequest, Refused, refusing_write_errors, run_guarded
from orchestration.commands.restart import Restart
from orchestration.commands.submit import submit
from orchestration.commands.train import View, train
from orchestration.ledger import store
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.stores.errors import Unwritable
from orchestration.ledger.study_records import planned_cells
from orchestration.report.make import make
from orchestration.runtime.inputs import inputs
from orchestration.scheduler.environment import Unusable, is_job_server
from orchestration.spec.cells import own_folders
from orchestration.spec.experiment import ExperimentSpec
from orchestration.spec.networks import networks_of
from orchestration.util import provenance, submission
from orchestration.util.clock import now_ms
from orchestration.util.databases import sqlite_file
from orchestration.util.error_text import first_line
from orchestration.util.passwords import hide_passwords, without_password
from orchestration.util.program import AT_WORK
from orchestration.util.scratch import private_temporary_files

if TYPE_CHECKING:
    from orchestration.tracking.sync import Patience, Tracker

SYNC_EVERY = 5.0
_REPORT, _MEANWHILE = "orchestration.report.write", 20.0
MLFLOW_TIMEOUT = 20.0  # for all that is left to be sent at the end


def launch(request: LaunchRequest) -> int:
    """Run what is missing of an experiment, or submit it to a cluster. Returns the exit status."""
    if is_job_server(request.address):
        return run_guarded(request, lambda: submit(request, ["launch"]))
    return _compared(request, lambda: _launch(request))


def go_on() -> int:
    """Go on with the launch that this process has taken over from one whose Ray has died. Returns the exit status.

    Raises ValueError where there is none.
    """
    restart = Restart.of_this_process()
    status = _compared(restart.request, lambda: _go_on(restart))
    return FAILED if status == BAD_INPUT else status  # it has begun before


def _compared(request: LaunchRequest, work: Callable[[], int]) -> int:
    """Do the work of a launch; then compare its results with those that the request names."""
    with private_temporary_files():
        status = run_guarded(request, work)
    if request.against is not None and (request.results / request.against.name).is_dir():
        from orchestration.commands.diff import diff  # start-up time

        diff(request.against, request.results / request.against.name)
    return status


def _launch(request: LaunchRequest) -> int:
    spec, ledger = load_checked(request)
    if store.is_remote(ledger.folder):
        _refuse_databases_in_a_bucket(request, spec)
    with ExitStack() as stack:
        with refusing_write_errors(ledger.folder):
            stack.enter_context(ledger.lock())
        plan = make_plan(request, spec, ledger)
        with refusing_write_errors(ledger.folder):
            confirm_orphans(request, plan)
            number = _enter(request, plan)
        return run(request, plan, number)


def _go_on(restart: Restart) -> int:
    ledger = Ledger(restart.folder)
    with ledger.lock():
        plan, launch = restart.plan(ledger)
        before = {name: value for name, value in launch.items() if name not in ("finished", "exit_status", "reason")}
        number = ledger.record_launch(before | _code() | {"started": now_ms(), "goes_on_from": restart.number})
        return run(restart.request, plan, number)


def _refuse_databases_in_a_bucket(request: LaunchRequest, spec: ExperimentSpec) -> None:
    if request.mlflow is None:
        hint = "expected --tracking-uri or MLFLOW_TRACKING_URI: a server's address, or sqlite:////FOLDER/mlflow.db"
        raise Refused(f"--results {request.results}: MLflow's database cannot lie there ({hint})")
    if spec.studies and (request.study_storage or spec.study_storage) is None:
        hint = "expected --study-storage postgresql://… or sqlite:////FOLDER/study.db"
        raise Refused(f"--results {request.results}: Optuna's journal cannot lie there ({hint})")


def _enter(request: LaunchRequest, plan: ExperimentPlan) -> int:
    """Put the cells and the launch into the ledger; returns the launch's number.

    A launch that has nothing to train and says nothing new is the last one once more, and leaves no record.
    """
    for cell in plan.cells:
        plan.ledger.add(cell)
    record, before = _record(request, plan), plan.ledger.launches()[-1:]
    if plan.complete and before and before[0].get("exit_status") == DONE and _says_the_same(record, before[0]):
        return int(before[0]["number"])
    return plan.ledger.record_launch(record)


def _says_the_same(record: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    said = {name: value for name, value in record.items() if name not in ("started", "command")}
    return bool(json.loads(json.dumps(said)) == {name: before.get(name) for name in said})


def _record(request: LaunchRequest, plan: ExperimentPlan) -> dict[str, Any]:
    spec = plan.spec
    return {
        "started": now_ms(),
        "command": request.command,
        "spec": spec.resolved(),
        "spec_sha256": spec.sha256(),
        "spec_text": spec.text,
        "spec_source": submission.record().get("spec_source", str(spec.source)),
        "own_folders": own_folders(spec),
        "profile": request.profile,
        "sets": list(request.sets),
        "tracking_uri": _tracking_uri(request, plan.ledger),
        "cells": [cell.id for cell in plan.cells],
        "networks": [one.to_dict() for one in networks_of(plan.cells)],
        "hardware": provenance.hardware(),
        "classes": _class_names(plan),
        "data": dict(sorted((c.train.data.title(), c.train.data.fingerprint()) for c in plan.cells)),
        "inputs": inputs(cell.train for cell in plan.all_cells),
        **_code(),
    }


def _code() -> dict[str, Any]:
    """What runs: this code, and the libraries."""
    return {
        "numerics": fsg.NUMERICS,
        "versions": provenance.versions(),
        "git_diff": provenance.uncommitted(),
        **provenance.code(),
    }


def _class_names(plan: ExperimentPlan) -> dict[str, list[str]]:
    """What the labels stand for, by the title of the images, where these say it."""
    sets = {cell.train.data.title(): cell.train.data for cell in plan.cells}
    names = {title: list(data.load().class_names) for title, data in sorted(sets.items())}
    return {title: each for title, each in names.items() if each}


def _tracking_uri(request: LaunchRequest, ledger: Ledger) -> str | None:
    """As it is recorded; None for the database beside the results, wherever these will lie."""
    if request.mlflow is None:
        return None
    beside = None if store.is_remote(ledger.folder) else ledger.folder.resolve().parent / "mlflow.db"
    return None if beside and sqlite_file(request.mlflow) == beside else without_password(request.mlflow)


def run(request: LaunchRequest, plan: ExperimentPlan, number: int) -> int:
    """Train what is pending while MLflow is kept level, then report. Raises KeyboardInterrupt where it was stopped."""
    from orchestration.tracking.sync import Patience, Tracker, background  # start-up time

    request.say(plan.summary)
    if plan.orphans:
        request.say(f"{len(plan.orphans)} earlier cells of the same names are orphans; --plan lists them")
    if not plan.complete:
        say_weaknesses(request, plan)
    say_damage(request, plan)
    tracker = Tracker(plan.ledger, plan.spec, request.mlflow)
    view = view_for(plan.statuses, plan.spec.folder_name, plan.max_running, request.console)
    waiting = request.console.status("updating MLflow and the report")
    patience = Patience(MLFLOW_TIMEOUT, request.say)
    status = INTERRUPTED
    try:
        with background(tracker, SYNC_EVERY, patience, view.message):
            try:
                with imported_meanwhile(_REPORT, _MEANWHILE):
                    status = DONE if plan.complete else train(request, plan, number, view)
                status = FAILED if status == DONE and measures_nothing(plan) else status
            except (Refused, Unusable):
                status = BAD_INPUT
                raise
            finally:
                with suppress(Unwritable, FileExistsError):  # the last launch's once more has its end
                    plan.ledger.record_launch_end(number, _end(plan.ledger, number, status))
                waiting.start()
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        _conclude(request, plan, tracker, patience, view)
    finally:
        waiting.stop()
    return status


@contextmanager
def imported_meanwhile(module: str, after: float) -> Iterator[None]:
    """Within, once so many seconds are gone, import a module that is wanted when all is done: it takes seconds."""
    timer = threading.Timer(after, import_module, [module])
    timer.daemon, timer.name = True, AT_WORK
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end(ledger: Ledger, number: int, status: int) -> dict[str, Any]:
    """The record of a launch's end, with the signal that stopped it."""
    stop = ledger.stop_file(number)
    why = {"reason": f"stopped by {store.of(stop).read(stop).decode()}"} if store.exists(stop) else {}
    return {"finished": now_ms(), "exit_status": status, **why}


def measures_nothing(plan: ExperimentPlan) -> bool:
    """Whether all is over, and no pair of a variant and the baseline has a training that came to its end."""
    table = planned_cells(plan.ledger, plan.ledger.last_launch())
    over = {(cell.variant, cell.seed) for cell in table if cell.kind == "train"}
    done = {
        (cell.variant, cell.seed)
        for cell in table
        if cell.kind == "train" and plan.ledger.outcome(cell.id).state == "done"
    }
    baseline = plan.spec.report.baseline
    if all(variant == baseline for variant, _ in over):
        return bool(over) and not done
    compared = [(pair, (baseline, pair[1])) for pair in over if pair[0] != baseline]
    return not any(against in over and done & {pair, against} for pair, against in compared)


def _conclude(
    request: LaunchRequest, plan: ExperimentPlan, tracker: "Tracker", patience: "Patience", view: View
) -> None:
    """Print the report, and what went wrong. A report or an MLflow that fails takes nothing from a run."""
    try:
        paths = make(plan.ledger.folder, request.console)
        request.say(f"report   {next(path for path in paths if path.suffix == '.html')}")
    except Exception as error:
        print(f"the report is not complete: {type(error).__name__}: {first_line(error)}", file=sys.stderr)
    try:
        if tracker.reached and not patience.run(lambda: tracker.log_report(plan.ledger.folder)):
            tracker.give_up(patience.seconds)
        if tracker.reached:
            request.say(f"MLflow   {tracker.ui()}")
    except Exception as error:
        tracker.behind = first_line(error)
    if tracker.behind is not None:
        lacks = hide_passwords(f"MLflow is incomplete ({tracker.behind})", tracker.uri)
        request.say(f"{lacks}; the ledger is complete. Later: fsg sync {shlex.quote(str(plan.ledger.folder))}")
    for cell in plan.cells:
        outcome = plan.ledger.outcome(cell.id)
        if outcome.state == "diverged":
            request.say(f"diverged: {cell.label}: {outcome.reason}")
    for cell, reason, log in view.tally.failed:
        request.say(f"failed: {cell.label}: {reason}" + (f" (log: {log})" if log else ""))
