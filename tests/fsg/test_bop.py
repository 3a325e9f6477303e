"""Bop: training without latent weights, its flips against NumPy, under every estimator."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_estimators import Network, every_estimator, go_on, state_of, steps
from torch import nn

from fsg.checkpoint import digest, to_bytes
from fsg.estimators import STE, FullPrecision
from fsg.layers import quantize
from fsg.optimizers import SGD, Adam, BinaryOptimizer, Bop
from fsg.quantizers import BWN, DoReFa, ReCU, Sign
from fsg.step import train_step

EAGER = Bop(threshold=1e-4, gamma=0.3, others=SGD(lr=0.01, momentum=0.9))


def built(config: Any, quantizer: Any = None) -> tuple[Any, Any, BinaryOptimizer]:
    torch.manual_seed(0)
    network = quantize(Network(), quantizer or Sign())
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network, config.build(network), EAGER.build(network)


def test_weights_flip_by_the_rule_and_no_other_way() -> None:
    """Several steps of one layer, its bias and learning rate included, against the rule in NumPy."""
    tau, gamma, lr_0 = 0.02, 0.25, 0.5
    model = quantize(nn.Sequential(nn.Linear(40, 30)).double(), Sign())
    optimizer = Bop(threshold=tau, gamma=gamma, others=SGD(lr=lr_0)).build(model)
    w, m, b = np.sign(model[0].weight.detach().numpy()), np.zeros((30, 40)), model[0].bias.detach().numpy().copy()
    draw, flips = np.random.default_rng(0), 0
    for lr in (0.5, 0.5, 0.25, 0.05, 0.0):
        g, g_b = 0.1 * draw.normal(size=(30, 40)), draw.normal(size=30)
        model[0].weight.grad, model[0].bias.grad = torch.from_numpy(g.copy()), torch.from_numpy(g_b.copy())
        optimizer.step(lr)
        rate = gamma * lr / lr_0
        m = (1 - rate) * m + rate * g
        flip = (np.abs(m) > tau) & (np.sign(m) == np.sign(w))
        before, w, b = w, np.where(flip, -w, w), b - lr * g_b
        flips += int(flip.sum())
        np.testing.assert_array_equal(model[0].weight.detach().numpy(), w)
        np.testing.assert_allclose(model[0].bias.detach().numpy(), b, rtol=1e-12)
        direction = model[0].weight.grad.numpy()
        np.testing.assert_allclose(before - lr * direction, w, rtol=1e-12, err_msg="what a look-ahead will find")
    assert flips > 100


def test_what_a_weight_starts_from_is_its_sign_and_zero_is_plus_one() -> None:
    model = quantize(nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(1, 2)), Sign(), ["1"])
    model[0].weight.data = torch.tensor([[0.3, 0.0, -2.0]])
    kept = model[1].weight.clone()
    Bop().build(model)
    assert model[0].weight.tolist() == [[1.0, 1.0, -1.0]]
    assert torch.equal(model[1].weight, kept), "layers in full precision are no business of it"


@every_estimator
def test_every_estimator_trains_without_latent_weights(config: Any) -> None:
    """And goes on from its state bit for bit."""
    model, estimator, optimizer = built(config)
    before = {name: w.clone() for name, w in optimizer.binary.items()}
    assert all(math.isfinite(loss) for loss in steps(model, estimator, optimizer, 0, 2))
    saved = to_bytes(state_of(model, estimator, optimizer))
    steps(model, estimator, optimizer, 2, 5)
    flipped = 0
    for name, w in optimizer.binary.items():
        assert set(w.unique().tolist()) <= {-1.0, 1.0}
        flipped += int((w != before[name]).sum())
    assert flipped > 0 or isinstance(estimator, FullPrecision)
    going = built(config)
    steps(*going, 10, 12)  # whatever was there before must not show
    go_on(*going, saved)
    steps(*going, 2, 5)
    assert digest(state_of(*going)) == digest(state_of(model, estimator, optimizer))


@pytest.mark.parametrize("quantizer", [Sign(), BWN(), DoReFa()])
def test_quantizers_that_keep_signs_are_taken(quantizer: Any) -> None:
    model, estimator, optimizer = built(STE.Config(), quantizer)
    steps(model, estimator, optimizer, 0, 2)
    assert set(model.conv.weight.unique().tolist()) <= {-1.0, 1.0}


def test_a_quantizer_that_changes_signs_is_refused() -> None:
    """ReCU subtracts a channel's mean, so that a channel of −1 alone becomes +1."""
    model = quantize(nn.Sequential(nn.Conv2d(2, 3, 3)), ReCU())
    model[0].weight.data[0] = -0.1
    with pytest.raises(ValueError, match=r"the quantizer of 0 changes weights of ±1, expected one that does not"):
        Bop().build(model)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"threshold": -1.0}, "threshold is -1.0, expected ≥ 0"),
        ({"gamma": 0.0}, "gamma is 0.0, expected > 0"),
        ({"gamma": 1.5}, "gamma is 1.5, expected ≤ 1"),
        ({"others": Adam(clip_latent=1.0)}, "no latent weights to clip"),
    ],
)
def test_what_cannot_be_is_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bop(**bad)


def test_its_learning_rate_is_that_of_the_others() -> None:
    assert replace(EAGER, others=Adam(lr=0.3)).lr == 0.3


def test_it_learns() -> None:
    """A teacher of signs is found again, in one pass over its labels; no other parameter is there to help."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(2048, 1, 1, 15, generator=draw)
    teacher = torch.where(torch.randn(15, 3, generator=draw) >= 0, 1.0, -1.0)
    labels = (images.flatten(1) @ teacher).argmax(1)
    torch.manual_seed(1)
    model = quantize(nn.Sequential(nn.Flatten(), nn.Linear(15, 3, bias=False)), Sign())
    estimator = STE.Config().build(model)
    optimizer = Bop(threshold=0.03, gamma=0.03).build(model)

    def accuracy() -> float:
        return (model(images).argmax(1) == labels).double().mean().item()

    before = accuracy()
    for t in range(64):
        rows = slice(32 * t, 32 * t + 32)
        train_step(model, estimator, optimizer, images[rows], labels[rows], lr=optimizer.rule.lr, progress=t / 64)
    assert before < 0.6
    assert accuracy() == 1
