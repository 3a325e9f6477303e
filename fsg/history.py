"""The historical gradient storage (HGS), and how gradients of many shapes lie in it and are read from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fsg.flat import FlatLayout
from fsg.once import once


@dataclass(frozen=True)
class ChunkLayout:
    """How tensors of several shapes are laid out as rows of `chunk_size` elements.

    Each tensor is flattened in its logical order and padded with zeros to whole chunks; the tensors follow each
    other. So tensor l owns `chunks[l]` = ⌈elements / chunk_size⌉ consecutive rows of the M = Σ chunks[l].
    `memory` is how they lie in a vector, for the ways from and to it.
    """

    shapes: tuple[torch.Size, ...]
    chunk_size: int
    memory: FlatLayout | None = None
    chunks: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size is {self.chunk_size}, expected ≥ 1")
        object.__setattr__(self, "chunks", tuple(-(-shape.numel() // self.chunk_size) for shape in self.shapes))

    @property
    def rows(self) -> int:
        return sum(self.chunks)

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors of `shapes` → [M, chunk_size]."""
        pieces: list[Tensor] = []
        for tensor, chunks in zip(tensors, self.chunks, strict=True):
            pieces.append(tensor.reshape(-1))
            if padding := chunks * self.chunk_size - tensor.numel():
                pieces.append(tensor.new_zeros(padding))
        return torch.cat(pieces).view(self.rows, self.chunk_size)

    def unpack(self, rows: Tensor) -> list[Tensor]:
        """[M, chunk_size] → tensors of `shapes`, without the padding."""
        pieces = torch.split(rows.reshape(-1), [chunks * self.chunk_size for chunks in self.chunks])
        return [piece[: shape.numel()].view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def from_memory(self, vector: Tensor) -> Tensor:
        """A vector of the layout `memory`, [N] → [M, chunk_size]; what stands in the padding means nothing."""
        return vector.index_select(0, self._places[0]).view(self.rows, self.chunk_size)

    def to_memory(self, rows: Tensor) -> Tensor:
        """The inverse, without the padding: [M, chunk_size] → [N]."""
        return rows.reshape(-1).index_select(0, self._places[1])

    @once
    def _places(self) -> tuple[Tensor, Tensor]:
        """Where in the vector of `memory` each element of the rows is, and the other way."""
        assert self.memory is not None
        logical = self.memory.logical
        places = self.unpack(torch.arange(self.rows * self.chunk_size, dtype=torch.int32))
        within = torch.cat([piece.reshape(-1) for piece in places])
        rows, back = torch.zeros(self.rows * self.chunk_size, dtype=torch.int32), torch.empty_like(logical)
        rows[within], back[logical] = logical, within
        return rows.to(self.memory.device), back.to(self.memory.device)

    def root_mean_square(self, history: Tensor) -> Tensor:
        """Of each tensor's elements over a history [K, M, chunk_size], for each of its rows: [M, 1], never zero."""
        squares = torch.split(history.square().sum(dim=(0, 2)), list(self.chunks))
        each = [
            (rows.sum() / (len(history) * shape.numel())).sqrt().expand(len(rows))
            for rows, shape in zip(squares, self.shapes, strict=True)
        ]
        return torch.cat(each)[:, None].clamp_min(torch.finfo(history.dtype).tiny)

    @torch.no_grad()
    def scale(self, rows: Tensor, to: Tensor) -> Tensor:
        """What brings each tensor of some rows to the norm of the same one in others: [M, 1], 0 where it is zero."""
        have, want = (torch.stack([tensor.norm() for tensor in self.unpack(each)]) for each in (rows, to))
        factors = torch.where(have > torch.finfo(have.dtype).tiny, want / have, 0.0)
        return torch.cat([factor.expand(n) for factor, n in zip(factors, self.chunks, strict=True)])[:, None]


class GradientHistory:
    """A ring buffer of the newest `length` gradients, each of one `shape`.

    It is written and read by an index on its device, so that a graph can replay both; `appended` is the host's count.
    Raises ValueError for a length below 1.
    """

    def __init__(self, length: int, shape: tuple[int, ...], like: Tensor) -> None:
        if length < 1:
            raise ValueError(f"history length is {length}, expected ≥ 1")
        self.storage = like.new_zeros((length, *shape))
        self.order = torch.arange(length, device=like.device)  # places of the gradients, the oldest one's first
        self.appended = 0

    def __len__(self) -> int:
        return min(self.appended, len(self.storage))

    def append(self, gradient: Tensor) -> None:
        """Store a gradient; beyond `length` it takes the oldest one's place."""
        self.order.add_(1).remainder_(len(self.storage))
        self.storage.index_copy_(0, self.order[-1:], gradient[None].to(self.storage.dtype))
        self.appended += 1

    def replayed(self) -> None:
        """Count a gradient that a graph has appended."""
        self.appended += 1

    def oldest_first(self) -> Tensor:
        """The stored gradients in the order of their arrival, [len(self), *shape]."""
        if self.appended < len(self.storage):
            return self.storage[: self.appended]
        return self.storage.index_select(0, self.order)

    def newest(self) -> Tensor:
        """The gradient stored last, [*shape]."""
        return self.storage.index_select(0, self.order[-1:])[0]

    def state_dict(self) -> dict[str, Any]:
        return {"storage": self.storage, "appended": self.appended}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.storage.copy_(state["storage"])
        self.appended = state["appended"]
        places = (torch.arange(len(self.storage)) + self.appended) % len(self.storage)
        self.order.copy_(places)


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

    @once
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
