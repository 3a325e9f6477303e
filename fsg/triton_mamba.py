"""Mamba's scan and convolution on a GPU, by the kernels of `triton_kernels.py`, as operators that torch can compile.

By design the same bits in every run on one type of GPU with one set of versions: nothing is added atomically, and block
sizes follow from the shapes alone. Importing this file raises ImportError where Triton is not installed.
"""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from fsg import triton_kernels as kernels

STEP, PARTS = 4, 16
CHUNK = STEP * PARTS  # tokens
STATES = 64  # that one warp holds, two a thread: with more, the backward pass no longer keeps to registers
BLOCK_T, MOST_E = 32, 32  # of the convolution


def _device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device; on the CPU it is the interpreter that runs."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


class Chunks(NamedTuple):
    """Where the chunks of the sequences stand: what the kernels' tables are named."""

    start: Tensor
    length: Tensor
    skip: Tensor
    row: Tensor
    speaking: Tensor
    first_chunk: Tensor
    chunks: Tensor


@functools.lru_cache(maxsize=16)
def chunks_of(lengths: tuple[int, ...], tails: tuple[int, ...], device: torch.device) -> Chunks:
    """Made once a layout: a table is an upload, for which the host would wait in every step."""
    start: list[int] = []
    length: list[int] = []
    skip: list[int] = []
    row: list[int] = []
    first_chunk: list[int] = []
    chunks: list[int] = []
    t = m = 0
    for tokens, tail in zip(lengths, tails, strict=True):
        first_chunk.append(len(start))
        chunks.append(-(-tokens // CHUNK))
        for begin in range(0, tokens, CHUNK):
            count, silent = min(CHUNK, tokens - begin), max(0, tokens - tail - begin)
            start.append(t + begin)
            length.append(count)
            skip.append(min(silent, count))
            row.append(m + max(0, begin - (tokens - tail)))
        t, m = t + tokens, m + tail
    speaking = [i for i, (silent, count) in enumerate(zip(skip, length, strict=True)) if silent < count]
    tables = (start, length, skip, row, speaking, first_chunk, chunks)
    return Chunks(*(torch.tensor(table, dtype=torch.int64, device=device) for table in tables))


class Blocks(NamedTuple):
    """How channels and states are shared out among programs."""

    programs: int
    options: dict[str, int]


def blocks_of(channels: int, states: int) -> Blocks:
    n = triton.next_power_of_2(states)
    e = min(triton.next_power_of_2(channels), max(1, STATES // n))
    return Blocks(-(-channels // e), {"BLOCK_E": e, "BLOCK_N": n, "num_warps": min(8, max(1, e * n // STATES))})


@torch.library.custom_op("fsg::triton_scan", mutates_args=())
def _scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, lengths: list[int], tails: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and for the backward pass the first state of each chunk and its ΣΔ; shapes as in `selective_scan`."""
    (channels, states), chunks = A.shape, chunks_of(tuple(lengths), tuple(tails), x.device)
    blocks, options = blocks_of(channels, states)
    firsts, total = x.new_empty(len(chunks.start), channels, states), x.new_empty(len(chunks.start), channels)
    y = x.new_empty(sum(tails), channels)
    with _device_of(x):
        kernels.states_from_zero[(len(chunks.start), blocks)](
            x, delta, A, B, firsts, total, chunks.start, chunks.length, channels, states, STEP=STEP, **options
        )
        kernels.carry[(len(lengths), blocks)](
            A, firsts, total, chunks.first_chunk, chunks.chunks, channels, states, REVERSE=False, **options
        )
        kernels.outputs[(len(chunks.speaking), blocks)](
            x, delta, A, B, C, D, firsts, y, *chunks[:5], channels, states, STEP=STEP, **options
        )
    return y, firsts, total


@torch.library.custom_op("fsg::triton_scan_backward", mutates_args=())
def _scan_backward(
    dy: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    firsts: Tensor,
    total: Tensor,
    lengths: list[int],
    tails: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    (channels, states), chunks = A.shape, chunks_of(tuple(lengths), tuple(tails), x.device)
    blocks, options = blocks_of(channels, states)
    tokens, rows = len(x), len(C)
    gradients, dA, dD = torch.zeros_like(firsts), torch.empty_like(firsts), torch.empty_like(total)
    dx, ddelta = torch.empty_like(x), torch.empty_like(x)
    dB, dC = x.new_empty(blocks, tokens, states), x.new_empty(blocks, rows, states)
    with _device_of(x):
        kernels.gradients_to_beginnings[(len(chunks.speaking), blocks)](
            delta, A, C, dy, gradients, *chunks[:5], channels, states, STEP=STEP, **options
        )
        kernels.carry[(len(lengths), blocks)](
            A, gradients, total, chunks.first_chunk, chunks.chunks, channels, states, REVERSE=True, **options
        )
        kernels.backward[(len(chunks.start), blocks)](
            x, delta, A, B, C, D, firsts, gradients, dy, dx, ddelta, dA, dB, dC, dD, *chunks[:4],
            tokens, rows, channels, states, STEP=STEP, PARTS=PARTS, **options,
        )  # fmt: skip
    return dx, ddelta, dA.sum(0), dB.sum(0), dC.sum(0), dD.sum(0)


@_scan.register_fake
def _(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, lengths: list[int], tails: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    chunks = sum(-(-length // CHUNK) for length in lengths)
    return x.new_empty(sum(tails), len(A)), x.new_empty(chunks, *A.shape), x.new_empty(chunks, len(A))


@_scan_backward.register_fake
def _(dy: Tensor, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(tensor) for tensor in (x, delta, A, B, C, D))


def _keep_for_scan(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.lengths, ctx.tails = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.set_materialize_grads(False)  # what is kept has no gradient


def _back_through_scan(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if dy is None:  # autograd's word for zero
        return (None,) * len(ctx.needs_input_grad)
    gradients = _scan_backward(dy.contiguous(), *ctx.saved_tensors, ctx.lengths, ctx.tails)
    return (*gradients, None, None)


_scan.register_autograd(_back_through_scan, setup_context=_keep_for_scan)


def _tiles(x: Tensor, kernel: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    e = min(triton.next_power_of_2(x.shape[1]), MOST_E)
    grid = -(-len(x) // BLOCK_T), -(-x.shape[1] // e)
    return grid, {"TAPS": kernel.shape[1], "BLOCK_T": BLOCK_T, "BLOCK_E": e, "num_warps": 4}


@torch.library.custom_op("fsg::triton_convolve", mutates_args=())
def _convolve(x: Tensor, kernel: Tensor, bias: Tensor, position: Tensor) -> Tensor:
    """silu(Σⱼ kernel[:, d_conv − 1 − j]·x_{t−j} + bias): x [T, E], kernel [E, d_conv], position [T] → [T, E]."""
    out, (grid, options) = torch.empty_like(x), _tiles(x, kernel)
    with _device_of(x):
        kernels.convolve[grid](x, kernel, bias, position, out, *x.shape, **options)
    return out


@torch.library.custom_op("fsg::triton_convolve_backward", mutates_args=())
def _convolve_backward(
    dout: Tensor, x: Tensor, kernel: Tensor, bias: Tensor, position: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grid, options = _tiles(x, kernel)
    dtotal, dx = torch.empty_like(x), torch.empty_like(x)
    dkernel, dbias = x.new_empty(grid[0], *kernel.shape), x.new_empty(grid[0], len(bias))
    with _device_of(x):
        kernels.convolve_backward[grid](x, kernel, bias, position, dout, dtotal, dkernel, dbias, *x.shape, **options)
        kernels.convolve_to_input[grid](kernel, position, dtotal, dx, *x.shape, **options)
    return dx, dkernel.sum(0), dbias.sum(0)


@_convolve.register_fake
def _(x: Tensor, kernel: Tensor, bias: Tensor, position: Tensor) -> Tensor:
    return torch.empty_like(x)


@_convolve_backward.register_fake
def _(dout: Tensor, x: Tensor, kernel: Tensor, bias: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(kernel), torch.empty_like(bias)


def _keep_for_convolution(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _back_through_convolution(context: Any, dout: Tensor) -> tuple[Any, ...]:
    return (*_convolve_backward(dout.contiguous(), *context.saved_tensors), None)


_convolve.register_autograd(_back_through_convolution, setup_context=_keep_for_convolution)
