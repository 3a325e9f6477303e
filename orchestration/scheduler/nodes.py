"""Checks of a cluster's nodes: whether each can train the cells of a launch.

Call `environment.prepare` before this module is imported: Ray reads its environment then.
"""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fsg.config import to_dict
from fsg.imported import Imported, edited
from fsg.starting_points import File
from orchestration.ledger import store
from orchestration.spec.cells import Cell, imported
from orchestration.spec.fields import train_from_dict
from orchestration.util import provenance
from orchestration.util.error_text import first_line
from orchestration.util.user_code import import_from, shipped

logger = logging.getLogger(__name__)

CHECK_TIMEOUT = 60


def resources() -> list[dict[str, float]]:
    """CPUs and GPUs of each node."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    nodes = [{"CPU": one.get("CPU", 0.0), "GPU": one.get("GPU", 0.0)} for one in found]
    logger.info("connected to Ray %s, nodes: %s", ray.__version__, nodes)
    return nodes


def check_nodes(
    results: Path, cells: Sequence[Cell], python_path: Sequence[str], number: int, device: str
) -> list[str]:
    """One line for each problem of a node: it does not see the results, or has other data or other versions."""
    wanted = {
        "record": str(results.resolve() / "launches" / f"{number:04d}.json"),
        "results": str(results.resolve()),
        "directory": os.getcwd(),
        "python_path": list(python_path),
        "versions": _versions(),
        "inputs": _inputs(cells),
        "own": _own(cells),
        "bf16": device == "cpu" and any(cell.train.precision == "bf16" for cell in cells),
    }
    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    asked = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"] and node["Resources"].get("CPU"):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[look.options(scheduling_strategy=there).remote(wanted)] = node["NodeManagerAddress"]
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=CHECK_TIMEOUT) if asked else ([], [])
    problems = []
    for one in ready:
        try:
            problems += [f"node {asked[one]}: {problem}" for problem in ray.get(one)]
        except ray.exceptions.RayTaskError as error:
            problems.append(f"node {asked[one]}: {first_line(error.cause)}")
        except ray.exceptions.RayError:
            continue  # it is gone: what it had goes elsewhere
    return sorted(problems)


def _look(wanted: dict[str, Any]) -> list[str]:
    """Runs on a node: one line for each thing that it lacks."""
    versions = _versions()
    found = [
        f"has {name} {versions.get(name)}, the driver {ours} (expected the same everywhere)"
        for name, ours in wanted["versions"].items()
        if versions.get(name) != ours
    ]
    if wanted["bf16"] and not provenance.computes_bf16():
        found.append("train.precision: bf16 needs AMX or AVX512-BF16, which its processor has not (expected fp32)")
    if not store.exists(store.resolve_path(wanted["record"])):
        what = "a folder on a file system that all nodes share, or s3:// and its credentials on each"
        found.append(f"does not see {wanted['results']} (expected {what})")
    if os.path.isdir(wanted["directory"]):
        os.chdir(wanted["directory"])
    import_from(*wanted["python_path"], *shipped())
    for train, kind, fingerprint in wanted["inputs"]:
        config = train_from_dict(train)
        source = config.data if kind == "data" else config.init
        try:
            theirs = source.fingerprint()  # type: ignore[union-attr]
        except (OSError, ValueError) as error:
            found.append(f"train.{kind}: {first_line(error)} (expected the driver's files, at the same path)")
            continue
        if theirs != fingerprint:
            found.append(f"train.{kind}: other contents than the driver's, under the same path")
    for own in wanted["own"]:
        try:
            found += [f"{own['path']}: {name} is another than the driver's" for name in edited(Imported(**own))]
        except (OSError, ValueError) as error:
            found.append(f"{own['path']}: {first_line(error)} (expected the driver's files)")
    return found


def _versions() -> dict[str, str]:
    return {name: version for name, version in provenance.versions().items() if name in ("python", "torch", "numpy")}


def _own(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Each component of the user's own."""
    found = [to_dict(own) for cell in cells for own in imported(cell.train)]
    return list({json.dumps(one, sort_keys=True): one for one in found}.values())


def _inputs(cells: Sequence[Cell]) -> list[tuple[dict[str, Any], str, str]]:
    """Each file or folder that a training reads: its config, the part that reads it, and the fingerprint."""
    found: dict[str, tuple[dict[str, Any], str, str]] = {}
    for cell in cells:
        train = cell.train
        data = json.dumps(to_dict(train.data), sort_keys=True)
        found.setdefault(data, (to_dict(train), "data", train.data.fingerprint()))
        if isinstance(train.init, File):
            found.setdefault(train.init.path, (to_dict(train), "init", train.init.fingerprint()))
    return list(found.values())
