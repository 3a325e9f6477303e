"""Finds what an estimator remembers from one step to the next and does not put into its `state_dict`."""

import copy
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fsg import host_generators
from fsg.checkpoint import from_bytes, to_bytes
from fsg.estimators.protocol import GradientEstimator
from fsg.plain import is_generator

Content = frozenset[tuple[str, Any]]


class LostState:
    """Watches one step of an estimator.

    `names` are then the attributes that the step read before it wrote them, whose content it changed, and which are
    otherwise in an estimator that was built anew and given this one's `state_dict`. What a step writes before it reads
    is no memory, and neither is what the estimator calls `derived`.
    """

    def __init__(self, estimator: GradientEstimator, build: Callable[[nn.Module], GradientEstimator]) -> None:
        self.estimator, self.build, self.names = estimator, build, tuple[str, ...]()

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """The step is made within. No generator moves, but for the step."""
        before, read = _contents(self.estimator), set[str]()
        with _reads(self.estimator, read):
            yield
        after = _contents(self.estimator)
        of_memory = read - self.estimator.derived
        changed = [name for name in after if name in of_memory and after[name] != before.get(name)]
        if changed:
            restored = _contents(self._restored(model))
            self.names = tuple(name for name in changed if after[name] != restored.get(name))

    def _restored(self, model: nn.Module) -> GradientEstimator:
        """Another one, as a resumed training would have it, as far as a user's code allows."""
        generators = host_generators.states({"estimator": self.estimator})
        other = self.estimator
        with torch.random.fork_rng(), suppress(Exception):
            other = self.build(copy.deepcopy(model))
            other.load_state_dict(from_bytes(to_bytes(self.estimator.state_dict())))
        host_generators.restore(generators, {"estimator": self.estimator})
        return other


def _contents(estimator: GradientEstimator) -> dict[str, Content]:
    return {name: _content(value) for name, value in vars(estimator).items()}


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
