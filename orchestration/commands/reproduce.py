"""`fsg reproduce RESULTS CELL`: one cell is trained anew, beside the ledger, and held against what it has."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestration.analysis import statistics
from orchestration.analysis.units import Unit
from orchestration.commands.exit_status import DONE, FAILED
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.study_records import every_cell
from orchestration.runtime.cell_training import CellTraining
from orchestration.runtime.determinants import elsewhere
from orchestration.runtime.own_code import edits, import_own_code
from orchestration.runtime.retrain import bits, rows_of, to_train_again
from orchestration.spec.cells import Cell, find_cell
from orchestration.util import provenance, terminal
from orchestration.util.scratch import scratch

_SPREADS = 2.0
_SECONDS = 2.0  # between two looks at a training that goes on
Values = dict[tuple[int, str], float]


@dataclass(frozen=True)
class Reproduction:
    """Whether a cell agrees: bit for bit, or else by its metric, or not; `lines` say it."""

    agrees: bool
    bit_for_bit: bool
    lines: tuple[str, ...]


def find(ledger: Ledger, name: str) -> Cell:
    """A cell of the last launch or its searches, by its id, the beginning of it, or its label. Raises ValueError."""
    return find_cell(every_cell(ledger, ledger.last_launch()), name)


def reproduce(folder: Path, name: str) -> int:
    """Train a cell again and print whether it agrees. Returns the exit status. Raises what `reproduce_cell` does."""
    with terminal.console(stderr=True).status("training it again") as status:
        answer = reproduce_cell(folder, name, lambda line: status.update(f"training it again: {line}"))
    for line in answer.lines:
        print(line)
    return DONE if answer.agrees else FAILED


def reproduce_cell(folder: Path, name: str, tell: Callable[[str], None] = lambda line: None) -> Reproduction:
    """Train the cell again on this machine, in a scratch ledger, and compare.

    Its pretraining is not trained again: it starts from the weights that the ledger has. Raises ValueError where
    there is no such cell, or it is not over; KeyboardInterrupt passes.
    """
    ledger = Ledger(folder)
    cell = find(ledger, name)
    before = ledger.outcome(cell.id)
    if before.state not in ("done", "diverged"):
        raise ValueError(f"{cell.label}: is {before.state}: there is nothing to compare with")
    launch = ledger.launches()[-1]
    import_own_code(ledger)
    if changed := edits(cell.train):
        raise ValueError(f"{cell.label}: {'; '.join(changed)} (expected the files as they were)")
    device = "cuda" if launch["spec"]["resources"]["gpus"] else "cpu"
    if device == "cuda" and not provenance.gpu_names():
        raise ValueError(f"{cell.label}: was trained on a GPU, and this machine has none")
    with scratch("fsg-reproduce-") as beside:
        again = to_train_again(ledger, cell, beside)
        training = CellTraining(again, again.cell(cell.id), device=device)
        while training.ended is None:
            training.run_for(_SECONDS)
            tell(f"step {training.step} of {training.total_steps}")
        if training.ended not in ("done", "diverged"):
            raise ValueError(f"{cell.label}: {training.ended} here: {training.reason}")
        return _compared(ledger, again, cell, elsewhere(ledger, cell, device))


def _compared(ledger: Ledger, again: Ledger, cell: Cell, elsewhere: list[str]) -> Reproduction:
    before, now = ledger.outcome(cell.id), again.outcome(cell.id)
    then, here = rows_of(ledger, cell), rows_of(again, cell)
    names = {name for _, name in then} & {name for _, name in here}
    alone = sorted({name for _, name in [*then, *here]} - names)  # recorded by one of the two versions alone
    then, here = ({place: v for place, v in found.items() if place[1] in names} for found in (then, here))
    differing = [place for place in sorted({*then, *here}) if bits(then.get(place)) != bits(here.get(place))]
    if (before.state, before.digest) == (now.state, now.digest) and not differing:
        state = f"state {now.digest[:12]}" if now.digest else now.state
        said = f"{cell.label}: agrees bit for bit ({state}, {len(here)} values)"
        return Reproduction(
            True, True, (said, *([f"  not compared, recorded in one alone: {', '.join(alone)}"] * bool(alone)))
        )
    lines = [f"  {len(differing)} of {len(then)} values differ, the first {differing[0][1]} at step {differing[0][0]}"
             if differing else f"  all {len(then)} values agree, and the final state does not"]  # fmt: skip
    lines += [f"  {line}" for line in elsewhere]
    if before.state != now.state:
        return Reproduction(
            False, False, (f"{cell.label}: DIFFERS: {before.state} in the ledger, {now.state} here", *lines)
        )
    close, metrics = _by_metric(ledger, cell, then, here)
    agrees = bool(elsewhere) and close
    how = "agrees by its metrics, not bit for bit" if agrees else "DIFFERS"
    if not elsewhere:
        lines.append("  device, versions and code are those of the ledger: the bits should be the same")
    return Reproduction(agrees, False, (f"{cell.label}: {how}", *metrics, *lines))


def _by_metric(ledger: Ledger, cell: Cell, then: Values, here: Values) -> tuple[bool, list[str]]:
    """Last values side by side; close is what lies within two standard deviations of the other seeds of its kind."""
    others = [c for c in every_cell(ledger, ledger.last_launch()) if c.id != cell.id]  # its own would widen the spread
    alike = [rows_of(ledger, one) for one in others if (one.variant, one.grid) == (cell.variant, cell.grid)]
    close, lines = True, []
    for name in dict.fromkeys(name for _, name in then):
        if not name.endswith(("accuracy", "/loss")):
            continue
        unit, was, now = Unit.of(name), _last(then, name), _last(here, name)
        if was is None or now is None:
            close = False
            lines.append(f"  {name}: {'only in the ledger' if now is None else 'only here'}")
            continue
        spread = statistics.standard_deviation([v for one in alike if (v := _last(one, name)) is not None])
        near = abs(now - was) <= _SPREADS * spread
        close = close and near
        place = "within" if near else "beyond"
        of = f"{place} {_SPREADS:g} standard deviations of the other seeds"
        of = of if spread == spread else "fewer than two other seeds: no spread to hold it against"
        lines.append(
            f"  {name}: {unit.write(was)} in the ledger, {unit.write(now)} here, "
            f"{unit.write(now - was, True)} {unit.difference}".rstrip()
            + f" ({of})"
        )
    return close, lines


def _last(found: Values, name: str) -> float | None:
    return next((value for (_, metric), value in sorted(found.items(), reverse=True) if metric == name), None)
