"""The networks that generate gradients: tensors in, tensors out.

The fast net looks at a weight, the slow nets at the gradient history of all layers at once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsg.config import Settings, setting
from fsg.history import ChunkLayout
from fsg.selective_scan import selective_scan

Nonlinearity = Literal["linear", "relu", "tanh"]


def activation(nonlinearity: Nonlinearity) -> Callable[[Tensor], Tensor] | None:
    """The function of that name; None for linear."""
    return {"linear": None, "relu": torch.relu, "tanh": torch.tanh}[nonlinearity]


class FastNet(nn.Module):
    """The MLP 1 → h → h → 1 without biases, applied to each element of a tensor.

        linear:       MLP(w) = k·w,  k = L₃L₂L₁, a single number: computed as that, exactly
        otherwise:    MLP(w) = L₃σ(L₂σ(L₁w))

    Any shape in, the same shape out.
    """

    def __init__(self, hidden: int, nonlinearity: Nonlinearity) -> None:
        super().__init__()
        self.linear1 = nn.Linear(1, hidden, bias=False)
        self.linear2 = nn.Linear(hidden, hidden, bias=False)
        self.linear3 = nn.Linear(hidden, 1, bias=False)
        self.activation = activation(nonlinearity)

    def scale(self) -> Tensor:
        """k of the linear net, a tensor of no dimension."""
        return (self.linear3.weight @ (self.linear2.weight @ self.linear1.weight)).reshape(())

    def forward(self, weight: Tensor) -> Tensor:
        if self.activation is None:
            return self.scale() * weight
        column = self.activation(self.linear1(weight.reshape(-1, 1)))
        return self.linear3(self.activation(self.linear2(column))).view(weight.shape)


@dataclass(frozen=True, kw_only=True)
class Mamba(Settings):
    """A Mamba block reads the history as one sequence a layer: what is learned is what to remember."""

    name: Literal["mamba"] = "mamba"
    expand: int = setting(2, "Inner width over the token's width.", ge=1)
    d_state: int = setting(16, "States a channel.", ge=1)
    d_conv: int = setting(4, "Tokens that the causal convolution sees.", ge=1)

    def build(self, width: int) -> "MambaBlock":
        return MambaBlock(width, self.expand, self.d_state, self.d_conv)


@dataclass(frozen=True, kw_only=True)
class LSTM(Settings):
    """An LSTM reads the same sequences, a token after the other."""

    name: Literal["lstm"] = "lstm"
    hidden: int = setting(16, "Width of its state.", ge=1)

    def build(self, width: int) -> "LSTMBlock":
        return LSTMBlock(width, self.hidden)


@dataclass(frozen=True, kw_only=True)
class EMA(Settings):
    """An average of the history and nothing else: no parameters, the control of the slow net."""

    name: Literal["ema"] = "ema"
    decay: float = setting(0.9, "Weight of a gradient over that of the next newer one.", gt=0, le=1)


SlowNetConfig = Mamba | LSTM | EMA


def average(history: Tensor, decay: float) -> Tensor:
    """The mean of gradients with weights decay^age: Σᵢ decay^(K−1−i)·gᵢ / Σᵢ decay^(K−1−i).

    [K, …], oldest first → […].
    """
    ages = torch.arange(len(history) - 1, -1, -1, dtype=history.dtype, device=history.device)
    weights = decay**ages
    return torch.tensordot(weights / weights.sum(), history, dims=1)


class MambaBlock(nn.Module):
    """A Mamba block over sequences that lie one behind the other, with the output for each one's last tokens.

        x, z = in_proj(u)                       x = silu(causal depthwise convolution(x) + bias)
        δ, B, C = x_proj(x)                     Δ = softplus(dt_proj(δ) + bias)
        y = selective_scan(x, Δ, −exp(A_log), B, C, D)
        out_proj(y ⊙ silu(z))

    u [T, width] → [M, width], where T = Σ lengths and M = Σ tails. Neither residual nor normalisation.
    Gu and Dao, Mamba, 2023 (arXiv:2312.00752), with its initialisation.
    """

    def __init__(self, width: int, expand: int, d_state: int, d_conv: int) -> None:
        super().__init__()
        inner, rank = expand * width, math.ceil(width / 16)
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

    def forward(self, u: Tensor, sequences: "Sequences") -> Tensor:
        inner, states = self.A_log.shape
        to_x, to_z = torch.split(self.in_proj.weight, inner)
        x = F.silu(self._convolve(F.linear(u, to_x), sequences.position))
        to_delta, to_B, to_C = torch.split(self.x_proj.weight, [self.dt_proj.in_features, states, states])
        delta = F.softplus(self.dt_proj(F.linear(x, to_delta)))
        B, C = F.linear(x, to_B), F.linear(x.index_select(0, sequences.tail), to_C)
        y = selective_scan(x, delta, -self.A_log.exp(), B, C, self.D, sequences.lengths, sequences.tails)
        return self.out_proj(y * F.silu(F.linear(u.index_select(0, sequences.tail), to_z)))

    def _convolve(self, x: Tensor, position: Tensor) -> Tensor:
        """Σⱼ kernel[d_conv − 1 − j]·x_{t−j} + bias, where x is zero before a sequence's first token."""
        kernel, bias, taps = self.conv1d.weight[:, 0], self.conv1d.bias, self.conv1d.kernel_size[0]
        assert bias is not None
        convolved = torch.addcmul(bias, x, kernel[:, -1])
        for back in range(1, min(taps, len(x))):
            earlier = x[:-back] * (position[back:, None] >= back)
            convolved = convolved + F.pad(earlier * kernel[:, taps - 1 - back], (0, 0, back, 0))
        return convolved


class LSTMBlock(nn.Module):
    """An LSTM over the same sequences, and a linear map of its output at each one's last tokens back to the width.

        out_proj(LSTM(u)),   state and cell zero before a sequence's first token

    u [T, width] → [M, width], where T = Σ lengths and M = Σ tails. Sequences of like length take their steps together.
    Hochreiter and Schmidhuber, Neural Computation 9 (8), 1997.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden)
        self.out_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, u: Tensor, sequences: "Sequences") -> Tensor:
        batches, places = sequences.batches
        outputs = [self.lstm(u[rows])[0].flatten(0, 1) for rows in batches]
        return self.out_proj(torch.cat(outputs).index_select(0, places))


@dataclass(frozen=True)
class Sequences:
    """Where the tokens of each layer's sequence stand.

    order [T]: rows of [tokens of the history, oldest gradient first; layer embeddings]
    position [T]: place of a token in its sequence;  tail [M]: rows of the newest gradient's tokens
    """

    order: Tensor
    position: Tensor
    tail: Tensor
    lengths: tuple[int, ...]
    tails: tuple[int, ...]

    @cached_property
    def batches(self) -> tuple[list[Tensor], Tensor]:
        """Sequences of like length side by side: rows of their tokens [steps, sequences], a batch a power of two.

        A shorter sequence repeats its last token. With them, the places [M] of the newest gradient's tokens among the
        batches' own, flattened, one batch behind the other.
        """
        starts = [0, *accumulate(self.lengths)]
        alike: dict[int, list[int]] = {}
        for layer, length in enumerate(self.lengths):
            alike.setdefault(length.bit_length(), []).append(layer)
        rows: list[Tensor] = []
        places: dict[int, Tensor] = {}
        before, device = 0, self.order.device
        for layers in alike.values():
            step = torch.arange(max(self.lengths[layer] for layer in layers))
            rows.append(torch.stack([starts[i] + step.clamp_max(self.lengths[i] - 1) for i in layers], 1).to(device))
            for column, layer in enumerate(layers):
                newest = torch.arange(self.lengths[layer] - self.tails[layer], self.lengths[layer])
                places[layer] = before + newest * len(layers) + column
            before += rows[-1].numel()
        return rows, torch.cat([places[layer] for layer in range(len(self.lengths))]).to(device)

    @staticmethod
    def of(layout: ChunkLayout, gradients: int, layer_embedding: bool, device: torch.device) -> "Sequences":
        """The sequences [embedding; oldest gradient's chunks; …; newest gradient's chunks] of every layer."""
        order, position, tail, lengths = [], [], [], []
        first = start = 0
        for layer, chunks in enumerate(layout.chunks):
            rows = [torch.arange(first, first + chunks) + age * layout.rows for age in range(gradients)]
            head = [torch.tensor([gradients * layout.rows + layer])] if layer_embedding else []
            sequence = torch.cat(head + rows)
            order.append(sequence)
            position.append(torch.arange(len(sequence)))
            start += len(sequence)
            tail.append(torch.arange(start - chunks, start))
            lengths.append(len(sequence))
            first += chunks
        joined = [torch.cat(parts).to(device) for parts in (order, position, tail)]
        return Sequences(joined[0], joined[1], joined[2], tuple(lengths), layout.chunks)


class SlowNet(nn.Module):
    """The slow net: a Mamba or LSTM block over [layer embedding; the layer's gradients, oldest first], for all layers.

    A chunk of gradient elements is one token: `token_in` maps it to the token's width, `token_out` back. With one
    element a chunk and width 1 there are no such maps, as in the released code.

    history [K, M, chunk_size] → [M, chunk_size], the output at the newest gradient's tokens.
    """

    def __init__(self, config: Mamba | LSTM, layout: ChunkLayout, width: int, layer_embedding: bool) -> None:
        super().__init__()
        self.layout = layout
        self.layer_embedding = nn.Embedding(len(layout.shapes), width) if layer_embedding else None
        mapped = (layout.chunk_size, width) != (1, 1)
        self.token_in = nn.Linear(layout.chunk_size, width, bias=False) if mapped else None
        self.block = config.name
        self.add_module(self.block, config.build(width))
        self.token_out = nn.Linear(width, layout.chunk_size, bias=False) if mapped else None
        self._sequences: dict[int, Sequences] = {}

    def start_at_zero(self) -> None:
        """Let the output be zero until the last map has learned something."""
        last = self.token_out or self.get_submodule(f"{self.block}.out_proj")
        nn.init.zeros_(last.get_parameter("weight"))

    def forward(self, history: Tensor) -> Tensor:
        tokens = history.flatten(0, 1)
        if self.token_in is not None:
            tokens = self.token_in(tokens)
        if self.layer_embedding is not None:
            tokens = torch.cat([tokens, self.layer_embedding.weight])
        sequences = self._of(len(history), history.device)
        output = self.get_submodule(self.block)(tokens.index_select(0, sequences.order), sequences)
        return output if self.token_out is None else self.token_out(output)

    def _of(self, gradients: int, device: torch.device) -> Sequences:
        if gradients not in self._sequences:
            self._sequences[gradients] = Sequences.of(self.layout, gradients, self.layer_embedding is not None, device)
        return self._sequences[gradients]
