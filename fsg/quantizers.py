"""Forward binarisers: what turns a latent weight W into a quantized weight Ŵ.

A quantizer is three pure functions of tensors of any shape:

    prequantize  W → W̃        the differentiable part
    quantize     W̃ → Ŵ        the part without a derivative
    calibration  W → dŴ/dW    where the derivative of the rounding is taken to be 1: an elementwise factor c

and a number, `saturation`: beyond |W̃| = saturation, `quantize` is flat. Whoever estimates the gradient owns the
derivative of `quantize` (`fsg.estimators`), so nothing here is differentiated by autograd.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from fsg.config import Settings, choice
from fsg.imported import Imported


class Quantizer(Protocol):
    """Three pure functions, their composition, and where the second one saturates."""

    @property
    def saturation(self) -> float: ...
    def prequantize(self, weight: Tensor) -> Tensor: ...
    def quantize(self, prequantized: Tensor) -> Tensor: ...
    def calibration(self, weight: Tensor) -> Tensor: ...
    def __call__(self, weight: Tensor) -> Tensor: ...


class _Composed:
    saturation: ClassVar[float] = 1.0

    def prequantize(self, weight: Tensor) -> Tensor:
        return weight

    def calibration(self, weight: Tensor) -> Tensor:
        return torch.ones_like(weight)

    def quantize(self, prequantized: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, weight: Tensor) -> Tensor:
        """Ŵ of a latent weight, same shape and dtype."""
        return self.quantize(self.prequantize(weight))


@dataclass(frozen=True, kw_only=True)
class DoReFa(_Composed, Settings):
    """DoReFa-Net's k-bit quantizer in MetaQuant's variant (tanh-normalised, then rounded).

    Forward:      W̃ = tanh W / (2 max|tanh W|) + ½,   Ŵ = 2·round((2ᵏ − 1)·W̃)/(2ᵏ − 1) − 1
    Calibration:  c = (1 − tanh² W) / max|tanh W|      (the maximum, over the tensor, held constant)

    An all-zero tensor has W̃ = ½ and c = 0. DoReFa-Net's own one-bit rule is sign(W)·mean|W|, which this is not.
    Zhou et al., DoReFa-Net, 2016 (arXiv:1606.06160); Chen et al., MetaQuant, NeurIPS 2019.
    """

    name: Literal["dorefa"] = "dorefa"
    weight_bits: Literal[1] = choice(1, "Bits of a quantized weight.")

    def prequantize(self, weight: Tensor) -> Tensor:
        squashed = torch.tanh(weight)
        return squashed / (2 * _largest(squashed)) + 0.5

    def quantize(self, prequantized: Tensor) -> Tensor:
        levels = 2**self.weight_bits - 1
        return 2 * torch.round(levels * prequantized) / levels - 1

    def calibration(self, weight: Tensor) -> Tensor:
        squashed = torch.tanh(weight)
        return (1 - squashed.square()) / _largest(squashed)


def _largest(tensor: Tensor) -> Tensor:
    """max|tensor|, as a tensor of no dimension, never below the smallest normal number."""
    return tensor.abs().amax().clamp_min(torch.finfo(tensor.dtype).tiny)


@dataclass(frozen=True, kw_only=True)
class Sign(_Composed, Settings):
    """The sign, without a scale.

    Forward:      W̃ = W,   Ŵ = sign W, with sign 0 = +1
    Calibration:  c = 1

    Courbariaux et al., BinaryConnect, NeurIPS 2015 (arXiv:1511.00363).
    """

    name: Literal["sign"] = "sign"

    def quantize(self, prequantized: Tensor) -> Tensor:
        return torch.where(prequantized >= 0, 1.0, -1.0).to(prequantized.dtype)


@dataclass(frozen=True, kw_only=True)
class FullPrecision(_Composed, Settings):
    """No quantization: Ŵ = W̃ = W, c = 1. What full-precision pretraining uses."""

    name: Literal["full_precision"] = "full_precision"
    saturation: ClassVar[float] = math.inf

    def quantize(self, prequantized: Tensor) -> Tensor:
        return prequantized


QuantizerConfig = DoReFa | Sign | FullPrecision | Imported
