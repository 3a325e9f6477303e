"""What a network costs: parameters, bytes, and operations of a forward pass, layer by layer.

    FLOPs   multiplications and additions of convolutions, linear layers and attention, as if all were floating point
            (`torch.utils.flop_counter`)
    BOPs    bit operations: multiply-accumulates (FLOPs/2) times the bits of a weight times the bits of what it meets

A multiply-accumulate of a full-precision layer counts 32·32 bit operations, of a binary one that sees real numbers
1·32, and of one that sees signs 1. van Baalen et al., Bayesian Bits, NeurIPS 2020 (arXiv:2005.07093), appendix B.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

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


@torch.no_grad()
def network_cost(model: nn.Module, shape: tuple[int, ...]) -> NetworkCost:
    """Of a model, quantized or not, and one image of a shape [C, H, W], which is run through a copy of it on the CPU.

    What a layer sees counts as one bit where it is ±a throughout. Raises what the model's forward pass does.
    """
    binary = BinaryNetwork.of(model)
    weights = {id(binary.network.get_parameter(name)): len(one.positive) for name, one in binary.planes.items()}
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    calls = _Calls(binary.network)
    with _without_fused_attention(), calls.counter:
        binary.network(image)
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


class _Calls:
    """What each module of a network does and sees while it runs: `flops` without its parts', `bits` of its input."""

    def __init__(self, network: nn.Module) -> None:
        self.counter = FlopCounterMode(display=False)
        self.flops: Counter[nn.Module] = Counter()
        self.bits: dict[nn.Module, int] = {}
        self._running: list[tuple[int, int]] = []  # operations before it, and of its parts
        for module in network.modules():
            module.register_forward_pre_hook(self._begin)
            module.register_forward_hook(self._end)

    def _begin(self, module: nn.Module, seen: tuple[Any, ...]) -> None:
        self._running.append((self.counter.get_total_flops(), 0))
        if seen and isinstance(seen[0], Tensor):
            self.bits[module] = max(self.bits.get(module, 1), _bits(seen[0]))

    def _end(self, module: nn.Module, *_: Any) -> None:
        before, of_parts = self._running.pop()
        whole = self.counter.get_total_flops() - before
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
