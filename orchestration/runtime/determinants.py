"""What determines the bits of a cell's training beside its id: recorded with each attempt, and compared with it."""

import dataclasses
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import fsg
from fsg.config import Settings
from fsg.imported import Imported, closure
from fsg.mamba import Mamba, kernel
from fsg.train_config import TrainConfig
from orchestration.ledger.ledger import Ledger
from orchestration.spec.cells import Cell, imported
from orchestration.util import provenance


def determinants(train: TrainConfig, device: str) -> dict[str, Any]:
    """What an attempt at a training records of where it runs."""
    kernels = sorted({kernel(one, device) for one in _slow_nets(train)})
    libraries = frozenset(name for own in imported(train) for name in closure(own.path).libraries)
    return {
        "device": provenance.device_name(device),
        "versions": provenance.versions(),
        "libraries": provenance.library_versions(libraries),
        **provenance.determinants(device),
        "kernel": ", ".join(kernels),
    }


def _slow_nets(settings: Settings) -> Iterator[Mamba]:
    """The Mamba blocks among settings, those of a user's own component as well."""
    settings = settings.resolve() if isinstance(settings, Imported) else settings
    if isinstance(settings, Mamba):
        yield settings
    for one in dataclasses.fields(settings):
        if isinstance(value := getattr(settings, one.name), Settings):
            yield from _slow_nets(value)


def elsewhere(ledger: Ledger, cell: Cell, device: str) -> list[str]:
    """What is other here than where the attempts at a cell were made; what one of them does not say is unknown."""
    launches = {launch["number"]: launch for launch in ledger.launches()}
    here = _flat(determinants(cell.train, device)) | {"threads": str(cell.train.threads)}
    here |= {"NUMERICS": fsg.NUMERICS, "source of fsg": provenance.code()["fsg_source_sha256"]}
    found: dict[str, None] = {}
    for attempt in ledger.attempts(cell.id):
        launch = launches.get(attempt.get("launch", 0), {})
        then = _flat(attempt)
        then |= {"NUMERICS": launch.get("numerics"), "source of fsg": launch.get("fsg_source_sha256")}
        for name, value in then.items():
            now = here[name] if name in here else _version(name)
            if value and value != now:
                short = [str(one)[:12] if name.startswith("source") else one for one in (value, now)]
                found[f"trained with {name} {short[0]} (here {short[1] or 'none'})"] = None
    return list(found)


def moves(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is other in a record of an attempt than in an earlier one, where both say it."""
    then, here = _flat(before), _flat(now)
    return [
        f"{name} {here[name]} (before: {value})"
        for name, value in then.items()
        if value and here.get(name) and here[name] != value
    ]


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    named = {provenance.DETERMINANTS.get(key, key): record.get(key) for key in ("device", *provenance.DETERMINANTS)}
    return named | record.get("versions", {}) | record.get("libraries", {})


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
