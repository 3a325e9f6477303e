"""What a network costs: parameters, bytes, and operations of a forward pass, layer by layer.

    FLOPs   multiplications and additions of convolutions, linear layers and attention, as if all were floating point
            (`torch.utils.flop_counter`, which is asked where a network does more than convolutions and linear layers)
    BOPs    bit operations: multiply-accumulates (FLOPs/2) times the bits of a weight times the bits of what it meets

A multiply-accumulate of a full-precision layer counts 32·32 bit operations, of a binary one that sees real numbers
1·32, and of one that sees signs 1. van Baalen et al., Bayesian Bits, NeurIPS 2020 (arXiv:2005.07093), appendix B.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fsg.binarize import BinaryNetwork

_REAL = 32


@dataclass(frozen=True)
class LayerCost:
    """A module by name, with the parameters and operations that are its own, not its parts'.

    `quantized` of its parameters have `weight_bits`, the others are float32.
    """

    layer: str
    parameters: int
    quantized: int
    weight_bits: int
    activation_bits: int
    flops: int

    @property
    def bops(self) -> int:
        return self.flops // 2 * self.weight_bits * self.activation_bits


@dataclass(frozen=True)
class NetworkCost:
    """Of one image; `float_bytes` and `packed_bytes` are those of all tensors, in float32 and with packed weights."""

    layers: tuple[LayerCost, ...]
    float_bytes: int
    packed_bytes: int

    @property
    def parameters(self) -> int:
        return sum(one.parameters for one in self.layers)

    @property
    def binary_share(self) -> float:
        """Of the parameters, those that are weights of one bit."""
        return sum(one.quantized for one in self.layers if one.weight_bits == 1) / max(1, self.parameters)

    @property
    def flops(self) -> int:
        return sum(one.flops for one in self.layers)

    @property
    def bops(self) -> int:
        return sum(one.bops for one in self.layers)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Self:
        layers = tuple(LayerCost(**one) for one in record["layers"])
        return cls(**record | {"layers": layers})


@contextmanager
def _one_thread() -> Iterator[None]:
    """One image is too little for more: they would wait for each other."""
    were = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(were)


@_one_thread()
@torch.no_grad()
def network_cost(model: nn.Module, shape: tuple[int, ...]) -> NetworkCost:
    """Of a model, quantized or not, and one image of a shape [C, H, W], which is run through a copy of it on the CPU.

    What a layer sees counts as one bit where it is ±a throughout. Raises what the model's forward pass does.
    """
    binary = BinaryNetwork.of(model)
    weights = {id(binary.network.get_parameter(name)): len(one.positive) for name, one in binary.planes.items()}
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    calls = _calls(binary.network, image)
    counted: set[int] = set()
    layers = []
    for name, module in binary.network.named_modules():
        own = {id(parameter): parameter.numel() for parameter in module.parameters(recurse=False)}
        new = {each: size for each, size in own.items() if each not in counted}
        counted |= own.keys()
        if own or calls.flops[module]:
            bits = min((weights.get(each, _REAL) for each in own), default=_REAL)
            quantized = sum(size for each, size in new.items() if each in weights)
            seen = calls.bits.get(module, _REAL)
            layers.append(LayerCost(name, sum(new.values()), quantized, bits, seen, calls.flops[module]))
    float_bytes = sum(4 * tensor.numel() for tensor in binary.tensors().values())
    return NetworkCost(tuple(layers), float_bytes, binary.contents().nbytes)


def _calls(network: nn.Module, image: Tensor) -> "_Calls":
    """Torch's counter takes a second to import, so that it is left to networks that need it."""
    layers = _LayerFlops()
    calls = _Calls(layers)
    calls.watch(network, image)
    if not layers.complete:
        from torch.utils.flop_counter import FlopCounterMode

        calls = _Calls(FlopCounterMode(display=False))
        calls.watch(network, image)
    return calls


class _Counter(Protocol):
    """What counts the operations of all that runs within it."""

    def get_total_flops(self) -> int: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, *_: Any) -> Any: ...


class _LayerFlops(TorchFunctionMode):
    """2·(numbers of the output)·(weights that each is made of), over convolutions and linear layers.

    `complete` says whether nothing else ran that may multiply.
    """

    def __init__(self) -> None:
        super().__init__()
        self._total, self.complete = 0, True

    def get_total_flops(self) -> int:
        return self._total

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _LAYERS and len(args) > 1:
            self._total += 2 * result.numel() * args[1][0].numel()
        elif func.__name__ not in _WITHOUT_FLOPS:
            self.complete = False
        return result


_LAYERS = {F.conv1d, F.conv2d, F.conv3d, F.linear}
_WITHOUT_FLOPS = {
    "__get__", "__getitem__", "__bool__", "__eq__", "dim", "to", "gt", "ge", "where", "abs", "all", "amax",
    "add", "cat", "flatten", "mean", "pad", "relu", "hardtanh", "prelu", "batch_norm", "avg_pool2d", "max_pool2d",
}  # fmt: skip


class _Calls:
    """What each module of a network does and sees while it runs: `flops` without its parts', `bits` of its input."""

    def __init__(self, counter: _Counter) -> None:
        self.flops: Counter[nn.Module] = Counter()
        self.bits: dict[nn.Module, int] = {}
        self._counter = counter
        self._running: list[tuple[int, int]] = []  # operations before it, and of its parts

    def watch(self, network: nn.Module, image: Tensor) -> None:
        """Run a network on an image."""
        hooks = [module.register_forward_pre_hook(self._begin) for module in network.modules()]
        hooks += [module.register_forward_hook(self._end) for module in network.modules()]
        try:
            with _without_fused_attention(), self._counter:
                network(image)
        finally:
            for hook in hooks:
                hook.remove()

    def _begin(self, module: nn.Module, seen: tuple[Any, ...]) -> None:
        self._running.append((self._counter.get_total_flops(), 0))
        if seen and isinstance(seen[0], Tensor):
            self.bits[module] = max(self.bits.get(module, 1), _bits(seen[0]))

    def _end(self, module: nn.Module, *_: Any) -> None:
        before, of_parts = self._running.pop()
        whole = self._counter.get_total_flops() - before
        self.flops[module] += whole - of_parts
        if self._running:
            above, parts = self._running[-1]
            self._running[-1] = above, parts + whole


def _bits(seen: Tensor) -> int:
    """1 where it is ±a throughout, a > 0; 32 otherwise."""
    size = seen.abs()
    return 1 if bool((size > 0).all() and (size == size.amax()).all()) else _REAL


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """The counter does not know the kernels that attention has on a CPU and in evaluation."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)
