"""Directions against torch.optim, and against the formula where torch has another."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fsg.estimators import FullPrecision
from fsg.layers import quantize
from fsg.optimizers import SGD, Adam, AdamW, NAdam
from fsg.quantizers import Sign


@pytest.fixture
def float64() -> Iterator[None]:
    """torch's NAdam keeps the product of its momenta in the default precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def trained(build, steps: int = 6) -> list[torch.Tensor]:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).double()
    step = build(model)
    generator = torch.Generator().manual_seed(1)
    for i in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 10.0 ** (-2 * i)
        step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SGD(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
        (
            SGD(lr=0.1, momentum=0.9, weight_decay=5e-4),
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4),
        ),
        (Adam(lr=0.01, weight_decay=0.1), lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1)),
        (
            Adam(lr=0.01, beta1=0.5, beta2=0.9, eps=1e-3),
            lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.5, 0.9), eps=1e-3),
        ),
        (
            SGD(lr=0.1, momentum=0.8, weight_decay=0.01, nesterov=True),
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, weight_decay=0.01, nesterov=True),
        ),
        (AdamW(lr=0.01), lambda p: torch.optim.AdamW(p, lr=0.01)),
        (
            AdamW(lr=0.1, weight_decay=0.3, beta1=0.5, eps=1e-3),
            lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.3, betas=(0.5, 0.999), eps=1e-3),
        ),
        (NAdam(lr=0.01), lambda p: torch.optim.NAdam(p, lr=0.01)),
        (
            NAdam(lr=0.1, weight_decay=0.1, beta1=0.7, beta2=0.9, eps=1e-3, momentum_decay=0.5),
            lambda p: torch.optim.NAdam(p, 0.1, (0.7, 0.9), 1e-3, weight_decay=0.1, momentum_decay=0.5),
        ),
    ],
    ids=["sgd", "momentum", "adam", "adam-betas", "nesterov", "adamw", "adamw-settings", "nadam", "nadam-settings"],
)
def test_optimizers_agree_with_torchs(ours, theirs, float64) -> None:  # type: ignore[no-untyped-def]
    def build(model):  # type: ignore[no-untyped-def]
        optimizer = ours.build(model)
        return lambda: optimizer.step(ours.lr)

    for mine, reference in zip(trained(build), trained(lambda m: theirs(m.parameters()).step), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-12, atol=1e-14)


def test_uncorrected_adam_adds_epsilon_before_the_bias_correction() -> None:
    weight, mean, square = 0.3, 0.0, 0.0
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, weight)
    optimizer = Adam(lr=0.1, epsilon="uncorrected").build(model)
    for n, g in enumerate([1e-9, -3e-8, 2e-8, 1e-5], start=1):
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        direction = mean / (math.sqrt(square) + 1e-8) * math.sqrt(1 - 0.999**n) / (1 - 0.9**n)
        weight -= 0.1 * direction
        model.weight.grad = torch.tensor([[g]], dtype=torch.float64)
        optimizer.step(0.1)
        assert model.weight.item() == pytest.approx(weight, rel=1e-12)
        assert model.weight.grad.item() == pytest.approx(direction, rel=1e-12), "the direction is left in .grad"


@pytest.mark.parametrize(
    "rule",
    [SGD(lr=0.1, momentum=0.9), Adam(lr=0.1), SGD(lr=0.1, momentum=0.9, nesterov=True), AdamW(lr=0.1), NAdam(lr=0.1)],
    ids=["momentum", "adam", "nesterov", "adamw", "nadam"],
)
def test_an_optimizer_goes_on_from_its_state_bit_for_bit(rule) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    one = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    first = rule.build(one)

    def steps(model, optimizer, seed):  # type: ignore[no-untyped-def]
        generator = torch.Generator().manual_seed(seed)
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step(0.1)

    steps(one, first, 1)
    other = copy.deepcopy(one)
    second = rule.build(other)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(one, first, 2)
    steps(other, second, 2)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_frozen_parameters_are_left_alone() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    optimizer = SGD(lr=1.0, weight_decay=1.0).build(model)
    model.weight.grad = torch.ones(2, 2)
    expected = model.weight.detach().numpy() * 0 - 1
    optimizer.step(1.0)
    np.testing.assert_allclose(model.weight.detach().numpy(), expected, atol=1e-6)
    assert torch.equal(model.bias, before)


@pytest.mark.parametrize(
    "rule", [kind(lr=1.0, clip_latent=0.5) for kind in (SGD, Adam, AdamW, NAdam)], ids=["sgd", "adam", "adamw", "nadam"]
)
def test_latent_weights_are_clipped_and_nothing_else(rule) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = quantize(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), Sign(), ["2"])
    free = copy.deepcopy(model)
    for network, optimizer in ((model, rule.build(model)), (free, replace(rule, clip_latent=None).build(free))):
        for i, parameter in enumerate(network.parameters()):
            torch.manual_seed(i)
            parameter.grad = torch.randn_like(parameter)
        optimizer.step(1.0)
    for (name, one), (_, other) in zip(model.named_parameters(), free.named_parameters(), strict=True):
        expected = other.clamp(-0.5, 0.5) if name == "0.weight" else other
        assert torch.equal(one, expected), name
    assert (free[0].weight.abs() > 0.5).any()


def test_full_precision_weights_are_not_latent_and_so_not_clipped() -> None:
    model = quantize(nn.Sequential(nn.Linear(5, 4)), Sign())
    FullPrecision.Config().build(model)
    optimizer = SGD(lr=1.0, clip_latent=0.1).build(model)
    model[0].weight.grad = torch.ones(4, 5)
    optimizer.step(1.0)
    assert model[0].weight.abs().max() > 0.5


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_clip_latent_out_of_range_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"clip_latent is .*, expected > 0"):
        SGD(clip_latent=bad)


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nesterov is true, and momentum is 0 \(expected a momentum > 0\)"):
        SGD(nesterov=True)


def test_nadams_momentum_is_the_same_from_wherever_a_process_begins() -> None:
    rule = NAdam(momentum_decay=0.2)
    later = rule.product(50)
    one_by_one = 1.0
    for n in range(1, 51):
        one_by_one *= 0.9 * (1 - 0.5 * 0.96 ** (n * 0.2))
    assert rule.product(3) > later == one_by_one


def test_settings_that_are_new_enter_an_identity_only_where_they_are_used() -> None:
    assert set(SGD().identity()) == {"name", "lr", "momentum", "weight_decay", "clip_latent"}
    assert SGD(momentum=0.9, nesterov=True).identity()["nesterov"] is True
