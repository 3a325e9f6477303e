"""Quantized weights eight to a byte, and files of them that NumPy alone can read.

A weight Ŵ of k bits, whose levels are evenly spaced from −a to a, is a sum of k planes of signs:

    Ŵ = Σₚ scaleₚ ⊙ signₚ,    scaleₚ = a·2ᵖ/(2ᵏ − 1)

So a binary weight is one plane, with one scale for each output channel, or for the layer. docs/export.md has the files.
"""

import io
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Texts = dict[str, str]
Tensors = dict[str, Tensor]
_CLOSE = 1e-6  # of the largest weight: the last bits of a level that was computed in another order
SIGNS, SCALE = "signs", ".scale"


class Planes(NamedTuple):
    """A weight [out, …] of k bits: `positive` bool [k, out, …], `scale` float32 [k, out or 1, 1, …]."""

    positive: Tensor
    scale: Tensor

    @property
    def weight(self) -> Tensor:
        """Ŵ, float32."""
        return (self.scale * torch.where(self.positive, 1.0, -1.0)).sum(0)


@dataclass(frozen=True)
class PackedNetwork:
    """The tensors of a network by name: weights as planes, and all others as they are; `about` is text beside them."""

    planes: Mapping[str, Planes]
    others: Mapping[str, Tensor]
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Of the tensors alone: signs eight to a byte, and the numbers."""
        signs = sum(one.positive.numel() for one in self.planes.values())
        numbers = [*self.others.values(), *(one.scale for one in self.planes.values())]
        return -(-signs // 8) + sum(tensor.nbytes for tensor in numbers)

    def tensors(self) -> Tensors:
        """Every tensor by name, the weights unpacked to float32."""
        return {**self.others, **{name: one.weight for name, one in self.planes.items()}}


def planes_of(weight: Tensor) -> Planes | None:
    """A quantized weight [out, …] as the fewest planes that give it to 10⁻⁶ of its largest; None where four do not.

    One plane has a scale for each output channel; two and four have one for the layer (`DoReFa`).
    """
    weight = weight.detach().cpu().float()
    return next((found for bits in (1, 2, 4) if (found := _planes(weight, bits)) is not None), None)


def _planes(weight: Tensor, bits: int) -> Planes | None:
    largest = weight.abs().amax(tuple(range(bits == 1, weight.dim())), keepdim=True)
    steps = 2**bits - 1
    level = ((weight / largest.where(largest > 0, 1) + 1) / 2 * steps).round()
    if not (((2 * level / steps - 1) * largest - weight).abs() <= _CLOSE * largest).all():
        return None
    if (largest == largest.reshape(-1)[0]).all():
        largest = largest.reshape(-1)[0].reshape([1] * weight.dim())
    positive = torch.stack([(level.long() >> bit & 1).bool() for bit in range(bits)])
    return Planes(positive, torch.stack([largest * 2**bit / steps for bit in range(bits)]))


def packed_signs(planes: Iterable[Planes]) -> np.ndarray:
    """All signs, one plane after the other, eight to a byte, the first in the highest bit; 1 for +."""
    return np.packbits(np.concatenate([np.zeros(0, bool), *(one.positive.numpy().ravel() for one in planes)]))


def write(network: PackedNetwork, path: Path) -> None:
    """A `.npz` or `.safetensors` file. Raises ValueError for another suffix."""
    content = _format(path)[0](*_stored(network))
    path.write_bytes(content)


def read(path: Path) -> PackedNetwork:
    """The inverse of `write`. Raises ValueError for another suffix, and for a file that `write` did not make."""
    stored, texts = _format(path)[1](path)
    if "shapes" not in texts or SIGNS not in stored:
        raise ValueError(f"{path}: has no shapes and signs (expected a file of fsg export)")
    bits = torch.from_numpy(np.unpackbits(stored.pop(SIGNS).numpy())).bool()
    planes = {}
    for name, shape in json.loads(texts.pop("shapes")).items():
        scale = stored.pop(name + SCALE)
        positive = bits[: len(scale) * int(np.prod(shape))].reshape(len(scale), *shape)
        bits = bits[positive.numel() :]
        planes[name] = Planes(positive, scale)
    return PackedNetwork(planes, stored, texts)


def _stored(network: PackedNetwork) -> tuple[Tensors, Texts]:
    scales = {name + SCALE: one.scale for name, one in network.planes.items()}
    signs = torch.from_numpy(packed_signs(network.planes.values()))
    shapes = {name: list(one.positive.shape[1:]) for name, one in network.planes.items()}
    tensors = {name: tensor.contiguous() for name, tensor in {SIGNS: signs, **scales, **network.others}.items()}
    return tensors, {"shapes": json.dumps(shapes), **network.about}


def _npz(tensors: Tensors, texts: Texts) -> bytes:
    """What `numpy.savez_compressed` writes, without the 20 bytes a member that files of 4 GB would need."""
    content = io.BytesIO()
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()} | {n: np.array(t) for n, t in texts.items()}
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), zipfile.ZIP_DEFLATED, 9)
    return content.getvalue()


def _from_npz(path: Path) -> tuple[Tensors, Texts]:
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    texts = {name: str(array) for name, array in arrays.items() if array.dtype.kind == "U"}
    return {name: torch.from_numpy(array) for name, array in arrays.items() if name not in texts}, texts


def _safetensors(tensors: Tensors, texts: Texts) -> bytes:
    from safetensors.torch import save

    return save(tensors, texts)


def _from_safetensors(path: Path) -> tuple[Tensors, Texts]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


_FORMATS = {".npz": (_npz, _from_npz), ".safetensors": (_safetensors, _from_safetensors)}


def _format(path: Path) -> tuple[Callable[[Tensors, Texts], bytes], Callable[[Path], tuple[Tensors, Texts]]]:
    if path.suffix not in _FORMATS:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(_FORMATS)}")
    return _FORMATS[path.suffix]
