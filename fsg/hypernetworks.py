"""The networks that generate gradients: tensors in, tensors out.

The fast net looks at a weight, the slow nets at the gradient history of all layers at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fsg.config import Settings, setting
from fsg.history import ChunkLayout, Sequences
from fsg.mamba import Mamba

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

    def forward(self, u: Tensor, sequences: Sequences) -> Tensor:
        batches, places = sequences.batches
        outputs = [self.lstm(u[rows])[0].flatten(0, 1) for rows in batches]
        return self.out_proj(torch.cat(outputs).index_select(0, places))


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
