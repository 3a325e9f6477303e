"""Loops and optimizers that are not this package's: the same numbers, or a word."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_estimators import ESTIMATORS, Network, every_estimator
from torch import Tensor, nn
from torch.func import functional_call

from fsg.estimators import FSG, STE, GradientEstimator, MultiFC
from fsg.layers import quantize
from fsg.optimizers import SGD, Adam
from fsg.quantizers import DoReFa, Sign
from fsg.step import train_step

# Ours, and torch's with the same formula.
OPTIMIZERS: dict[str, tuple[Any, Callable[..., torch.optim.Optimizer]]] = {
    "sgd": (SGD(lr=0.1, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "decay": (SGD(lr=0.1, weight_decay=0.1), lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1)),
    "adam": (Adam(lr=0.1), lambda p: torch.optim.Adam(p, lr=0.1)),
}
RATES = (0.1, 0.1, 0.03, 0.05, 0.02, 0.04)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def made(config: Any, quantizer: Any = None) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = quantize(Network(), quantizer or DoReFa())
    return model, config.build(model)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 2, 6, 6, generator=generator), torch.randint(3, (8,), generator=generator)


def with_ours(config: Any, rule: Any, rates: tuple[float, ...] = RATES) -> list[Tensor]:
    model, estimator = made(config)
    optimizer = rule.build(model)
    for step, lr in enumerate(rates):
        train_step(model, estimator, optimizer, *batch(step), lr=lr, progress=step / len(rates))
    return list(model.parameters())


def own_loop(
    model: nn.Module, estimator: GradientEstimator, optimizer: Any, *, rates: tuple[float, ...], cleared_first: bool
) -> list[Tensor]:
    """As people write it; `cleared_first`, before the forward pass, as most do."""
    for step, lr in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = lr
        images, labels = batch(step)
        if cleared_first:
            optimizer.zero_grad()
        weights = estimator.propose(model, lr=lr, progress=step / len(rates))
        loss = F.cross_entropy(functional_call(model, weights, (images,)), labels)
        if not cleared_first:
            optimizer.zero_grad()
        estimator.zero_grad()
        loss.backward()
        if estimator.update(model):
            optimizer.step()
    return list(model.parameters())


@pytest.mark.parametrize(
    ("config", "optimizer"),
    [
        pytest.param(ESTIMATORS[estimator], optimizer, id=f"{estimator}-{optimizer}")
        for estimator in ESTIMATORS
        for optimizer in OPTIMIZERS
        if optimizer == "adam" or estimator in ("ste", "fsg_released")
    ],
)
@pytest.mark.parametrize("cleared_first", [True, False], ids=["cleared first", "cleared later"])
def test_torchs_optimizers_in_a_loop_of_ones_own_give_the_same_training(
    config: Any, cleared_first: bool, optimizer: str
) -> None:
    rule, torchs = OPTIMIZERS[optimizer]
    model, estimator = made(config)
    theirs = torchs([p for p in model.parameters() if p.requires_grad])
    found = own_loop(model, estimator, theirs, rates=RATES, cleared_first=cleared_first)
    for ours, other in zip(with_ours(config, rule), found, strict=True):
        torch.testing.assert_close(other, ours, rtol=1e-9, atol=1e-9)


@every_estimator
def test_a_loop_that_steps_always_trains_and_what_is_known_of_a_step_stays_after_it(config: Any) -> None:
    """A sign's pre-quantized weight is the latent one itself, which the optimizer changes in place."""
    model, estimator = made(config, Sign())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        images, labels = batch(step)
        weights = estimator.propose(model, lr=0.1, progress=step / 3)
        optimizer.zero_grad()
        estimator.zero_grad()
        F.cross_entropy(functional_call(model, weights, (images,)), labels).backward()
        estimator.update(model)
        before = estimator.gradients_by_kind().get("ste", [])
        optimizer.step()
        for one, other in zip(before, estimator.gradients_by_kind().get("ste", []), strict=True):
            torch.testing.assert_close(other, one, rtol=0, atol=0)


@every_estimator
def test_torchs_optimizers_are_stepped_by_train_step_with_its_learning_rate(config: Any) -> None:
    model, estimator = made(config)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e3)
    for step, lr in enumerate(RATES):
        train_step(model, estimator, optimizer, *batch(step), lr=lr, progress=step / len(RATES))
    for ours, other in zip(with_ours(config, Adam(lr=0.1)), model.parameters(), strict=True):
        torch.testing.assert_close(other, ours, rtol=1e-9, atol=1e-9)


@every_estimator
def test_gradients_of_ours_may_be_cleared_before_the_forward_pass(config: Any) -> None:
    model, estimator = made(config)
    optimizer = Adam(lr=0.1).build(model)
    for step, lr in enumerate(RATES):
        optimizer.zero_grad()
        train_step(model, estimator, optimizer, *batch(step), lr=lr, progress=step / len(RATES))
    for ours, other in zip(with_ours(config, Adam(lr=0.1)), model.parameters(), strict=True):
        torch.testing.assert_close(other, ours, rtol=1e-9, atol=1e-9)


def test_groups_with_several_learning_rates_are_refused_by_train_step() -> None:
    model, estimator = made(STE.Config())
    groups = [{"params": model.fc.parameters(), "lr": 0.1}, {"params": model.conv.parameters(), "lr": 0.2}]
    with pytest.raises(ValueError, match="several learning rates, expected one"):
        train_step(model, estimator, torch.optim.SGD(groups, lr=0.1), *batch(0), lr=0.1, progress=0.0)


@pytest.mark.parametrize("config", [ESTIMATORS["multifc"], ESTIMATORS["fsg_released"]], ids=["multifc", "released"])
def test_a_training_with_torchs_optimizer_goes_on_from_its_state(config: Any) -> None:
    def going() -> tuple[Any, Any, Any]:
        model, estimator = made(config)
        return model, estimator, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

    def run(parts: tuple[Any, Any, Any], first: int, last: int) -> None:
        for step in range(first, last):
            train_step(*parts, *batch(step), lr=0.1, progress=step / 6)

    whole = going()
    run(whole, 0, 6)
    begun, resumed = going(), going()
    run(begun, 0, 3)
    run(resumed, 10, 12)  # whatever was there before must not show
    for part, saved in zip(resumed, [part.state_dict() for part in begun], strict=True):
        part.load_state_dict(saved)
    run(resumed, 3, 6)
    for one, other in zip(whole[0].parameters(), resumed[0].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_learning_rate_of_zero_hides_torchs_direction_and_is_told() -> None:
    model, estimator = made(MultiFC.Config(hidden=4))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with pytest.raises(ValueError, match=r"lr 0 hides the direction of shared.bias: expected lr > 0"):
        own_loop(model, estimator, optimizer, rates=(0.1, 0.0, 0.1), cleared_first=True)
    with_ours(MultiFC.Config(hidden=4), Adam(lr=0.1), rates=(0.1, 0.0, 0.1))
    model, estimator = made(FSG.Config(hidden=4))  # which reads no direction
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    own_loop(model, estimator, optimizer, rates=(0.1, 0.0, 0.1), cleared_first=True)


def test_the_loss_function_is_the_one_given() -> None:
    """Gradients of the mean squared error of a linear network, by hand."""
    model = quantize(nn.Sequential(nn.Linear(3, 2, bias=False)), Sign())
    estimator, optimizer = STE.Config(derivative="identity").build(model), SGD(lr=1.0).build(model)
    before = model[0].weight.detach().clone()
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    loss = train_step(model, estimator, optimizer, x, y, lr=1.0, progress=0.0, loss_function=F.mse_loss)
    error = x @ before.sign().T - y
    torch.testing.assert_close(loss, error.square().mean())
    torch.testing.assert_close(before - model[0].weight.detach(), 2 * error.T @ x / error.numel())


class Own(GradientEstimator):
    """A correct one, for what is broken below."""

    def propose(self, model: nn.Module, *, lr: float, progress: float) -> Any:
        self.quantized = {
            f"{name}.weight": layer.quantizer(layer.weight.detach()).requires_grad_()
            for name, layer in self.layers.items()
        }
        return self.quantized

    def update(self, model: nn.Module) -> Any:
        for name, layer in self.layers.items():
            layer.weight.grad = self.quantized[f"{name}.weight"].grad
        return True


class Forgot(Own):
    def update(self, model: nn.Module) -> Any:
        return True


class ForgotOne(Own):
    def update(self, model: nn.Module) -> Any:
        super().update(model)
        self.layers["fc"].weight.grad = None
        return True


class WroteOnCopies(Own):
    def update(self, model: nn.Module) -> Any:
        for name, layer in self.layers.items():
            layer.weight.detach().grad = self.quantized[f"{name}.weight"].grad
        return True


class NotDifferentiated(Own):
    def propose(self, model: nn.Module, *, lr: float, progress: float) -> Any:
        return {name: weight.detach() for name, weight in super().propose(model, lr=lr, progress=progress).items()}


class ReturnsNothing(Own):
    def update(self, model: nn.Module) -> Any:
        super().update(model)


class ReturnsGradients(Own):
    def update(self, model: nn.Module) -> Any:
        super().update(model)
        return [weight.grad for weight in self.weights]


class WrongKey(Own):
    def propose(self, model: nn.Module, *, lr: float, progress: float) -> Any:
        return {n.removesuffix(".weight"): w for n, w in super().propose(model, lr=lr, progress=progress).items()}


class OtherPrefix(Own):
    def propose(self, model: nn.Module, *, lr: float, progress: float) -> Any:
        return {f"module.{n}": w for n, w in super().propose(model, lr=lr, progress=progress).items()}


class ProposesNothing(Own):
    def propose(self, model: nn.Module, *, lr: float, progress: float) -> Any:
        super().propose(model, lr=lr, progress=progress)


class ProposesList(Own):
    def propose(self, model: nn.Module, *, lr: float, progress: float) -> Any:
        return list(super().propose(model, lr=lr, progress=progress).values())


class ProposesOtherShapes(Own):
    def propose(self, model: nn.Module, *, lr: float, progress: float) -> Any:
        return {name: w.flatten() for name, w in super().propose(model, lr=lr, progress=progress).items()}


class ProposesNumbers(Own):
    def propose(self, model: nn.Module, *, lr: float, progress: float) -> Any:
        return dict.fromkeys(super().propose(model, lr=lr, progress=progress), 1.0)


TENSORS = "expected the quantized weights, tensors by the parameters' names"
GRADIENTS = "expected a gradient in layer.weight.grad for each of estimator.layers"
BROKEN = {
    Forgot: f"Forgot.update returned True and wrote no gradient for conv.weight and 2 more, {GRADIENTS}",
    ForgotOne: f"ForgotOne.update returned True and wrote no gradient for fc.weight, {GRADIENTS}",
    WroteOnCopies: f"WroteOnCopies.update returned True and wrote no gradient for conv.weight and 2 more, {GRADIENTS}",
    NotDifferentiated: (
        f"NotDifferentiated.update returned True and wrote no gradient for conv.weight and 2 more, {GRADIENTS}"
    ),
    ReturnsNothing: (
        "ReturnsNothing.update returned nothing, expected True, or False where the optimizer has nothing to apply"
    ),
    ReturnsGradients: (
        "ReturnsGradients.update returned a list, expected True, or False where the optimizer has nothing to apply"
    ),
    WrongKey: (
        f"WrongKey.propose returned 'conv', which is no parameter of the model, {TENSORS}, such as 'conv.weight'"
    ),
    OtherPrefix: (
        "OtherPrefix.propose returned 'module.conv.weight', which is no parameter of the model, "
        f"{TENSORS}, such as 'conv.weight'"
    ),
    ProposesNothing: f"ProposesNothing.propose returned nothing, {TENSORS}",
    ProposesList: f"ProposesList.propose returned a list, {TENSORS}",
    ProposesOtherShapes: (
        f"ProposesOtherShapes.propose returned a tensor [72] for 'conv.weight', whose shape is [4, 2, 3, 3], {TENSORS}"
    ),
    ProposesNumbers: f"ProposesNumbers.propose returned a float for 'conv.weight', {TENSORS}",
}


def test_an_own_estimator_that_keeps_to_the_protocol_trains() -> None:
    model = quantize(Network(), Sign())
    before = model.conv.weight.detach().clone()
    train_step(model, Own(model), SGD(lr=0.1).build(model), *batch(0), lr=0.1, progress=0.0)
    assert not torch.equal(before, model.conv.weight)


@pytest.mark.parametrize("optimizer", ["ours", "torchs"])
@pytest.mark.parametrize("broken", BROKEN, ids=lambda kind: kind.__name__)
def test_a_mistake_in_an_own_estimator_is_told_at_the_first_step(
    broken: type[GradientEstimator], optimizer: str
) -> None:
    model = quantize(Network(), DoReFa())
    stepping: Any = SGD(lr=0.1).build(model) if optimizer == "ours" else torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError) as told:  # noqa: PT011  # the whole text is compared
        train_step(model, broken(model), stepping, *batch(0), lr=0.1, progress=0.0)
    assert str(told.value) == BROKEN[broken]
