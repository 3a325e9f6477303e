"""One-bit activations against their formulas and the smooth functions they stand for."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fsg.activations import SignActivation

X = torch.cat([torch.linspace(-2.03, 2.03, 300), torch.tensor([0.0, -0.0, 1e-30, -1e-30])]).double()


@pytest.mark.parametrize("derivative", ["clipped", "approx_sign"])
def test_forward_is_the_sign_with_sign_0_plus_one(derivative: Any) -> None:
    measured = SignActivation(derivative)(X)
    np.testing.assert_array_equal(measured.numpy(), np.where(X.numpy() >= 0, 1.0, -1.0))
    assert SignActivation(derivative)(X.float()).dtype == torch.float32


def approx_sign(x: Tensor) -> Tensor:
    """2x + x² below zero and 2x − x² above, ±1 from ±1 on: Bi-Real Net, equation 7."""
    inner = torch.where(x < 0, 2 * x + x**2, 2 * x - x**2)
    return torch.where(x.abs() < 1, inner, x.sign().detach())


@pytest.mark.parametrize(
    ("derivative", "smooth", "formula"),
    [
        ("clipped", torch.nn.functional.hardtanh, lambda x: 1.0 * (np.abs(x) < 1)),
        ("approx_sign", approx_sign, lambda x: np.where(x < 0, 2 + 2 * x, 2 - 2 * x) * (np.abs(x) < 1)),
    ],
)
def test_backward_is_the_derivative_of_the_smooth_function(derivative: Any, smooth: Any, formula: Any) -> None:
    x = X.clone().requires_grad_()
    slopes = torch.randn(len(X), dtype=torch.float64)
    (measured,) = torch.autograd.grad(SignActivation(derivative)(x), x, slopes)
    (expected,) = torch.autograd.grad(smooth(x), x, slopes)
    torch.testing.assert_close(measured, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(measured.numpy(), slopes.numpy() * formula(X.numpy()), rtol=1e-12, atol=1e-14)
