"""Finished cells that a launch would no longer count: the user hears what changed, and decides."""

import shlex
import sys
from collections.abc import Sequence

import fsg
from orchestration.commands.plan import ExperimentPlan
from orchestration.commands.request import LaunchRequest, Refused
from orchestration.ledger.ledger import Ledger
from orchestration.spec.cells import Cell, changed_settings
from orchestration.util.duration import duration

MAX_NAMED = 4


def confirm_orphans(request: LaunchRequest, plan: ExperimentPlan) -> None:
    """Say which unfinished cells start anew, and ask about finished ones that counted until now and no longer would.

    Raises Refused without a yes.
    """
    launches = plan.ledger.launches()
    counted = set(launches[-1]["cells"]) if launches else set()
    lost = [cell for cell in plan.orphans if cell.id in counted]
    outcomes = {cell.id: plan.ledger.outcome(cell.id) for cell in lost}
    begun = [cell for cell in lost if outcomes[cell.id].state not in ("done", "diverged") and outcomes[cell.id].step]
    lost = [cell for cell in lost if outcomes[cell.id].state in ("done", "diverged")]
    numerics = launches[-1].get("numerics") if launches else None
    if begun:
        for line in describe_orphans(begun, plan.cells, plan.ledger, numerics, ("unfinished", "start anew")):
            request.say(line)
    if not lost:
        return
    lines = describe_orphans(lost, plan.cells, plan.ledger, numerics)
    can_answer = request.console.is_terminal and sys.stdin.isatty()
    if not request.yes and not can_answer:
        raise Refused(*lines, "nothing was started (expected --yes, or an experiment of another name)")
    for line in lines:
        request.say(line)
    if request.yes:
        return
    try:
        answer = request.console.input("Train the new ones? [y/N] ", markup=False)
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise Refused("nothing was started")


def describe_orphans(
    lost: Sequence[Cell],
    planned: Sequence[Cell],
    ledger: Ledger,
    numerics: int | None,
    what: tuple[str, str] = ("finished", "would no longer count"),
) -> list[str]:
    """Which cells no longer count, grouped by what is different about them now. `what`: their state and their fate."""
    planned_by_label = {(cell.kind, cell.label): cell for cell in planned}
    reasons: dict[str, list[Cell]] = {}
    order = list(planned_by_label)
    for cell in sorted(lost, key=lambda cell: order.index((cell.kind, cell.label))):
        now = planned_by_label[cell.kind, cell.label]
        changed = [f"{path}: {old} before, {new} now" for path, (old, new) in changed_settings(cell, now).items()]
        reasons.setdefault("; ".join(changed) or _reason_beside_settings(numerics, ledger), []).append(cell)
    spent = duration(sum(ledger.outcome(cell.id).seconds for cell in lost))
    head = f"{ledger.folder}: {len(lost)} {what[0]} cells ({spent} of training) {what[1]}; they are kept:"
    return [head, *(f"  {_named(group)}: {reason}" for reason, group in reasons.items())]


def _named(group: Sequence[Cell]) -> str:
    more = f" and {len(group) - MAX_NAMED} more" if len(group) > MAX_NAMED else ""
    return ", ".join(cell.label for cell in group[:MAX_NAMED]) + more


def _reason_beside_settings(numerics: int | None, ledger: Ledger) -> str:
    if numerics is not None and numerics != fsg.NUMERICS:
        hint = f"`fsg accept {shlex.quote(str(ledger.folder))}` keeps those whose first steps replay bit for bit"
        return f"fsg.NUMERICS was {numerics} and is {fsg.NUMERICS}; {hint}"
    return "the images, the starting weights, or the pretraining are others now"
