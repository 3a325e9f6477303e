"""A trained network as it predicts: signs instead of latent weights, batch norm folded where that is exact arithmetic.

network = fsg.binarize(copy.deepcopy(model))      # plain torch layers
binary = BinaryNetwork.of(model).folded(images)   # the same, with its weights as planes of signs: what is exported
"""

import copy
import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from fsg.layers import QuantizedLayer, dequantize
from fsg.packing import PackedNetwork, Planes, planes_of

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_AS_FUNCTIONS = ("conv1d", "conv2d", "conv3d", "linear")


def binarize(model: nn.Module) -> nn.Module:
    """Turn every quantized layer into its plain one with the quantized weight Ŵ, in place; returns the model.

    The latent weights are gone: give it `copy.deepcopy(model)` where the training goes on. (`dequantize` keeps them,
    and gives the latent network.) Frozen layers are binarized too. Raises ValueError where a quantized layer shares its
    weight with a module that is none, or with one that quantizes it otherwise: there is no one weight for both.
    """
    baked: dict[int, tuple[str, Tensor, Tensor]] = {}
    for name, layer in quantized(model):
        weight, now = layer.weight, layer.quantized_weight().detach()
        first, _, before = baked.setdefault(id(weight), (name, weight, now))
        if not torch.equal(before, now):
            raise ValueError(f"{name} quantizes the weight that it shares with {first} otherwise, expected one weight")
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLayer):
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if id(parameter) in baked:
                text = f"{baked[id(parameter)][0]} shares its weight with {name or 'the model'}.{own}"
                raise ValueError(f"{text}, which is not quantized: expected a weight of its own")
    with torch.no_grad():
        for _, weight, now in baked.values():
            weight.copy_(now)
    return dequantize(model)


def quantized(model: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """Every quantized layer by name, frozen ones and those that share a weight included."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QuantizedLayer))


@dataclass(frozen=True)
class BinaryNetwork:
    """A binarized network in evaluation mode, float32 on the CPU, and its weights that are `planes` of signs, by name.

    `not_packed` names quantized weights whose levels are no such sum; they stay float32.
    """

    network: nn.Module
    planes: Mapping[str, Planes]
    not_packed: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Of a copy of a model. Raises what `binarize` does."""
        network = copy.deepcopy(model).cpu().float().eval()
        binary = {id(layer.weight) for _, layer in quantized(network)}
        names = [name for name, parameter in network.named_parameters() if id(parameter) in binary]
        binarize(network)
        found = {name: planes_of(network.get_parameter(name)) for name in names}
        planes = {name: one for name, one in found.items() if one is not None}
        return cls(network, planes, tuple(name for name in names if name not in planes))._with_their_weights()

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer by its first name, but for batch norm's counters."""
        named = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        return {name: tensor.detach() for name, tensor in named.items() if not name.endswith("num_batches_tracked")}

    def contents(self, about: Mapping[str, str] | None = None) -> PackedNetwork:
        others = {name: tensor for name, tensor in self.tensors().items() if name not in self.planes}
        return PackedNetwork(self.planes, others, about or {})

    @torch.no_grad()
    def folded(self, images: Tensor) -> Self:
        """The same network with each batch norm folded into the layer before it, where nothing else sees its output:

        Ŵ ← γ/√(σ² + ε) ⊙ Ŵ (the factor joins the scale),   bias ← γ/√(σ² + ε) ⊙ (bias − μ) + β

        In place of the batch norm is `nn.Identity`. Raises ValueError for a network that `torch.export` cannot trace.
        """
        network, planes = copy.deepcopy(self.network), dict(self.planes)
        for layer_name, norm_name in _foldable(network, images):
            layer: Any = network.get_submodule(layer_name)
            norm: Any = network.get_submodule(norm_name)
            factor = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
            bias = (0 if layer.bias is None else layer.bias) - norm.running_mean
            layer.bias = nn.Parameter(bias * factor + (0 if norm.bias is None else norm.bias), requires_grad=False)
            factor = factor.reshape(-1, *[1] * (layer.weight.dim() - 1))
            layer.weight.mul_(factor)
            if (one := planes.get(f"{layer_name}.weight")) is not None:
                planes[f"{layer_name}.weight"] = one._replace(scale=one.scale * factor)
            parent, _, own = norm_name.rpartition(".")
            setattr(network.get_submodule(parent), own, nn.Identity())
        return replace(self, network=network, planes=planes)._with_their_weights()

    @torch.no_grad()
    def _with_their_weights(self) -> Self:
        """What a file gives is what is here, to the last bit."""
        for name, one in self.planes.items():
            self.network.get_parameter(name).copy_(one.weight)
        return self


def traced(network: nn.Module, arguments: tuple[Any, ...], dynamic_shapes: Any = None) -> torch.export.ExportedProgram:
    """`torch.export` of a network in evaluation mode. Raises ValueError, in one line, where it cannot be traced."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()):  # torch says the reason there too, on a whole screen
            return torch.export.export(network, arguments, dynamic_shapes=dynamic_shapes)
    except Exception as error:  # of a user's own forward, and of torch's, half a dozen kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"torch.export cannot trace the network ({reason})") from error
    finally:
        logging.disable(disabled)


def _foldable(network: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """Names of a layer and of the batch norm that alone sees its output, each of them called once."""
    program = traced(network, (images,))
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    pairs = []
    for node in program.graph.nodes:
        if node.target != torch.ops.aten.batch_norm.default or node.args[3] is None or node.args[5]:
            continue  # None: it takes the statistics of the batch
        layer, mean = node.args[0], node.args[3]
        is_layer = getattr(layer.target, "overloadpacket", None) in [getattr(torch.ops.aten, f) for f in _AS_FUNCTIONS]
        if not is_layer or len(layer.users) > 1 or len(layer.args[1].users) > 1 or len(mean.users) > 1:
            continue
        owner, norm = (names.get(place.name, "").rpartition(".")[0] for place in (layer.args[1], mean))
        if owner and norm and _are_plain(network.get_submodule(owner), network.get_submodule(norm)):
            pairs.append((owner, norm))
    return pairs


def _are_plain(layer: nn.Module, norm: nn.Module) -> bool:
    return type(layer) in _FOLDABLE and type(norm) in _BATCH_NORMS
