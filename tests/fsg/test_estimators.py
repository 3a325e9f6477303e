"""What every gradient estimator promises, and what is particular to each family."""

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fsg.activations import SignActivations
from fsg.checkpoint import digest, from_bytes, to_bytes
from fsg.estimators import (
    EDE,
    FSG,
    LSTMFC,
    STE,
    EstimatorConfig,
    FCGrad,
    FullPrecision,
    GradientEstimator,
    MultiFC,
    ReSTE,
)
from fsg.estimators.look_ahead import LookAhead
from fsg.history import ChunkLayout
from fsg.hypernetworks import EMA, LSTM, FastNet, Mamba, SlowNet, average
from fsg.layers import quantize, quantized_layers
from fsg.models import ResNet
from fsg.optimizers import SGD, Adam, Optimizer
from fsg.quantizers import BWN, DoReFa, Libra, ReCU, Sign
from fsg.step import train_step
from fsg.train_config import TrainConfig
from fsg.untrained import untrained_network

RELEASED = FSG.Config(
    semantics="released", start="random", applied="previous", chunk_size=1, layer_embedding_dim=1, hidden=6
)
ESTIMATORS = {
    "ste": STE.Config(),
    "ste_identity": STE.Config(derivative="identity"),
    "ede": EDE.Config(),
    "reste": ReSTE.Config(),
    "reste_cosine": ReSTE.Config(schedule="cosine"),
    "full_precision": FullPrecision.Config(),
    "fsg": FSG.Config(hidden=6, chunk_size=8, layer_embedding_dim=4, history_length=3),
    "fsg_random": FSG.Config(hidden=6, chunk_size=8, layer_embedding_dim=4, start="random"),
    "fsg_released": RELEASED,
    "fsg_nonlinear": FSG.Config(hidden=6, chunk_size=8, nonlinearity="tanh"),
    "no_history": FSG.Config(hidden=6, chunk_size=8, history_length=1),
    "no_layer_embedding": FSG.Config(hidden=6, chunk_size=8, layer_embedding=False),
    "fast_only": FSG.Config(hidden=6, slow_weight=0.0),
    "slow_only": FSG.Config(hidden=6, chunk_size=8, slow_weight=1.0),
    "ema": FSG.Config(hidden=6, chunk_size=8, slow_net=EMA()),
    "lstm": FSG.Config(hidden=6, chunk_size=8, layer_embedding_dim=4, slow_net=LSTM(hidden=5)),
    "normalized": FSG.Config(hidden=6, chunk_size=8, layer_embedding_dim=4, normalize=True),
    "lstm_random": FSG.Config(hidden=6, chunk_size=8, slow_net=LSTM(hidden=5), start="random", slow_weight=1.0),
    "multifc": MultiFC.Config(hidden=6),
    "fcgrad": FCGrad.Config(hidden=6, nonlinearity="relu", hyper_weight_decay=5e-4),
    "lstmfc": LSTMFC.Config(hidden=3),
}
every_estimator = pytest.mark.parametrize("config", ESTIMATORS.values(), ids=ESTIMATORS.keys())


class Network(nn.Module):
    """Two convolutions, a layer that is used twice, one that is frozen, and a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.shared = nn.Conv2d(4, 4, 3, padding=1)
        self.frozen = nn.Conv2d(4, 4, 1)
        self.frozen.requires_grad_(False)
        self.fc = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.conv(images)).relu()
        features = self.shared(self.shared(features).relu()).relu()
        return self.fc(self.frozen(features).mean((2, 3)))


def built(
    config: Any, model: nn.Module | None = None, quantizer: Any = None, lr: float = 0.01
) -> tuple[Any, Any, Optimizer]:
    torch.manual_seed(0)
    network = quantize(model or Network(), quantizer or DoReFa())
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network, config.build(network), SGD(lr=lr, momentum=0.9).build(network)


def steps(model: nn.Module, estimator: GradientEstimator, optimizer: Optimizer, first: int, last: int) -> list[float]:
    losses = []
    for t in range(first, last):
        generator = torch.Generator().manual_seed(t)
        images = torch.randn(8, 2, 6, 6, generator=generator)
        labels = torch.randint(3, (8,), generator=generator)
        losses.append(train_step(model, estimator, optimizer, images, labels, lr=0.01, progress=t / 20).item())
    return losses


def state_of(model: nn.Module, estimator: GradientEstimator, optimizer: Optimizer) -> dict[str, Any]:
    return {"m": model.state_dict(), "e": estimator.state_dict(), "o": optimizer.state_dict()}


def go_on(model: nn.Module, estimator: GradientEstimator, optimizer: Optimizer, saved: bytes) -> None:
    state = from_bytes(saved)
    model.load_state_dict(state["m"])
    optimizer.load_state_dict(state["o"])
    estimator.load_state_dict(state["e"])


@every_estimator
def test_every_layer_gets_binary_weights_and_a_gradient_and_a_training_goes_on_from_its_state_bit_for_bit(
    config: Any,
) -> None:
    """Against one without a stop in which the weights are proposed once more a step, which changes nothing."""
    model, estimator, optimizer = built(config)
    before, losses = copy.deepcopy(model.state_dict()), []
    for t in range(6):
        proposed = estimator.propose(model, lr=0.01, progress=t / 20)
        weights = {name: w for name, w in proposed.items() if name.endswith("weight")}
        assert set(weights) == {f"{name}.weight" for name in estimator.layers}
        if not isinstance(estimator, FullPrecision):
            assert set(weights) == {"conv.weight", "shared.weight", "fc.weight"}
        for name, weight in weights.items():
            assert weight.shape == model.get_parameter(name).shape
            assert weight.dtype == torch.float32
            assert set(weight.unique().tolist()) <= {-1.0, 1.0}
        losses += steps(model, estimator, optimizer, t, t + 1)
    for name in ("conv.weight", "shared.weight", "fc.weight"):
        weight = model.get_parameter(name)
        assert weight.grad is not None
        assert weight.grad.shape == weight.shape
        assert not torch.equal(weight, before[name]), name
    assert torch.equal(model.frozen.weight, before["frozen.weight"])

    going = built(config)
    resumed = steps(*going, 0, 1)
    for first, last in ((1, 2), (2, 4), (4, 6)):
        saved = to_bytes(state_of(*going))
        going = built(config)
        steps(*going, 10, 12 if first == 2 else 10)  # whatever was there before must not show
        go_on(*going, saved)
        resumed += steps(*going, first, last)
    assert resumed == losses
    assert digest(state_of(*going)) == digest(state_of(model, estimator, optimizer))


@every_estimator
def test_a_training_with_signs_before_its_layers_goes_on_from_its_state_bit_for_bit(config: Any) -> None:
    """Whatever gives the gradient: thresholds learn, and the derivative sharpens with the progress."""

    def with_signs() -> tuple[Any, Any, Optimizer]:
        torch.manual_seed(0)
        signs = SignActivations(derivative="ede", thresholds="learned")
        model = quantize(Network(), DoReFa(), ["conv"], signs)
        return model, config.build(model), SGD(lr=0.01, momentum=0.9).build(model)

    whole, resumed = with_signs(), with_signs()
    losses = steps(*whole, 0, 3)
    assert steps(*resumed, 0, 2) == losses[:2]
    saved = to_bytes(state_of(*resumed))
    resumed = with_signs()
    go_on(*resumed, saved)
    assert steps(*resumed, 2, 3) == losses[2:]
    assert digest(state_of(*resumed)) == digest(state_of(*whole))
    assert whole[0].get_parameter("shared.activation.threshold").abs().sum() > 0
    assert whole[0].get_submodule("fc.activation").progress == 2 / 20


@every_estimator
def test_gradients_stay_finite_on_zero_constant_and_huge_images(config: Any) -> None:
    model, estimator, optimizer = built(config)
    for pixel in (0.0, 1.0, 1e12, 0.0, 1e12):
        images = torch.full((4, 2, 6, 6), pixel)
        train_step(model, estimator, optimizer, images, torch.tensor([0, 1, 2, 0]), lr=0.01, progress=0.0)
        assert all(torch.isfinite(layer.weight.grad).all() for layer in estimator.layers.values())


@every_estimator
def test_handles_a_layer_of_a_single_weight(config: Any) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(36, 3))
    model, estimator, optimizer = built(config, model)
    for t in range(3):
        images = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(t))
        train_step(model, estimator, optimizer, images, torch.tensor([0, 1, 2, 0]), lr=0.01, progress=0.0)
    assert torch.isfinite(model[0].weight).all()


LARGE = {
    **{name: config for name, config in ESTIMATORS.items() if config.name != "fsg"},
    "fsg": FSG.Config(),
    "fsg_released": FSG.Config(semantics="released", start="random", applied="previous"),
    "fsg_nonlinear": FSG.Config(hidden=2, nonlinearity="tanh"),
    "ema": FSG.Config(slow_net=EMA()),
    "lstm": FSG.Config(slow_net=LSTM(hidden=5)),
    "fcgrad": FCGrad.Config(hidden=2, nonlinearity="relu"),
    "lstmfc": LSTMFC.Config(hidden=1),
}


@pytest.mark.parametrize("config", LARGE.values(), ids=LARGE.keys())
def test_handles_layers_from_a_single_weight_to_2_4_million(config: Any) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 1, 1, bias=False, groups=1), nn.Flatten(), nn.Linear(36, 1, bias=False),
        nn.Linear(1, 1, bias=False), nn.Linear(1, 66_667, bias=False), nn.Linear(66_667, 36), nn.Linear(36, 3),
    )  # fmt: skip
    model, estimator, optimizer = built(config, model)
    assert {w.numel() for w in estimator.weights} >= {1, 66_667 * 36} or isinstance(estimator, FullPrecision)
    steps(model, estimator, optimizer, 0, 2 if isinstance(estimator, LookAhead) else 1)
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all(), name


@every_estimator
def test_gradients_stay_finite_whatever_the_quantized_weights_gradient_is(config: Any) -> None:
    """All zero at first, then zero, constant and huge by turns in each layer, for longer than the history."""
    model, estimator, optimizer = built(config)
    for t in range(8):
        images = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(t))
        weights = estimator.propose(model, lr=0.01, progress=t / 8)
        loss = nn.functional.cross_entropy(functional_call(model, weights, (images,)), torch.arange(8) % 3)
        optimizer.zero_grad()
        estimator.zero_grad()
        loss.backward()
        for i, quantized in enumerate(getattr(estimator, "quantized", [])):
            quantized.grad = torch.full_like(quantized, (0.0, 1.0, 1e6)[(t + i) % 3] if t > 1 else 0.0)
        if estimator.update(model):
            for layer in estimator.layers.values():
                assert torch.isfinite(layer.weight.grad).all()
            optimizer.step(0.01)


@every_estimator
def test_a_model_without_quantized_layers_is_refused(config: Any) -> None:
    with pytest.raises(ValueError, match="no trainable quantized layer"):
        config.build(nn.Sequential(nn.Linear(2, 2)))


# --- STE


@pytest.mark.parametrize("quantizer", [DoReFa(), Sign()])
def test_ste_gradient_follows_its_formula(quantizer: Any) -> None:
    model = quantize(nn.Sequential(nn.Linear(5, 3, bias=False)), quantizer)
    nn.init.normal_(model[0].weight, std=1.2)
    estimator = STE.Config().build(model)
    inputs, slopes = torch.randn(4, 5), torch.randn(4, 3)
    weights = estimator.propose(model, lr=0.1, progress=0.0)
    (functional_call(model, weights, (inputs,)) * slopes).sum().backward()
    assert estimator.update(model)
    w, g = model[0].weight.detach().numpy(), slopes.numpy().T @ inputs.numpy()
    squashed = np.tanh(w)
    calibrated = {"dorefa": (1 - squashed**2) / np.abs(squashed).max() * g, "sign": (np.abs(w) <= 1) * g}
    np.testing.assert_allclose(model[0].weight.grad.numpy(), calibrated[quantizer.name], rtol=1e-5, atol=1e-6)


def test_full_precision_is_plain_training_and_evaluation() -> None:
    torch.manual_seed(3)
    plain = Network()
    plain.conv.weight.data.mul_(20)  # beyond 1, where a clipped derivative would be zero
    model = quantize(copy.deepcopy(plain), DoReFa())
    estimator, optimizer = FullPrecision.Config().build(model), Adam(lr=0.01).build(model)
    reference = torch.optim.Adam([p for p in plain.parameters() if p.requires_grad], lr=0.01)
    for _ in range(4):
        images, labels = torch.randn(8, 2, 6, 6), torch.randint(3, (8,))
        train_step(model, estimator, optimizer, images, labels, lr=0.01, progress=0.0)
        reference.zero_grad()
        nn.functional.cross_entropy(plain(images), labels).backward()
        reference.step()
    for (name, one), (_, other) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)
    images = torch.randn(8, 2, 6, 6)
    torch.testing.assert_close(model.eval()(images), plain.eval()(images), rtol=1e-4, atol=1e-5)
    assert estimator.layers == {}


@pytest.mark.parametrize("quantizer", [DoReFa(), BWN(), Libra()])
def test_full_precision_evaluates_the_latent_weights_of_frozen_layers_too(quantizer: Any) -> None:
    torch.manual_seed(0)
    plain = Network().eval()
    model = quantize(copy.deepcopy(plain), quantizer).eval()
    images = torch.randn(2, 2, 6, 6)
    assert not torch.equal(model(images), plain(images))
    FullPrecision.Config().build(model)
    assert torch.equal(model(images), plain(images))


# --- surrogates


QUANTIZERS = [
    DoReFa(), DoReFa(weight_bits=2), DoReFa(weight_bits=4), Sign(), BWN(), BWN(scale="layer"), Libra(), ReCU(tau=0.9),
    BWN(gradient="unscaled"), BWN(gradient="through_scale"), BWN(scale="layer", gradient="through_scale"),
    BWN(scale="layer", calibrate=False), ReCU(tau_start=0.85),
]  # fmt: skip
every_quantizer = pytest.mark.parametrize("quantizer", QUANTIZERS, ids=str)


def ede(x: np.ndarray, progress: float) -> np.ndarray:
    t = 10.0 ** (-1 + 2 * progress)
    return max(1 / t, 1) * t / np.cosh(t * x) ** 2


def power(config: Any, progress: float) -> float:
    return 3 - 2 * math.cos(progress * math.pi / 2) if config.schedule == "cosine" else 1 + 2 * progress


def reste(x: np.ndarray, o: float) -> np.ndarray:
    size = np.maximum(np.abs(x), 1e-300)
    slope = np.where(size > 0.1, size ** (1 / o - 1) / o, 0.1 ** (1 / o) / 0.1)
    return np.where(size > 1.5, 0, slope)


def smooth(config: Any, x: Tensor, progress: float) -> Tensor:
    """What the surrogates are derivatives of, for autograd; ReSTE's tangents and chord without their jumps."""
    if isinstance(config, EDE.Config):
        t = 0.1 * 100**progress
        return max(1 / t, 1) * torch.tanh(t * x)
    if isinstance(config, ReSTE.Config):
        o = power(config, progress)
        root = x.sign() * torch.where(x.abs() > 0.1, x.abs(), 1.0) ** (1 / o)
        inside = torch.where(x.abs() > 0.1, root, x * 0.1 ** (1 / o - 1))
        return torch.where(x.abs() > 1.5, x.detach(), inside)
    return x if config.derivative == "identity" else torch.where(x.abs() <= 1, x, x.detach().sign())


SURROGATES = {
    "clipped": STE.Config(),
    "identity": STE.Config(derivative="identity"),
    "ede": EDE.Config(),
    "reste": ReSTE.Config(),
    "reste_cosine": ReSTE.Config(schedule="cosine"),
}
every_surrogate = pytest.mark.parametrize("config", SURROGATES.values(), ids=SURROGATES.keys())


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.5, 1.0])
@every_surrogate
def test_surrogate_is_its_formula_and_the_derivative_of_its_smooth_function(config: Any, progress: float) -> None:
    model = quantize(nn.Sequential(nn.Linear(2, 2)), Sign())
    estimator = config.build(model)
    estimator.propose(model, lr=0.1, progress=progress)
    x = torch.cat([torch.linspace(-2.003, 2.003, 400), torch.tensor([0.0, 1e-30, -0.05, 0.1, 1.5])]).double()
    if config.name == "ste":
        expected = (np.abs(x.numpy()) <= 1) if config == STE.Config() else np.ones(len(x))
    else:
        expected = ede(x.numpy(), progress) if config.name == "ede" else reste(x.numpy(), power(config, progress))
    measured = estimator.surrogate(x)
    np.testing.assert_allclose(measured.numpy(), expected, rtol=1e-11, atol=1e-14)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(smooth(config, x, progress).sum(), x)
    np.testing.assert_allclose(measured.numpy(), slope.numpy(), rtol=1e-10, atol=1e-14)


@every_quantizer
@every_surrogate
def test_gradient_of_a_step_is_autograds_through_the_smooth_function(config: Any, quantizer: Any) -> None:
    """Ŵ is replaced by scale·smooth(x), x differentiated through the pre-quantization but for what is held constant."""
    progress = 0.6
    torch.manual_seed(1)
    model = quantize(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)).double(), quantizer)
    nn.init.normal_(model[0].weight, std=0.8, mean=0.1)
    estimator = config.build(model)
    images = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    slopes = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    weights = estimator.propose(model, lr=0.1, progress=progress)
    (functional_call(model, weights, (images,)) * slopes).sum().backward()
    assert estimator.update(model)
    g = estimator.quantized[0].grad
    w = model[0].weight.detach().clone().requires_grad_()
    if quantizer.name == "dorefa":  # steps·Ŵ is a staircase with risers of height 2, so each counts 1/steps
        n = 2**quantizer.weight_bits - 1
        squashed = torch.tanh(w)
        height = n * (squashed / (2 * squashed.abs().max().detach()) + 0.5)
        stair = height.detach().floor().clamp(0, n - 1)
        stand_in = smooth(config, 2 * (height - stair) - 1, progress) / n
    elif quantizer.name in ("sign", "bwn"):
        dims = {"sign": None, "layer": (0, 1, 2, 3), "channel": (1, 2, 3)}[getattr(quantizer, "scale", "sign")]
        scale = torch.ones(()) if dims is None else w.abs().mean(dims, keepdim=True)
        gradient = getattr(quantizer, "gradient", "scaled")
        stand_in = smooth(config, w, progress) * (1 if gradient == "unscaled" else scale.detach())
        if gradient == "through_scale":
            stand_in = stand_in + scale * w.detach().sign()
    elif quantizer.name == "libra":
        rows = w.flatten(1)
        x = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)
        scale = 2 ** x.detach().abs().mean(1, keepdim=True).log2().round()
        stand_in = (scale * smooth(config, x, progress)).view_as(w)
    else:
        rows = w.flatten(1)
        x = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, keepdim=True) + 1e-5).sqrt() * math.sqrt(8)
        tau = quantizer.tau if quantizer.tau_start is None else 0.85 + 0.14 * (math.exp(progress) - 1) / (math.e - 1)
        q = -float(x.detach().abs().mean()) * math.log(2 - 2 * tau)
        assert (x.abs() > q).any()
        stand_in = smooth(config, x.clamp(-q, q), progress).view_as(w)
    (expected,) = torch.autograd.grad((g * stand_in).sum(), w)
    torch.testing.assert_close(model[0].weight.grad, expected, rtol=1e-11, atol=1e-13)


# Each way in which an estimator asks a quantizer, with each quantizer, the others with one of them; straight-through
# ones have all of them above.
ASKING = ("fsg", "fsg_released", "normalized", "multifc")
PAIRS = [
    (name, quantizer)
    for i, name in enumerate(ESTIMATORS)
    for j, quantizer in enumerate(QUANTIZERS)
    if name in ASKING or i % len(QUANTIZERS) == j
]


@pytest.mark.parametrize(("name", "quantizer"), PAIRS, ids=str)
def test_every_estimator_and_every_quantizer_train(name: str, quantizer: Any) -> None:
    model, estimator, optimizer = built(ESTIMATORS[name], quantizer=quantizer)
    assert all(math.isfinite(loss) for loss in steps(model, estimator, optimizer, 0, 2))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_annealed_surrogates_hang_on_the_progress_of_the_step_alone() -> None:
    model = quantize(nn.Sequential(nn.Linear(2, 2)), Sign())
    x = torch.linspace(-1, 1, 7)
    for config in (EDE.Config(), ReSTE.Config()):
        estimator = config.build(model)
        seen = []
        for progress in (0.0, 1.0, 0.0):
            estimator.propose(model, lr=0.1, progress=progress)
            seen.append(estimator.surrogate(x))
        assert torch.equal(seen[0], seen[2])
        assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (EDE, {"t_min": 0.0}),
        (EDE, {"t_max": -1.0}),
        (ReSTE, {"o_end": 0.5}),
        (ReSTE, {"m": 0.0}),
        (ReSTE, {"t": 0.0}),
        (ReSTE, {"schedule": "cosin"}),
        (MultiFC, {"hyper_weight_decay": -1.0}),
    ],
)
def test_settings_from_papers_refuse_values_out_of_range(kind: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))} is .*, expected"):
        kind.Config(**bad)


# --- FSG


def first_gradient(config: Any, quantizer: Any) -> list[Tensor]:
    model, estimator, optimizer = built(config, quantizer=quantizer)
    model.conv.weight.data.mul_(8)
    steps(model, estimator, optimizer, 0, 1)
    return [direction for _, direction in sorted((n, layer.weight.grad) for n, layer in estimator.layers.items())]


@pytest.mark.parametrize("quantizer", [DoReFa(), Sign()])
@pytest.mark.parametrize("name", ["fsg", "no_history", "fast_only", "slow_only", "fsg_nonlinear", "normalized"])
def test_fsg_with_identity_start_applies_the_straight_through_gradient_first(name: str, quantizer: Any) -> None:
    config = ESTIMATORS[name]
    for ours, theirs in zip(first_gradient(config, quantizer), first_gradient(STE.Config(), quantizer), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("applied", ["current", "previous"])
def test_fsg_applies_this_steps_gradient_or_that_of_the_step_before(applied: Any) -> None:
    """With nets that stay where they start the fast gradient is g, so the update is c ⊙ g of one step or the other."""
    config = FSG.Config(slow_weight=0.0, fast_lr=1e-30, hidden=6, applied=applied)
    model, estimator, _ = built(config)
    optimizer = SGD(lr=0.01).build(model)
    before: list[Tensor] = []
    for t in range(4):
        squashed = [w.detach().tanh() for w in estimator.weights]
        steps(model, estimator, optimizer, t, t + 1)
        newest = [w.grad.clone() for w in estimator.quantized]
        used = newest if applied == "current" else before
        if used:
            for weight, g, tanh in zip(estimator.weights, used, squashed, strict=True):
                expected = (1 - tanh**2) / tanh.abs().max() * g
                torch.testing.assert_close(weight.grad, expected, rtol=1e-5, atol=1e-8)
        else:
            assert optimizer.steps == 0
        before = newest


def test_fsg_learns_in_every_part_from_an_identity_start() -> None:
    model, estimator, optimizer = built(ESTIMATORS["fsg"])
    before = {name: copy.deepcopy(net.state_dict()) for name, net in estimator.nets.items()}
    steps(model, estimator, optimizer, 0, 4)
    for name, net in estimator.nets.items():
        for key, tensor in net.state_dict().items():
            assert not torch.equal(tensor, before[name][key]), f"{name}.{key}"


def test_fsg_switches_off_what_its_config_says() -> None:
    assert set(built(ESTIMATORS["fast_only"])[1].nets) == {"fast"}
    assert set(built(ESTIMATORS["slow_only"])[1].nets) == {"slow"}
    assert set(built(ESTIMATORS["ema"])[1].nets) == {"fast"}
    assert built(ESTIMATORS["no_layer_embedding"])[1].slow.layer_embedding is None
    assert len(built(ESTIMATORS["no_history"])[1].history.storage) == 1


@pytest.mark.parametrize("start", ["identity", "random"])
def test_fsg_normalized_weighs_two_gradients_of_one_norm_whatever_the_nets_scales(start: Any) -> None:
    config = FSG.Config(hidden=6, chunk_size=8, layer_embedding_dim=4, slow_weight=0.7, normalize=True, start=start)
    model, estimator, optimizer = built(config)
    steps(model, estimator, optimizer, 0, 3)
    latent = [w.detach().double().numpy() for w in estimator.weights]
    newest = [w.grad.double().numpy() for w in estimator.quantized]
    calibrated = []
    for w, g in zip(latent, newest, strict=True):
        squashed = np.tanh(w)
        calibrated.append((1 - squashed**2) / np.abs(squashed).max() * g)
    for scale in (1.0, 100.0):
        estimator.fast.linear3.weight.data *= scale if start == "random" else 1.0
        estimator.slow.token_out.weight.data *= scale if start == "random" else 1.0
        estimator.generate()
        estimator.look_ahead(lr=0.0)
        kinds, applied = estimator.gradients_by_kind(), estimator.applied()
        for i, reference in enumerate(calibrated):
            fast, slow = (kinds[kind][i].double().numpy() for kind in ("fast", "slow"))
            assert np.linalg.norm(fast) == pytest.approx(np.linalg.norm(reference), rel=1e-4)
            assert np.linalg.norm(slow) == pytest.approx(np.linalg.norm(reference), rel=1e-4)
            np.testing.assert_allclose(applied[i].double().numpy(), 0.7 * slow + 0.3 * fast, rtol=1e-4, atol=1e-7)
            if scale == 1.0:
                unscaled = kinds
            np.testing.assert_allclose(kinds["fast"][i], unscaled["fast"][i], rtol=1e-3, atol=1e-8)
            np.testing.assert_allclose(kinds["slow"][i], unscaled["slow"][i], rtol=1e-3, atol=1e-8)


def test_fsg_normalized_differs_from_the_sum_by_two_factors_a_layer() -> None:
    config = FSG.Config(hidden=6, chunk_size=8, layer_embedding_dim=4, start="random")
    model, estimator, optimizer = built(config)
    steps(model, estimator, optimizer, 0, 3)
    plain = estimator.gradients_by_kind()
    estimator.config = dataclasses.replace(config, normalize=True)
    for kind in ("fast", "slow"):
        for ours, theirs in zip(estimator.gradients_by_kind()[kind], plain[kind], strict=True):
            factor = ours.norm() / theirs.norm()
            assert factor != pytest.approx(1, rel=0.1)
            torch.testing.assert_close(ours, factor * theirs, rtol=1e-4, atol=1e-9)


def test_fsg_refuses_the_slow_gradient_alone_under_released_semantics() -> None:
    with pytest.raises(ValueError, match="no update under semantics: released"):
        FSG.Config(semantics="released", slow_weight=1.0)


def test_fsg_previous_has_no_update_in_the_first_step() -> None:
    model, estimator, optimizer = built(RELEASED)
    before = copy.deepcopy(model.conv.weight.data)
    steps(model, estimator, optimizer, 0, 1)
    assert torch.equal(model.conv.weight.data, before)
    assert optimizer.steps == 0


# --- hypernetworks


@pytest.mark.parametrize("nonlinearity", ["linear", "relu", "tanh"])
def test_fast_net_is_its_three_matrices(nonlinearity: Any) -> None:
    net = FastNet(5, nonlinearity).double()
    weight = torch.randn(4, 3, dtype=torch.float64)
    sigma = {"linear": lambda x: x, "relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}[nonlinearity]
    l1, l2, l3 = (p.detach().numpy() for p in net.parameters())
    expected = (l3 @ sigma(l2 @ sigma(l1 @ weight.numpy().reshape(1, -1)))).reshape(4, 3)
    np.testing.assert_allclose(net(weight).detach().numpy(), expected, rtol=1e-12)


def test_average_weighs_a_gradient_by_its_age() -> None:
    history = torch.tensor([[1.0, 0.0], [10.0, 5.0], [100.0, 7.0]])
    expected = (0.25 * history[0] + 0.5 * history[1] + history[2]) / 1.75
    torch.testing.assert_close(average(history, 0.5), expected)


@pytest.mark.parametrize("kind", [Mamba(expand=3, d_state=5, d_conv=4), LSTM(hidden=5)], ids=["mamba", "lstm"])
@pytest.mark.parametrize("layer_embedding", [True, False])
@pytest.mark.parametrize(("chunk_size", "width"), [(4, 3), (1, 1), (1, 2)])
def test_slow_net_reads_each_layers_history_as_one_sequence(
    kind: Mamba | LSTM, chunk_size: int, width: int, layer_embedding: bool
) -> None:
    """Against Mamba and LSTM written out in NumPy, a layer and a token at a time: sequences of several lengths."""
    torch.manual_seed(0)
    layout = ChunkLayout((torch.Size([3, 3]), torch.Size([1]), torch.Size([40]), torch.Size([7])), chunk_size)
    net = SlowNet(kind, layout, width, layer_embedding).double()
    if kind.name == "mamba":
        nn.init.normal_(net.mamba.A_log)
        nn.init.normal_(net.mamba.D)
    history = torch.randn(3, layout.rows, chunk_size, dtype=torch.float64)
    measured = net(history).detach().numpy()
    p = {name: t.numpy() for name, t in net.state_dict().items()}
    expected, first = [], 0
    for layer, chunks in enumerate(layout.chunks):
        tokens = history[:, first : first + chunks].numpy().reshape(-1, chunk_size)
        if (chunk_size, width) != (1, 1):
            tokens = tokens @ p["token_in.weight"].T
        if layer_embedding:
            tokens = np.concatenate([p["layer_embedding.weight"][layer : layer + 1], tokens])
        block = {k.removeprefix(f"{kind.name}."): v for k, v in p.items()}
        output = {"mamba": numpy_mamba, "lstm": numpy_lstm}[kind.name](tokens, block)[-chunks:]
        expected.append(output if (chunk_size, width) == (1, 1) else output @ p["token_out.weight"].T)
        first += chunks
    np.testing.assert_allclose(measured, np.concatenate(expected), rtol=1e-10, atol=1e-12)


def numpy_lstm(u: np.ndarray, p: dict[str, np.ndarray]) -> np.ndarray:
    hidden = p["lstm.weight_hh_l0"].shape[1]
    h, c, outputs = np.zeros(hidden), np.zeros(hidden), []
    bias = p["lstm.bias_ih_l0"] + p["lstm.bias_hh_l0"]
    for token in u:
        i, f, g, o = np.split(p["lstm.weight_ih_l0"] @ token + p["lstm.weight_hh_l0"] @ h + bias, 4)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        outputs.append(h)
    return np.array(outputs) @ p["out_proj.weight"].T


def numpy_mamba(u: np.ndarray, p: dict[str, np.ndarray]) -> np.ndarray:
    def silu(v: np.ndarray) -> np.ndarray:
        return v / (1 + np.exp(-v))

    inner, states = p["A_log"].shape
    x, z = np.split(u @ p["in_proj.weight"].T, 2, axis=1)
    kernel = p["conv1d.weight"][:, 0]
    padded = np.concatenate([np.zeros((kernel.shape[1] - 1, inner)), x])
    x = silu(np.stack([(padded[t : t + kernel.shape[1]] * kernel.T).sum(0) for t in range(len(u))]) + p["conv1d.bias"])
    rank = p["dt_proj.weight"].shape[1]
    dt, B, C = np.split(x @ p["x_proj.weight"].T, [rank, rank + states], axis=1)
    delta = np.log1p(np.exp(dt @ p["dt_proj.weight"].T + p["dt_proj.bias"]))
    h, y = np.zeros((inner, states)), np.zeros((len(u), inner))
    for t in range(len(u)):
        h = np.exp(delta[t][:, None] * -np.exp(p["A_log"])) * h + (delta[t] * x[t])[:, None] * B[t]
        y[t] = h @ C[t] + p["D"] * x[t]
    return (y * silu(z)) @ p["out_proj.weight"].T


@every_estimator
def test_the_untrained_network_is_the_one_that_the_estimator_trains(config: EstimatorConfig) -> None:
    """Its layers are those that the estimator leaves, though not every estimator is built for it."""
    train = TrainConfig(model=ResNet.Config(depth=8, width=4), estimator=config)
    found = untrained_network(train, (3, 16, 16), 10)
    expected = train.quantized(train.model.build((3, 16, 16), 10))
    config.build(expected)
    assert [name for name, _ in quantized_layers(found)] == [name for name, _ in quantized_layers(expected)]
    assert found.state_dict().keys() == expected.state_dict().keys()
