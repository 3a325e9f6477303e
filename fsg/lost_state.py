"""Finds what an estimator remembers from one step to the next and does not put into its `state_dict`."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsg.estimators.protocol import GradientEstimator
from fsg.plain import is_generator

Content = frozenset[tuple[str, Any]]


class LostState:
    """Watches one step of an estimator.

    `names` are then the attributes that the step read before it wrote them, whose content it changed, and which hold
    something that neither `state_dict` nor `others` (network and optimizer) have. What a step writes
    before it reads is no memory.
    """

    def __init__(self, estimator: GradientEstimator) -> None:
        self.estimator, self.names = estimator, tuple[str, ...]()

    @contextmanager
    def watching(self, *others: Any) -> Iterator[None]:
        """The step is made within. `others` are looked at after it."""
        before, read = self._contents(), set[str]()
        with _reads(self.estimator, read):
            yield
        kept = _content([self.estimator.state_dict(), *others])
        after = self._contents()
        self.names = tuple(name for name in after if name in read and after[name] - before.get(name, Content()) - kept)

    def _contents(self) -> dict[str, Content]:
        return {name: _content(value) for name, value in vars(self.estimator).items()}


@contextmanager
def _reads(estimator: GradientEstimator, read: set[str]) -> Iterator[None]:
    """Within, the names of attributes that are read before they are written are put into `read`."""
    kind, written = type(estimator), set[str]()

    def get(self: Any, name: str) -> Any:
        if name not in written:
            read.add(name)
        return kind.__getattribute__(self, name)

    def put(self: Any, name: str, value: Any) -> None:
        written.add(name)
        kind.__setattr__(self, name, value)

    estimator.__class__ = type(kind.__name__, (kind,), {"__getattribute__": get, "__setattr__": put})
    try:
        yield
    finally:
        estimator.__class__ = kind


def _content(value: Any) -> Content:
    """Every tensor, array, number and text that a value holds, in whatever it is nested."""
    return frozenset(_leaves(value, set()))


def _leaves(value: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        yield str(value.dtype), hashlib.sha256(content.tobytes()).digest()
    elif isinstance(value, np.ndarray):
        yield str(value.dtype), hashlib.sha256(value.tobytes()).digest()
    elif isinstance(value, bool | int | float | np.number | np.bool_):
        yield "number", value.item() if isinstance(value, np.generic) else value
    elif isinstance(value, str | bytes):
        yield "text", value
    elif id(value) not in seen:
        seen.add(id(value))
        for item in _parts(value):
            yield from _leaves(item, seen)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset | deque):
        return value
    if is_generator(value) or isinstance(value, type):  # a generator is kept beside the state
        return ()
    if callable(getattr(value, "state_dict", None)):
        return value.state_dict().values()
    return getattr(value, "__dict__", {}).values()
