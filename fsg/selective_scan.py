"""The recurrence inside Mamba, over many sequences at once.

For each sequence, channel e and state n, with h = 0 before its first token:

    h_t[e, n] = exp(Δ_t[e]·A[e, n])·h_{t−1}[e, n] + Δ_t[e]·B_t[n]·x_t[e]
    y_t[e]    = Σ_n C_t[n]·h_t[e, n] + D[e]·x_t[e]

The sequences lie one behind the other along the first dimension, and y is wanted for the last tokens of each alone
(the newest gradient's), so C and y have only those.

    x, Δ [T, E]   A [E, N], negative   B [T, N]   C [M, N]   D [E]   →   y [M, E]

`lengths[i]` tokens belong to sequence i, the last `tails[i]` of which have an output: T = Σ lengths, M = Σ tails.
Gu and Dao, Mamba, 2023 (arXiv:2312.00752).

Three ways to the same numbers: `reference` to read, `blocked` in torch on any device, `native` in C++ on the CPU.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fsg import native

BLOCK = 256


def selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, lengths: Sequence[int], tails: Sequence[int]
) -> Tensor:
    """The scan by the fastest way that this machine has. Shapes as in the module's docstring."""
    dtypes = {tensor.dtype for tensor in (x, delta, A, B, C, D)}
    suits = x.device.type == "cpu" and dtypes in ({torch.float32}, {torch.float64})
    way = native_scan if suits and native.library("selective_scan") is not None else blocked
    return way(x, delta, A, B, C, D, lengths, tails)


def reference(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, lengths: Sequence[int], tails: Sequence[int]
) -> Tensor:
    """The recurrence as it is written above, a token at a time."""
    outputs: list[Tensor] = []
    t = 0
    for length, tail in zip(lengths, tails, strict=True):
        h = torch.zeros_like(A)
        for i in range(length):
            h = torch.exp(delta[t, :, None] * A) * h + (delta[t] * x[t])[:, None] * B[t]
            if i >= length - tail:
                outputs.append(h @ C[len(outputs)] + D * x[t])
            t += 1
    return torch.stack(outputs)


def blocked(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, lengths: Sequence[int], tails: Sequence[int]
) -> Tensor:
    """Blocks of BLOCK tokens, each scanned in log₂ BLOCK doublings; the backward pass recomputes a block's states.

    All sequences are one: where a new one begins, the decay is zero.
    """
    first = torch.zeros(len(x), dtype=torch.bool)
    wanted = torch.zeros(len(x), dtype=torch.bool)
    row = torch.zeros(len(x), dtype=torch.long)
    t = m = 0
    for length, tail in zip(lengths, tails, strict=True):
        first[t] = True
        t += length
        wanted[t - tail : t] = True
        row[t - tail : t] = torch.arange(m, m + tail)
        m += tail
    first = first.to(x.device)
    state = torch.zeros_like(A)
    outputs: list[Tensor] = []
    for start in range(0, len(x), BLOCK):
        part = slice(start, start + BLOCK)
        here = wanted[part].nonzero().flatten()
        rows = row[part][here].to(x.device)
        arguments = (x[part], delta[part], A, B[part], C[rows], D, first[part], here.to(x.device), state)
        y, state = checkpoint(_scan_block, *arguments, use_reentrant=False)
        outputs.append(y)
    return torch.cat(outputs)


def _scan_block(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, first: Tensor, wanted: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    decay = torch.exp(delta[:, :, None] * A).masked_fill(first[:, None, None], 0)
    h = (delta * x)[:, :, None] * B[:, None, :]
    reach = 1
    while reach < len(x):
        h = torch.cat([h[:reach], h[reach:] + decay[reach:] * h[:-reach]])
        decay = torch.cat([decay[:reach], decay[reach:] * decay[:-reach]])
        reach *= 2
    h = h + decay * state
    y = torch.einsum("men,mn->me", h[wanted], C) + D * x[wanted]
    return y, h[-1]


def native_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, lengths: Sequence[int], tails: Sequence[int]
) -> Tensor:
    """`selective_scan.cpp`, compiled on first use; float32 and float64 on the CPU.

    Raises RuntimeError where it could not be compiled.
    """
    y = _NativeScan.apply(x.T, delta.T, A, B, C, D, tuple(lengths), tuple(tails))
    return y.T


class _NativeScan(torch.autograd.Function):
    """x, Δ [E, T] → y [E, M]: a channel's tokens lie side by side."""

    @staticmethod
    def forward(
        context: Any, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, lengths: Any, tails: Any
    ) -> Tensor:
        tensors = tuple(t.detach().contiguous() for t in (x, delta, A, B, C, D))
        context.save_for_backward(*tensors)
        context.sequences = lengths, tails
        y = x.new_empty(x.shape[0], C.shape[0])
        _call("scan_forward", tensors, lengths, tails, (y,))
        return y

    @staticmethod
    def backward(context: Any, dy: Tensor) -> Any:
        tensors = context.saved_tensors
        gradients = tuple(torch.zeros_like(t) for t in tensors)
        lengths, tails = context.sequences
        _call("scan_backward", tensors, lengths, tails, (dy.contiguous(), *gradients))
        return (*gradients, None, None)


def _call(function: str, tensors: tuple[Tensor, ...], lengths: Any, tails: Any, rest: tuple[Tensor, ...]) -> None:
    library = native.library("selective_scan")
    if library is None:
        raise RuntimeError("the native selective scan needs a C++ compiler, and none works here")
    x, _, A, _, C, _ = tensors
    assert len({tensor.dtype for tensor in (*tensors, *rest)}) == 1, "memory is read as one type"
    suffix = {torch.float32: "float", torch.float64: "double"}[x.dtype]
    integers = [ctypes.c_int64(n) for n in (len(lengths), x.shape[1], C.shape[0], *A.shape)]
    arrays = [(ctypes.c_int64 * len(values))(*values) for values in (lengths, tails)]
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in tensors]
    results = [ctypes.c_void_p(t.data_ptr()) for t in rest]
    threads = ctypes.c_int64(torch.get_num_threads())
    getattr(library, f"{function}_{suffix}")(*integers, *arrays, *pointers, threads, *results)
