"""The scans against a NumPy one, and their gradients against differences."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fsg import selective_scan
from fsg.selective_scan import BLOCK, HAS_TRITON, blocked, fused, in_triton, kernel, reference

LENGTHS, TAILS = (4, BLOCK + 70, 1, 131), (2, 65, 1, 131)
SCANS = [reference, blocked]
without_cuda = not torch.cuda.is_available() or kernel() is None


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


def disagreement(scan: Callable[..., Tensor], dtype: torch.dtype, device: str = "cpu") -> float:
    """The largest relative error of the output and of all gradients, against the reference."""
    tensors = [t.detach().to(device).requires_grad_() for t in problem(LENGTHS, TAILS, 6, 16, dtype)]
    weights = torch.from_numpy(np.random.default_rng(9).normal(size=(sum(TAILS), 6))).to(device, dtype)
    results = []
    for way in (reference, scan):
        y = way(*tensors, LENGTHS, TAILS)
        results.append([y, *torch.autograd.grad(y, tensors, weights)])
    return max(float(((b - a).norm() / a.norm()).detach()) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_blocked_scan_agrees_with_the_reference_forward_and_backward(dtype: torch.dtype, tolerance: float) -> None:
    assert disagreement(blocked, dtype) < tolerance


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or not HAS_TRITON, reason="NOT RUN: Triton's kernels need CUDA and Triton"
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 5e-6)])
def test_tritons_scan_agrees_with_the_reference_on_a_gpu_and_twice_has_the_same_bits(
    dtype: torch.dtype, tolerance: float
) -> None:
    errors = [disagreement(in_triton, dtype, "cuda") for _ in range(2)]
    assert errors[0] < tolerance
    assert errors[0] == errors[1]


@pytest.mark.gpu
@pytest.mark.skipif(without_cuda, reason="NOT RUN: mamba-ssm's kernel needs CUDA and mamba_ssm")
def test_mamba_ssms_kernel_agrees_with_the_reference_forward_and_backward() -> None:
    assert disagreement(fused, torch.float32, "cuda") < 1e-4


def stand_in(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """What mamba-ssm says that its `selective_scan_fn` computes, for a batch: u, delta [b, E, t], B, C [b, N, t]."""
    assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in (u, delta, B, C))
    h, outputs = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        h = torch.exp(delta[:, :, t, None] * A) * h + (delta[:, :, t] * u[:, :, t])[..., None] * B[:, None, :, t]
        outputs.append((h * C[:, None, :, t]).sum(-1))
    return torch.stack(outputs, 2) + D[:, None] * u


def test_the_kernel_is_called_with_what_it_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the kernel itself: a stand-in for it, so that its call is tested where there is no CUDA."""
    monkeypatch.setattr(selective_scan, "kernel", lambda: stand_in)
    assert disagreement(fused, torch.float32) < 2e-6


def test_without_mamba_ssm_its_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selective_scan, "kernel", lambda: None)
    with pytest.raises(RuntimeError, match="mamba_ssm is not installed"):
        fused(*problem((2,), (1,), 2, 2, torch.float32), (2,), (1,))


def test_without_triton_our_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selective_scan, "HAS_TRITON", False)
    with pytest.raises(RuntimeError, match="triton is not installed"):
        in_triton(*problem((2,), (1,), 2, 2, torch.float32), (2,), (1,))


def test_on_a_device_the_blocked_scan_takes_larger_blocks_to_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selective_scan, "BLOCK", 1 << 20)
    assert disagreement(blocked, torch.float64) < 1e-13
    monkeypatch.setattr(selective_scan, "BLOCK", 3)
    assert disagreement(blocked, torch.float64) < 1e-13
