"""One-bit activations against their formulas and the smooth functions they stand for."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fsg.activations import RPReLU, SignActivation, SignActivations
from fsg.estimators import STE, FullPrecision
from fsg.layers import anneal, dequantize, quantize
from fsg.optimizers import SGD
from fsg.quantizers import Sign
from fsg.step import train_step

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


def tanh(x: Tensor, progress: float) -> Tensor:
    """IR-Net, equation 10: k·tanh(t·x), t from 0.1 to 10."""
    t = 0.1 * 10 ** (2 * progress)
    return max(1 / t, 1.0) * torch.tanh(t * x)


def power(x: Tensor, progress: float) -> Tensor:
    """ReSTE, equation 9, with the chord up to 0.1 and nothing beyond 1.5."""
    o = 1 + 2 * progress
    inner = x.sign() * x.abs() ** (1 / o)
    return torch.where(x.abs() <= 0.1, x * 0.1 ** (1 / o) / 0.1, torch.where(x.abs() <= 1.5, inner, inner.detach()))


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("derivative", "smooth"), [("ede", tanh), ("reste", power)])
def test_derivatives_that_sharpen_are_those_of_their_smooth_functions(
    derivative: Any, smooth: Any, progress: float
) -> None:
    x = X[X.abs() > 1e-20].clone().requires_grad_()
    slopes = torch.randn(len(x), dtype=torch.float64)
    activation = SignActivation(derivative)
    activation.anneal(progress)
    (measured,) = torch.autograd.grad(activation(x), x, slopes)
    (expected,) = torch.autograd.grad(smooth(x, progress), x, slopes)
    torch.testing.assert_close(measured, expected, rtol=1e-11, atol=1e-14)


def test_an_unknown_derivative_is_refused() -> None:
    with pytest.raises(ValueError, match="derivative is 'tanh', expected one of clipped, approx_sign, ede, reste"):
        SignActivation("tanh")  # type: ignore[arg-type]


@pytest.mark.parametrize(("shape", "dimension"), [((6, 3, 5, 4), 1), ((6, 3), 1), ((6, 5, 3), -1)])
def test_learned_thresholds_move_the_sign_of_their_channel(shape: tuple[int, ...], dimension: int) -> None:
    torch.manual_seed(0)
    activation = SignActivation("approx_sign", channels=3, dimension=dimension).double()
    assert activation.threshold is not None
    activation.threshold.data.copy_(torch.tensor([0.3, -0.7, 0.0], dtype=torch.float64))
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    slopes = torch.randn(shape, dtype=torch.float64)
    y = activation(x)
    y.backward(slopes)
    each = torch.movedim(x.detach(), dimension, 0).numpy() - np.array([0.3, -0.7, 0.0]).reshape(3, *[1] * (x.ndim - 1))
    np.testing.assert_array_equal(torch.movedim(y.detach(), dimension, 0).numpy(), np.where(each >= 0, 1.0, -1.0))
    through = torch.movedim(slopes, dimension, 0).numpy() * np.maximum(2 - 2 * np.abs(each), 0)
    assert x.grad is not None
    assert activation.threshold.grad is not None
    np.testing.assert_allclose(torch.movedim(x.grad, dimension, 0).numpy(), through, rtol=1e-12)
    np.testing.assert_allclose(activation.threshold.grad.numpy(), -through.reshape(3, -1).sum(1), rtol=1e-10)


@pytest.mark.parametrize("channels", [3, 1])
def test_rprelu_is_a_prelu_shifted_in_both_directions(channels: int) -> None:
    torch.manual_seed(0)
    module, x = RPReLU(channels).double(), torch.randn(4, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(module(x), torch.nn.functional.leaky_relu(x, 0.25), rtol=0, atol=0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    shift, slope, offset = (
        np.resize(parameter.detach().numpy(), 3).reshape(1, 3, 1) for parameter in module.parameters()
    )
    below = slope * (x.numpy() - shift) + offset
    expected = np.where(x.numpy() > shift, x.numpy() - shift + offset, below)
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-12)


class Everything(nn.Module):
    """Each kind of layer, one that is used twice, and ReLUs in place."""

    def __init__(self) -> None:
        super().__init__()
        self.volumes, self.images, self.signals = nn.Conv3d(2, 3, 1), nn.Conv2d(3, 4, 3, groups=1), nn.Conv1d(4, 4, 1)
        self.relu = nn.ReLU(inplace=True)
        self.tokens, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.volumes(x)).mean(2)
        x = self.relu(self.images(x)).flatten(2)
        x = self.signals(self.signals(x)).transpose(1, 2)
        return self.head(self.tokens(x).mean(1))


@pytest.mark.parametrize("thresholds", ["fixed", "learned"])
def test_quantize_puts_a_sign_before_each_quantized_layer_of_any_model(thresholds: Any) -> None:
    torch.manual_seed(0)
    model, activations = Everything(), SignActivations(thresholds=thresholds, relu="hardtanh")
    names = set(model.state_dict())
    for _ in range(2):  # once more changes nothing
        quantize(dequantize(model), Sign(), ["volumes", "head"], activations)
    added = {f"{name}.activation.threshold" for name in ("images", "signals", "tokens")}
    assert set(model.state_dict()) - names == (added if thresholds == "learned" else set())
    assert isinstance(model.relu, nn.Hardtanh)
    seen: dict[str, set[float]] = {}
    for name in ("volumes", "images", "signals", "tokens", "head"):
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.setdefault(name, set()).update(inputs[0].unique().tolist())  # type: ignore[misc]
        )
    estimator, optimizer = STE.Config().build(model), SGD(lr=0.1).build(model)
    images, labels = torch.randn(5, 2, 2, 6, 6), torch.tensor([0, 1, 2, 0, 1])
    train_step(model, estimator, optimizer, images, labels, lr=0.1, progress=0.0)
    assert {name for name, values in seen.items() if values <= {-1.0, 1.0}} == {"images", "signals", "tokens"}
    assert all(len(seen[name]) == 2 for name in ("images", "signals", "tokens"))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    FullPrecision.Config().build(model)
    seen.clear()
    model(images)
    assert seen["images"] == {-1.0, 1.0}, "signs stay where weights are real"


@pytest.mark.parametrize("estimator", [STE.Config(), FullPrecision.Config()], ids=["ste", "full_precision"])
def test_a_derivative_sharpens_with_the_training_whichever_loop_drives_it(estimator: Any) -> None:
    model = quantize(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), Sign(), activations=SignActivations())
    built = estimator.build(model)
    built.propose(model, lr=0.1, progress=0.25)
    activation = model.get_submodule("1.activation")
    assert isinstance(activation, SignActivation)
    assert activation.progress == 0.25
    anneal(model, 0.75)
    assert math.isclose(activation.progress, 0.75)


def test_relus_are_kept_unless_said_otherwise() -> None:
    kept, replaced = Everything(), Everything()
    quantize(kept, Sign(), activations=SignActivations())
    quantize(replaced, Sign(), activations=SignActivations(relu="rprelu"))
    assert type(kept.relu) is nn.ReLU
    assert type(replaced.relu) is RPReLU
