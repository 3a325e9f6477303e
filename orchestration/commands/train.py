"""The pending cells of a plan, trained on Ray. A signal stops them at a checkpoint."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import fsg
from orchestration.commands.exit_status import DONE, FAILED, INTERRUPTED
from orchestration.commands.orphans import MAX_NAMED
from orchestration.commands.plan import ExperimentPlan
from orchestration.commands.preflight import unmet_resources
from orchestration.commands.progress import LiveView, PlainLines
from orchestration.commands.request import LaunchRequest, Refused
from orchestration.commands.restart import restart_process
from orchestration.ledger import store
from orchestration.ledger.outcome import Outcome
from orchestration.ledger.sealed import write_new
from orchestration.ledger.stores.errors import Unwritable
from orchestration.scheduler.environment import Unusable, lacks_token, prepare
from orchestration.search.optuna.errors import SearchError
from orchestration.spec.cells import Cell, own_code
from orchestration.util import provenance
from orchestration.util.error_text import first_line
from orchestration.util.program import stops
from orchestration.util.user_code import import_from

if TYPE_CHECKING:
    from orchestration.search.source import ErrorCapturingSource

View = LiveView | PlainLines


def train(request: LaunchRequest, plan: ExperimentPlan, number: int, view: View) -> int:
    """Train what is pending; returns the exit status. An unexpected error goes to a log and is told in one line."""
    stop_file = store.absolute(plan.ledger.stop_file(number))
    try:
        with (
            stopping_at(stop_file, view) as install,
            view.display(),
            Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        ):
            with redirect_stdout(nowhere):  # Ray prints advice on every worker that dies
                trained, unsettled = train_on_ray(request, plan, number, view, install)
    except (Refused, Unusable):
        raise
    except Unwritable as error:
        told = f"{request.describe_break(error)} Once there is room, to resume: {request.command}"
        print(told, file=sys.stderr)
        return FAILED
    except SearchError as error:
        print(f"The launch stopped: {error}. To resume: {request.command}", file=sys.stderr)
        return FAILED
    except Exception as error:
        log = plan.ledger.folder / "launches" / f"{number:04d}-log.txt"
        with suppress(FileExistsError):
            write_new(log, traceback.format_exc().encode())
        print(f"the launch stopped: {type(error).__name__}: {first_line(error)} (log: {log})", file=sys.stderr)
        return FAILED
    outcomes = [(cell, plan.ledger.outcome(cell.id)) for cell in trained]
    unfinished = [one for one in outcomes if one[1].state not in ("done", "diverged", "pruned")]
    if not unsettled and not unfinished:
        view.concluded()
        return DONE
    if store.exists(stop_file):
        return INTERRUPTED
    why = describe_unfinished(unfinished, unsettled)
    if why:
        print(f"The launch is incomplete: {why}. To resume: {request.command}", file=sys.stderr)
    return FAILED


def train_on_ray(
    request: LaunchRequest, plan: ExperimentPlan, number: int, view: View, install_signals: Callable[[], None]
) -> tuple[list[Cell], list[str]]:
    """Train on a Ray of this process or a cluster's. Returns the cells, and the searches that have not ended."""
    prepare(request.address)
    if request.address is None and (warning := lacks_token()):
        view.message(warning)
    from orchestration.commands.interim import Interim  # start-up time
    from orchestration.scheduler import nodes, tune  # start-up time: Ray
    from orchestration.scheduler.connection import capacity, connect  # start-up time: Ray
    from orchestration.scheduler.resources import TrialResources, max_concurrency  # start-up time

    spec, ledger, own = plan.spec, plan.ledger, own_code(plan.spec)
    report = spec.report
    view.tally.compare = Interim(ledger, plan.cells, report.baseline, report.primary, report.metric).text
    view.tally.interim = view.tally.compare()
    resources = TrialResources(
        gpus=spec.resources.gpu_share,
        cpus=spec.resources.cpus,
        max_concurrent=spec.resources.max_concurrent,
        max_retries=spec.resources.max_retries,
        checkpoint_every=spec.resources.checkpoint_every,
        python_path=import_from(str(own)) if own else [],
    )
    packages = [Path(fsg.__file__).parent, Path(provenance.__file__).parents[1]]
    with connect(
        request.address, packages, own, lambda name: restart_process(name, request, ledger, number), view.message
    ):
        install_signals()  # Ray has put its own in place
        if problems := unmet_resources(spec, request.source, request.sets, nodes.resources()):
            raise Refused(*problems)
        left = [*plan.pending, *plan.expected]
        if request.address is not None:
            view.tally.phase = "looking at the nodes"
            if problems := nodes.check_nodes(ledger.folder, left, resources.python_path, number, resources.device):
                raise Refused(*problems)
        view.tally.max_running = places = max_concurrency(left, resources, capacity())
        source = _search_source(request, plan, places, view) if spec.studies else None
        view.tally.phase = "starting workers"
        trained = tune.run(
            ledger,
            plan.pending,
            resources,
            view,
            stop_file=ledger.stop_file(number),
            record={
                "launch": number,
                "git_commit": provenance.code()["git_commit"],
                "inputs": ledger.recorded_inputs(number),
            },
            source=source,
            expected=plan.expected,
        )
        if source is None:
            return trained, []
        if source.broken is not None:
            raise source.broken
        return trained, source.searches.unsettled


def _search_source(
    request: LaunchRequest, plan: ExperimentPlan, max_running: int, view: View
) -> "ErrorCapturingSource":
    from orchestration.search.source import ErrorCapturingSource, SearchManager  # start-up time: Optuna

    try:
        manager = SearchManager(
            plan.spec,
            plan.ledger,
            storage=request.study_storage,
            max_running=max_running,
            pruned=view.pruned,
            say=view.message,
        )
        return ErrorCapturingSource(manager)
    except SearchError as error:
        raise Refused(f"{request.source}: {error}") from error


@contextmanager
def stopping_at(stop_file: Path, view: View) -> Iterator[Callable[[], None]]:
    """Within, SIGINT, SIGTERM or SIGHUP asks the workers to stop at a checkpoint; a second one ends it all at once.

    What is yielded puts these handlers in place once more, where a library has replaced them.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        try:
            if store.exists(stop_file):
                raise KeyboardInterrupt
            write_new(stop_file, signal.Signals(signum).name.encode())
        except OSError:  # a full disk
            raise KeyboardInterrupt from None
        view.stopping()

    before = {number: signal.getsignal(number) for number in stops()}

    def install() -> None:
        for number in before:
            signal.signal(number, stop)

    install()
    try:
        yield install
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def describe_unfinished(unfinished: Sequence[tuple[Cell, Outcome]], unsettled: Sequence[str]) -> str:
    """What a launch ends without, in a line; failed cells are left out, as each is told with its reason."""
    left = [f"{cell.label} is {outcome.state}" for cell, outcome in unfinished if outcome.state != "failed"]
    more = [f"{len(left) - MAX_NAMED} more"] if len(left) > MAX_NAMED else []
    return ", ".join([*left[:MAX_NAMED], *more, *(f"the search of {name} came to no choice" for name in unsettled)])
