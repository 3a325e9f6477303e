"""What a study takes from an earlier search: its trials where they are comparable, or else its best settings to try."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestration.ledger.ledger import Ledger
from orchestration.ledger.study_records import StudyRecords, TrialRecord
from orchestration.search.compatibility import compatibility_key, without
from orchestration.search.optuna.errors import SearchError
from orchestration.search.optuna.sampling import in_space
from orchestration.search.values import ranked
from orchestration.spec.search_config import Grid
from orchestration.spec.study import StudySpec

MAX_TRIED_FIRST = 5  # settings of an earlier search whose trials cannot be taken over


def take_over(spec: StudySpec, records: StudyRecords) -> list[TrialRecord]:
    """Record the complete trials of the study's `warm_start` that are comparable and lie in the space.

    Returns all trials on record. Raises SearchError where there is no such search.
    """
    folder = Path(spec.warm_start or "")
    earlier = _earlier(folder, spec)
    if earlier is None:
        raise SearchError(f"search.warm_start: {folder} has no search (expected an experiment's folder of results)")
    before, trials = earlier
    now = json.loads(json.dumps(compatibility_key(spec)))
    alike = all(before[key] == now[key] for key in ("objectives", "seeds", "data", "numerics"))
    if not alike or without(before["train"], now["space"]) != without(now["train"], before["space"]):
        return []
    taken = 0
    for record in trials:
        inside = in_space(spec, record.params)
        if record.state == "COMPLETE" and inside is not None and record.end is not None:
            origin = f"{folder}, trial {record.number}"
            records.add(TrialRecord(taken, record.params, inside, record.cells, {}, origin))
            for epoch, value in record.intermediate.items():
                records.add_rung(taken, epoch, value, False, record.rungs[epoch]["attributes"])
            records.end(taken, "COMPLETE", record.end["values"], "", record.last_attributes)
            taken += 1
    return records.trials()


def settings_to_try_first(spec: StudySpec, trials: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """The variant as it stands; then the best of an earlier search whose trials could not be taken over."""
    if isinstance(spec.sampler, Grid):
        return []
    first = [spec.defaults()]
    if spec.warm_start and not any(record.origin for record in trials):
        earlier = _earlier(Path(spec.warm_start), spec)
        best = ranked(spec, earlier[1])[:MAX_TRIED_FIRST] if earlier else []
        paths = {dimension.path for dimension in spec.dimensions}
        first += [{path: v for path, v in record.params.items() if path in paths} for record in best]
    return first


def _earlier(folder: Path, spec: StudySpec) -> tuple[dict[str, Any], list[TrialRecord]] | None:
    """Description and trials of the study of the same name in another experiment's folder."""
    records = StudyRecords(Ledger(folder), spec.name)
    description = records.description()
    return None if description is None else (description, records.trials())
