"""Two ledgers of the same experiment, held against each other: nothing lost, nothing twice, nothing else."""

import math

from orchestration.ledger.history import LedgerRow
from orchestration.ledger.ledger import Ledger


def numbers(rows: list[LedgerRow]) -> list[tuple[int, dict[str, float]]]:
    """Without times and loads, which are nobody's to repeat."""
    measured = ("time/", "system/")
    found = [(row.step, {n: v for n, v in row.values.items() if not n.startswith(measured)}) for row in rows]
    return [(step, values) for step, values in found if values]


def assert_same(ledger: Ledger, oracle: Ledger) -> None:
    """Every cell done; final weights byte for byte; every row once."""
    assert [cell.id for cell in ledger.cells()] == [cell.id for cell in oracle.cells()]
    for cell in oracle.cells():
        outcome = ledger.outcome(cell.id)
        assert outcome.state == "done", f"{cell.label}: {outcome.state}: {outcome.reason}"
        assert outcome.digest == oracle.outcome(cell.id).digest, f"{cell.label}: another state at the end"
        ours, theirs = ledger.final_weights(cell.id), oracle.final_weights(cell.id)
        assert ours is not None
        assert theirs is not None
        assert ours.read_bytes() == theirs.read_bytes(), f"{cell.label}: other weights"
        assert numbers(ledger.rows(cell.id)) == numbers(oracle.rows(cell.id)), f"{cell.label}: other rows"


def finite_values(rows: list[LedgerRow]) -> dict[str, list[tuple[int, int, float]]]:
    """By metric: step, time and value of what is finite."""
    found: dict[str, list[tuple[int, int, float]]] = {}
    for row in rows:
        for name, value in row.values.items():
            if math.isfinite(value):
                found.setdefault(name, []).append((row.step, row.time_ms, value))
    return found
