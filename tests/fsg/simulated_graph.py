"""A CUDA graph without CUDA: it keeps each operation with its tensors, and does them again on the same memory.

As on CUDA, nothing is done while it is captured (what was there before is put back), what the host would wait for
raises RuntimeError, and a replay knows nothing but the memory: Python's numbers are those of the capture.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal")


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _Kept(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor | None], bool]] = []
        self.before: dict[int, tuple[Any, Any]] = {}
        self.own: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        if func._schema.name.removeprefix("aten::") in WAITS:
            raise RuntimeError("operation not permitted when stream is capturing\nand a second line")
        read = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        for tensor in read:
            if memory(tensor) not in self.own and memory(tensor) not in self.before:
                storage = tensor.untyped_storage()
                self.before[memory(tensor)] = storage, storage.clone()
        made = func(*args, **kwargs)
        known = {memory(tensor) for tensor in read}
        new = [one for one in pytree.tree_leaves(made) if isinstance(one, Tensor)]
        for tensor in new:
            if memory(tensor) not in known:
                self.own[memory(tensor)] = tensor
        kept = [tensor if memory(tensor) not in known else None for tensor in new]
        self.calls.append((func, args, kwargs, kept, torch.is_grad_enabled()))
        return made


class SimulatedGraph:
    def __init__(self, part: Callable[[], None]) -> None:
        with _Kept() as kept:
            part()
        for storage, content in kept.before.values():
            storage.copy_(content)
        for tensor in kept.own.values():
            tensor.untyped_storage().fill_(255)  # NaN: what is read before a replay shows
        self.calls, self.replays = kept.calls, 0

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, kept, with_grad in self.calls:
            args, kwargs = pytree.tree_map_only(Tensor, torch.detach, (args, kwargs))
            with torch.set_grad_enabled(with_grad):
                made = [one for one in pytree.tree_leaves(func(*args, **kwargs)) if isinstance(one, Tensor)]
            for place, new in zip(kept, made, strict=True):
                if place is not None:
                    place.detach().copy_(new)


class Simulated:
    """`fsg.cuda_graph.Capturing` by such graphs."""

    def __init__(self) -> None:
        self.graphs: list[SimulatedGraph] = []

    def capture(self, part: Callable[[], None]) -> SimulatedGraph:
        self.graphs.append(SimulatedGraph(part))
        return self.graphs[-1]

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        yield
