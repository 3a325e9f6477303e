"""What torch's safe loader cannot read, as plain containers and tensors, and back.

NumPy's scalars and arrays, tuples, and random generators become a mapping `{KIND: what it is, "value": …}`.
"""

import random
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

KIND = "stored as"
EXPECTED = "expected tensors, arrays, numbers, text, lists, tuples, dicts, random generators"
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")

Generator = random.Random | np.random.Generator | np.random.RandomState | torch.Generator


def encode(value: Any, path: str = "") -> Any:
    """A value without anything that the safe loader refuses. Tensors hold no more than they show.

    Raises ValueError, with the path to it, for anything that could not be given back as it was.
    """
    if isinstance(value, Tensor):
        # A view would be saved with all it views.
        return value.detach().clone() if value.untyped_storage().nbytes() > value.nbytes else value.detach()
    if type(value) in _PLAIN:
        return value
    if type(value) in (dict, OrderedDict):
        return {_key(key, path): encode(item, _within(path, key)) for key, item in value.items()}
    if type(value) is list:
        return [encode(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if type(value) is tuple:
        return {KIND: "tuple", "value": [encode(item, f"{path}[{index}]") for index, item in enumerate(value)]}
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biufcSUmM":
        array = np.ascontiguousarray(value)
        kind = "scalar" if isinstance(value, np.generic) else "array"
        content = torch.frombuffer(bytearray(array.tobytes()), dtype=torch.uint8) if array.size else torch.empty(0)
        return {KIND: kind, "value": content, "dtype": value.dtype.str, "shape": list(value.shape)}
    if is_generator(value):
        return {KIND: type(value).__name__, "value": encode(state_of(value), path)}
    name = type(value).__name__
    raise ValueError(f"{path}: {'an' if name[0] in 'aeiouAEIOU' else 'a'} {name} ({EXPECTED})")


def decode(value: Any) -> Any:
    """The inverse of `encode`."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    kind = value.get(KIND)
    if kind is None:
        return {key: decode(item) for key, item in value.items()}
    if kind == "tuple":
        return tuple(decode(value["value"]))
    if kind in ("scalar", "array"):
        array = np.frombuffer(value["value"].numpy().tobytes(), dtype=value["dtype"]).reshape(value["shape"]).copy()
        return array[()] if kind == "scalar" else array
    return _generator(kind, decode(value["value"]))


def is_generator(value: Any) -> bool:
    """Whether it is a random generator whose state can be read and set."""
    if type(value) is np.random.Generator:
        return type(value.bit_generator).__name__ in _BIT_GENERATORS
    return type(value) in (random.Random, np.random.RandomState, torch.Generator)


def state_of(generator: Generator) -> Any:
    """The state of a random generator, to be set by `set_state`."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return {"device": str(generator.device), "bytes": generator.get_state()}


def set_state(generator: Generator, state: Any) -> None:
    """In place. Raises ValueError or TypeError for the state of a generator of another kind."""
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.set_state(state["bytes"])


def _generator(kind: str, state: Any) -> Generator:
    made: Generator
    if kind == "Random":
        made = random.Random()
    elif kind == "RandomState":
        made = np.random.RandomState()
    elif kind == "Generator" and "bit_generator" in state and state["bit_generator"] in _BIT_GENERATORS:
        made = np.random.Generator(getattr(np.random, state["bit_generator"])())
    elif kind == "Generator" and "device" in state:
        made = torch.Generator(state["device"])
    else:
        raise ValueError(f"{kind}: nothing that is stored so")
    set_state(made, state)
    return made


def _key(key: Any, path: str) -> Any:
    keys = key if type(key) is tuple else (key,)
    odd = next((one for one in keys if type(one) not in _PLAIN), None)
    if odd is not None:
        raise ValueError(f"{path}: a key that is of type {type(odd).__name__} (expected text or numbers)")
    if key == KIND:
        raise ValueError(f"{path}: a key named {KIND!r}, which is reserved (expected another name)")
    return key


def _within(path: str, key: Any) -> str:
    return f"{path}.{key}".lstrip(".") if isinstance(key, str) else f"{path}[{key!r}]"
