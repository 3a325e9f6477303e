"""Random generators beside torch's own: Python's and NumPy's of the process, and those that objects hold."""

import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fsg.plain import Generator, is_generator, set_state, state_of


def states(owners: Mapping[str, Any]) -> dict[str, Any]:
    """Of the process's generators, and of those among the owners' attributes, containers included, by path."""
    held = {path: state_of(generator) for path, generator in _held(owners)}
    return {"python": random.getstate(), "numpy": np.random.get_state(legacy=False), "held": held}


def restore(kept: Mapping[str, Any], owners: Mapping[str, Any]) -> None:
    """In place. Generators that `kept` does not know stay as they are."""
    random.setstate(kept["python"])
    np.random.set_state(kept["numpy"])
    for path, generator in _held(owners):
        if path in kept["held"]:
            set_state(generator, kept["held"][path])


def _held(owners: Mapping[str, Any]) -> Iterator[tuple[str, Generator]]:
    for name, owner in owners.items():
        yield from _inside(getattr(owner, "__dict__", {}), name)


def _inside(value: Any, path: str) -> Iterator[tuple[str, Generator]]:
    if is_generator(value):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _inside(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _inside(item, f"{path}.{index}")
