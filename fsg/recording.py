"""What the parts of a step ask of the device, operation by operation, and whether a graph can replay them.

torch has one way to see every operation, those of the backward pass too, and describes it in its notes on extending
torch: `TorchDispatchMode`, which it keeps in a module with a private name.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Operation(NamedTuple):
    """Its name, its numbers and other settings, and its tensors: where the memory of each came from, and its form."""

    name: str
    settings: tuple[str, ...]
    tensors: tuple[tuple[Any, ...], ...]


class Recording:
    """The operations of a step's parts, in its last two runs: `parts` are named in the order of their capture.

    Memory that was there before has its address for a name. What a part allocated is called after the part and the
    operation, also by parts that are captured later; where one captured earlier reads it, or the part itself in the
    next step, the run is in the name as well, so that two runs differ: a graph would read the old memory for ever.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        self.parts = list(parts)
        self.last, self.before = ({name: list[Operation]() for name in parts} for _ in range(2))
        self._runs = dict.fromkeys(parts, 0)
        self._made: dict[int, tuple[str, int, str]] = {}

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """A part is run within."""
        self.before[part], self.last[part] = self.last[part], []
        self._runs[part] += 1
        with _Watching(self, part):
            yield

    def difference(self) -> str:
        """The first operation in which the last two runs differ, in words; empty where none does."""
        each = ((part, _difference(self.before[part], self.last[part])) for part in self.parts)
        return next((f"{found} ({part})" for part, found in each if found), "")

    def see(self, part: str, func: Any, args: Any, kwargs: Any) -> Any:
        if func.namespace == "profiler":
            return func(*args, **kwargs)
        leaves = list(_leaves((args, kwargs)))
        tensors = [one for one in leaves if isinstance(one, Tensor)]
        settings = tuple(repr(one) for one in leaves if not isinstance(one, Tensor))
        described = tuple((self._origin(one, part), *_form(one)) for one in tensors)
        made, number = func(*args, **kwargs), len(self.last[part])
        read = {_memory(tensor) for tensor in tensors}
        for place, tensor in enumerate(one for one in _leaves(made) if isinstance(one, Tensor)):
            if _memory(tensor) not in read:
                self._made[_memory(tensor)] = part, self._runs[part], f"result {place} of operation {number} of {part}"
        self.last[part].append(Operation(str(func), settings, described))
        return made

    def _origin(self, tensor: Tensor, reader: str) -> str:
        if _memory(tensor) not in self._made:
            return f"memory {_memory(tensor):#x}"
        maker, run, name = self._made[_memory(tensor)]
        own = maker == reader and run == self._runs[reader]
        return name if own or self.parts.index(maker) < self.parts.index(reader) else f"{name} in run {run}"


class _Sees:
    def __init__(self, recording: Recording, part: str) -> None:
        super().__init__()
        self.recording, self.part = recording, part

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.recording.see(self.part, func, args, kwargs or {})


class _Watching(_Sees, TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that has no `__torch_dispatch__` in its own body: for one that has, torch loads its compiler, seconds."""


def _difference(before: Sequence[Operation], now: Sequence[Operation]) -> str:
    for number, (one, other) in enumerate(zip(before, now, strict=False)):
        if one.name != other.name:
            return f"operation {number} is {one.name} in one step and {other.name} in the next"
        for what, left, right in (("has", one.settings, other.settings), ("reads", one.tensors, other.tensors)):
            if left != right:
                ways = [f"{a} and then {b}" for a, b in zip(left, right, strict=False) if a != b]
                return f"{one.name}, operation {number}, {what} {', '.join(ways)}"
    if len(before) != len(now):
        return f"one step has {len(before)} operations and the next {len(now)}"
    return ""


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.storage_offset()


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield name
            yield from _leaves(item)
    else:
        yield value
