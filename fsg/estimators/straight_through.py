"""Straight-through estimators: the derivative of the rounding is replaced by a simple one."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fsg.config import Settings
from fsg.estimators.protocol import GradientEstimator
from fsg.quantizers import Quantizer


def derivative(quantizer: Quantizer, prequantized: Tensor, weight: Tensor) -> Tensor:
    """c ⊙ 1[|W̃| ≤ saturation]: what stands in for dŴ/dW at a weight. Same shape as the weight.

    c is the quantizer's calibration; the factor after it stands in for the derivative of the rounding.
    """
    factor = quantizer.calibration(weight)
    if quantizer.saturation < math.inf:
        factor = factor * (prequantized.abs() <= quantizer.saturation)
    return factor


class STE(GradientEstimator):
    """The straight-through estimator.

    Forward:   Ŵ = Q(W̃)
    Backward:  ∂loss/∂W = c ⊙ 1[|W̃| ≤ saturation] ⊙ g,   g = ∂loss/∂Ŵ, c the quantizer's calibration

    Bengio et al., 2013 (arXiv:1308.3432); Courbariaux et al., 2016 (arXiv:1602.02830) for the clipping.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        """The straight-through estimator, clipped: the plain rival of learned gradients."""

        name: Literal["ste"] = "ste"

        def build(self, model: nn.Module) -> "STE":
            return STE(model)

    def propose(self, model: nn.Module, *, lr: float, progress: float) -> dict[str, Tensor]:
        with torch.no_grad():
            self.prequantized = [layer.quantizer.prequantize(layer.weight.detach()) for layer in self.layers.values()]
            quantized = [
                layer.quantizer.quantize(prequantized)
                for layer, prequantized in zip(self.layers.values(), self.prequantized, strict=True)
            ]
        self.quantized = [tensor.detach().requires_grad_() for tensor in quantized]
        return {f"{name}.weight": tensor for name, tensor in zip(self.layers, self.quantized, strict=True)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> bool:
        for layer, prequantized, quantized in zip(self.layers.values(), self.prequantized, self.quantized, strict=True):
            if quantized.grad is not None:
                layer.weight.grad = quantized.grad * derivative(layer.quantizer, prequantized, layer.weight)
        return True
