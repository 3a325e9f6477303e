"""What a trial is worth: objectives read from the ledger, ranking, and settings at the ends of their ranges."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from orchestration.ledger.ledger import Ledger
from orchestration.ledger.study_records import TrialRecord
from orchestration.spec import search_config as settings
from orchestration.spec.cells import Cell
from orchestration.spec.study import Dimension, StudySpec
from orchestration.util.metric_names import PEAK_MEMORY


def value_after(ledger: Ledger, cell: Cell, objective: str, epoch: int, steps: int) -> float | None:
    """An objective of a cell after an epoch of so many steps; None where the cell has not come there.

    A cell that diverged before counts as a loss: accuracy 0, everything else infinite.
    """
    at = epoch * steps
    rows = [row for row in ledger.rows(cell.id) if row.step <= at]
    outcome = ledger.outcome(cell.id)
    reached = outcome.step >= at
    if objective == "time/step":
        times = [(row.step, row.values["time/train_seconds"]) for row in rows if "time/train_seconds" in row.values]
        found = times[-1][1] / times[-1][0] if times and times[-1][0] and reached else None
    elif objective == "memory/peak":
        peaks = [row.values[PEAK_MEMORY] for row in rows if PEAK_MEMORY in row.values]
        found = max(peaks) if peaks and reached else None
    elif objective == "train/loss":
        losses = [row.values[objective] for row in rows if objective in row.values]
        found = losses[-1] if losses and reached else None
    else:
        seen = [row.values[objective] for row in rows if row.step == at and objective in row.values]
        found = seen[-1] if seen else None
    if found is None and outcome.state == "diverged":
        return 0.0 if objective in settings.MAXIMISED else math.inf
    return found


def mean_of(values: Sequence[float | None]) -> float:
    return float(np.mean([value for value in values if value is not None]))


def ranked(spec: StudySpec, trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The complete trials, best first by the first objective; of equal settings the first alone."""
    sign = -1 if spec.objectives[0] in settings.MAXIMISED else 1
    found: dict[str, TrialRecord] = {}
    complete = [record for record in trials if record.state == "COMPLETE" and record.end is not None]
    for record in sorted(complete, key=lambda one: (sign * first_value(one), one.number)):
        found.setdefault(json.dumps(record.params, sort_keys=True), record)
    return list(found.values())


def first_value(record: TrialRecord) -> float:
    """A complete trial's value of the first objective."""
    assert record.end is not None
    return float(record.end["values"][0])


def at_bounds(dimensions: Iterable[Dimension], params: Mapping[str, Any]) -> dict[str, str]:
    """Which settings lie at an end of their range that the field itself does not set, and which end."""
    return {one.path: end for one in dimensions if one.path in params and (end := one.at_bound(params[one.path]))}
