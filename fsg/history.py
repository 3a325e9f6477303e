"""The historical gradient storage (HGS), and how gradients of many shapes lie in it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ChunkLayout:
    """How tensors of several shapes are laid out as rows of `chunk_size` elements.

    Each tensor is flattened in its logical order and padded with zeros to whole chunks; the tensors follow each
    other. So tensor l owns `chunks[l]` = ⌈elements / chunk_size⌉ consecutive rows of the M = Σ chunks[l].
    """

    shapes: tuple[torch.Size, ...]
    chunk_size: int
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

    def root_mean_square(self, history: Tensor) -> Tensor:
        """Of each tensor's elements over a history [K, M, chunk_size], for each of its rows: [M, 1], never zero."""
        squares = torch.split(history.square().sum(dim=(0, 2)), list(self.chunks))
        each = [
            (rows.sum() / (len(history) * shape.numel())).sqrt().expand(len(rows))
            for rows, shape in zip(squares, self.shapes, strict=True)
        ]
        return torch.cat(each)[:, None].clamp_min(torch.finfo(history.dtype).tiny)


class GradientHistory:
    """A ring buffer of the newest `length` gradients, each of one `shape`.

    Raises ValueError for a length below 1.
    """

    def __init__(self, length: int, shape: tuple[int, ...], like: Tensor) -> None:
        if length < 1:
            raise ValueError(f"history length is {length}, expected ≥ 1")
        self.storage = like.new_zeros((length, *shape))
        self.appended = 0

    def __len__(self) -> int:
        return min(self.appended, len(self.storage))

    def append(self, gradient: Tensor) -> None:
        """Store a gradient; beyond `length` it takes the oldest one's place."""
        self.storage[self.appended % len(self.storage)] = gradient
        self.appended += 1

    def oldest_first(self) -> Tensor:
        """The stored gradients in the order of their arrival, [len(self), *shape]."""
        if self.appended <= len(self.storage):
            return self.storage[: self.appended]
        return self.storage.roll(-(self.appended % len(self.storage)), dims=0)

    def newest(self) -> Tensor:
        """The gradient stored last, [*shape]."""
        return self.storage[(self.appended - 1) % len(self.storage)]

    def state_dict(self) -> dict[str, Any]:
        return {"storage": self.storage, "appended": self.appended}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.storage.copy_(state["storage"])
        self.appended = state["appended"]
