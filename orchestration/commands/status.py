"""`fsg status RESULTS`: how far an experiment is, from its ledger alone, wherever it runs."""

import itertools
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from orchestration.commands.exit_status import BAD_INPUT, DONE
from orchestration.commands.interim import Interim
from orchestration.commands.picture import picture
from orchestration.commands.tally import Tally
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.outcome import Outcome
from orchestration.ledger.status import CellStatus
from orchestration.ledger.study_records import StudyRecords, planned_cells, study_names
from orchestration.spec.cells import Cell, total_steps
from orchestration.spec.fields import Report, from_record
from orchestration.util import terminal
from orchestration.util.clock import now_ms
from orchestration.util.duration import duration
from orchestration.util.error_text import first_line

_ALL = 1_000_000  # lines: what is printed once may be longer than the screen


def status(folder: Path) -> int:
    """Print how far the last launch of an experiment is. Returns the exit status."""
    ledger = Ledger(folder)
    try:
        launch = ledger.last_launch()
        console = terminal.console()
        drawn = picture(
            tally_of(ledger, launch), folder.name, console.width, _ALL, Text(standing(ledger, launch), style="dim")
        )
    except (OSError, ValueError) as error:
        print(first_line(error), file=sys.stderr)
        return BAD_INPUT
    console.print(drawn)
    return DONE


def tally_of(ledger: Ledger, launch: dict[str, Any]) -> Tally:
    """What a launch has to do and has done, as its ledger has it: a training as far as its last checkpoint."""
    cells = _wanted(ledger, launch)
    statuses = [_status(cell, ledger.outcome(cell.id)) for cell in cells]
    running = [one.cell for one in statuses if one.outcome.state == "running"]
    tally = Tally(statuses, max(1, len(running)))
    tally.phase, held = "", ledger.is_held()
    tally.began = tally.clock() - (launch.get("finished", now_ms()) - launch["started"]) / 1000
    for one in statuses:
        if held and one.outcome.state == "done" and one.steps and one.outcome.seconds:
            tally.took(one.cell, one.steps, one.outcome.seconds)
        if one.outcome.state == "failed":
            tally.ended(one.cell, "failed", one.outcome.reason, "")
    for cell in running:
        _run(tally, ledger, cell)
    waits = Counter(_waits_for(one, statuses, held) for one in statuses if _waits(one))
    tally.waits = lambda: dict(waits)
    report = from_record(Report, launch["spec"]["report"], f"{ledger.folder}: report.")
    tally.interim = Interim(ledger, cells, report.baseline, report.primary, report.metric).text()
    tally.warnings.extend(warnings(ledger, statuses))
    return tally


def warnings(ledger: Ledger, statuses: Sequence[CellStatus]) -> list[str]:
    """A line for each training that was damaged, diverged, or was begun again unasked; the latest last."""
    found: list[tuple[int, str]] = []
    for one in statuses:
        if one.outcome.damaged or one.outcome.state == "diverged":
            found.append((one.outcome.finished_ms or 0, f"{one.cell.label}: {one.outcome.reason}"))
        attempts = ledger.attempts(one.cell.id) if one.outcome.attempts > 1 else []
        for before, after in itertools.pairwise(attempts):
            end = before["end"] or {"state": "cut off", "reason": ""}
            why = f": {end['reason']}" if end["reason"] else ""
            told = f"{one.cell.label} was begun again, after attempt {before['number']} was {end['state']}{why}"
            if end["state"] not in ("pruned", "interrupted"):  # by a search, or by who stopped the launch
                found.append((after["started_at"], told))
    return [text for _, text in sorted(found)]


def standing(ledger: Ledger, launch: dict[str, Any]) -> str:
    """Whether the launch runs, and how it ended otherwise."""
    name, now = f"launch {launch['number']}", now_ms()
    if "finished" in launch:
        why = f" ({launch['reason']})" if launch.get("reason") else ""
        ago = duration(max(0, now - launch["finished"]) / 1000)
        verdict = "; the report has the verdict" if launch["exit_status"] == DONE else ""
        return f"{name} ended {ago} ago with exit status {launch['exit_status']}{why}{verdict}"
    if ledger.is_held():
        return f"{name} runs; each training is shown as of its last checkpoint"
    return f"{name} was cut off; to resume: {launch['command']}"


def _wanted(ledger: Ledger, launch: dict[str, Any]) -> list[Cell]:
    """The cells of a launch's table, and those of its searches' trials."""
    found = {cell.id: cell for cell in planned_cells(ledger, launch)}
    for name in study_names(launch):
        for trial in StudyRecords(ledger, name).trials():
            for cell_id in trial.cells.values():
                if cell_id not in found and (cell := ledger.find(cell_id)) is not None:
                    found[cell_id] = cell
    return list(found.values())


def _status(cell: Cell, outcome: Outcome) -> CellStatus:
    try:
        steps = total_steps(cell)
    except (OSError, ValueError):  # the images are elsewhere
        steps = outcome.step
    return CellStatus(cell, outcome, steps)


def _run(tally: Tally, ledger: Ledger, cell: Cell) -> None:
    """Show a training that runs, with its pace since its worker took it up."""
    attempt, rows = ledger.attempts(cell.id)[-1], ledger.rows(cell.id, durable_only=False)
    first = (attempt["resumed_from"] or {"step": 0})["step"]
    reports = [(attempt["started_at"], first), *((row.time_ms, row.step) for row in rows if row.step > first)]
    metrics: dict[str, float] = {}
    for row in rows:
        metrics |= row.values
    tally.started(cell)
    now, run = tally.clock(), tally.running[cell.id]
    run.began, run.first_step, run.step, run.since = now, first, first, (now, first)
    for time_ms, step in reports:
        run.reached(step, now + (time_ms - reports[0][0]) / 1000)
    run.metrics = metrics


def _waits(one: CellStatus) -> bool:
    return one.outcome.state in ("waiting", "interrupted")


def _waits_for(one: CellStatus, statuses: Sequence[CellStatus], held: bool) -> str:
    before = next((other for other in statuses if other.cell.id == one.cell.depends_on), None)
    if not held:
        return "a launch"
    return f"{before.cell.label}" if before is not None and not before.over else "a free place"
