"""Each quantizer against its formula, written again in NumPy."""

from typing import Any

import numpy as np
import pytest
import torch

from fsg.quantizers import BWN, DoReFa, Libra, ReCU, Sign

WEIGHTS = np.random.default_rng(0).normal(0, 0.7, (6, 5, 3, 3))


def numpy_dorefa(w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    squashed = np.tanh(w)
    largest = np.abs(squashed).max()
    prequantized = squashed / (2 * largest) + 0.5
    return prequantized, 2 * np.round(prequantized) - 1, (1 - squashed**2) / largest


def test_dorefa_follows_its_formula() -> None:
    weight = torch.from_numpy(WEIGHTS)
    prequantized, quantized, calibration = numpy_dorefa(WEIGHTS)
    quantizer = DoReFa()
    np.testing.assert_allclose(quantizer.prequantize(weight).numpy(), prequantized, rtol=1e-14)
    np.testing.assert_array_equal(quantizer.quantize(quantizer.prequantize(weight)).numpy(), quantized)
    np.testing.assert_array_equal(quantizer(weight).numpy(), quantized)
    np.testing.assert_allclose(quantizer.calibration(weight).numpy(), calibration, rtol=1e-14)


def test_dorefa_calibration_is_the_derivative_of_the_affine_prequantization() -> None:
    """Ŵ = 2W̃ − 1 but for the rounding, so c = 2·dW̃/dW where the maximum is held: checked by differences."""
    weight = torch.from_numpy(WEIGHTS).flatten()
    inner = weight.abs().argsort()[:-1]  # all but the weight that sets the maximum
    step = 1e-6
    for i in inner[:10]:
        up, down = weight.clone(), weight.clone()
        up[i] += step
        down[i] -= step
        numeric = 2 * (DoReFa().prequantize(up)[i] - DoReFa().prequantize(down)[i]) / (2 * step)
        assert DoReFa().calibration(weight)[i].item() == pytest.approx(numeric.item(), rel=1e-7)


@pytest.mark.parametrize("quantizer", [DoReFa(), Sign()])
def test_one_bit_weights_are_plus_or_minus_one(quantizer: DoReFa | Sign) -> None:
    for weight in (torch.from_numpy(WEIGHTS), torch.tensor([-3.0, 2.0]), torch.full((4,), 1e-20)):
        assert set(quantizer(weight).unique().tolist()) <= {-1.0, 1.0}


def test_an_all_zero_tensor_quantizes_to_something_finite() -> None:
    zeros = torch.zeros(3, 3)
    assert torch.isfinite(DoReFa()(zeros)).all()
    assert torch.equal(DoReFa().calibration(zeros), torch.ones(3, 3)), "from where it can be trained"


def test_sign_of_zero_is_plus_one_and_dorefas_minus_one() -> None:
    assert DoReFa()(torch.tensor([-0.5, 0.0, 0.5])).tolist() == [-1.0, -1.0, 1.0]
    assert Sign()(torch.tensor([-0.5, 0.0, 0.5])).tolist() == [-1.0, 1.0, 1.0]
    assert Sign().calibration(torch.tensor([0.2])).tolist() == [1.0]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_dorefa_of_k_bits_has_evenly_spaced_levels_and_rounds_to_the_nearest(bits: Any) -> None:
    weight = torch.from_numpy(WEIGHTS)
    steps = 2**bits - 1
    quantized = DoReFa(weight_bits=bits)(weight)
    squashed = np.tanh(WEIGHTS)
    expected = 2 * np.round(steps * (squashed / (2 * np.abs(squashed).max()) + 0.5)) / steps - 1
    np.testing.assert_allclose(quantized.numpy(), expected, rtol=1e-14)
    assert len(quantized.unique()) == 2**bits


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_dorefa_position_is_zero_at_each_threshold_and_one_at_the_levels(bits: Any) -> None:
    quantizer, steps = DoReFa(weight_bits=bits), 2**bits - 1
    thresholds = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    torch.testing.assert_close(quantizer.position(thresholds), torch.zeros(steps).double(), rtol=0, atol=1e-12)
    just_below = (torch.arange(1, steps + 1, dtype=torch.float64) - 1e-9) / steps
    torch.testing.assert_close(quantizer.position(just_below), torch.ones(steps).double(), rtol=1e-7, atol=0)
    assert quantizer.position(torch.tensor([0.0, 1.0])).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("scale", ["channel", "layer"])
def test_bwn_scales_the_sign_by_the_mean_size(scale: Any) -> None:
    alpha = np.abs(WEIGHTS).mean((1, 2, 3) if scale == "channel" else None, keepdims=True)
    weight = torch.from_numpy(WEIGHTS)
    np.testing.assert_allclose(BWN(scale=scale)(weight).numpy(), alpha * np.sign(WEIGHTS), rtol=1e-13)
    expected = np.broadcast_to(alpha, WEIGHTS.shape)
    np.testing.assert_allclose(BWN(scale=scale).calibration(weight).numpy(), expected, rtol=1e-13)


def test_libra_balances_each_channel_and_scales_by_a_power_of_two() -> None:
    weights = WEIGHTS * np.array([1, 3, 0.1, 1, 1, 1]).reshape(-1, 1, 1, 1) + 0.7
    weights[3] = np.where(np.arange(45).reshape(5, 3, 3) == 7, 100.0, 0.1 * WEIGHTS[3])  # mean|W̃| far below 1
    rows = weights.reshape(6, -1)
    standardized = (rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True, ddof=1)
    scale = 2 ** np.round(np.log2(np.abs(standardized).mean(1, keepdims=True)))
    assert set(scale.flatten()) == {0.25, 1.0}
    weight = torch.from_numpy(weights)
    np.testing.assert_allclose(Libra().prequantize(weight).numpy().reshape(6, -1), standardized, rtol=1e-10)
    expected = np.where(standardized >= 0, 1, -1) * scale
    np.testing.assert_array_equal(Libra()(weight).numpy().reshape(6, -1), expected)
    factor = np.broadcast_to(scale / rows.std(1, keepdims=True, ddof=1), rows.shape)
    np.testing.assert_allclose(Libra().calibration(weight).numpy().reshape(6, -1), factor, rtol=1e-12)


def test_recu_clamps_the_tails_at_the_quantiles_of_a_laplace_distribution() -> None:
    draw = np.random.default_rng(1).laplace(0.0, 0.3, (8, 4000, 1, 1))
    weight = torch.from_numpy(draw)
    for tau in (0.85, 0.99):
        clamped = ReCU(tau=tau).prequantize(weight)
        limit = float(clamped.abs().max())
        assert float((clamped == limit).double().mean()) == pytest.approx(1 - tau, abs=0.005)
        assert float((clamped == -limit).double().mean()) == pytest.approx(1 - tau, abs=0.005)
        rows = draw.reshape(8, -1)
        free = np.sqrt(8) * (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True, ddof=1) + 1e-5)
        q = -np.abs(free).mean() * np.log(2 - 2 * tau)
        np.testing.assert_allclose(clamped.numpy().reshape(8, -1), np.clip(free, -q, q), rtol=1e-10)
        np.testing.assert_array_equal(ReCU(tau=tau)(weight).numpy().reshape(8, -1), np.where(free >= 0, 1, -1))


def test_only_bwn_with_the_scaled_gradient_calibrates_with_alpha() -> None:
    """MetaQuant's learned gradient has no α, and its straight-through one has; Bi-Real Net's has none either."""
    weight = torch.from_numpy(WEIGHTS)
    alpha = np.abs(WEIGHTS).mean()
    for settings, learned, straight in (
        ({}, alpha, alpha),
        ({"gradient": "through_scale"}, alpha, alpha),
        ({"gradient": "unscaled"}, 1.0, 1.0),
        ({"calibrate": False}, 1.0, alpha),
        ({"gradient": "through_scale", "calibrate": False}, 1.0, alpha),
    ):
        quantizer = BWN(scale="layer", **settings)  # type: ignore[arg-type]
        ones = torch.ones_like(weight)
        for measured, expected in (
            (quantizer.calibration(weight), learned),
            (quantizer.pull_back(weight, ones), straight),
        ):
            np.testing.assert_allclose(measured.numpy(), np.full(weight.shape, expected), rtol=1e-13)


def test_recu_anneals_tau_towards_the_one_that_it_has_outside_of_a_training() -> None:
    annealed = ReCU(tau_start=0.85, tau=0.99)
    weight = torch.from_numpy(WEIGHTS)
    for progress, tau in ((0.0, 0.85), (0.5, 0.902855693631734), (1.0, 0.99)):
        assert annealed.at(progress).tau == pytest.approx(tau, rel=1e-12)
        assert torch.equal(
            annealed.at(progress).prequantize(weight), ReCU(tau=annealed.at(progress).tau).prequantize(weight)
        )
    assert torch.equal(annealed.prequantize(weight), ReCU(tau=0.99).prequantize(weight))
    assert ReCU(tau=0.9).at(0.3) == ReCU(tau=0.9)


def test_new_settings_at_their_defaults_are_in_no_identity() -> None:
    assert BWN().identity() == {"name": "bwn", "scale": "channel"}
    assert ReCU().identity() == {"name": "recu", "tau": 0.99}
    assert BWN(gradient="unscaled").identity() == {"name": "bwn", "scale": "channel", "gradient": "unscaled"}


EVERY = [
    DoReFa(), DoReFa(weight_bits=2), DoReFa(weight_bits=4), Sign(), BWN(), BWN(scale="layer"), Libra(), ReCU(),
    BWN(gradient="unscaled"), BWN(gradient="through_scale"), BWN(calibrate=False), ReCU(tau_start=0.85),
]  # fmt: skip


@pytest.mark.parametrize("quantizer", EVERY, ids=str)
@pytest.mark.parametrize("weight", [torch.zeros(3, 2, 1, 1), torch.ones(3, 4), torch.full((1, 1), -0.3)])
def test_weights_without_variance_stay_finite(quantizer: Any, weight: torch.Tensor) -> None:
    gradient = torch.ones_like(weight)
    for tensor in (quantizer(weight), quantizer.calibration(weight), quantizer.pull_back(weight, gradient)):
        assert tensor.shape == weight.shape
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("quantizer", EVERY, ids=str)
def test_memory_format_changes_no_quantized_weight(quantizer: Any) -> None:
    weight = torch.from_numpy(WEIGHTS)
    last = weight.to(memory_format=torch.channels_last)
    torch.testing.assert_close(quantizer(last), quantizer(weight), rtol=1e-12, atol=0)
    one, other = (quantizer.pull_back(w, torch.ones_like(w)) for w in (last, weight))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert quantizer(last).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_recu_refuses_a_tau_that_is_no_upper_quantile(tau: float) -> None:
    with pytest.raises(ValueError, match=r"tau is .*, expected"):
        ReCU(tau=tau)
    with pytest.raises(ValueError, match=r"tau_start is .*, expected"):
        ReCU(tau_start=tau)
