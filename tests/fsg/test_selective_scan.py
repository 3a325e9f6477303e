"""The three scans against a NumPy one, and their gradients against differences."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fsg import native
from fsg.selective_scan import BLOCK, blocked, native_scan, reference

LENGTHS, TAILS = (4, BLOCK + 70, 1, 131), (2, 65, 1, 131)
needs_compiler = pytest.mark.skipif(native.library("selective_scan") is None, reason="no C++ compiler works here")
SCANS = [reference, blocked, pytest.param(native_scan, marks=needs_compiler)]


def problem(
    lengths: tuple[int, ...], tails: tuple[int, ...], channels: int, states: int, dtype: torch.dtype
) -> list[Tensor]:
    """Inputs with decays as a trained block may have them: A and D are far from their initial values."""
    draw = np.random.default_rng(len(lengths)).normal
    tokens, outputs = sum(lengths), sum(tails)
    arrays = [
        draw(size=(tokens, channels)),
        np.log1p(np.exp(draw(-1, 1.5, size=(tokens, channels)))),
        -np.exp(draw(0, 1.5, size=(channels, states))),
        draw(size=(tokens, states)),
        draw(size=(outputs, states)),
        draw(size=channels),
    ]
    return [torch.from_numpy(a).to(dtype).requires_grad_() for a in arrays]


def numpy_scan(x, delta, A, B, C, D, lengths, tails):  # type: ignore[no-untyped-def]
    out, t = [], 0
    for length, tail in zip(lengths, tails, strict=True):
        h = np.zeros_like(A)
        for i in range(length):
            for e in range(A.shape[0]):
                for n in range(A.shape[1]):
                    h[e, n] = np.exp(delta[t, e] * A[e, n]) * h[e, n] + delta[t, e] * B[t, n] * x[t, e]
            if i >= length - tail:
                m = len(out)
                out.append(
                    [sum(C[m, n] * h[e, n] for n in range(A.shape[1])) + D[e] * x[t, e] for e in range(A.shape[0])]
                )
            t += 1
    return np.array(out)


@pytest.mark.parametrize("scan", SCANS)
def test_scan_follows_the_recurrence(scan: Callable[..., Tensor]) -> None:
    tensors = problem(LENGTHS, TAILS, 3, 5, torch.float64)
    expected = numpy_scan(*(t.detach().numpy() for t in tensors), LENGTHS, TAILS)
    np.testing.assert_allclose(scan(*tensors, LENGTHS, TAILS).detach().numpy(), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("scan", SCANS)
def test_scan_has_the_derivatives_that_differences_give(scan: Callable[..., Tensor]) -> None:
    lengths, tails = (3, 9, 1), (1, 4, 1)
    tensors = problem(lengths, tails, 2, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda *t: scan(*t, lengths, tails), tensors, eps=1e-6, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("scan", SCANS[1:])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_fast_scans_agree_with_the_reference_forward_and_backward(
    scan: Callable[..., Tensor], dtype: torch.dtype, tolerance: float, threads: int
) -> None:
    tensors = problem(LENGTHS, TAILS, 6, 16, dtype)
    weights = torch.from_numpy(np.random.default_rng(9).normal(size=(sum(TAILS), 6))).to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        results = []
        for way in (reference, scan):
            y = way(*tensors, LENGTHS, TAILS)
            results.append([y, *torch.autograd.grad(y, tensors, weights)])
    finally:
        torch.set_num_threads(before)
    for expected, measured in zip(*results, strict=True):
        error = (measured - expected).detach().norm() / expected.detach().norm()
        assert error.item() < tolerance


@needs_compiler
def test_native_scan_survives_decays_that_underflow() -> None:
    tensors = problem((5,), (5,), 2, 4, torch.float32)
    tensors[1] = (tensors[1] * 1e4).detach().requires_grad_()
    y = native_scan(*tensors, (5,), (5,))
    gradients = torch.autograd.grad(y.sum(), tensors)
    assert all(torch.isfinite(t).all() for t in (y, *gradients))
    torch.testing.assert_close(y, reference(*tensors, (5,), (5,)), rtol=1e-5, atol=1e-5)
