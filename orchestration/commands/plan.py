"""`fsg plan`: the cells of an experiment, what the ledger has of them, and what the rest will cost.

A plan is computed once. `fsg launch` makes it under the lock of the experiment and hands it on.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rich import box
from rich.table import Table

from orchestration.analysis.declared import weaknesses
from orchestration.commands.exit_status import DONE
from orchestration.commands.preflight import find_problems, study_conflicts
from orchestration.commands.request import LaunchRequest, Refused, refusing_write_errors, run_guarded
from orchestration.commands.submit import submit
from orchestration.ledger import store
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.status import CellStatus, cell_statuses
from orchestration.ledger.study_records import damage_of_searches
from orchestration.runtime.faults import is_lack_of_memory
from orchestration.runtime.pilot import Cost, Pilots, predict, wall_clock
from orchestration.scheduler.environment import is_job_server
from orchestration.search.forecast import expected_cells
from orchestration.spec.cells import Cell, cells, changed_settings
from orchestration.spec.experiment import ExperimentSpec, folder_name, load_spec
from orchestration.spec.networks import COST_COLUMNS, NetworkOfLines, cost_texts, networks_of
from orchestration.util import submission
from orchestration.util.clock import now_ms
from orchestration.util.duration import duration
from orchestration.util.error_text import first_line, first_sentences
from orchestration.util.provenance import cores, gpu_names

logger = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class ExperimentPlan:
    """An experiment against its ledger: `cells` are those of the table, `expected` those that its searches will train.

    `orphans` are cells of the ledger with the label of a planned cell and another id.
    """

    spec: ExperimentSpec
    ledger: Ledger
    cells: tuple[Cell, ...]
    statuses: tuple[CellStatus, ...]
    orphans: tuple[Cell, ...]

    def __repr__(self) -> str:
        return f"ExperimentPlan({self.summary})"

    @property
    def all_cells(self) -> list[Cell]:
        """The cells of the table and of the searches."""
        return [status.cell for status in self.statuses]

    @property
    def expected(self) -> list[Cell]:
        return self.all_cells[len(self.cells) :]

    @property
    def pending(self) -> list[Cell]:
        """The cells of the table that are left to train."""
        return [status.cell for status in self.statuses[: len(self.cells)] if not status.over]

    @property
    def complete(self) -> bool:
        return all(status.over for status in self.statuses)

    @cached_property
    def max_running(self) -> int:
        """How many trainings fit on this machine at the same time."""
        spec = self.spec
        cpus = spec.resources.cpus or max(train.threads for train in spec.trains)
        fit = cores() // cpus
        if spec.resources.gpu_share:
            fit = min(fit, int(len(gpu_names()) / spec.resources.gpu_share))
        return max(1, min(fit, spec.resources.max_concurrent or fit))

    @property
    def summary(self) -> str:
        """The line that a launch begins with."""
        left = sum(not status.over for status in self.statuses)
        count, folder = len(self.statuses), self.ledger.folder
        if not left:
            return f"{count} cells, all done, in {folder}"
        done = f", {count - left} done" if left < count else ""
        return f"{count} cells{done}, {left} to run, {self.max_running} at a time, into {folder}"


def load_checked(request: LaunchRequest) -> tuple[ExperimentSpec, Ledger]:
    """The spec and its ledger, once nothing stands in the way. Raises SpecErrors, Refused; trains nothing."""
    if request.address and request.address.startswith("ray://"):
        hint = "expected http://HOST:8265, or on a node of the cluster auto or HOST:PORT"
        raise Refused(f"--address: {request.address}: Ray's client mode is not supported ({hint})")
    if request.submit:
        raise Refused("--submit: needs the job server of a cluster (expected --address http://HOST:8265)")
    if wrong := submission.other_python():
        raise Refused(wrong)
    spec = load_spec(request.source, request.profile, request.sets)
    if problems := find_problems(spec, request.source, request.sets, remote=request.address is not None):
        raise Refused(*problems)
    ledger = Ledger(request.results / spec.folder_name)
    with refusing_write_errors(ledger.folder):
        store.of(ledger.folder).names(ledger.folder)  # one that does not answer is told before anything else
    if wrong := _another_experiment(spec, ledger):
        raise Refused(wrong)
    if problems := study_conflicts(spec, ledger, request.source, request.sets):
        raise Refused(*problems)
    return spec, ledger


def _another_experiment(spec: ExperimentSpec, ledger: Ledger) -> str | None:
    """Whose folder it is, where another name and profile make the same name of a folder: `a` `b-c` and `a-b` `c`."""
    for launch in ledger.launches()[-1:]:
        name, profile = (launch.get("spec", {}).get(key) for key in ("name", "profile"))
        same = folder_name(name, profile) == spec.folder_name
        if same and (name, profile) != (spec.name, spec.profile):
            whose = f"experiment {name}" + (f" with profile {profile}" if profile else "")
            return f"{ledger.folder}: has the results of {whose} (expected another name, or another --results)"
    return None


def make_plan(request: LaunchRequest, spec: ExperimentSpec, ledger: Ledger) -> ExperimentPlan:
    """The plan of an experiment; `gpus: auto` is measured. Raises Refused where it cannot be."""
    plan = compare(spec, ledger)
    logger.info("planned: %s; %d orphans", plan.summary, len(plan.orphans))
    return _with_measured_sharing(request, plan) if spec.resources.gpus == "auto" else plan


def compare(spec: ExperimentSpec, ledger: Ledger) -> ExperimentPlan:
    """An experiment against its ledger as it is now."""
    return plan_of(spec, ledger, cells(spec))


def plan_of(spec: ExperimentSpec, ledger: Ledger, planned: Sequence[Cell]) -> ExperimentPlan:
    """The cells of an experiment's table, and those of its searches, against its ledger as it is now."""
    statuses = cell_statuses([*planned, *expected_cells(spec, ledger)], ledger)
    return ExperimentPlan(spec, ledger, tuple(planned), tuple(statuses), tuple(ledger.orphans(planned)))


def _with_measured_sharing(request: LaunchRequest, plan: ExperimentPlan) -> ExperimentPlan:
    from orchestration.scheduler.gpu_sharing import measure_sharing  # start-up time

    try:
        with request.console.status("measuring how many trainings run best together"):
            spec, measured = measure_sharing(plan.spec, plan.all_cells)
    except Exception as error:  # what a training of the user's own may raise
        text = f"auto cannot be measured: {first_line(error)} (expected a number)"
        raise Refused(f"{request.source}: resources.gpus: {text}") from error
    request.say(measured)
    return replace(plan, spec=spec)


# The command


def plan(request: LaunchRequest, with_pilot: bool = True) -> int:
    """Print what a launch would run. Returns the exit status."""
    if is_job_server(request.address):
        return run_guarded(request, lambda: submit(request, ["plan"] + ([] if with_pilot else ["--no-pilot"])))
    return run_guarded(request, lambda: _show(request, with_pilot))


def telling_lack_of_memory(measure: Callable[[Cell], Cost], say: Callable[[str], None]) -> Callable[[Cell], Cost]:
    """The same measure, which says in a line what it is whose first steps lack memory before it raises that."""

    def told(cell: Cell) -> Cost:
        try:
            return measure(cell)
        except Exception as error:
            if is_lack_of_memory(error):
                say(f"{cell.label} runs out of memory in its first steps: {first_sentences(error)}")
            raise

    return told


def _show(request: LaunchRequest, with_pilot: bool) -> int:
    found = make_plan(request, *load_checked(request))
    statuses, too_little = list(found.statuses), list[str]()
    if with_pilot:
        device = "cuda" if found.spec.resources.gpu_share else "cpu"
        status = request.console.status("measuring a few steps of each kind of cell")
        with status, Pilots(device, found.max_running) as pilots:
            measure = telling_lack_of_memory(pilots.measure, too_little.append)
            statuses = predict(statuses, measure, lambda label: status.update(f"measuring a few steps of {label}"))
    request.console.print(plan_table(found.spec, statuses))
    networks = networks_of(found.cells)
    if any(one.cost for one in networks):
        request.console.print(network_table(networks))
    for one in networks:
        if one.cost is None:
            request.say(f"{one.lines[0]}: what its network costs is not known: {one.problem}")
    for line in too_little:
        request.say(line)
    request.say(found.summary)
    say_weaknesses(request, found)
    say_damage(request, found)
    waiting = Counter(one.cell.depends_on for one in statuses if one.cell.depends_on and not one.over)
    before = [one for one in statuses if one.cell.id in waiting and not one.over]
    if before:
        request.say(f"{sum(waiting[one.cell.id] for one in before)} cells wait for {len(before)} pretrainings")
    if with_pilot and not found.complete:
        request.say(_expected_time(statuses, found.max_running))
        with suppress(OSError):  # where nothing can be written, a plan can still be read
            found.ledger.record_plan({"made": now_ms(), "cells": _forecast(statuses)})
    planned = {(cell.kind, cell.label): cell for cell in found.cells}
    for cell in found.orphans:
        state = found.ledger.outcome(cell.id).state
        changed = ", ".join(changed_settings(cell, planned[cell.kind, cell.label]))
        said = f"orphan: {cell.label} ({cell.id}, {state}) has other settings, code or data"
        request.console.print(f"{said}: {changed}" if changed else said, style="yellow", markup=False)
    return DONE


def say_weaknesses(request: LaunchRequest, plan: ExperimentPlan) -> None:
    """A line for each thing that the table cannot show, whatever the trainings give."""
    for weakness in weaknesses(plan.spec):
        request.say(f"note: {weakness}")


def say_damage(request: LaunchRequest, plan: ExperimentPlan) -> None:
    """A line for each finished cell that has lost a part, and each record of a launch or a search that is damaged."""
    for status in plan.statuses:
        if status.outcome.damaged:
            request.say(f"{status.cell.label} is trained again: {status.outcome.reason}")
    for problem in plan.ledger.launch_problems():
        request.say(f"{plan.ledger.folder}: {problem}: the verdict of the report claims nothing")
    for problem in damage_of_searches(plan.ledger):
        request.say(f"{plan.ledger.folder}: {problem}: what it said does not count")
    if found := plan.ledger.strays():
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        request.say(f"{plan.ledger.folder}: passed over, as none of the ledger's own: {', '.join(found[:3])}{more}")


def plan_table(spec: ExperimentSpec, statuses: Sequence[CellStatus]) -> Table:
    """The cells of a plan, a line a variant."""
    table = Table(box=box.SIMPLE_HEAD, title=spec.folder_name, title_justify="left", caption=spec.question or None)
    table.add_column("variant", overflow="fold")
    for name in ("cells", "done", "failed", "to run", "steps", "a cell", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    variants: dict[str, list[CellStatus]] = {}
    for one in statuses:
        what = {"trial": " (trials)", "candidate": " (best, anew)"}.get(one.cell.kind, "")
        variants.setdefault(one.cell.variant + what, []).append(one)
    for variant, group in variants.items():
        states = [one.outcome.state for one in group]
        left = [one for one in group if not one.over]
        known = [one.left for one in left if one.left is not None]
        table.add_row(
            variant,
            str(len(group)),
            str(states.count("done")),
            str(states.count("failed") + states.count("diverged") or ""),
            str(len(left) or ""),
            _range([str(steps) for steps in (min(one.steps for one in group), max(one.steps for one in group))], "-"),
            _range_of_durations([one.seconds for one in group if one.seconds is not None]),
            duration(sum(known)) if left and len(known) == len(left) else "",
        )
    return table


def network_table(networks: Sequence[NetworkOfLines]) -> Table:
    """What each network costs, of those whose cost is known."""
    table = Table(box=box.SIMPLE_HEAD, caption="FLOPs and BOPs: of one image, forward")
    table.add_column("network of", overflow="fold")
    for name in COST_COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for one in networks:
        if one.cost is not None:
            table.add_row(one.of, *cost_texts(one.cost))
    return table


def _expected_time(statuses: Sequence[CellStatus], max_running: int) -> str:
    left = [one for one in statuses if not one.over]
    unknown = [one.cell.label for one in left if one.left is None]
    training = duration(sum(one.left or 0.0 for one in left))
    text = f"expected: {training} of training, {duration(wall_clock(left, max_running))} on the clock"
    return text + (f"; not known for {len(unknown)} cells, such as {unknown[0]}" if unknown else "")


def _forecast(statuses: Sequence[CellStatus]) -> dict[str, Any]:
    return {
        one.cell.id: {"seconds": one.seconds, "peak_megabytes": one.peak_megabytes}
        for one in statuses
        if one.cell.id and not one.over and one.seconds is not None
    }


def _range(ends: Sequence[str], between: str) -> str:
    return between.join(dict.fromkeys(ends))


def _range_of_durations(values: Sequence[float]) -> str:
    return _range([duration(min(values)), duration(max(values))], " to ") if values else ""
