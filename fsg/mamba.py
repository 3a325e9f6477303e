"""The slow net's Mamba block, over many sequences at once.

Two ways to the same numbers: in torch, on any device, around `selective_scan`, on CUDA with the convolution in Triton;
and in C++ on the CPU (`mamba.cpp`), which makes what is of the size tokens x inner a channel at a time, and needs
hardly more memory than u and the output.
"""

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsg import native
from fsg.config import Settings, setting
from fsg.history import Sequences
from fsg.selective_scan import selective_scan, way_on

VECTOR_BYTES, MOST_VECTORS = 64, 16  # as in mamba.cpp: a vector of states, and how many of them it takes for a channel


@dataclass(frozen=True, kw_only=True)
class Mamba(Settings):
    """A Mamba block reads the history as one sequence a layer: what is learned is what to remember."""

    name: Literal["mamba"] = "mamba"
    expand: int = setting(2, "Inner width over the token's width.", ge=1)
    d_state: int = setting(16, "States a channel.", ge=1)
    d_conv: int = setting(4, "Tokens that the causal convolution sees.", ge=1)

    def build(self, width: int) -> "MambaBlock":
        return MambaBlock(width, self.expand, self.d_state, self.d_conv)


class MambaBlock(nn.Module):
    """A Mamba block over sequences that lie one behind the other, with the output for each one's last tokens.

        x, z = in_proj(u)                       x = silu(causal depthwise convolution(x) + bias)
        δ, B, C = x_proj(x)                     Δ = softplus(dt_proj(δ) + bias)
        y = selective_scan(x, Δ, −exp(A_log), B, C, D)
        out_proj(y ⊙ silu(z))

    u [T, width] → [M, width], where T = Σ lengths and M = Σ tails. Neither residual nor normalisation.
    Gu and Dao, Mamba, 2023 (arXiv:2312.00752), with its initialisation.
    """

    def __init__(self, width: int, expand: int, d_state: int, d_conv: int, rank: int | None = None) -> None:
        """`rank` is that of Δ's projection: width/16, rounded up, unless given."""
        super().__init__()
        inner, rank = expand * width, rank or math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1, dtype=torch.get_default_dtype()).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(rank**-0.5), rank**-0.5)
            step = torch.exp(torch.rand(inner) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)).clamp_min(1e-4)
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus⁻¹: Δ starts at `step`

    def forward(self, u: Tensor, sequences: Sequences) -> Tensor:
        way = self.native if suits_native(u, self.A_log) else self.composed
        return self.out_proj(way(u, sequences))

    def native(self, u: Tensor, sequences: Sequences) -> Tensor:
        """y ⊙ silu(z), [M, inner], by mamba.cpp: float32 and float64 on the CPU.

        Raises RuntimeError where it could not be compiled.
        """
        kernel, x_proj, to_delta = self.conv1d.weight[:, 0], self.x_proj.weight, self.dt_proj
        tensors = (u, self.in_proj.weight, kernel, self.conv1d.bias, x_proj, to_delta.weight, to_delta.bias)
        layout = list(sequences.lengths), list(sequences.tails)
        gated, _ = native_mamba(*tensors, -self.A_log.exp(), self.D, *layout)
        return gated.T

    def composed(self, u: Tensor, sequences: Sequences) -> Tensor:
        """The same by torch's operators, those on CUDA that are ours among them."""
        inner, states = self.A_log.shape
        to_x, to_z = torch.split(self.in_proj.weight, inner)
        x = self._convolved(F.linear(u, to_x), sequences.position)
        to_delta, to_B, to_C = torch.split(self.x_proj.weight, [self.dt_proj.in_features, states, states])
        delta = F.softplus(self.dt_proj(F.linear(x, to_delta)))
        B, C = F.linear(x, to_B), F.linear(x.index_select(0, sequences.tail), to_C)
        y = selective_scan(x, delta, -self.A_log.exp(), B, C, self.D, sequences.lengths, sequences.tails)
        return y * F.silu(F.linear(u.index_select(0, sequences.tail), to_z))

    def _convolved(self, x: Tensor, position: Tensor) -> Tensor:
        """silu(Σⱼ kernel[d_conv − 1 − j]·x_{t−j} + bias), where x is zero before a sequence's first token."""
        kernel, bias, taps = self.conv1d.weight[:, 0], self.conv1d.bias, self.conv1d.kernel_size[0]
        assert bias is not None
        if way_on(x.device.type) == "triton" and x.dtype in (torch.float32, torch.float64):
            import fsg.triton_mamba  # noqa: F401  # only where it is used: Triton takes a second to import

            return torch.ops.fsg.triton_convolve(x.contiguous(), kernel.contiguous(), bias, position)
        convolved = torch.addcmul(bias, x, kernel[:, -1])
        for back in range(1, min(taps, len(x))):
            earlier = x[:-back] * (position[back:, None] >= back)
            convolved = convolved + F.pad(earlier * kernel[:, taps - 1 - back], (0, 0, back, 0))
        return F.silu(convolved)


def suits_native(u: Tensor, A_log: Tensor) -> bool:
    """Whether mamba.cpp takes such tensors, and is to be had."""
    suits = u.device.type == "cpu" and u.dtype in (torch.float32, torch.float64) and u.dtype == A_log.dtype
    few = A_log.shape[1] <= MOST_VECTORS * VECTOR_BYTES // u.element_size()
    return suits and few and native.library("mamba") is not None


def kernel(config: Mamba, device: str) -> str:
    """What computes such a block's scan on a device in float32: the native library, Triton, mamba-ssm or torch."""
    if device != "cpu":
        way = way_on(torch.device(device).type)
        if way == "torch":
            return way
        versions = [found.version for found in distributions(name=way)]  # none: Triton has other names elsewhere
        named = " ".join([way, *versions[:1]])
        return f"{named} (other bits in every run)" if way == "mamba-ssm" else named
    if suits_native(torch.empty(0, dtype=torch.float32), torch.empty(0, config.d_state, dtype=torch.float32)):
        return f"native: {native.build('mamba').how}"
    few = config.d_state <= MOST_VECTORS * VECTOR_BYTES // 4
    return f"torch ({native.build('mamba').how if few else f'd_state {config.d_state}'})"


@torch.library.custom_op("fsg::native_mamba", mutates_args=(), device_types="cpu")
def native_mamba(
    u: Tensor,
    in_proj: Tensor,
    kernel: Tensor,
    bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    lengths: list[int],
    tails: list[int],
) -> tuple[Tensor, Tensor]:
    """u [T, width] and parameters → y ⊙ silu(z) [inner, M]: a channel's tokens lie side by side.

    Second, what the backward pass reads.
    """
    tensors = tuple(tensor.contiguous() for tensor in (u, in_proj, kernel, bias, x_proj, dt_proj, dt_bias, A, D))
    kept, gated = u.new_empty(_kept(u, A, dt_proj, tails)), u.new_empty(len(A), sum(tails))
    _call("forward", (*tensors, kept), lengths, tails, ctypes.c_void_p(gated.data_ptr()))
    return gated, kept


@torch.library.custom_op("fsg::native_mamba_backward", mutates_args=(), device_types="cpu")
def _native_mamba_backward(
    dgated: Tensor, tensors: list[Tensor], kept: Tensor, lengths: list[int], tails: list[int]
) -> list[Tensor]:
    inputs = [tensor.contiguous() for tensor in tensors]
    gradients = [torch.zeros_like(tensor) for tensor in inputs]
    given = dgated.contiguous()
    _call("backward", (*inputs, kept), lengths, tails, ctypes.c_void_p(given.data_ptr()), _pointers(gradients))
    return gradients


@native_mamba.register_fake
def _(u: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *_, dt_proj, _, A, _, _, tails = others
    return u.new_empty(len(A), sum(tails)), u.new_empty(_kept(u, A, dt_proj, tails))


@_native_mamba_backward.register_fake
def _(dgated: Tensor, tensors: list[Tensor], *_: Any) -> list[Tensor]:
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.lengths, ctx.tails = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.set_materialize_grads(False)  # what is kept has no gradient


def _back(ctx: Any, dgated: Tensor | None, _: None) -> tuple[Any, ...]:
    if dgated is None:  # autograd's word for zero
        return (None,) * len(ctx.needs_input_grad)
    *tensors, kept = ctx.saved_tensors
    return (*_native_mamba_backward(dgated, tensors, kept, ctx.lengths, ctx.tails), None, None)


native_mamba.register_autograd(_back, setup_context=_keep)


def _kept(u: Tensor, A: Tensor, dt_proj: Tensor, tails: Sequence[int]) -> int:
    """Numbers that the backward pass reads: u transposed, what Δ is made of, B and C."""
    (tokens, width), rank, lanes = u.shape, dt_proj.shape[1], VECTOR_BYTES // u.element_size()
    padded = -(-A.shape[1] // lanes) * lanes
    return (width + rank) * (tokens + lanes) + (tokens + sum(tails)) * padded


def _call(function: str, tensors: Sequence[Tensor], lengths: Sequence[int], tails: Sequence[int], *rest: Any) -> None:
    library = native.library("mamba")
    if library is None:
        raise RuntimeError("the native Mamba block needs a C++ compiler, and none works here")
    u, in_proj, kernel, _, x_proj, dt_proj, _, A, *_ = tensors
    (tokens, width), (inner, states), rank = u.shape, A.shape, dt_proj.shape[1]
    assert in_proj.shape == (2 * inner, width)
    assert x_proj.shape == (rank + 2 * states, inner)
    sizes = [len(lengths), tokens, sum(tails), width, inner, states, rank, kernel.shape[1], torch.get_num_threads()]
    integers = [(ctypes.c_int64 * len(values))(*values) for values in (sizes, lengths, tails)]
    suffix = {torch.float32: "float", torch.float64: "double"}[u.dtype]
    getattr(library, f"{function}_{suffix}")(*integers, _pointers(tensors), *rest)


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
