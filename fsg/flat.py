"""Tensors of several shapes in one vector: what is elementwise is then one kernel for all of them."""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from fsg import foreach
from fsg.once import once


class Unpacked(list[Tensor]):
    """Views of a vector, which packs them again without a copy."""

    def __init__(self, views: Iterable[Tensor], vector: Tensor, layout: "FlatLayout") -> None:
        super().__init__(views)
        self.vector, self.layout = vector, layout


class FlatLayout:
    """How tensors lie in one vector [N]: behind each other, each in the order in which its memory has it.

    So packing permutes nothing, and a view of the vector has the strides of its tensor. A convolution's choice of its
    kernel, and so its bits, hang on them, also on those of dimensions of one element.
    """

    def __init__(self, shapes: Sequence[torch.Size], strides: Sequence[tuple[int, ...]], device: torch.device) -> None:
        self.device, self.shapes = device, shapes
        self.strides = strides
        self.orders = [_memory_order(shape, stride) for shape, stride in zip(shapes, strides, strict=True)]
        self.sizes = [shape.numel() for shape in shapes]

    @staticmethod
    def like(tensors: Sequence[Tensor]) -> "FlatLayout":
        """The layout of tensors such as these: the same object for the same shapes, strides and device."""
        return _layout(tuple(x.shape for x in tensors), tuple(x.stride() for x in tensors), tensors[0].device)

    def after(self, function: Callable[[Tensor], Tensor]) -> "FlatLayout":
        """That of a function's results, which may have other strides where a dimension has one element."""
        return _after(self, function)

    def pack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors of these shapes → [N]; the vector itself of those that were unpacked alike."""
        if isinstance(tensors, Unpacked) and tensors.layout.lies_like(self):
            return tensors.vector
        return torch.cat([x.permute(order).reshape(-1) for x, order in zip(tensors, self.orders, strict=True)])

    def unpack(self, vector: Tensor) -> Unpacked:
        """[N] → a view for each tensor, in its shape and memory format; nothing is differentiated."""
        with torch.no_grad():
            each = zip(torch.split(vector, self.sizes), self.shapes, self.strides, strict=True)
            return Unpacked([piece.as_strided(shape, stride) for piece, shape, stride in each], vector, self)

    def lies_like(self, other: "FlatLayout") -> bool:
        """Whether a vector of the one is a vector of the other: dimensions of one element have no place in it."""
        return self.shapes == other.shapes and self._outer_to_inner == other._outer_to_inner

    @once
    def _outer_to_inner(self) -> list[list[int]]:
        each = zip(self.shapes, self.orders, strict=True)
        return [[dim for dim in order if shape[dim] > 1] for shape, order in each]

    def spread(self, values: Tensor) -> Tensor:
        """A number for each tensor, given to each of its elements: [L] → [N]."""
        return values.index_select(0, self._owners)

    @once
    def _owners(self) -> Tensor:
        sizes = torch.tensor(self.sizes)
        return torch.arange(len(self.sizes), dtype=torch.int32).repeat_interleave(sizes).to(self.device)

    @once
    def logical(self) -> Tensor:
        """Where in the vector the elements are, tensor by tensor in the logical order of each: [N], on the CPU."""
        each = self.unpack(torch.arange(sum(self.sizes), dtype=torch.int32))
        return torch.cat([places.reshape(-1) for places in each])


@lru_cache(maxsize=8)
def _layout(shapes: tuple[torch.Size, ...], strides: tuple[tuple[int, ...], ...], device: torch.device) -> FlatLayout:
    return FlatLayout(shapes, strides, device)


@lru_cache(maxsize=8)
def _after(layout: FlatLayout, function: Callable[[Tensor], Tensor]) -> FlatLayout:
    each = zip(layout.shapes, layout.strides, strict=True)
    strides = tuple(function(torch.empty_strided(shape, stride)).stride() for shape, stride in each)
    return _layout(tuple(layout.shapes), strides, layout.device)


def _memory_order(shape: torch.Size, strides: tuple[int, ...]) -> tuple[int, ...]:
    """The dimensions from the outermost in memory on; one of a single element is within another of the same stride."""
    return tuple(sorted(range(len(shape)), key=lambda dim: (-strides[dim], shape[dim] == 1)))


@torch.no_grad()
def kept(before: list[Tensor], now: list[Tensor]) -> list[Tensor]:
    """The values of now, in the tensors of before where they lie alike: who reads these finds them there ever after."""
    if isinstance(before, Unpacked) and isinstance(now, Unpacked) and before.layout.lies_like(now.layout):
        before.vector.copy_(now.vector)
        return before
    if isinstance(now, Unpacked):
        return now.layout.unpack(now.vector.clone())
    if isinstance(before, Unpacked) or [_places(x) for x in before] != [_places(x) for x in now]:
        return [x.detach().clone() for x in now]
    if now:
        foreach.copy_(before, now)
    return before


def _places(tensor: Tensor) -> list[tuple[int, int]]:
    """Sizes and strides, without the dimensions of one element, which have no place in memory."""
    return [(size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]
