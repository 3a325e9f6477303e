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
from fsg import checkpoint
from fsg.finite import Diverged
from fsg.trainer import Training
from orchestration import provenance
from orchestration.fresh import as_fresh
from orchestration.ledger import Held, Ledger
from orchestration.plan import Cell, cell_today, numerics_of
from orchestration.verify import OF_THE_MACHINE, other_rows, rows_of

STEPS = 50
ACCEPTED, REFUSED, BAD_INPUT = 0, 1, 2


def accept(folder: Path, console: Console | None = None) -> int:
    """Accept what may be accepted of an experiment's folder. Returns the exit status."""
    console = console or Console()
    ledger = Ledger(folder)
    launches = ledger.launches()
    if not launches:
        print(f"{folder}: no launch is recorded there", file=sys.stderr)
        return BAD_INPUT
    device = "cuda" if launches[-1]["spec"]["resources"]["gpus"] else "cpu"
    own = str(Path(launches[-1]["spec_source"]).parent)
    sys.path += [own] if own not in sys.path else []
    try:
        with ledger.held():
            return _accept(ledger, device, console)
    except Held as held:
        print(held, file=sys.stderr)
    except OSError as error:
        print(f"{folder}: {error.strerror or error}", file=sys.stderr)
    return BAD_INPUT


def _accept(ledger: Ledger, device: str, console: Console) -> int:
    accepted, refused = 0, 0
    for old, numerics in _older(ledger):
        why = _why_not(ledger, old, device)
        if why is None:
            accepted += 1
            _say(console, f"accepted {old.label}: its first {STEPS} steps are the same under NUMERICS {fsg.NUMERICS}")
            said = {"numerics": [numerics, fsg.NUMERICS], "steps": STEPS, "device": provenance.device_name(device)}
            ledger.accept(cell_today(old, ledger.cell), old.id, said | {"versions": provenance.versions()})
        else:
            refused += 1
            _say(console, f"refused  {old.label}: {why}")
    if not accepted and not refused:
        _say(console, f"{ledger.folder}: no finished cell is of older numerics than {fsg.NUMERICS}: nothing to accept")
    return REFUSED if refused else ACCEPTED


def _older(ledger: Ledger) -> Iterator[tuple[Cell, int]]:
    """Finished cells that a launch of today would train anew for their numerics alone; pretrainings first."""
    cells = sorted(ledger.cells(), key=lambda cell: cell.kind != "pretrain")
    for cell in cells:
        if ledger.outcome(cell.id).state not in ("done", "diverged") or ledger.origin(cell.id) != cell.id:
            continue
        numerics = numerics_of(cell, ledger.settings_as_recorded(cell.id))
        try:
            today = cell_today(cell, ledger.cell)
        except KeyError:  # the record of its pretraining is damaged
            continue
        if numerics is not None and today.id != cell.id and ledger.outcome(today.id).state == "waiting":
            yield cell, numerics


def _why_not(ledger: Ledger, cell: Cell, device: str) -> str | None:
    """Trains the first steps again; None where all that was recorded of them comes out the same."""
    start = None
    if cell.depends_on is not None:
        today = cell_today(ledger.cell(cell.depends_on), ledger.cell).id
        if ledger.origin(today) != cell.depends_on:
            return "its pretraining was not accepted"
        weights = ledger.final_weights(cell.depends_on)
        if weights is None:
            return "the weights of its pretraining are missing or damaged"
        start = checkpoint.from_bytes(weights.read_bytes())
    as_fresh(cell.train.threads, cell.seed)
    now: dict[tuple[int, str], float] = {}
    reached = 0
    try:
        training = Training(cell.train, cell.seed, start=start, device=device)
        enough = math.ceil(STEPS / cell.train.log_every) * cell.train.log_every
        while not training.done and training.step < enough:
            now |= {(row.step, name): value for row in training.advance() for name, value in row.values.items()}
            reached = training.step
    except Diverged as error:
        if ledger.outcome(cell.id).state != "diverged":
            return f"it diverges now: {error}"
    except (OSError, ValueError, RuntimeError) as error:
        return " ".join(str(error).split())
    now = {place: value for place, value in now.items() if not place[1].startswith(OF_THE_MACHINE)}
    before = {place: value for place, value in rows_of(ledger, cell).items() if place[0] <= reached}
    if not before:
        return f"nothing is recorded of its first {reached} steps to compare with"
    return "; ".join(other_rows(before, now)) or None


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)
