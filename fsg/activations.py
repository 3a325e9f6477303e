"""One-bit activations."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

ActivationDerivative = Literal["clipped", "approx_sign"]


class SignActivation(nn.Module):
    """The sign of each element, with sign 0 = +1, and a surrogate for its derivative.

    Forward:   sign x
    Backward:  1[|x| ≤ 1] ⊙ g             derivative: clipped, that of the hard tanh
               max(2 − 2|x|, 0) ⊙ g       derivative: approx_sign, that of a piecewise quadratic

    Any shape in, the same shape out; it belongs behind a batch norm and before a convolution, without a ReLU between.
    Courbariaux et al., 2016 (arXiv:1602.02830) for the first; Liu et al., Bi-Real Net, ECCV 2018 (arXiv:1808.00278).
    """

    def __init__(self, derivative: ActivationDerivative = "approx_sign") -> None:
        super().__init__()
        self.derivative = derivative

    def forward(self, features: Tensor) -> Tensor:
        return _Sign.apply(features, self.derivative)

    def extra_repr(self) -> str:
        return f"derivative={self.derivative!r}"


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, features: Tensor, derivative: str) -> Tensor:
        context.save_for_backward(features)
        context.derivative = derivative
        return torch.where(features >= 0, 1.0, -1.0).to(features.dtype)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        (features,) = context.saved_tensors
        size = features.abs()
        return gradient * (size <= 1 if context.derivative == "clipped" else (2 - 2 * size).clamp_min(0)), None
