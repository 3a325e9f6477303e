"""Where a training's weights come from."""

import difflib
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fsg.config import Settings, choice, setting
from fsg.finite import not_finite
from fsg.optimizers import Adam, OptimizerConfig
from fsg.schedules import Cosine, ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class Scratch(Settings):
    """Random initial weights, drawn from the seed."""

    name: Literal["scratch"] = "scratch"


@dataclass(frozen=True, kw_only=True)
class File(Settings):
    """Weights from a file (.npz, .pt, .pth, .ckpt or .safetensors), by name."""

    name: Literal["file"] = "file"
    path: str = setting(description="The file: .npz, .pt, .pth, .pth.tar, .ckpt or .safetensors.", identity=False)
    trained_on: Literal["train_without_validation", "all_training_images", "other_data", "undeclared"] = choice(
        "undeclared", "What it was trained on; validation is marked contaminated unless that leaves those images out."
    )

    def fingerprint(self) -> str:
        """SHA-256 of the file's bytes. Raises ValueError where it cannot be read."""
        try:
            return hashlib.sha256(Path(self.path).read_bytes()).hexdigest()
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be read ({error.strerror})") from error


@dataclass(frozen=True, kw_only=True)
class Pretrain(Settings):
    """Train the full-precision network first, once per seed, on the training images without the validation ones."""

    name: Literal["pretrain"] = "pretrain"
    epochs: int = setting(10, "Epochs of full-precision training.", ge=1)
    batch_size: int = setting(128, "Images a step.", ge=1)
    optimizer: OptimizerConfig = choice(Adam, "Its optimizer.", discriminator="name")
    lr_schedule: ScheduleConfig = choice(Cosine, "Its learning-rate schedule.", discriminator="name")
    binary_activations: bool = setting(
        False,
        "Whether its activations are binary already, as in two-step training; its weights never are.",
        identity="unless_default",
    )


InitConfig = Scratch | File | Pretrain


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a file, on the CPU: a .npz of arrays, a .safetensors, or what `torch.save` wrote.

    The last (.pt, .pth, .pth.tar, .ckpt) is read by the safe loader. It may hold a state dict, or a mapping with one
    under `weights`, `state_dict`, `model_state_dict`, `model` or `net`, and beside that a script's arguments, paths,
    times, and objects of NumPy's, which are passed over.
    Raises ValueError, in one line, for a file that is missing, damaged, of another kind, or holds anything else.
    """
    path = Path(path)
    suffix = next((one for one in _READERS if path.name.endswith(one)), "")
    if not suffix:
        raise ValueError(f"{path}: expected a name that ends in {', '.join(_READERS)}")
    try:
        held = _READERS[suffix](path)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except Exception as error:  # each format has half a dozen kinds for a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a readable {suffix} file of named tensors ({reason})") from error
    odd = [f"{name} is a {type(value).__name__}" for name, value in held.items() if not isinstance(value, Tensor)]
    if odd or not held:
        raise ValueError(f"{path}: expected named tensors, found {_few(odd) or 'none'}")
    return dict(held)


def named_for(network: Collection[str], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under a network's names, where what wrapped it has put something before all of them.

    That is `module.` for `nn.DataParallel`, `_orig_mod.` for `torch.compile`, its attribute for a Lightning module, or
    several. What does not come to fit stays as it is. Batch norm's counters, which torch did not keep before 0.4.1, are
    zero where there is none.
    """
    held = dict(weights)
    while not any(name in network for name in held):
        parts = [name.partition(".") for name in held]
        if len({head for head, _, _ in parts}) != 1 or not all(rest for _, _, rest in parts):
            held = dict(weights)
            break
        held = {name.partition(".")[2]: tensor for name, tensor in held.items()}
    if not any(name.endswith(_COUNTER) for name in held):
        held |= {name: torch.zeros((), dtype=torch.int64) for name in network if name.endswith(_COUNTER)}
    return held


def load_into(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a model's parameters and buffers, by name, whatever their dtype and memory format.

    Raises ValueError, in one line, naming what is missing, unexpected, of another shape, or not finite where the
    model's own is; then nothing is changed.
    """
    expected = model.state_dict()
    missing, unexpected = [n for n in expected if n not in weights], [n for n in weights if n not in expected]
    wrong = []
    if missing:
        wrong.append(f"missing {_few(missing)}")
    if unexpected:
        wrong.append(f"unexpected {_few(name + _nearest(name, missing) for name in unexpected)}")
    shapes = [
        f"{name} {tuple(weights[name].shape)} (expected {tuple(tensor.shape)})"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if shapes:
        wrong.append(f"of another shape {_few(shapes)}")
    if wrong:
        raise ValueError(f"the weights do not fit the network: {'; '.join(wrong)}")
    without_end = not_finite(expected)  # such as a mask of −∞
    bad = [name for name in not_finite({n: weights[n] for n in expected}) if name not in without_end]
    if bad:
        named = _few(name.removeprefix("/") for name in bad)
        raise ValueError(f"the weights hold NaN or infinity: {named} (expected finite numbers)")
    model.load_state_dict(weights)


def _few(names: Iterable[str]) -> str:
    named = list(names)
    return ", ".join(named[:4]) + (f" and {len(named) - 4} more" if len(named) > 4 else "")


def _nearest(name: str, others: list[str]) -> str:
    near = difflib.get_close_matches(name, others, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _read_npz(path: Path) -> Mapping[str, Any]:
    archive = np.load(path, allow_pickle=False)
    with archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def _read_pt(path: Path) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals([(_Unread, name) for name in _BESIDE_WEIGHTS]):
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        objects = dict.fromkeys(re.findall(r"GLOBAL ([\w.]+)", str(error)))
        held_there = "a TorchScript program" if "TorchScript" in str(error) else ", ".join(objects)
        if held_there:
            raise ValueError(f"it holds {held_there}, no mere tensors: {_CONVERT}") from error
        raise
    while isinstance(held, Mapping) and (inner := [one for one in _WRAPPERS if isinstance(held.get(one), Mapping)]):
        held = held[inner[0]]
    if isinstance(held, Mapping) and (unread := [name for name, one in held.items() if isinstance(one, _Unread)]):
        raise ValueError(f"it holds other objects than tensors among the weights ({_few(unread)}): {_CONVERT}")
    if not isinstance(held, Mapping):
        raise ValueError(f"it holds a {type(held).__name__}")
    return held


class _Unread:
    """What stands for an object beside the weights: nothing that the file says of it is kept or run."""

    def __new__(cls, *_: object) -> "_Unread":
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)


_COUNTER = "num_batches_tracked"
_WRAPPERS = ("weights", "state_dict", "model_state_dict", "model", "net")
# What published files hold beside their weights: arguments, and figures of NumPy's. The safe loader refuses all but
# tensors, rightly: NumPy's own, say, take the layout of memory from the file. So none of them is made.
_NUMPY = ("scalar", "_reconstruct")
_BESIDE_WEIGHTS = (
    *("argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "datetime.timedelta"),
    *("pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib._local.PosixPath", "pathlib._local.PurePosixPath"),
    *("numpy.dtype", "numpy.ndarray"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in _NUMPY),
)
_CONVERT = 'expected what torch.save(model.state_dict(), "weights.pt") writes, where that object can be had'
_READERS: dict[str, Callable[[Path], Mapping[str, Any]]] = {
    ".npz": _read_npz,
    ".pt": _read_pt,
    ".pth": _read_pt,
    ".pth.tar": _read_pt,
    ".ckpt": _read_pt,
    ".safetensors": _read_safetensors,
}
