"""What a valid spec asks for and this machine does not have: found before anything starts."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from fsg.config import to_dict
from fsg.starting_points import File, load_into, load_weights
from fsg.trainer import TrainConfig
from orchestration.provenance import cores
from orchestration.specs import ExperimentSpec
from orchestration.yaml_positions import Mark, Problem, parse


def unrunnable(spec: ExperimentSpec, source: Path, sets: Sequence[str] = (), remote: bool = False) -> list[str]:
    """One line, in the form of a spec's mistakes, for each thing that is missing. Of a cluster nothing is known."""
    problems = [*_data(spec), *_starting_weights(spec), *_precision(spec), *([] if remote else _resources(spec))]
    return list(dict.fromkeys(str(Problem(_mark(spec, source, sets, field), field, what)) for field, what in problems))


def _data(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    for point in _distinct(spec, lambda train: to_dict(train.data)):
        try:
            point.data.load()  # leaves the fingerprint behind
        except (OSError, ValueError) as error:
            yield "train.data", _one_line(error)


def _starting_weights(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    for train in _distinct(spec, lambda train: [to_dict(train.data), to_dict(train.model), to_dict(train.init)]):
        if isinstance(train.init, File):
            try:
                dataset = train.data.load()
                load_into(train.model.build(dataset.shape, dataset.classes), load_weights(train.init.path))
            except (OSError, ValueError) as error:
                yield "train.init.path", _one_line(error)


def _precision(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    for precision in {point.train.precision for point in spec.points} - {"fp32"}:
        if not spec.resources.gpus:
            yield "train.precision", f"{precision} needs a GPU (expected fp32, or resources.gpus above 0)"


def _resources(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    gpus, have = spec.resources.gpus, torch.cuda.device_count()
    if gpus > have:
        yield (
            "resources.gpus",
            f"a training asks for {gpus:g} (expected ≤ {have}, the CUDA GPUs of this machine)",
        )
    threads = max(point.train.threads for point in spec.points)
    cpus, field = (spec.resources.cpus, "resources.cpus") if spec.resources.cpus else (threads, "train.threads")
    if cpus > cores():
        yield field, f"a training asks for {cpus} CPUs (expected ≤ {cores()}, those of this machine)"


def _distinct(spec: ExperimentSpec, what: Callable[[TrainConfig], object]) -> Sequence[TrainConfig]:
    return list({json.dumps(what(point.train), sort_keys=True): point.train for point in spec.points}.values())


def _mark(spec: ExperimentSpec, source: Path, sets: Sequence[str], field: str) -> Mark:
    """Where a field was set on the command line, or written, or the nearest thing above it."""
    for one in sets:
        if one.startswith(field):
            return Mark(f"--set {one}")
    node, _ = parse(spec.text, Mark(str(source), 1, 1))
    mark = node.mark
    for key in field.split("."):
        if key not in node.items():
            break
        node = node.items()[key]
        mark = node.key_mark
    return mark


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
