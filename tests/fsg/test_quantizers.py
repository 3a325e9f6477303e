"""Each quantizer against its formula, written again in NumPy."""

import numpy as np
import pytest
import torch

from fsg.quantizers import DoReFa, FullPrecision, Sign

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
    assert torch.isfinite(DoReFa().calibration(zeros)).all()


def test_sign_of_zero_is_plus_one() -> None:
    assert Sign()(torch.tensor([-0.5, 0.0, 0.5])).tolist() == [-1.0, 1.0, 1.0]
    assert Sign().calibration(torch.tensor([0.2])).tolist() == [1.0]


def test_full_precision_changes_nothing_and_never_saturates() -> None:
    weight = torch.from_numpy(WEIGHTS)
    assert torch.equal(FullPrecision()(weight), weight)
    assert FullPrecision().saturation == float("inf")
