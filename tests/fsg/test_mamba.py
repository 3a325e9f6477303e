"""The Mamba block, in torch and in C++, against NumPy, differences and each other."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from test_estimators import numpy_mamba
from torch import Tensor

from fsg import mamba, native
from fsg.history import ChunkLayout, Sequences
from fsg.mamba import Mamba, MambaBlock
from fsg.selective_scan import reference

needs_compiler = pytest.mark.skipif(native.library("mamba") is None, reason="no C++ compiler works here")
WAYS = ["composed", pytest.param("native", marks=needs_compiler)]
every_way = pytest.mark.parametrize("way", WAYS)
# (weights of the layers, gradients, layer embedding), (width, expand, d_state, d_conv)
SMALL = ((3, 1), 2, True), (2, 2, 3, 3)
PROBLEMS = {
    "released": (((7, 40, 1, 131), 3, True), (1, 12, 16, 8)),
    "default": (((90, 13, 600), 2, True), (8, 2, 16, 4)),  # the last newest gradient begins within a chunk
    "wide": (((3, 70), 2, False), (20, 1, 21, 2)),
    "one state, one tap": (((66, 2), 1, False), (3, 3, 1, 1)),
    "many states": (((5, 65), 2, True), (2, 2, 70, 9)),
}


def problem(
    weights: tuple[int, ...], gradients: int, embedding: bool, sizes: tuple[int, int, int, int], dtype: torch.dtype
) -> tuple[MambaBlock, Tensor, Sequences]:
    """A block as it may be after training, A_log and D far from their initial values."""
    width, expand, d_state, d_conv = sizes
    layout = ChunkLayout(tuple(torch.Size([n]) for n in weights), 1)
    sequences = Sequences.of(layout, gradients, embedding, torch.device("cpu"))
    torch.manual_seed(len(weights))
    block = Mamba(expand=expand, d_state=d_state, d_conv=d_conv).build(width).to(dtype)
    with torch.no_grad():
        block.A_log.normal_(0, 1.5)
        block.D.normal_()
        block.dt_proj.bias.normal_(-1, 1)
    return block, torch.randn(sum(sequences.lengths), width, dtype=dtype, requires_grad=True), sequences


def gated(block: MambaBlock, way: str) -> Callable[[Tensor, Sequences], Tensor]:
    found: Callable[[Tensor, Sequences], Tensor] = getattr(block, way)
    return found


@every_way
@pytest.mark.parametrize("sizes", PROBLEMS.values(), ids=PROBLEMS.keys())
def test_a_block_is_its_formula(sizes: tuple[tuple[tuple[int, ...], int, bool], tuple[int, ...]], way: str) -> None:
    block, u, sequences = problem(*sizes[0], sizes[1], torch.float64)  # type: ignore[arg-type]
    measured = block.out_proj(gated(block, way)(u, sequences)).detach().numpy()
    parameters = {name: tensor.numpy() for name, tensor in block.state_dict().items()}
    parts = np.split(u.detach().numpy(), np.cumsum(sequences.lengths)[:-1])
    outputs = [numpy_mamba(part, parameters)[-tail:] for part, tail in zip(parts, sequences.tails, strict=True)]
    np.testing.assert_allclose(measured, np.concatenate(outputs), rtol=1e-9, atol=1e-12)


@every_way
def test_a_block_has_the_derivatives_that_differences_give(way: str) -> None:
    """By u and by every parameter."""
    block, u, sequences = problem(*SMALL[0], SMALL[1], torch.float64)
    names = [name for name, _ in block.named_parameters() if name != "out_proj.weight"]

    def run(u: Tensor, *parameters: Tensor) -> Tensor:
        def inside(block: MambaBlock) -> Tensor:
            return gated(block, way)(u, sequences)

        called = copy.copy(block)
        called.forward = lambda: inside(called)  # type: ignore[method-assign, assignment]
        return torch.func.functional_call(called, dict(zip(names, parameters, strict=True)), ())

    parameters = [block.get_parameter(name).detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(run, (u, *parameters), eps=1e-6, atol=1e-7, rtol=1e-6)


def results(block: MambaBlock, way: str, u: Tensor, sequences: Sequences) -> list[Tensor]:
    """The output and the gradients of a random weighting of it."""
    y = gated(block, way)(u, sequences)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype)
    parameters = [p for name, p in block.named_parameters() if name != "out_proj.weight"]
    return [y, *torch.autograd.grad(y, (u, *parameters), weights)]


@needs_compiler
@pytest.mark.parametrize("sizes", PROBLEMS.values(), ids=PROBLEMS.keys())
def test_the_native_block_agrees_with_the_reference_scan_in_the_composed_one_on_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[tuple[tuple[int, ...], int, bool], tuple[int, ...]]
) -> None:
    """In single precision too, where the reference is of the same numbers in double."""
    monkeypatch.setattr(mamba, "selective_scan", reference)
    block, u, sequences = problem(*sizes[0], sizes[1], torch.float32)  # type: ignore[arg-type]
    single = copy.deepcopy(block), u
    double = block.double(), u.detach().double().requires_grad_()
    expected = results(double[0], "composed", double[1], sequences)
    for (block, u), tolerance in ((double, 1e-12), (single, 2e-5)):
        for threads in (1, 2, 5):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            for one, other in zip(expected, results(block, "native", u, sequences), strict=True):
                assert float(((one - other).norm() / one.norm()).detach()) < tolerance, (u.dtype, threads)


@needs_compiler
def test_many_tokens_are_taken_a_group_of_sequences_at_a_time_to_the_same_numbers() -> None:
    sizes = (1, 100, 2, 3)
    block, u, both = problem((10_500, 10_500), 2, False, sizes, torch.float32)
    assert len(u) * 100 > 1 << 22, "two groups in mamba.cpp"
    _, _, one = problem((10_500,), 2, False, sizes, torch.float32)
    whole = results(block, "native", u, both)
    halves = [gated(block, "native")(part, one) for part in u.split(21_000)]
    assert torch.equal(whole[0], torch.cat(halves))
    weights = torch.randn(whole[0].shape, generator=torch.Generator().manual_seed(3))
    parameters = [p for name, p in block.named_parameters() if name != "out_proj.weight"]
    for ours, theirs in zip(whole[1:], torch.autograd.grad(torch.cat(halves), (u, *parameters), weights), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


@needs_compiler
@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_the_native_block_survives_steps_and_decays_of_any_size(scale: float) -> None:
    block, u, sequences = problem((40, 9), 5, True, (2, 2, 16, 4), torch.float32)
    with torch.no_grad():
        block.A_log.add_(np.log(scale))
        block.dt_proj.weight.mul_(30)
    expected, measured = (results(block, way, u, sequences) for way in ("composed", "native"))
    for one, other in zip(expected, measured, strict=True):
        assert torch.isfinite(other).all()
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4 * float(one.detach().abs().max()))


@needs_compiler
def test_the_native_block_is_taken_where_it_can_be() -> None:
    block, u, _ = problem(*SMALL[0], SMALL[1], torch.float32)
    assert mamba.suits_native(u, block.A_log)
    assert not mamba.suits_native(u.bfloat16(), block.A_log.bfloat16())
    assert not mamba.suits_native(u.double(), block.A_log)
    assert not mamba.suits_native(u, torch.zeros(2, 257))


def test_without_a_compiler_the_native_block_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda name: None)
    block, u, sequences = problem(*SMALL[0], SMALL[1], torch.float32)
    with pytest.raises(RuntimeError, match="needs a C\\+\\+ compiler"):
        block.native(u, sequences)
    assert torch.isfinite(block(u, sequences)).all()


@needs_compiler
def test_the_native_block_is_an_operator_that_torch_compiles_over_without_a_break() -> None:
    block, u, sequences = problem(*SMALL[0], SMALL[1], torch.float32)
    graph = torch.compile(block, fullgraph=True, backend="aot_eager")
    weights = torch.randn(sum(sequences.tails), u.shape[1])
    outputs = [way(u, sequences) for way in (block, graph)]
    gradients = [torch.autograd.grad(y, [u, *block.parameters()], weights) for y in outputs]
    assert torch.equal(*outputs)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@needs_compiler
def test_the_native_operator_keeps_torchs_rules_for_operators() -> None:
    """Its shapes without data, its derivative's registration, and nothing that is written to or aliased."""
    block, u, sequences = problem(*SMALL[0], SMALL[1], torch.float64)
    kernel, to_delta = block.conv1d.weight[:, 0], block.dt_proj
    tensors = (u, block.in_proj.weight, kernel, block.conv1d.bias, block.x_proj.weight, to_delta.weight, to_delta.bias)
    inputs = [t.detach().requires_grad_() for t in (*tensors, -block.A_log.exp(), block.D)]  # type: ignore[union-attr]
    torch.library.opcheck(mamba.native_mamba, (*inputs, list(sequences.lengths), list(sequences.tails)))
