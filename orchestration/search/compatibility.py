"""When two trials belong to the same study, and how a spec differs from a study that has begun."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import fsg
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.study_records import StudyRecords
from orchestration.spec.experiment import ExperimentSpec
from orchestration.spec.study import StudySpec, dimension_dict


def compatibility_key(study: StudySpec) -> dict[str, Any]:
    """What must be equal for two trials to belong to one study."""
    # What is searched may have another value where it starts.
    train = without(study.train.identity(), [dimension.path for dimension in study.dimensions])
    return {
        "space": {one.path: dimension_dict(one) for one in study.dimensions},
        "objectives": list(study.objectives),
        "seeds": list(study.seeds),
        "pruner": study.pruner.identity(),
        "train": train,
        "data": study.train.data.fingerprint(),
        "numerics": fsg.NUMERICS,
    }


def without(train: dict[str, Any], space: Iterable[str]) -> dict[str, Any]:
    """A description's `train` without what another space searches."""
    left: dict[str, Any] = _plain(train)
    for path in space:
        _forget(left, path.removesuffix(".name").split("."))
    return left


def _forget(values: Any, parts: Sequence[str]) -> None:
    if not isinstance(values, dict):
        return
    if "settings" in values and parts[0] not in values:
        values = values["settings"]
    if len(parts) == 1:
        values.pop(parts[0], None)
    else:
        _forget(values.get(parts[0]), parts[1:])


def differences(spec: ExperimentSpec, ledger: Ledger, section: str) -> Iterator[tuple[str, str]]:
    """Each field, and how a study that has begun differs from the spec there."""
    for study in spec.studies:
        stored = StudyRecords(ledger, study.name).description()
        now = compatibility_key(study)
        if stored is None:
            continue
        now = _plain(now)
        remedy = "expected what it began with, or another name"
        remedy += "; warm_start takes its trials over" if section == "search" else ""
        for path in {**stored["space"], **now["space"]}:
            before, after = stored["space"].get(path), now["space"].get(path)
            if before != after:
                what = f"the study in {ledger.folder} has {_shown(before)} here, not {_shown(after)} ({remedy})"
                yield f"{section}.space.{path}", what
        for field_name, key in (("seeds", "seeds"), ("pruner", "pruner"), ("objectives", "objectives")):
            if stored[key] != now[key]:
                what = f"the study in {ledger.folder} has {_shown(stored[key])}, not {_shown(now[key])} ({remedy})"
                yield f"{section}.{field_name}", what
        same = all(stored[key] == now[key] for key in ("data", "numerics"))
        if not same or without(stored["train"], now["space"]) != without(now["train"], stored["space"]):
            yield "train", f"the study in {ledger.folder} is of other settings, images or code ({remedy})"


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(inner)}" for key, inner in value.items()) + "}"
    return "nothing" if value is None else str(value).replace("'", "")
