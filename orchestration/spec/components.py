"""What a component of the user's own must be, kind by kind: seen from its class, before anything is built."""

from typing import Any, NamedTuple

from torch import nn

from fsg.config import Settings
from fsg.constructor import Arguments
from fsg.estimators import GradientEstimator


class Kind(NamedTuple):
    """`base` is what its class derives from, `methods` what it has; a `built` one comes from its config's `build`."""

    title: str
    example: str
    base: type = object
    methods: tuple[str, ...] = ()
    given: str | None = None

    @property
    def built(self) -> bool:
        return self.given is not None


KINDS = {
    "data": Kind("dataset", "a dataclass derived from fsg.data.Images", methods=("load", "fingerprint")),
    "model": Kind("network", "a torch.nn.Module", nn.Module, given="shape, classes"),
    "quantizer": Kind(
        "quantizer",
        "a dataclass derived from fsg.quantizers.BaseQuantizer and fsg.config.Settings",
        methods=("prequantize", "quantize", "position", "calibration", "pull_back", "__call__"),
    ),
    "estimator": Kind(
        "gradient estimator", "a class derived from fsg.GradientEstimator", GradientEstimator, given="model"
    ),
    "optimizer": Kind(
        "optimizer",
        "a class derived from fsg.optimizers.Optimizer",
        methods=("step", "zero_grad", "state_dict", "load_state_dict"),
        given="model",
    ),
    "lr_schedule": Kind("schedule", "a dataclass with a method factor(epoch, epochs)", methods=("factor",)),
    "loss": Kind("loss", "a class whose instances are called with logits and labels", given=""),
}


def misfit(kind: Kind, owner: Any, config: type[Settings]) -> str | None:
    """Why the class that is named cannot be a component of that kind; None where it may be one."""
    if not kind.built:
        return _other_kind(kind, owner if issubclass(config, Arguments) else config, owner.__name__)
    if not issubclass(owner, Settings) and (wrong := _other_kind(kind, owner, owner.__name__)):
        return wrong
    if not callable(getattr(config, "build", None)):
        return f"{config.__qualname__} has no build({kind.given}) (expected one that returns the {kind.title})"
    if issubclass(config, Arguments) and kind.given == "model" and config.given != ("model",):
        return f"{owner.__name__} takes no argument called model (expected one, or a nested Config with build(model))"
    return None


def _other_kind(kind: Kind, used: Any, name: str) -> str | None:
    missing = [method for method in kind.methods if not callable(getattr(used, method, None))]
    if issubclass(used, kind.base) and not missing:
        return None
    other = next((one.title for one in KINDS.values() if one.base is not object and issubclass(used, one.base)), "")
    why = f"is a {other}, and no {kind.title}" if other else f"is no {kind.title}"
    lacks = f": it has no {', '.join(missing)}" if missing and not other else ""
    return f"{name} {why}{lacks} (expected {kind.example})"
