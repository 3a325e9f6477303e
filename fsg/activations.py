"""One-bit activations: the sign, what stands in for its derivative, and where `quantize` puts them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fsg.config import Settings, choice
from fsg.scalars import Scalar, Scalars

ActivationDerivative = Literal["clipped", "approx_sign", "ede", "reste"]


class _Derivative(NamedTuple):
    """What stands in for the derivative of the sign at x, and the numbers of it that hang on the progress."""

    at: Callable[..., Tensor]
    numbers: Callable[[float], tuple[float, ...]] = lambda progress: ()


def _ede_numbers(progress: float) -> tuple[float, float]:
    """t and k·t."""
    t = 0.1 * 100**progress
    return t, max(1 / t, 1.0) * t


def _ede(x: Tensor, t: Scalar, height: Scalar) -> Tensor:
    return height * (1 - torch.tanh(t * x).square())


def _reste_numbers(progress: float) -> tuple[float, float]:
    """(1 − o)/o and o."""
    power = 1 + 2 * progress
    return (1 - power) / power, power


def _reste(x: Tensor, exponent: Scalar, power: Scalar) -> Tensor:
    size = x.abs()
    slope = size.clamp_min(0.1) ** exponent
    return torch.where(size <= 0.1, slope, slope / power) * (size <= 1.5)


_DERIVATIVES: dict[ActivationDerivative, _Derivative] = {
    "clipped": _Derivative(lambda x: x.abs() <= 1),
    "approx_sign": _Derivative(lambda x: (2 - 2 * x.abs()).clamp_min(0)),
    "ede": _Derivative(_ede, _ede_numbers),
    "reste": _Derivative(_reste, _reste_numbers),
}


class SignActivation(nn.Module):
    """The sign of each element, with sign 0 = +1, and a surrogate for its derivative.

    Forward:   sign x,   or sign(x − α) with a learned threshold α a channel: ReActNet's RSign
    Backward:  d(x) ⊙ g, d at x − α where there are thresholds, whose gradient is minus the sum over their channel

        clipped      1[|x| ≤ 1], the derivative of the hard tanh
        approx_sign  max(2 − 2|x|, 0), that of a piecewise quadratic
        ede          k·t·(1 − tanh²(t·x)),   t = 0.1·100^progress,   k = max(1/t, 1)
        reste        |x|^((1 − o)/o)/o,   o = 1 + 2·progress;   0.1^((1 − o)/o) up to |x| = 0.1, 0 beyond 1.5

    Any shape in, the same shape out; it belongs behind a batch norm and before a convolution, without a ReLU between.
    `progress` is the part of the training that is over, in [0, 1].
    Courbariaux et al., 2016 (arXiv:1602.02830); Liu et al., Bi-Real Net, ECCV 2018 (arXiv:1808.00278); Qin et al.,
    IR-Net, CVPR 2020 (arXiv:1909.10788); Wu et al., ReSTE, ICCV 2023 (arXiv:2308.06689); Liu et al., ReActNet, ECCV
    2020 (arXiv:2003.03488).
    """

    def __init__(
        self, derivative: ActivationDerivative = "approx_sign", channels: int | None = None, dimension: int = 1
    ) -> None:
        """With `channels`, thresholds are learned, one for each index of that `dimension`; they start at zero.

        Raises ValueError for an unknown derivative.
        """
        super().__init__()
        if derivative not in _DERIVATIVES:
            raise ValueError(f"derivative is {derivative!r}, expected one of {', '.join(_DERIVATIVES)}")
        self.derivative, self.dimension, self.progress = derivative, dimension, 0.0
        self.scalars = Scalars(*_DERIVATIVES[derivative].numbers(self.progress))
        self.threshold = None if channels is None else nn.Parameter(torch.zeros(channels))

    def anneal(self, progress: float) -> None:
        self.progress = progress
        self.scalars.put(*_DERIVATIVES[self.derivative].numbers(progress))

    def forward(self, features: Tensor) -> Tensor:
        if self.threshold is not None:
            features = features - _along(self.threshold, features, self.dimension)
        return _Sign.apply(features, self.derivative, *self.scalars.beside(features))

    def extra_repr(self) -> str:
        thresholds = "" if self.threshold is None else f", channels={len(self.threshold)}"
        return f"derivative={self.derivative!r}{thresholds}"


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, features: Tensor, derivative: ActivationDerivative, *numbers: Scalar) -> Tensor:
        context.save_for_backward(features)
        context.derivative, context.numbers = derivative, numbers
        return torch.where(features >= 0, 1.0, -1.0).to(features.dtype)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        (features,) = context.saved_tensors
        slope = _DERIVATIVES[context.derivative].at(features, *context.numbers)
        return gradient * slope, None, *(None for _ in context.numbers)


class RPReLU(nn.Module):
    """A PReLU that is shifted in both directions: x − γ + ζ above γ, β·(x − γ) + ζ below.

    γ and ζ start at 0, β at ¼; all are learned, a number a channel (dimension 1), or one for all where `channels` is 1.
    Any shape in, the same shape out. Liu et al., ReActNet, ECCV 2020 (arXiv:2003.03488).
    """

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), 0.25))
        self.offset = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        shift, slope, offset = (_along(one, features, 1) for one in (self.shift, self.slope, self.offset))
        shifted = features - shift
        return torch.where(shifted > 0, shifted, slope * shifted) + offset


def _along(values: Tensor, features: Tensor, dimension: int) -> Tensor:
    """Values that broadcast over every dimension of the features but one."""
    shape = [1] * features.ndim
    shape[dimension] = len(values)
    return values.reshape(shape)


@dataclass(frozen=True, kw_only=True)
class RealActivations(Settings):
    """The network's activations as they are."""

    name: Literal["real"] = "real"

    def place(self, model: nn.Module, layers: Iterable[nn.Module]) -> None:
        """Nothing."""


@dataclass(frozen=True, kw_only=True)
class SignActivations(Settings):
    """±1 is what every quantized layer sees."""

    name: Literal["sign"] = "sign"
    derivative: ActivationDerivative = choice("approx_sign", "What stands in for the derivative of the sign.")
    thresholds: Literal["fixed", "learned"] = choice(
        "fixed", "Where the sign changes: at 0, or at a learned threshold a channel (RSign)."
    )
    relu: Literal["keep", "hardtanh", "rprelu"] = choice(
        "keep", "What the network's nn.ReLU become: behind one that is kept, no sign sees a negative number."
    )

    def place(self, model: nn.Module, layers: Iterable[nn.Module]) -> None:
        """Before each of the layers, once; their weights, other parameters and names stay.

        An RPReLU in the place of a ReLU has one γ, β and ζ: how many channels it will see is not known to a module.
        """
        for layer in layers:
            if not isinstance(getattr(layer, "activation", None), SignActivation):
                layer.register_forward_pre_hook(_activated)
            assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
            channels, dimension = (layer.in_features, -1) if isinstance(layer, nn.Linear) else (layer.in_channels, 1)
            learned = channels if self.thresholds == "learned" else None
            layer.activation = _placed(SignActivation(self.derivative, learned, dimension))
        for name, module in list(model.named_modules()):
            if type(module) is nn.ReLU and self.relu != "keep":
                model.set_submodule(name, _placed(_NONLINEARITIES[self.relu]()))


ActivationConfig = RealActivations | SignActivations
_NONLINEARITIES: dict[str, Callable[[], nn.Module]] = {"hardtanh": nn.Hardtanh, "rprelu": RPReLU}


def placed_state(model: nn.Module) -> dict[str, Tensor]:
    """What the modules hold that `place` added, by name: the weights of a network with real activations lack it."""
    return {
        f"{name}.{key}": tensor
        for name, module in model.named_modules()
        if getattr(module, "is_placed", False)
        for key, tensor in module.state_dict().items()
    }


def _placed(module: nn.Module) -> nn.Module:
    setattr(module, "is_placed", True)  # noqa: B010  # a Module types its attributes as tensors
    return module


def _activated(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    assert isinstance(layer.activation, SignActivation)
    return (layer.activation(inputs[0]), *inputs[1:])
