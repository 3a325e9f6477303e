"""The peak memory of a training's tensors. The memory of its process says little, as a warm process keeps some.

    system/peak_tensor_megabytes   over one step

Counted are weights, gradients, the gradient history, the optimizer's state, the images, and all that the step makes.
On a GPU its allocator counts them; on a CPU, where the allocator keeps no such count, every operation's results are
followed from their making to their end (what a kernel needs within itself is not seen). The same step, on the same
kind of device, gives the same number whatever was trained in the process before.

torch has one way to see the results of every operation, those of the backward pass too, and describes it in its notes
on extending torch: `TorchDispatchMode`, which it keeps in a module with a private name. Its profiler does not see that
memory which was taken before it began is given back.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fsg.trainer import Training
from orchestration.util.metric_names import PEAK_MEMORY

_MEGABYTE = 1e6
_HOLDS_NONE = (str, bytes, int, float, type, ModuleType, FunctionType, MethodType, BuiltinFunctionType)


@contextmanager
def measuring_peak(training: Training, values: dict[str, float]) -> Iterator[None]:
    """Within, a step of the training; afterwards its peak is among the values."""
    if training.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(training.device)
        yield
        values[PEAK_MEMORY] = torch.cuda.max_memory_allocated(training.device) / _MEGABYTE
        return
    with _Followed(tensors_of(training)) as followed:
        yield
    values[PEAK_MEMORY] = followed.peak / _MEGABYTE


class _Alive:
    """Bytes of the storages that are alive, from those given on: `now`, and the most so far, `peak`."""

    def __init__(self, alive: Iterator[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in alive:
            self._see(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tensors_of(made):
            self._see(tensor)
        return made

    def _see(self, tensor: Tensor) -> None:
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        place, size = id(storage), storage.nbytes()  # the same object as long as the storage is alive
        if place in self._known:
            return

        def gone(_: object) -> None:
            self.now -= size
            self._known.pop(place, None)

        self._known[place] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


class _Followed(_Alive, TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that has no `__torch_dispatch__` in its own body: for one that has, torch loads its compiler, seconds."""


def tensors_of(held: object) -> Iterator[Tensor]:
    """Every tensor that an object holds, in whatever it holds, gradients included."""
    met: set[int] = set()
    left = [held]
    while left:
        one = left.pop()
        if id(one) in met or isinstance(one, _HOLDS_NONE):
            continue
        met.add(id(one))
        if isinstance(one, Tensor):
            yield one
            left += [one.grad] if one.is_leaf else []
        elif isinstance(one, dict):
            left += one.values()
        elif isinstance(one, list | tuple | set | frozenset):
            left += one
        else:
            left += vars(one).values() if hasattr(one, "__dict__") else []
