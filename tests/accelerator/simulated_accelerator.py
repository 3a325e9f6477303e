"""A device "simgpu" on a machine without a GPU: tensors that compute on the CPU and behave like those of a GPU.

    with Accelerator(project=Path("fsg")) as gpu:
        Training(config, 0, device="simgpu").advance()
    gpu.waits, gpu.uploads        # {(place in the project, operation): times}

A tensor on it wraps one on the CPU, so the numbers are real, and mostly the CPU's to the last bit. Every operation on
it passes `_run`, those of the backward pass's own thread too:
  - One that mixes devices raises RuntimeError, as CUDA would. What CUDA allows is allowed: a CPU tensor without
    dimension among the arguments of an elementwise operation, an index on the CPU, a copy.
  - `waits` counts those for whose result the host waits: `item`, `bool`, `tolist`, `cpu`, `nonzero`, a mask as index, …
  - `uploads` counts copies of ordinary (not pinned) memory to the device, for which CUDA makes the host wait as well:
    `to`, `torch.tensor(…, device=…)`, a list as index, … What `pin_memory` gave and is copied `non_blocking` is none.
  - `launches` counts those that start a kernel, by name, and `kernels` how many these are: torch takes about 48 of the
    tensors of a list at once. `moved` is the bytes that they read and write.
  - `unsure` counts those that on CUDA add in the order in which threads come: what they give is certain only where no
    index occurs twice.
Unseen is what happens within an operation on CUDA (waits and workspaces of cuDNN and cuBLAS, the number of its kernels,
what autocast casts), memory, time, and what asks whether a device is called "cuda".
"""

import functools
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "simgpu"
_WAIT = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "_unique", "_unique2", "unique_dim",
         "unique_consecutive", "allclose", "_linalg_check_errors"}  # fmt: skip
_UNSURE = {"index_add", "index_add_", "scatter_add", "scatter_add_", "scatter_reduce", "put_", "cumsum", "histc",
           "adaptive_avg_pool2d_backward", "upsample_bilinear2d_backward", "reflection_pad2d_backward"}  # fmt: skip
_INDEX = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_COPY = {"copy_", "_to_copy", "_foreach_copy_"}
_NO_KERNEL = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}
AT_ONCE = 48  # tensors of a list that one kernel takes
_active: list["Accelerator"] = []


class Remote(Tensor):
    """A tensor on the device; `held` is its content, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Remote":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = Tensor._make_wrapper_subclass(cls, held.shape, **layout, device=f"{NAME}:0")
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, *args, **(kwargs or {}))

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"can't convert {NAME} device type tensor to numpy. Use Tensor.cpu() first")
        return self.detach().cpu().numpy()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().cpu().__reduce_ex__(protocol)  # what `map_location="cpu"` would make of it

    def __repr__(self, **_: Any) -> str:
        return f"{self.held!r} on {NAME}"


class Accelerator:
    """Within, what happens on the device is counted; with `strict`, a wait or an upload raises RuntimeError."""

    def __init__(self, project: Path | str, strict: bool = False) -> None:
        self.project, self.strict = str(Path(project).resolve()), strict
        self.reset()

    def reset(self) -> None:
        self.waits, self.uploads, self.unsure, self.launches = (Counter[Any]() for _ in range(4))
        self.kernels = self.moved = 0

    def __enter__(self) -> Self:
        _set_up()
        self._pin_memory, Tensor.pin_memory = Tensor.pin_memory, _pinned  # type: ignore[method-assign, assignment]
        _active.append(self)
        return self

    def __exit__(self, *raised: object) -> None:
        _active.remove(self)
        Tensor.pin_memory = self._pin_memory  # type: ignore[method-assign]

    def see(self, func: Any, name: str, args: Any, kwargs: Any, local: list[Tensor], to: str | None) -> None:
        if not _is_view(func) and name not in _NO_KERNEL:
            self.launches[name] += 1
            self.kernels += -(-len(args[0]) // AT_ONCE) if name.startswith("_foreach") else 1
        mask = name in _INDEX and any(one is not None and one.dtype == torch.bool for one in args[1])
        down = (to == "cpu" and name == "_to_copy") or (name == "copy_" and not isinstance(args[0], Remote))
        without_size = name == "repeat_interleave" and kwargs.get("output_size") is None
        copied_first = name in _COPY | _INDEX or name.startswith("where")
        if name in _WAIT or mask or down or without_size:
            self._count(self.waits, name)
        elif any(one.dim() or copied_first for one in local if not (_is_pinned(one) and _non_blocking(args, kwargs))):
            self._count(self.uploads, name)
        if name in _UNSURE or (name in _INDEX and "put" in name and True not in args[3:4]):
            self.unsure[self._place(), name] += 1

    def _count(self, counter: Counter[Any], name: str) -> None:
        counter[self._place(), name] += 1
        if self.strict:
            raise RuntimeError(f"{self._place()}: the host waits for the device ({name})")

    def _place(self) -> str:
        """The innermost line of the project on the stack; in the backward pass's thread, what is gone back through."""
        frame: Any = sys._getframe()
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(self.project) and file != __file__:
                return f"{file.removeprefix(self.project).lstrip('/')}:{frame.f_lineno}"
            frame = frame.f_back
        node = torch._C._current_autograd_node()
        return f"backward of {node.name()}" if node is not None else "elsewhere"


def _pinned(tensor: Tensor) -> Tensor:
    made = tensor.clone()
    vars(made)["pinned"] = True
    return made


def _is_pinned(tensor: Tensor) -> bool:
    return vars(tensor).get("pinned", False)


def _non_blocking(args: Any, kwargs: Any) -> bool:
    """What `copy_` and `_to_copy` say of it."""
    return bool(kwargs.get("non_blocking", args[2] if len(args) > 2 else False))


def _is_view(func: Any) -> bool:
    """Whether an operation gives another look at its argument and nothing else."""
    aliases = [result.alias_info for result in func._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def _run(func: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation on the device: checked, counted, done on the CPU; its results are wrapped."""
    name = func._schema.name.removeprefix("aten::")
    flat, spec = pytree.tree_flatten((args, kwargs))
    remote = {id(one.held): one for one in flat if isinstance(one, Remote)}
    local = {id(one): one for one in flat if isinstance(one, Tensor) and not isinstance(one, Remote)}
    to = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
    elementwise = torch.Tag.pointwise in func.tags or name in _INDEX or name.startswith(("_foreach", "where"))
    for one in local.values() if remote and name not in (*_COPY, "_foreach_norm") else ():
        if not ((elementwise and one.dim() == 0) or (name in _INDEX and not one.is_floating_point())):
            found = f"cpu {tuple(one.shape)} and {NAME}"
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {found}: {func}")
    for accelerator in _active:
        accelerator.see(func, name, args, kwargs, list(local.values()), to)
    here = [torch.device("cpu") if isinstance(one, torch.device) else getattr(one, "held", one) for one in flat]
    args, kwargs = pytree.tree_unflatten(here, spec)
    made = _INSTEAD.get(name, func)(*args, **kwargs)
    if _active and name not in _NO_KERNEL and not _is_view(func):
        touched = [one for one in (*flat, *pytree.tree_leaves(made)) if isinstance(one, Tensor)]
        if name == "index_copy_":  # of the tensor itself, as much as is written
            touched = touched[1:-1] + touched[2:3]
        for accelerator in _active:
            accelerator.moved += sum(one.numel() * one.element_size() for one in touched)
    if to == "cpu":
        return made
    given = remote | local  # what was written to comes back as what it was
    return pytree.tree_map_only(Tensor, lambda one: given[id(one)] if id(one) in given else Remote(one), made)


def _lstm_cell(by_input: Tensor, by_state: Tensor, cell: Tensor, *biases: Tensor | None) -> tuple[Tensor, ...]:
    """A kernel that the CPU lacks."""
    gates = sum((bias for bias in biases if bias is not None), by_input + by_state)
    i, f, g, o = gates.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    now = f * cell + i * g
    return o * now.tanh(), now, torch.cat([i, f, g, o], 1)


def _lstm_cell_back(dh: Tensor | None, dc: Tensor | None, before: Tensor, now: Tensor, gates: Tensor, _: bool) -> Any:
    (i, f, g, o), size = gates.chunk(4, 1), torch.tanh(now)
    dh, dc = (torch.zeros_like(now) if one is None else one for one in (dh, dc))
    dc = dc + dh * o * (1 - size * size)
    each = [dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g * g), dh * size * o * (1 - o)]
    return torch.cat(each, 1), dc * f, torch.cat(each, 1).sum(0)


_INSTEAD = {"_thnn_fused_lstm_cell": _lstm_cell, "_thnn_fused_lstm_cell_backward_impl": _lstm_cell_back}
_FROM_NONE = ("empty.memory_format", "empty_strided.default", "copy_.default", "arange.start_step",
              "linspace.default", "randperm.default")  # fmt: skip
_HALVED = ("conv1d.default", "conv2d.default", "conv3d.default", "linear.default", "matmul.default", "mm.default",
           "bmm.default", "addmm.default")  # fmt: skip
_libraries: list[Any] = []


def _in_half(func: Any, *args: Any, **kwargs: Any) -> Any:
    """What autocast does to a matrix product or convolution."""
    half = torch.get_autocast_dtype(NAME)
    cast = pytree.tree_map_only(Tensor, lambda one: one.to(half) if one.is_floating_point() else one, (args, kwargs))
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
        return func(*cast[0], **cast[1])


def _set_up() -> None:
    """Once a process, for ever: torch has one spare backend. What makes tensors from none has to be told to it."""
    if _libraries:
        return
    module = _DummyBackendModule()
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    module.get_rng_state = lambda *_: torch.get_rng_state()  # what is random here comes from the CPU's generator
    module.set_rng_state = lambda state, *_: torch.set_rng_state(state)
    _setup_privateuseone_for_python_backend(rename=NAME, backend_module=module)
    aten, every = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    for key, names, way in (("PrivateUse1", _FROM_NONE, _run), ("AutocastPrivateUse1", _HALVED, _in_half)):
        for name in names:
            func = functools.reduce(getattr, name.split("."), torch.ops.aten)
            aten.impl(func, functools.partial(way, func), key)
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    _libraries.extend((aten, every))
