"""Checks before a launch: what a valid spec needs and this machine or cluster lacks."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from fsg.activations import placed_state
from fsg.config import to_dict
from fsg.gpu import why_no_gpu
from fsg.imported import Imported
from fsg.starting_points import File, load_into, load_weights
from fsg.train_config import TrainConfig
from fsg.trainer import refuse_not_finite
from orchestration.commands.components import missing, unfit, unfit_networks
from orchestration.ledger.ledger import Ledger
from orchestration.search.compatibility import differences
from orchestration.spec.cells import contaminated
from orchestration.spec.experiment import ExperimentSpec
from orchestration.spec.reader import reason
from orchestration.spec.yaml_tree import Mark, Node, Problem
from orchestration.util.error_text import one_line
from orchestration.util.provenance import computes_bf16, cores


def find_problems(spec: ExperimentSpec, source: Path, sets: Sequence[str] = (), remote: bool = False) -> list[str]:
    """One line, in the form of a spec's mistakes, for each thing that is missing. Of a cluster nothing is known."""
    problems = [
        *_data(spec),
        *_starting_weights(spec),
        *_precision(spec, remote),
        *([] if remote else _resources(spec)),
    ]
    if remote and spec.resources.gpus == "auto":
        what = "auto is measured on this machine, and the trainings run elsewhere (expected a number)"
        problems.append(("resources.gpus", what))
    return [*_lines(spec, source, sets, [*problems, *_searches(spec)]), *_components(spec, sets)]


def unmet_resources(
    spec: ExperimentSpec, source: Path, sets: Sequence[str], nodes: Sequence[Mapping[str, float]]
) -> list[str]:
    """One line for what a training asks for and no node of a cluster has; a training is on one node, whole."""
    gpus, most = spec.resources.gpu_share, max(node["GPU"] for node in nodes)
    if gpus > most:
        what = f"a training asks for {gpus:g} (expected ≤ {most:g}, the most that a node of the cluster has)"
        return _lines(spec, source, sets, [("resources.gpus", what)])
    cpus, field = _cpus(spec)
    most = max(node["CPU"] for node in nodes if node["GPU"] >= gpus)
    if cpus > most > 0:  # a cluster without any may be about to grow
        what = f"a training asks for {cpus} CPUs (expected ≤ {most:g}, the most that a node of the cluster has)"
        return _lines(spec, source, sets, [(field, what)])
    return []


def study_conflicts(spec: ExperimentSpec, ledger: Ledger, source: Path, sets: Sequence[str] = ()) -> list[str]:
    """One line for each thing in which a search that has begun differs from the spec."""
    assert spec.tree is not None
    section = "search" if "search" in spec.tree.items() else "tuning"
    return _lines(spec, source, sets, differences(spec, ledger, section))


def _lines(spec: ExperimentSpec, source: Path, sets: Sequence[str], problems: Iterable[tuple[str, str]]) -> list[str]:
    return list(dict.fromkeys(str(Problem(_mark(spec, source, sets, field), field, what)) for field, what in problems))


def _components(spec: ExperimentSpec, sets: Sequence[str]) -> list[str]:
    """What cannot be used of the user's own, or with these images, where the variant, the grid or `train` names it."""
    problems = []
    for variant, field, what in (*unfit_networks(spec), *unfit(spec)):
        at = field if field == "full_precision_layers" else f"{field}.import"
        problems.append(Problem(*_written(spec, sets, variant, at), what))
    return list(dict.fromkeys(map(str, problems)))


def _written(spec: ExperimentSpec, sets: Sequence[str], variant: str, field: str) -> tuple[Mark, str]:
    """Where a field of a variant's training was said, and what it is called there."""
    assert spec.tree is not None
    ways = [f"variants.{variant}.{field}", f"grid.{field}", f"train.{field}"]
    whole = {way: way.removesuffix(".import") for way in ways}
    for way in ways:
        said = [one for one in sets if one.partition("=")[0] in (way, whole[way])]
        if said:
            return Mark(f"--set {said[-1]}"), whole[way]
    profile = _deepest(spec.tree, ["profiles", spec.profile]) if spec.profile else None
    for root in (profile, spec.tree):
        for way in ways:
            found = None if root is None else _deepest(root, way.split("."))
            if found is not None and found.label.endswith((way, whole[way])):
                return found.key_mark, found.label
    return spec.tree.key_mark, f"train.{field}"


def _searches(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    """A search is judged by validation images, and by none that its starting weights know."""
    for train in [study.train for study in spec.studies]:
        if not train.data.validation:
            yield "train.data", "validation is 0, and a search is judged by validation images (expected ≥ 1)"
        elif contaminated(train):
            what = "its weights may have been trained on the validation images, by which a search would then be judged"
            yield "train.init", f"{what} (expected trained_on: train_without_validation or other_data)"


def _data(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    for train in _distinct(spec, lambda train: to_dict(train.data)):
        try:
            train.data.load()  # leaves the fingerprint behind
        except (OSError, ValueError) as error:
            yield "train.data", missing(error, spec, train.data) or one_line(error)
        except Exception as error:
            if not isinstance(train.data, Imported):
                raise
            yield "train.data", f"{reason(error)} (expected images that can be loaded)"


def _starting_weights(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    for train in _distinct(spec, lambda train: [to_dict(train.data), to_dict(train.model), to_dict(train.init)]):
        if not isinstance(train.init, File) and not isinstance(train.model, Imported):
            continue  # random weights of our own
        try:
            dataset = train.data.load()
            model = train.model.build(dataset.shape, dataset.classes)
        except Exception:  # `_data` tells it, or the check of own components
            continue
        if not isinstance(model, torch.nn.Module):
            continue
        try:
            if isinstance(train.init, File):
                load_into(model, placed_state(train.quantized(model)) | load_weights(train.init.path))
        except (OSError, ValueError) as error:
            yield "train.init.path", missing(error, spec, train.init) or one_line(error)
        try:
            refuse_not_finite(model)
        except ValueError as error:
            yield "train.model", one_line(error)


def _precision(spec: ExperimentSpec, remote: bool) -> Iterator[tuple[str, str]]:
    wanted = {train.precision for train in spec.trains}
    if spec.resources.gpu_share or _has_auto(spec):
        return
    if any(train.cuda_graph is True for train in spec.trains):
        yield "train.cuda_graph", "a CUDA graph needs a GPU (expected auto, or resources.gpus above 0)"
    if "tf32" in wanted:
        yield "train.precision", "tf32 needs a GPU (expected fp32, or resources.gpus above 0)"
    if "bf16" in wanted and not remote and not computes_bf16():
        what = "bf16 needs a GPU or a processor with AMX or AVX512-BF16, which this one has not"
        yield "train.precision", f"{what} (expected fp32, or resources.gpus above 0)"


def _has_auto(spec: ExperimentSpec) -> bool:
    """Whether `auto` is about a GPU: the driver lists one, whether torch can use it or not."""
    return spec.resources.gpus == "auto" and torch.cuda.device_count() > 0


def _resources(spec: ExperimentSpec) -> Iterator[tuple[str, str]]:
    gpus, listed = spec.resources.gpu_share, torch.cuda.device_count()
    why = why_no_gpu() if gpus or _has_auto(spec) else ""
    have = 0 if why else listed
    if gpus > have:
        unused = f"; torch can use none: {why}" if why else ""
        yield (
            "resources.gpus",
            f"a training asks for {gpus:g} (expected ≤ {have}, the CUDA GPUs of this machine{unused})",
        )
    elif why:
        yield "resources.gpus", f"auto, and torch cannot use the GPU that is here: {why} (expected 0)"
    cpus, field = _cpus(spec)
    if cpus > cores():
        yield field, f"a training asks for {cpus} CPUs (expected ≤ {cores()}, those of this machine)"


def _cpus(spec: ExperimentSpec) -> tuple[int, str]:
    """What a training asks for at most, and the field that says so."""
    if spec.resources.cpus:
        return spec.resources.cpus, "resources.cpus"
    return max(train.threads for train in spec.trains), "train.threads"


def _distinct(spec: ExperimentSpec, what: Callable[[TrainConfig], object]) -> Sequence[TrainConfig]:
    return list({json.dumps(what(train), sort_keys=True): train for train in spec.trains}.values())


def _mark(spec: ExperimentSpec, source: Path, sets: Sequence[str], field: str) -> Mark:
    """Where a field was set on the command line, or written, or the nearest thing above it."""
    for one in sets:
        if one.startswith(field):
            return Mark(f"--set {one}")
    if spec.tree is None:  # of a launch that goes on
        return Mark(str(source))
    return _deepest(spec.tree, field.split(".")).key_mark


def _deepest(node: Node, parts: Sequence[str]) -> Node:
    """What is written of the most of a path; a key may itself have dots."""
    for count in range(len(parts), 0, -1):
        child = node.items().get(".".join(parts[:count]))
        if child is not None:
            return _deepest(child, parts[count:])
    return node
