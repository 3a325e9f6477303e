"""Triton's kernels without a GPU: interpreted on the CPU, against the same oracles as the other scans."""

import importlib
import os

import numpy as np
import pytest
import torch
from torch import Tensor

from fsg import mamba, selective_scan
from fsg.history import ChunkLayout, Sequences
from fsg.mamba import Mamba, MambaBlock
from fsg.selective_scan import HAS_TRITON, in_triton, reference

pytestmark = [
    pytest.mark.accelerator,
    pytest.mark.skipif(not HAS_TRITON, reason="NOT RUN: Triton is not installed"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1", reason="NOT RUN: make test-accelerator sets TRITON_INTERPRET=1"
    ),
]
# lengths, outputs, channels, states; chunks have 64 tokens, a program 64 states of a few channels
SCANS = {
    "many layers": ((3, 71, 1, 130), (1, 66, 1, 3), 3, 5),
    "two blocks of channels": ((20, 64), (4, 64), 11, 16),
    "one state": ((9, 2), (3, 1), 2, 1),
    "more states than a warp holds": ((5,), (2,), 2, 130),
}


def problem(lengths: tuple[int, ...], tails: tuple[int, ...], channels: int, states: int) -> list[Tensor]:
    """Inputs with decays as a trained block may have them: A and D are far from their initial values."""
    draw = np.random.default_rng(sum(lengths)).normal
    tokens, rows = sum(lengths), sum(tails)
    arrays = [
        draw(size=(tokens, channels)),
        np.log1p(np.exp(draw(-1, 1.5, size=(tokens, channels)))),
        -np.exp(draw(0, 1.5, size=(channels, states))),
        draw(size=(tokens, states)),
        draw(size=(rows, states)),
        draw(size=channels),
    ]
    return [torch.from_numpy(array).requires_grad_() for array in arrays]


def results(y: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    weights = torch.from_numpy(np.random.default_rng(9).normal(size=tuple(y.shape))).to(y.dtype)
    return [y, *torch.autograd.grad(y, tensors, weights)]


def disagreement(ones: list[Tensor], others: list[Tensor]) -> float:
    """The largest relative error of the output and of all gradients."""
    return max(float(((b - a).norm() / a.norm()).detach()) for a, b in zip(ones, others, strict=True))


@pytest.mark.parametrize("sizes", SCANS.values(), ids=SCANS.keys())
def test_the_scan_agrees_with_the_reference_forward_and_backward(sizes: tuple[tuple[int, ...], ...]) -> None:
    lengths, tails, channels, states = sizes
    tensors = problem(lengths, tails, channels, states)  # type: ignore[arg-type]
    expected = results(reference(*tensors, lengths, tails), tensors)  # type: ignore[arg-type]
    measured = results(in_triton(*tensors, lengths, tails), tensors)  # type: ignore[arg-type]
    assert disagreement(expected, measured) < 1e-13


def test_the_scan_in_single_precision_and_twice_the_same_bits() -> None:
    lengths, tails, channels, states = (70, 3), (7, 3), 3, 5
    tensors = [tensor.detach().float().requires_grad_() for tensor in problem(lengths, tails, channels, states)]
    doubles = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected = results(reference(*doubles, lengths, tails), doubles)
    once, again = (results(in_triton(*tensors, lengths, tails), tensors) for _ in range(2))
    assert all(tensor.dtype == torch.float32 for tensor in once)
    assert disagreement(expected, once) < 2e-6
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_half_precision_is_scanned_in_single() -> None:
    lengths, tails = (5, 2), (2, 1)
    tensors = [tensor.detach().bfloat16() for tensor in problem(lengths, tails, 2, 3)]
    expected = in_triton(*(tensor.float() for tensor in tensors), lengths, tails)
    assert torch.equal(in_triton(*tensors, lengths, tails), expected.bfloat16())


def test_steps_and_decays_of_any_size_stay_finite() -> None:
    lengths, tails = (70,), (66,)
    x, delta, A, B, C, D = problem(lengths, tails, 2, 3)
    for scale in (1e4, 1e-4):
        tensors = [t.detach().requires_grad_() for t in (x, delta * 30, A * scale, B, C, D)]
        expected = results(reference(*tensors, lengths, tails), tensors)
        assert disagreement(expected, results(in_triton(*tensors, lengths, tails), tensors)) < 1e-11


@pytest.mark.parametrize(("width", "expand", "d_conv"), [(2, 2, 8), (1, 35, 1)])
def test_a_block_with_our_convolution_and_scan_is_the_composed_one(
    monkeypatch: pytest.MonkeyPatch, width: int, expand: int, d_conv: int
) -> None:
    """By u and by every parameter; sequences shorter than the convolution too."""
    layout = ChunkLayout(tuple(torch.Size([n]) for n in (7, 1, 13)), 1)
    sequences = Sequences.of(layout, 2, True, torch.device("cpu"))
    torch.manual_seed(0)
    block: MambaBlock = Mamba(expand=expand, d_state=3, d_conv=d_conv).build(width).double()
    with torch.no_grad():
        block.A_log.normal_(0, 1.5)
        block.D.normal_()
        block.dt_proj.bias.normal_(-1, 1)
    u = torch.randn(sum(sequences.lengths), width, dtype=torch.float64, requires_grad=True)
    tensors = [u, *(p for name, p in block.named_parameters() if name != "out_proj.weight")]
    expected = results(block.composed(u, sequences), tensors)
    for module in (mamba, selective_scan):
        monkeypatch.setattr(module, "way_on", lambda device: "triton")
    assert disagreement(expected, results(block.composed(u, sequences), tensors)) < 1e-13


def test_the_operators_keep_torchs_rules_for_operators() -> None:
    """Their shapes without data, their derivatives' registration, and nothing that is written to or aliased."""
    importlib.import_module("fsg.triton_mamba")
    lengths, tails = [3, 2], [1, 2]
    tensors = problem(tuple(lengths), tuple(tails), 2, 3)
    torch.library.opcheck(torch.ops.fsg.triton_scan.default, (*tensors, lengths, tails))
    x, kernel, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 2), (2, 3), (2,)))
    position = torch.tensor([0, 1, 2, 0, 1])
    torch.library.opcheck(torch.ops.fsg.triton_convolve.default, (x, kernel, bias, position))
    assert torch.autograd.gradcheck(
        lambda *t: torch.ops.fsg.triton_convolve(*t, position), (x, kernel, bias), fast_mode=True
    )


def test_torch_compiles_over_the_block_without_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole as one graph, `fullgraph=True`; its operators are called as they are."""
    for module in (mamba, selective_scan):
        monkeypatch.setattr(module, "way_on", lambda device: "triton")
    sequences = Sequences.of(ChunkLayout((torch.Size([3]), torch.Size([2])), 1), 2, True, torch.device("cpu"))
    block = Mamba(expand=2, d_state=3, d_conv=2).build(2)
    u = torch.randn(sum(sequences.lengths), 2, requires_grad=True)
    graph = torch.compile(block.composed, fullgraph=True, backend="aot_eager")
    expected, measured = (results(way(u, sequences), [u, block.A_log]) for way in (block.composed, graph))
    assert all(torch.equal(a, b) for a, b in zip(expected, measured, strict=True))
