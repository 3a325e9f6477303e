"""Before anything starts, every component of the user's own is built once, with what it will meet.

It is built on torch's meta device, where nothing is computed; what cannot be built there is built on the CPU.
"""

import functools
import json
import numbers
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fsg.config import Settings, kind_of, to_dict
from fsg.estimators import GradientEstimator
from fsg.image_dataset import ImageDataset
from fsg.imported import Imported, places
from fsg.shapes import shapes_only
from fsg.starting_points import Pretrain
from fsg.torch_optimizer import adapted
from fsg.train_config import NO_TEACHER, TrainConfig, pretraining
from orchestration.spec.cells import imported
from orchestration.spec.components import KINDS
from orchestration.spec.experiment import ExperimentSpec
from orchestration.spec.reader import reason
from orchestration.util.error_text import one_line


class _Unfit(Exception):
    """What is wrong with a field of a training."""

    def __init__(self, field: str, what: str) -> None:
        super().__init__(what)
        self.field, self.what = field, what


def unfit(spec: ExperimentSpec) -> Iterator[tuple[str, str, str]]:
    """Variant, field below `train`, and what is wrong, for each training with a component that cannot be used."""
    seen: set[str] = set()
    for variant, train in _trainings(spec):
        key = json.dumps([to_dict(train) | {"epochs": 0, "batch_size": 0, "threads": 0}], sort_keys=True)
        if key in seen or not imported(train):
            continue
        seen.add(key)
        try:
            _build(train)
        except _Unfit as wrong:
            own = getattr(train, wrong.field)
            yield variant, wrong.field, missing(wrong.__cause__, spec, own) or wrong.what
        if isinstance(train.init, Pretrain) and imported(train.init):
            try:
                _build(pretraining(train))
            except _Unfit as wrong:
                at_init = wrong.field.startswith(("optimizer", "lr_schedule"))
                own = getattr(train.init if at_init else train, wrong.field)
                what = missing(wrong.__cause__, spec, own) or wrong.what
                yield variant, f"init.{wrong.field}" if at_init else wrong.field, what


def missing(error: BaseException | None, spec: ExperimentSpec, part: Settings) -> str:
    """What to say of a part of a training whose file is not there: where it was looked for. "" for other errors."""
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        what = f"{error.filename}: there is no such file"
    elif error is not None and isinstance(error.__context__, FileNotFoundError):
        what = one_line(error)
    else:
        return ""
    why = {spec.source.resolve().parent: ", beside the spec"}
    why |= {place: ", beside the module" for place in _places(part) if place not in (*why, Path.cwd())}
    why |= {Path.cwd(): ""} if Path.cwd() not in why or len(why) == 1 else {}
    begins = ", and then at ".join(f"{place}{said}" for place, said in why.items())
    return f"{what} (relative paths begin at {begins})"


def _places(part: Settings) -> list[Path]:
    try:
        return places(part.path) if isinstance(part, Imported) else []
    except (ImportError, ValueError):  # it is that module that cannot be imported
        return []


def unfit_networks(spec: ExperimentSpec) -> Iterator[tuple[str, str, str]]:
    """The same for each network of fsg's that cannot take the images."""
    seen: set[str] = set()
    for variant, train in _trainings(spec):
        key = json.dumps([to_dict(train.data), to_dict(train.model)], sort_keys=True)
        if key in seen or isinstance(train.model, Imported):
            continue
        seen.add(key)
        try:
            dataset = train.data.load()
        except Exception:  # is told where the data is checked
            continue
        if not isinstance(dataset, ImageDataset):
            continue
        try:
            with shapes_only():
                train.model.build(dataset.shape, dataset.classes)
        except ValueError as error:
            yield variant, "model", reason(error)


def _trainings(spec: ExperimentSpec) -> list[tuple[str, TrainConfig]]:
    points = [(point.variant, point.train) for point in spec.points]
    return points + [(study.name, study.train) for study in spec.studies]


def _build(train: TrainConfig) -> None:
    """Raises _Unfit."""
    try:
        dataset = train.data.load()
    except Exception:  # is told where the data is checked
        return
    if not isinstance(dataset, ImageDataset):
        raise _Unfit("data", f"load returned {kind_of(dataset)} (expected a fsg.data.Dataset)")
    if not hasattr(train.data, "validation"):
        raise _Unfit("data", "has no setting validation (expected one: how many training images are held out)")
    if not isinstance(_called("data", train.data.fingerprint), str):
        raise _Unfit("data", "fingerprint returned no text (expected a digest of the images)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the training itself says them
        try:
            with shapes_only():
                _build_parts(train, dataset)
        except _Unfit:
            _build_parts(train, dataset)


def _build_parts(train: TrainConfig, dataset: ImageDataset) -> None:
    if isinstance(train.lr_schedule, Imported):
        factor = _called("lr_schedule", train.lr_schedule.factor, 0.0, max(1, train.epochs))
        if not isinstance(factor, numbers.Real):
            raise _Unfit("lr_schedule", f"factor(0.0, …) returned {kind_of(factor)} (expected a number)")
    if isinstance(train.quantizer, Imported):
        _called("quantizer", _try_quantizer, train.quantizer)
    if isinstance(train.loss, Imported):
        _try_loss(train, dataset.classes)
    model = _called("model", train.model.build, dataset.shape, dataset.classes)
    _expect("model", model, nn.Module)
    try:
        quantized = train.quantized(model)
    except Exception as error:
        named = "no layer is named" in str(error)
        raise _Unfit("full_precision_layers" if named else "model", reason(error)) from error
    estimator = _called("estimator", train.estimator.build, quantized)
    _expect("estimator", estimator, GradientEstimator)
    if not hasattr(estimator, "layers"):
        raise _Unfit("estimator", "it has no layers (expected super().__init__(model) in its constructor)")
    optimizer = _called("optimizer", lambda: adapted(train.optimizer.build(quantized), quantized))
    if isinstance(train.optimizer, Imported):
        needed = (*KINDS["optimizer"].methods, "names", "parameters")
        missing = [name for name in needed if not hasattr(optimizer, name)]
        if missing:
            what = f"build returned {kind_of(optimizer)}, which has no {', '.join(missing)}"
            raise _Unfit("optimizer", f"{what} (expected {KINDS['optimizer'].example})")
        if not isinstance(_called("optimizer", getattr, train.optimizer, "lr", None), numbers.Real):
            raise _Unfit("optimizer", "has no setting lr (expected one: the learning rate before the schedule)")


def _try_loss(train: TrainConfig, classes: int) -> None:
    """Raises _Unfit where it makes no number of logits and labels, or needs a teacher that there is not."""
    with torch.device("cpu"):
        loss = _called("loss", train.loss.build)
        logits, labels = torch.zeros(2, classes, requires_grad=True), torch.arange(2)
        _expect("loss", loss, Callable)  # type: ignore[arg-type]
        teacher = {"teacher": torch.zeros(2, classes)} if getattr(loss, "needs_teacher", False) else {}
        if teacher and not isinstance(train.init, Pretrain):
            raise _Unfit("loss", NO_TEACHER.format(train.init.name))
        value = _called("loss", functools.partial(loss, logits, labels, **teacher))
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        found = f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else kind_of(value)
        what = "without a gradient" if isinstance(value, Tensor) and value.numel() == 1 else "for logits and labels"
        raise _Unfit("loss", f"it returned {found} {what} (expected a number that depends on the logits)")


def _try_quantizer(quantizer: Any) -> None:
    """Each of its functions, for a weight [2, 3]. Raises ValueError where one returns another shape."""
    if hasattr(quantizer, "at"):
        quantizer = quantizer.at(0.0)
        if not hasattr(quantizer, "prequantize"):
            raise ValueError(f"at(0.0) returned {kind_of(quantizer)} (expected the quantizer for that progress)")
    weight = torch.linspace(-1, 1, 6, device="cpu").reshape(2, 3)
    prequantized = quantizer.prequantize(weight)
    found = {
        "prequantize": prequantized,
        "quantize": quantizer.quantize(prequantized),
        "position": quantizer.position(prequantized),
        "calibration": quantizer.calibration(weight),
        "pull_back": quantizer.pull_back(weight, weight),
        "a call": quantizer(weight),
    }
    if hasattr(quantizer, "scale_gradient") and (gradient := quantizer.scale_gradient(weight, weight)) is not None:
        found["scale_gradient"] = gradient
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} returned {kind_of(tensor)} (expected a tensor)")
        if name != "calibration" and tensor.shape != weight.shape:
            raise ValueError(f"{name} made {list(tensor.shape)} of a weight [2, 3] (expected its shape)")


def _expect(kind: str, built: Any, base: type) -> None:
    if not isinstance(built, base):
        raise _Unfit(kind, f"build returned {kind_of(built)} (expected {KINDS[kind].example})")


def _called(field: str, function: Any, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        what = reason(error)
        known = "(expected " in what or ", expected " in what
        raise _Unfit(field, what if known else f"{what} (expected a {KINDS[field].title} that can be built)") from error
