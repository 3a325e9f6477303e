"""Forward binarisers: what turns a latent weight W into a quantized weight Ŵ.

A quantizer is a few pure functions of tensors [out, …], a convolution's or a linear layer's weight:

    prequantize  W → W̃         the differentiable part
    quantize     W̃ → Ŵ         the part without a derivative
    position     W̃ → x         where W̃ stands: the threshold is at 0, the levels beside it at −1 and +1
    calibration  W → c          dŴ/dW where the derivative of the rounding, ∂Ŵ/∂x, is 1: an elementwise factor
    pull_back    W, v → ∂L/∂W   for v = ∂L/∂Ŵ ⊙ (what stands in for that derivative at x); c ⊙ v unless said otherwise

Three more are optional:

    scale_gradient  W, g → what reaches W beside that, for g = ∂L/∂Ŵ: through a scale made of W; None for nothing
    at              progress → the quantizer for that part of the training, in [0, 1]; itself unless it is annealed
    flat            many W → the same of all of them in one vector, where `quantize` and `position` are elementwise and
                    the pull-back is c ⊙ v; a class that is derived does not inherit it

Whoever estimates the gradient owns the derivative of the rounding (`fsg.estimators`), so nothing here is
differentiated by autograd. Learned gradients, which are no ∂L/∂Ŵ, are multiplied with the calibration.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from fsg import foreach
from fsg.config import Settings, choice, setting
from fsg.flat import FlatLayout
from fsg.imported import Imported


class Quantizer(Protocol):
    """The functions of the module's docstring that each must have, and the composition of the first two."""

    def prequantize(self, weight: Tensor) -> Tensor: ...
    def quantize(self, prequantized: Tensor) -> Tensor: ...
    def position(self, prequantized: Tensor) -> Tensor: ...
    def calibration(self, weight: Tensor) -> Tensor: ...
    def pull_back(self, weight: Tensor, gradient: Tensor) -> Tensor: ...
    def __call__(self, weight: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Flat:
    """Many weights in one vector [N], as a quantizer sees them: W̃ and c, each where it is asked for."""

    quantizer: Quantizer
    layout: FlatLayout
    prequantized: Callable[[], Tensor]
    calibration: Callable[[], Tensor]


class BaseQuantizer:
    """The sign, and what most quantizers have in common."""

    def prequantize(self, weight: Tensor) -> Tensor:
        return weight

    def quantize(self, prequantized: Tensor) -> Tensor:
        """±1, with sign 0 = +1."""
        return torch.where(prequantized >= 0, 1.0, -1.0).to(prequantized.dtype)

    def position(self, prequantized: Tensor) -> Tensor:
        return prequantized

    def calibration(self, weight: Tensor) -> Tensor:
        return torch.ones_like(weight)

    def pull_back(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return gradient * self.calibration(weight)

    def scale_gradient(self, weight: Tensor, gradient: Tensor) -> Tensor | None:
        return None

    def at(self, progress: float) -> Self:
        return self

    def __call__(self, weight: Tensor) -> Tensor:
        """Ŵ of a latent weight, same shape and dtype."""
        return self.quantize(self.prequantize(weight))


@dataclass(frozen=True, kw_only=True)
class DoReFa(BaseQuantizer, Settings):
    """MetaQuant's `dorefa`: DoReFa-Net's k-bit rule (tanh-normalised, then rounded), here for one bit too; n = 2ᵏ − 1.

    Forward:      W̃ = tanh W / (2 max|tanh W|) + ½,   Ŵ = 2·round(n·W̃)/n − 1
    Position:     x = 2·(n·W̃ − j) − 1 on the j-th of the n steps of the staircase; for one bit x = 2W̃ − 1
    Calibration:  c = (1 − tanh² W) / max|tanh W|      (the maximum, over the tensor, held constant)

    A weight of exactly 0 has W̃ = ½, which is rounded to even, so Ŵ = −1; the sign of 0 is +1. An all-zero tensor has
    c = 1. DoReFa-Net's own one-bit rule is sign(W)·mean|W| over the layer, without a factor in the gradient: that is
    `bwn` with `scale: layer` and `gradient: unscaled`, and the estimator `ste` with `derivative: identity`.
    Zhou et al., DoReFa-Net, 2016 (arXiv:1606.06160); Chen et al., MetaQuant, NeurIPS 2019.
    """

    name: Literal["dorefa"] = "dorefa"
    weight_bits: Literal[1, 2, 4] = choice(1, "Bits of a quantized weight.")

    @property
    def steps(self) -> int:
        """n, of the staircase: one less than there are levels."""
        return 2**self.weight_bits - 1

    def prequantize(self, weight: Tensor) -> Tensor:
        squashed = torch.tanh(weight)
        return self._normalised(squashed, _largest(squashed))

    def quantize(self, prequantized: Tensor) -> Tensor:
        if self.steps == 1:
            return 2 * torch.round(prequantized) - 1
        return 2 * torch.round(self.steps * prequantized) / self.steps - 1

    def position(self, prequantized: Tensor) -> Tensor:
        if self.steps == 1:
            return 2 * prequantized - 1
        height = self.steps * prequantized
        return 2 * (height - height.floor().clamp(0, self.steps - 1)) - 1

    def calibration(self, weight: Tensor) -> Tensor:
        squashed = torch.tanh(weight)
        return self._slope(squashed, _largest(squashed))

    def flat(self, layout: FlatLayout, weights: Sequence[Tensor]) -> Flat:
        squashed = torch.tanh(layout.pack(weights))
        each = torch.stack(foreach.norm(list(layout.unpack(squashed)), math.inf))
        largest = layout.spread(_positive(each))
        lies = layout.after(torch.tanh)
        return Flat(self, lies, lambda: self._normalised(squashed, largest), lambda: self._slope(squashed, largest))

    @staticmethod
    def _normalised(squashed: Tensor, largest: Tensor) -> Tensor:
        return squashed / (2 * largest) + 0.5

    @staticmethod
    def _slope(squashed: Tensor, largest: Tensor) -> Tensor:
        return (1 - squashed.square()) / largest


def _largest(tensor: Tensor) -> Tensor:
    """max|tensor|, as a tensor of no dimension, never below the smallest normal number; 1 for an all-zero tensor."""
    return _positive(tensor.abs().amax())


def _positive(largest: Tensor) -> Tensor:
    return torch.where(largest > 0, largest.clamp_min(torch.finfo(largest.dtype).tiny), 1)


@dataclass(frozen=True, kw_only=True)
class Sign(BaseQuantizer, Settings):
    """The sign, without a scale.

    Forward:      W̃ = W,   Ŵ = sign W, with sign 0 = +1
    Position:     x = W
    Calibration:  c = 1

    It is what the code released for FSG calls BWN; MetaQuant's BWN has a scale and is in `bwn`.
    Courbariaux et al., BinaryConnect, NeurIPS 2015 (arXiv:1511.00363).
    """

    name: Literal["sign"] = "sign"

    def flat(self, layout: FlatLayout, weights: Sequence[Tensor]) -> Flat:
        packed = layout.pack(weights)
        return Flat(self, layout, lambda: packed, lambda: torch.ones_like(packed))


@dataclass(frozen=True, kw_only=True)
class BWN(BaseQuantizer, Settings):
    """The sign with the scale that is nearest to W: XNOR-Net's binary weights.

    Forward:      W̃ = W,   Ŵ = α·sign W,   α = mean|W| of each output channel, or of the layer
    Position:     x = W
    Pull-back:    α ⊙ v                                    gradient: scaled; α held constant
                  v                                        gradient: unscaled
                  α ⊙ v + sign W ⊙ Σ(g ⊙ sign W)/n         gradient: through_scale, exact for α, the mean of n sizes
    Calibration:  c = α, and 1 for `unscaled` or without `calibrate`

    `unscaled` is the gradient of the code of Bi-Real Net, ReActNet (a channel's α) and DoReFa-Net (a layer's),
    `through_scale` with a layer's α that of ReSTE's. MetaQuant's BWN is `scale: layer` with `calibrate: false`: the
    straight-through gradient has α, the learned one has not. XNOR-Net's paper has 1/n in place of the second term of
    `through_scale`, which is not here.
    Rastegari et al., XNOR-Net, ECCV 2016 (arXiv:1603.05279).
    """

    name: Literal["bwn"] = "bwn"
    scale: Literal["channel", "layer"] = choice("channel", "What shares one α: an output channel or the whole layer.")
    gradient: Literal["scaled", "unscaled", "through_scale"] = choice(
        "scaled",
        "What a straight-through gradient has of α: the factor, nothing, or the whole chain rule.",
        identity="unless_default",
    )
    calibrate: bool = setting(
        True, "Whether learned gradients get the factor α too (MetaQuant: not).", identity="unless_default"
    )

    def alpha(self, weight: Tensor) -> Tensor:
        """mean|W|: [out, 1, …] or [1, …]."""
        return weight.abs().mean(_within(weight) if self.scale == "channel" else None, keepdim=True)

    def quantize(self, prequantized: Tensor) -> Tensor:
        return self.alpha(prequantized) * super().quantize(prequantized)

    def calibration(self, weight: Tensor) -> Tensor:
        scaled = self.calibrate and self.gradient != "unscaled"
        return self.alpha(weight).expand_as(weight) if scaled else torch.ones_like(weight)

    def pull_back(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return gradient if self.gradient == "unscaled" else gradient * self.alpha(weight)

    def scale_gradient(self, weight: Tensor, gradient: Tensor) -> Tensor | None:
        """∂L/∂α·∂α/∂W, where the gradient goes through the scale."""
        if self.gradient != "through_scale":
            return None
        sign = super().quantize(weight)
        return sign * (gradient * sign).mean(_within(weight) if self.scale == "channel" else None, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class Libra(BaseQuantizer, Settings):
    """Libra parameter binarization of IR-Net: balanced, standardised, then the sign with a power of two as scale.

    Each output channel by itself, with its n weights' mean μ and standard deviation σ (over n − 1):

    Forward:      W̃ = (W − μ)/σ,   Ŵ = 2ˢ·sign W̃,   s = round(log₂ mean|W̃|)
    Position:     x = W̃
    Pull-back:    ∂L/∂W = 2ˢ/σ · (v − mean v − W̃·Σ(v ⊙ W̃)/(n − 1)),   exact for μ and σ; s held constant
    Calibration:  c = 2ˢ/σ      (s, μ and σ held constant)

    A channel whose weights are all equal has W̃ = 0 and Ŵ = +1, and σ counts as 1. IR-Net is this with the estimator
    `ede`, as in its code; s held constant is the code's too.
    Qin et al., Forward and Backward Information Retention for Accurate Binary Neural Networks, CVPR 2020
    (arXiv:1909.10788).
    """

    name: Literal["libra"] = "libra"

    def prequantize(self, weight: Tensor) -> Tensor:
        return _standardized(weight)[0]

    def scale(self, prequantized: Tensor) -> Tensor:
        """2ˢ, [out, 1, …]."""
        size = prequantized.abs().mean(_within(prequantized), keepdim=True)
        return torch.exp2(torch.where(size > 0, size, 1).log2().round())

    def quantize(self, prequantized: Tensor) -> Tensor:
        return self.scale(prequantized) * super().quantize(prequantized)

    def calibration(self, weight: Tensor) -> Tensor:
        standardized, deviation = _standardized(weight)
        return (self.scale(standardized) / deviation).expand_as(weight)

    def pull_back(self, weight: Tensor, gradient: Tensor) -> Tensor:
        standardized, deviation = _standardized(weight)
        return _through_standardization(standardized, deviation, self.scale(standardized) * gradient)


@dataclass(frozen=True, kw_only=True)
class ReCU(BaseQuantizer, Settings):
    """The rectified clamp unit: standardised weights, those in the tails clamped to two quantiles; then the sign.

    Each output channel has its n weights' mean μ and variance σ² (over n − 1); Q is the layer's:

    Forward:      U = 2√2·(W − μ)/√(σ² + 10⁻⁵),   W̃ = min(max(U, −Q), Q),   Ŵ = sign W̃,   Q = −mean|U|·ln(2 − 2τ)
    Position:     x = W̃
    Pull-back:    through the clamp (0 in the tails, which follow their channel's μ and σ alone) and, exactly, through
                  the standardisation; Q, the τ-quantile of a Laplace distribution, held constant
    Calibration:  c = 2√2/√(σ² + 10⁻⁵) ⊙ 1[|U| ≤ Q]      (μ, σ and Q held constant)

    The clamp changes no sign: it is felt in the backward pass alone. With `tau_start`, τ is annealed to `tau`:

        τ = tau_start + (tau − tau_start)·(e^progress − 1)/(e − 1)

    The paper and its code go from 0.85 to 0.99, once an epoch; outside of a training τ is `tau`. They also learn a
    scale for each output channel, which a batch norm after the layer makes superfluous and which is left out. Its
    estimator is the straight-through one with `derivative: identity`.
    Xu et al., ReCU: Reviving the Dead Weights in Binary Neural Networks, ICCV 2021 (arXiv:2103.12369).
    """

    name: Literal["recu"] = "recu"
    tau: float = setting(0.99, "τ: the weights above this quantile, or below that of 1 − τ, are clamped.", gt=0.5, lt=1)
    tau_start: float | None = setting(
        None, "τ at the start, where it is annealed to tau; null: it is not.", gt=0.5, lt=1, identity="unless_default"
    )

    def at(self, progress: float) -> "ReCU":
        if self.tau_start is None:
            return self
        risen = math.expm1(progress) / math.expm1(1)
        return replace(self, tau=self.tau_start + (self.tau - self.tau_start) * risen, tau_start=None)

    def prequantize(self, weight: Tensor) -> Tensor:
        standardized, _, limit = self._standardized(weight)
        return torch.minimum(torch.maximum(standardized, -limit), limit)

    def calibration(self, weight: Tensor) -> Tensor:
        standardized, deviation, limit = self._standardized(weight)
        return (standardized.abs() <= limit) * (2 * math.sqrt(2) / deviation)

    def pull_back(self, weight: Tensor, gradient: Tensor) -> Tensor:
        standardized, deviation, limit = self._standardized(weight)
        spread = 2 * math.sqrt(2)
        return _through_standardization(
            standardized / spread, deviation, spread * gradient * (standardized.abs() <= limit)
        )

    def _standardized(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """U, √(σ² + 10⁻⁵) of each channel, and Q."""
        standardized, deviation = _standardized(weight, epsilon=1e-5)
        standardized = 2 * math.sqrt(2) * standardized
        return standardized, deviation, -standardized.abs().mean() * math.log(2 - 2 * self.tau)


def _within(weight: Tensor) -> tuple[int, ...]:
    """The dimensions of an output channel."""
    return tuple(range(1, weight.dim()))


def _standardized(weight: Tensor, epsilon: float = 0.0) -> tuple[Tensor, Tensor]:
    """(W − μ)/√(σ² + ε) and √(σ² + ε) of each output channel, [out, 1, …], which is 1 where it would be zero."""
    centred = weight - weight.mean(_within(weight), keepdim=True)
    variance = centred.square().sum(_within(weight), keepdim=True) / max(weight[0].numel() - 1, 1)
    deviation = (variance + epsilon).sqrt()
    deviation = torch.where(deviation > 0, deviation, 1)
    return centred / deviation, deviation


def _through_standardization(standardized: Tensor, deviation: Tensor, gradient: Tensor) -> Tensor:
    """∂L/∂W from ∂L/∂(standardized weight), by the chain rule."""
    within = _within(gradient)
    along = (gradient * standardized).sum(within, keepdim=True) / max(gradient[0].numel() - 1, 1)
    return (gradient - gradient.mean(within, keepdim=True) - standardized * along) / deviation


QuantizerConfig = DoReFa | Sign | BWN | Libra | ReCU | Imported
