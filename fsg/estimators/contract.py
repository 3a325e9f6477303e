"""What an estimator of a user's own must do in a step, said in words where it does not."""

from typing import Any

from torch import Tensor, nn

from fsg.config import kind_of
from fsg.estimators.protocol import GradientEstimator
from fsg.layers import anneal


def proposed(estimator: GradientEstimator, model: nn.Module, lr: float, progress: float) -> dict[str, Tensor]:
    """What the estimator proposes. Raises ValueError for anything but tensors by the names of the parameters."""
    anneal(model, progress)
    weights: Any = estimator.propose(model, lr=lr, progress=progress)
    says = f"{type(estimator).__name__}.propose returned"
    wanted = "expected the quantized weights, tensors by the parameters' names"
    if not isinstance(weights, dict):
        raise ValueError(f"{says} {kind_of(weights)}, {wanted}")
    latent = {f"{name}.weight": layer.weight.shape for name, layer in estimator.layers.items()}
    for name, weight in weights.items():
        if not isinstance(weight, Tensor):
            raise ValueError(f"{says} {kind_of(weight)} for {name!r}, {wanted}")
        if name in latent and weight.shape != latent[name]:
            shapes = f"{list(weight.shape)} for {name!r}, whose shape is {list(latent[name])}"
            raise ValueError(f"{says} a tensor {shapes}, {wanted}")
        if name not in latent and not _has(model, name):
            example = f", such as {min(latent)!r}" if latent else ""
            raise ValueError(f"{says} {name!r}, which is no parameter of the model, {wanted}{example}")
        if name in latent and not weight.requires_grad:  # of a `propose` that torch has compiled
            weight.requires_grad_()
    return weights


def updated(estimator: GradientEstimator, model: nn.Module) -> bool:
    """Whether the update has something to apply. Raises ValueError where it does not say so, or left no gradient."""
    applies: Any = estimator.update(model)
    owner = type(estimator).__name__
    if not isinstance(applies, bool):
        what = "expected True, or False where the optimizer has nothing to apply"
        raise ValueError(f"{owner}.update returned {kind_of(applies)}, {what}")
    without = [name for name, layer in estimator.layers.items() if layer.weight.grad is None] if applies else []
    if without:
        more = f" and {len(without) - 1} more" if len(without) > 1 else ""
        what = "expected a gradient in layer.weight.grad for each of estimator.layers"
        raise ValueError(f"{owner}.update returned True and wrote no gradient for {without[0]}.weight{more}, {what}")
    return applies


def _has(model: nn.Module, name: Any) -> bool:
    try:
        return isinstance(model.get_parameter(name), Tensor)
    except AttributeError:
        return name in dict(model.named_buffers())
