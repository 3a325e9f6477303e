"""One file with everything a training needs to go on, and the digest that says whether two are the same."""

import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsg.plain import decode, encode, is_generator, state_of

_LEFT_OUT = ("time", "diagnostics", "host_generators")


def to_bytes(state: Mapping[str, Any]) -> bytes:
    """Nested mappings and lists of what `fsg.plain` can encode, as the content of a file.

    Raises ValueError, with the path to it, for anything else.
    """
    buffer = io.BytesIO()
    torch.save(encode(dict(state)), buffer)
    return buffer.getvalue()


def from_bytes(content: bytes) -> dict[str, Any]:
    """The inverse, on the CPU, by torch's safe loader.

    Raises ValueError for content that is not such a file.
    """
    try:
        found: dict[str, Any] = decode(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises half a dozen kinds for a broken file
        raise ValueError(f"not a readable checkpoint ({_reason(error)})") from error
    return found


def digest(state: Mapping[str, Any]) -> str:
    """SHA-256 over the sorted (name, dtype, shape, bytes) of every tensor and (name, value) of everything else.

    Entries named `time` and `diagnostics` are left out: they differ between equal trainings. So are `host_generators`,
    which older trainings did not keep.
    """
    total = hashlib.sha256()
    for name, value in sorted(leaves(state, leave_out=_LEFT_OUT), key=lambda leaf: leaf[0]):
        if isinstance(value, Tensor):
            content = value.detach().cpu().contiguous()
            total.update(f"{name} {content.dtype} {tuple(content.shape)} ".encode())
            total.update(content.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, np.ndarray):  # its text would leave out the middle
            total.update(f"{name} {value.dtype.str} {value.shape} ".encode() + value.tobytes())
        elif is_generator(value):
            total.update(f"{name} {digest({'state': state_of(value)})} ".encode())
        else:
            total.update(f"{name} {value!r} ".encode())
    return total.hexdigest()


def leaves(value: Any, name: str = "", leave_out: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Everything that is neither a mapping nor a list, with the way to it (`/model/conv1.weight`)."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in leave_out:
                yield from leaves(item, f"{name}/{key}", leave_out)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from leaves(item, f"{name}/{index}", leave_out)
    else:
        yield name, value


def _reason(error: Exception) -> str:
    """The first sentence of torch's, or the type that its safe loader refuses: its advice is not for the user."""
    refused = re.search(r"Unsupported \w+: GLOBAL (\S+)", str(error))
    if refused:
        return f"it holds a {refused[1]}"
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
