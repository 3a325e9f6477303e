"""Tensors of several shapes in one vector: what is elementwise is then one kernel for all of them."""

from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache

import torch
from torch import Tensor


class Unpacked(list[Tensor]):
    """Views of a vector, which packs them again without a copy."""

    def __init__(self, views: Iterable[Tensor], vector: Tensor, layout: "FlatLayout") -> None:
        super().__init__(views)
        self.vector, self.layout = vector, layout


class FlatLayout:
    """How tensors lie in one vector [N]: behind each other, each in the order in which its memory has it.

    That order keeps a view of the vector in the memory format of its tensor, and packing free of permutations.
    """

    def __init__(self, shapes: Sequence[torch.Size], strides: Sequence[tuple[int, ...]], device: torch.device) -> None:
        self.device, self.shapes = device, shapes
        self.orders = [_memory_order(shape, stride) for shape, stride in zip(shapes, strides, strict=True)]
        self.sizes = [shape.numel() for shape in shapes]

    @staticmethod
    def like(tensors: Sequence[Tensor]) -> "FlatLayout":
        """The layout of tensors such as these: the same object for the same shapes, strides and device."""
        return _layout(tuple(x.shape for x in tensors), tuple(x.stride() for x in tensors), tensors[0].device)

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors of these shapes → [N]; the vector itself of those that were unpacked alike."""
        if isinstance(tensors, Unpacked) and tensors.layout.lies_like(self):
            return tensors.vector
        return torch.cat([x.permute(order).reshape(-1) for x, order in zip(tensors, self.orders, strict=True)])

    def unpack(self, vector: Tensor) -> Unpacked:
        """[N] → a view for each tensor, in its shape and memory format."""
        each = zip(torch.split(vector, self.sizes), self.shapes, self.orders, strict=True)
        return Unpacked([_in_order(piece, shape, order) for piece, shape, order in each], vector, self)

    def lies_like(self, other: "FlatLayout") -> bool:
        """Whether a vector of the one is a vector of the other."""
        return self.shapes == other.shapes and self.orders == other.orders

    def spread(self, values: Tensor) -> Tensor:
        """A number for each tensor, given to each of its elements: [L] → [N]."""
        return values.index_select(0, self._owners)

    @cached_property
    def _owners(self) -> Tensor:
        sizes = torch.tensor(self.sizes)
        return torch.arange(len(self.sizes), dtype=torch.int32).repeat_interleave(sizes).to(self.device)

    @cached_property
    def logical(self) -> Tensor:
        """Where in the vector the elements are, tensor by tensor in the logical order of each: [N], on the CPU."""
        each = self.unpack(torch.arange(sum(self.sizes), dtype=torch.int32))
        return torch.cat([places.reshape(-1) for places in each])


@lru_cache(maxsize=8)
def _layout(shapes: tuple[torch.Size, ...], strides: tuple[tuple[int, ...], ...], device: torch.device) -> FlatLayout:
    return FlatLayout(shapes, strides, device)


def _memory_order(shape: torch.Size, strides: tuple[int, ...]) -> tuple[int, ...]:
    """The dimensions from the outermost in memory on; one of a single element is within another of the same stride."""
    return tuple(sorted(range(len(shape)), key=lambda dim: (-strides[dim], shape[dim] == 1)))


def _in_order(piece: Tensor, shape: torch.Size, order: tuple[int, ...]) -> Tensor:
    """A piece of a vector as a tensor of a shape, whose dimensions its memory has in an order."""
    back = sorted(range(len(order)), key=order.__getitem__)
    return piece.view([shape[dim] for dim in order]).permute(back)
