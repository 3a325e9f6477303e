"""The recurrence inside Mamba, over many sequences at once.

For each sequence, channel e and state n, with h = 0 before its first token:

    h_t[e, n] = exp(Δ_t[e]·A[e, n])·h_{t−1}[e, n] + Δ_t[e]·B_t[n]·x_t[e]
    y_t[e]    = Σ_n C_t[n]·h_t[e, n] + D[e]·x_t[e]

The sequences lie one behind the other along the first dimension, and y is wanted for the last tokens of each alone
(the newest gradient's), so C and y have only those.

    x, Δ [T, E]   A [E, N], negative   B [T, N]   C [M, N]   D [E]   →   y [M, E]

`lengths[i]` tokens belong to sequence i, the last `tails[i]` of which have an output: T = Σ lengths, M = Σ tails.
Gu and Dao, Mamba, 2023 (arXiv:2312.00752).

Four ways to the same numbers: `reference` to read, `blocked` in torch on any device, `in_triton` on CUDA, and
`fused`, mamba-ssm's kernel, on CUDA as well. On the CPU `mamba.cpp` has the scan within the block around it.
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

WAYS = ("triton", "torch", "mamba-ssm")
HAS_TRITON = importlib.util.find_spec("triton") is not None  # it is beside torch's builds for CUDA
BLOCK = 256  # tokens
ELEMENTS = 1 << 24  # tokens x channels x states


def selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, lengths: Sequence[int], tails: Sequence[int]
) -> Tensor:
    """The scan by the way of this device, `way_on`. Shapes as in the module's docstring."""
    ways = {"mamba-ssm": fused, "triton": in_triton, "torch": blocked}
    return ways[way_on(x.device.type)](x, delta, A, B, C, D, lengths, tails)


def way_on(device: str) -> str:
    """What computes the scan on a kind of device: on CUDA Triton where it is installed, otherwise torch.

    `FSG_SCAN` in the environment chooses another on CUDA. `mamba-ssm` adds atomically in its backward pass, so that no
    two runs have the same bits: it is there to be measured against, and never taken unasked.
    Raises ValueError where that is none of them, or not installed.
    """
    if device != "cuda":
        return "torch"
    wanted = os.environ.get("FSG_SCAN") or ("triton" if HAS_TRITON else "torch")
    if wanted not in WAYS:
        raise ValueError(f"FSG_SCAN is {wanted!r}, expected one of {', '.join(WAYS)}")
    if (wanted == "triton" and not HAS_TRITON) or (wanted == "mamba-ssm" and kernel() is None):
        raise ValueError(f"FSG_SCAN is {wanted!r}, which is not installed here: expected another, or none")
    return wanted


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
    """Blocks of tokens, each scanned in log₂ block doublings; the backward pass recomputes a block's states.

    All sequences are one: where a new one begins, the decay is zero. A block has BLOCK tokens on the CPU, whose cache
    holds its states; on a device, where each operation costs a launch, as many as make ELEMENTS states.
    """
    size = BLOCK if x.device.type == "cpu" else max(BLOCK, ELEMENTS // A.numel())
    state = torch.zeros_like(A)
    outputs: list[Tensor] = []
    for part, first, here, rows in _blocks(tuple(lengths), tuple(tails), size, x.device):
        arguments = (x[part], delta[part], A, B[part], C[rows], D, first, here, state, max(lengths))
        y, state = checkpoint(_scan_block, *arguments, use_reentrant=False, preserve_rng_state=False)
        outputs.append(y)
    return torch.cat(outputs)


@functools.lru_cache(maxsize=16)
def _blocks(
    lengths: tuple[int, ...], tails: tuple[int, ...], size: int, device: torch.device
) -> list[tuple[slice, Tensor, Tensor, slice]]:
    """Of each block: its tokens, which of them begin a sequence, which have an output, and the outputs' rows."""
    tokens = sum(lengths)
    first, wanted = torch.zeros(tokens, dtype=torch.bool), torch.zeros(tokens, dtype=torch.bool)
    t = 0
    for length, tail in zip(lengths, tails, strict=True):
        first[t] = True
        t += length
        wanted[t - tail : t] = True
    blocks, row = [], 0
    for start in range(0, tokens, size):
        part = slice(start, start + size)
        here = wanted[part].nonzero().flatten()
        blocks.append((part, first[part].to(device), here.to(device), slice(row, row + len(here))))
        row += len(here)
    return blocks


def _scan_block(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    first: Tensor,
    wanted: Tensor,
    state: Tensor,
    longest: int,
) -> tuple[Tensor, Tensor]:
    decay = torch.exp(delta[:, :, None] * A).masked_fill(first[:, None, None], 0)
    h = (delta * x)[:, :, None] * B[:, None, :]
    reach = 1
    while reach < min(len(x), longest):
        h = torch.cat([h[:reach], h[reach:] + decay[reach:] * h[:-reach]])
        decay = torch.cat([decay[:reach], decay[reach:] * decay[:-reach]])
        reach *= 2
    h = h + decay * state
    y = torch.einsum("men,mn->me", h[wanted], C) + D * x[wanted]
    return y, h[-1]


def in_triton(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, lengths: Sequence[int], tails: Sequence[int]
) -> Tensor:
    """By our own kernels, all sequences at once, in float32 or float64.

    Raises RuntimeError where Triton is not installed.
    """
    if not HAS_TRITON:
        raise RuntimeError("triton is not installed: its kernels cannot be compiled")
    import fsg.triton_mamba  # noqa: F401  # only where it is used: Triton takes a second to import

    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    tensors = [tensor.to(dtype).contiguous() for tensor in (x, delta, A, B, C, D)]
    y: Tensor = torch.ops.fsg.triton_scan(*tensors, list(lengths), list(tails))[0]
    return y.to(x.dtype)


@functools.cache
def kernel() -> Callable[..., Tensor] | None:
    """mamba-ssm's `selective_scan_fn`; None where it is not installed."""
    try:
        return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    except ImportError:
        return None


def fused(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, lengths: Sequence[int], tails: Sequence[int]
) -> Tensor:
    """The kernel, a sequence a call: x, Δ [1, E, t], A [E, N], B, C [1, N, t], D [E] → [1, E, t], in float32.

    It wants a C for every token: those without an output have zeros. Raises RuntimeError where it is not installed.
    """
    scan = kernel()
    if scan is None:
        raise RuntimeError("mamba_ssm is not installed: its kernel cannot be called")
    outputs: list[Tensor] = []
    t = m = 0
    for length, tail in zip(lengths, tails, strict=True):
        along = [tensor[t : t + length] for tensor in (x, delta, B)] + [
            F.pad(C[m : m + tail], (0, 0, length - tail, 0))
        ]
        x_t, delta_t, B_t, C_t = (tensor.float().T.contiguous()[None] for tensor in along)
        y = scan(x_t, delta_t, A.float(), B_t, C_t, D.float())
        outputs.append(y[0, :, length - tail :].T.to(x.dtype))
        t, m = t + length, m + tail
    return torch.cat(outputs)
