"""One file with everything a training needs to go on, and the digest that says whether two are the same."""

import hashlib
import io
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def to_bytes(state: Mapping[str, Any]) -> bytes:
    """Nested mappings and lists of tensors, numbers and text, as the content of a file."""
    buffer = io.BytesIO()
    torch.save(_owned(state), buffer)
    return buffer.getvalue()


def from_bytes(content: bytes) -> dict[str, Any]:
    """The inverse, on the CPU, by torch's safe loader.

    Raises ValueError for content that is not such a file.
    """
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for a broken file
        raise ValueError(f"not a readable checkpoint: {error}") from error


def digest(state: Mapping[str, Any]) -> str:
    """SHA-256 over the sorted (name, dtype, shape, bytes) of every tensor and (name, value) of everything else.

    Entries named `time` and `diagnostics` are left out: they differ between equal trainings.
    """
    total = hashlib.sha256()
    for name, value in sorted(leaves(state, leave_out=("time", "diagnostics")), key=lambda leaf: leaf[0]):
        if isinstance(value, Tensor):
            content = value.detach().cpu().contiguous()
            total.update(f"{name} {content.dtype} {tuple(content.shape)} ".encode())
            total.update(content.reshape(-1).view(torch.uint8).numpy().tobytes())
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


def _owned(value: Any) -> Any:
    """The same, with tensors that hold no more than they show: a view would be saved with all it views."""
    if isinstance(value, Mapping):
        return {key: _owned(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_owned(item) for item in value]
    if isinstance(value, Tensor) and value.untyped_storage().nbytes() > value.nbytes:
        return value.detach().clone()
    return value.detach() if isinstance(value, Tensor) else value
