"""`fsg verify`: finished cells are trained again, killed on the way, and must end with the same bytes.

A cell's training is started in its own process on a scratch ledger, killed (SIGKILL) at a random moment of a random
step, and resumed in another process from whatever checkpoint the first one left. Compared are the digest of the final
state (`fsg.checkpoint.digest`), the weights in the files, every row, and the diagnostics. Timings and system metrics
may differ. A cell that was done and has lost a file does not count as the same.
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

import fsg
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.study_records import chosen_cells, damage_of_searches, study_names
from orchestration.ledger.tables import missing_cells
from orchestration.runtime.determinants import elsewhere
from orchestration.runtime.own_code import edits, import_own_code
from orchestration.runtime.retrain import (
    digest_of,
    other_rows,
    rows_of,
    to_train_again,
    train_to_the_end,
    train_until_killed,
)
from orchestration.spec.cells import Cell, total_steps
from orchestration.util import provenance, terminal
from orchestration.util.error_text import first_line
from orchestration.util.scratch import keep, scratch

SAME, DIFFERENT, BAD_INPUT = 0, 1, 2
_FEWEST_STEPS = 3  # of a training that is killed on the way


@dataclass(frozen=True)
class Verdict:
    """What became of one cell: how it was interrupted, what differs, and under what else it was first trained."""

    cell: Cell
    steps: int
    killed_at: int | None
    resumed_from: int | None
    digest: str | None
    rows: int
    differences: tuple[str, ...]
    elsewhere: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        death = "too short to be interrupted" if self.steps < _FEWEST_STEPS else "not interrupted"
        if self.killed_at is not None:
            again = "began again" if self.resumed_from is None else f"resumed from step {self.resumed_from}"
            death = f"killed after step {self.killed_at} of {self.steps}, {again}"
        what = f"state {(self.digest or '')[:12]}, {self.rows} rows"
        first = f"{'DIFFERS' if self.differences else 'same':<8} {self.cell.label}  ({death}; {what})"
        return [first, *(f"         {line}" for line in (*self.differences, *self.elsewhere))]


def verify(folder: Path, cells: int = 3, seed: int = 0, console: Console | None = None) -> int:
    """Verify so many finished cells of an experiment's folder, chosen by a seed. Returns the exit status.

    Raises ValueError for fewer than one.
    """
    if cells < 1:
        raise ValueError(f"got {cells} cells (expected ≥ 1)")
    console = console or terminal.console()
    ledger = Ledger(folder)
    launches = ledger.launches()
    if not launches:
        why = "; ".join(ledger.launch_problems()) or "no launch is recorded there"
        print(f"{folder}: {why}", file=sys.stderr)
        return BAD_INPUT
    every = {cell.id: cell for cell in ledger.cells()}
    chosen_by_searches = [cell.id for cell in chosen_cells(ledger, study_names(launches[-1]))]
    names = {cell.id: cell.label for cell in missing_cells(ledger, launches[-1])}
    outcomes = {i: ledger.outcome(i) for i in [*launches[-1]["cells"], *chosen_by_searches, *names]}
    done = [every[i] for i, outcome in outcomes.items() if outcome.state == "done" and i in every]
    lost = [f"{names.get(i, i)}: its record is missing or damaged" for i in outcomes if i not in every]
    lost += [*ledger.launch_problems(), *damage_of_searches(ledger)]
    lost += [f"{every[i].label}: {o.reason}" for i, o in outcomes.items() if o.damaged and i in every]
    if not done:
        for line in lost:
            print(f"{folder}: {line}", file=sys.stderr)
        print(f"{folder}: no cell of the last launch is done: there is nothing to verify", file=sys.stderr)
        return BAD_INPUT
    device = "cuda" if launches[-1]["spec"]["resources"]["gpus"] else "cpu"
    if device == "cuda" and not provenance.gpu_names():
        print(f"{folder}: was trained on a GPU, and this machine has none (expected one of that type)", file=sys.stderr)
        return BAD_INPUT
    own = json.dumps(import_own_code(ledger))
    draw = random.Random(seed)
    try:
        long = [cell for cell in done if total_steps(cell.whole) >= _FEWEST_STEPS]
    except (OSError, ValueError) as error:  # images, or the user's class that reads them, are not to be found
        print(f"{folder}: {first_line(error)}", file=sys.stderr)
        return BAD_INPUT
    chosen = draw.sample(long, min(cells, len(long))) or draw.sample(done, min(cells, len(done)))
    _say(console, f"scope: {_scope(device, chosen)}; elsewhere other bits are to be expected")
    verdicts = []
    with scratch("fsg-verify-") as again:
        for cell in chosen:
            with console.status(f"training {cell.label} again"):
                verdicts.append(_verified(ledger, cell, again, device, own, draw))
            for line in verdicts[-1].lines():
                _say(console, line)
        wrong = sum(bool(verdict.differences) for verdict in verdicts)
        if wrong:
            keep(again)
            _say(console, f"{wrong} of {len(verdicts)} cells differ; what was trained here is kept in {again}")
        else:
            _say(console, f"{len(verdicts)} of {len(done)} finished cells verified: bit for bit the same")
    for line in lost:
        _say(console, f"DAMAGED  {line}")
    others = Counter(outcome.state for outcome in outcomes.values() if outcome.state != "done" and not outcome.damaged)
    if others:
        _say(console, "not done, and not verified: " + ", ".join(f"{n} {state}" for state, n in others.items()))
    return DIFFERENT if wrong or lost else SAME


def _verified(ledger: Ledger, cell: Cell, folder: Path, device: str, own: str, draw: random.Random) -> Verdict:
    steps = total_steps(cell.whole)
    if changed := edits(cell.train):
        return Verdict(cell, steps, None, None, None, 0, tuple(changed))
    before, again = ledger.outcome(cell.id), to_train_again(ledger, cell, folder)
    command = [sys.executable, "-P", "-m", "orchestration.runtime.retrain", str(folder), cell.id, device, own]
    killed_at = train_until_killed(command, steps, draw) if steps >= _FEWEST_STEPS else None
    differences = []
    failure = train_to_the_end(command)
    outcome = again.outcome(cell.id)
    resumed = again.attempts(cell.id)[-1]["resumed_from"] if again.attempts(cell.id) else None
    if steps >= _FEWEST_STEPS and killed_at is None:
        differences.append("it ended by itself before it could be killed")
    elif killed_at is not None and resumed is None:
        differences.append("no checkpoint was gone on from, though one was written before the death")
    if outcome.state != "done":
        differences.append(f"it did not end here: {outcome.reason or failure or outcome.state}")
    else:
        if outcome.digest != before.digest:
            differences.append(f"final state: {before.digest} in the ledger, {outcome.digest} here")
        for which, kept, here in (
            ("final", ledger.final_weights(cell.id), again.final_weights(cell.id)),
            ("best", ledger.best_weights(cell.id), again.best_weights(cell.id)),
        ):
            if kept is None:
                differences.append(f"{which} weights: their file is missing or damaged")
            elif here is None or digest_of(kept) != digest_of(here):
                differences.append(f"{which} weights: others in {kept.name}")
        differences += other_rows(rows_of(ledger, cell), rows_of(again, cell))
        if ledger.diagnostics(cell.id) != again.diagnostics(cell.id):
            differences.append("the diagnostics of its epochs")
    return Verdict(
        cell=cell,
        steps=steps,
        killed_at=killed_at,
        resumed_from=resumed and resumed["step"],
        digest=outcome.digest,
        rows=len(rows_of(again, cell)),
        differences=tuple(differences),
        elsewhere=tuple(elsewhere(ledger, cell, device)),
    )


def _scope(device: str, cells: Sequence[Cell]) -> str:
    threads = sorted({cell.train.threads for cell in cells})
    precision = sorted({cell.train.precision for cell in cells})
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions().items())
    many = f"{', '.join(map(str, threads))} thread{'s' if threads != [1] else ''}"
    return f"{provenance.device_name(device)}, {many}, {', '.join(precision)}, {versions}, NUMERICS {fsg.NUMERICS}"


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, highlight=False, markup=False)
