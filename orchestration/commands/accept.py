"""`fsg accept`: finished cells of older numerics go on counting, where their first steps replay bit for bit.

A cell's id holds `fsg.NUMERICS`, so that raising it makes every finished cell another one. Many of them do not differ:
the change was in a part that they do not use. Such a cell's first steps are trained again, and where every value that
was recorded of them comes out the same to the last bit, the cell of today gets a record that the attempts of the
old one count as its own. Nothing is rewritten, moved or deleted.
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

import fsg
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.stores.errors import LockedError
from orchestration.runtime.cell_training import CellTraining
from orchestration.runtime.own_code import import_own_code
from orchestration.runtime.retrain import digest_of, other_rows, rows_of, to_train_again
from orchestration.spec.cells import Cell, numerics_of, with_current_id
from orchestration.util import provenance, terminal
from orchestration.util.scratch import scratch

STEPS = 50
ACCEPTED, REFUSED, BAD_INPUT = 0, 1, 2


class _Differs(Exception):
    """Why a cell is not accepted."""


def accept(folder: Path, console: Console | None = None) -> int:
    """Accept what may be accepted of an experiment's folder. Returns the exit status."""
    console = console or terminal.console()
    ledger = Ledger(folder)
    launches = ledger.launches()
    if not launches:
        why = "; ".join(ledger.launch_problems()) or "no launch is recorded there"
        print(f"{folder}: {why}", file=sys.stderr)
        return BAD_INPUT
    device = "cuda" if launches[-1]["spec"]["resources"]["gpus"] else "cpu"
    import_own_code(ledger)
    try:
        with ledger.lock():
            return _accept(ledger, device, console)
    except LockedError as held:
        print(held, file=sys.stderr)
    except OSError as error:
        print(f"{folder}: {error.strerror or error}", file=sys.stderr)
    return BAD_INPUT


def _accept(ledger: Ledger, device: str, console: Console) -> int:
    accepted, refused = 0, 0
    for old, numerics in _older(ledger):
        try:
            steps = _replay(ledger, old, device)
        except _Differs as why:
            refused += 1
            _say(console, f"refused  {old.label}: {why}")
            continue
        accepted += 1
        _say(console, f"accepted {old.label}: its first {steps} steps are the same under NUMERICS {fsg.NUMERICS}")
        said = {"numerics": [numerics, fsg.NUMERICS], "steps": steps, "device": provenance.device_name(device)}
        ledger.accept(with_current_id(old, ledger.cell), old.id, said | {"versions": provenance.versions()})
    if not accepted and not refused:
        _say(console, f"{ledger.folder}: no finished cell is of older numerics than {fsg.NUMERICS}: nothing to accept")
    return REFUSED if refused else ACCEPTED


def _older(ledger: Ledger) -> Iterator[tuple[Cell, int]]:
    """Finished cells that a launch of today would train anew for their numerics alone; pretrainings first."""
    cells = sorted(ledger.cells(), key=lambda cell: cell.kind != "pretrain")
    for cell in cells:
        outcome = ledger.outcome(cell.id)
        if not (outcome.state in ("done", "diverged") or outcome.damaged) or ledger.origin(cell.id) != cell.id:
            continue
        numerics = numerics_of(cell, ledger.settings_as_recorded(cell.id))
        try:
            today = with_current_id(cell, ledger.cell)
        except KeyError:  # the record of its pretraining is damaged
            continue
        if numerics is not None and today.id != cell.id and ledger.outcome(today.id).state == "waiting":
            yield cell, numerics


def _replay(ledger: Ledger, cell: Cell, device: str) -> int:
    """Trains the first steps again, and returns how many. Raises _Differs unless all that was recorded comes out."""
    before, final = ledger.outcome(cell.id), ledger.final_weights(cell.id)
    if before.damaged:
        raise _Differs(before.reason)
    if before.state == "done" and final is None:
        raise _Differs("the file of the final weights is damaged")
    if cell.depends_on is not None:
        today = with_current_id(ledger.cell(cell.depends_on), ledger.cell).id
        if ledger.origin(today) != cell.depends_on:
            raise _Differs("its pretraining was not accepted")
    with scratch("fsg-accept-") as folder:
        again = to_train_again(ledger, cell, folder)
        enough = math.ceil(STEPS / cell.train.log_every) * cell.train.log_every
        training = CellTraining(again, cell, device=device, until=enough)
        training.run_for(math.inf)
        if training.ended not in ("done", "paused") and (training.ended, training.reason) != (
            before.state,
            before.reason,
        ):
            raise _Differs(f"here it ends as {training.ended}: {training.reason}")
        weights = again.final_weights(cell.id)
        if weights is not None and final is not None and digest_of(weights) != digest_of(final):
            raise _Differs("it ends with other weights")
        now = rows_of(again, cell)
    then = {place: value for place, value in rows_of(ledger, cell).items() if place[0] <= training.step}
    if not then:
        raise _Differs(f"nothing is recorded of its first {training.step} steps to compare with")
    if differing := other_rows(then, now):
        raise _Differs("; ".join(differing))
    return training.step


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)
