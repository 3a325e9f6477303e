"""On which processors, by which kernels and versions, the cells of a table were trained."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from orchestration.analysis.comparisons import Trial
from orchestration.ledger.ledger import Ledger

PLACE_COLUMNS = ("device", "features", "threads", "slow net's kernel", "BLAS", "torch")


class Place(NamedTuple):
    """Cells whose last attempts were made alike, in words; `determinants` in the order of `PLACE_COLUMNS`."""

    cells: str
    determinants: tuple[str, ...]


def places_of(ledger: Ledger, trials: Iterable[Trial]) -> list[Place]:
    """The combinations in the table's order; cells that were never begun are nowhere."""
    found: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials:
        for attempt in ledger.attempts(trial.cell.id)[-1:]:
            versions = attempt.get("versions", {})
            known = (attempt.get("device"), attempt.get("cpu_capability"), attempt.get("threads"),
                     attempt.get("kernel"), attempt.get("blas"), versions.get("torch"))  # fmt: skip
            found.setdefault(tuple(str(value or "–") for value in known), []).append(trial)
    whole = sum(map(len, found.values()))
    return [Place(_words(own, whole), tuple(map(_short, determinants))) for determinants, own in found.items()]


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"


def _words(trials: Sequence[Trial], whole: int) -> str:
    """All of them by their number, a part by name."""
    if len(trials) == whole:
        return f"all {whole}"
    labels = [trial.cell.label for trial in trials]
    named = ", ".join(labels[:6]) + (f" and {len(labels) - 6} more" if len(labels) > 6 else "")
    return f"{len(trials)}: {named}"
