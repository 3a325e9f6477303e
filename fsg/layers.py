"""Layers with quantized weights.

A layer keeps its latent weight as an ordinary parameter. Called plainly it quantizes that weight; called through
`torch.func.functional_call` with a weight put in its place, it uses what it was given. So a gradient estimator
can quantize once a step, from outside, whatever it likes (a look-ahead, say), and shared layers just work.
"""

import warnings
from collections.abc import Callable, Collection, Iterator
from fnmatch import fnmatchcase

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fsg.activations import ActivationConfig, RealActivations, SignActivation
from fsg.quantizers import Quantizer

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class QuantizedLayer(nn.Module):
    weight: Tensor
    given_quantizer: Quantizer
    current_quantizer: Quantizer

    @property
    def quantizer(self) -> Quantizer:
        """The one that was given to the layer, as it is at this moment of a training."""
        return self.current_quantizer

    @quantizer.setter
    def quantizer(self, given: Quantizer) -> None:
        self.given_quantizer = self.current_quantizer = given

    def anneal(self, progress: float) -> None:
        """Let the quantizer be that of the part of a training that is over, in [0, 1], where it has an `at`.

        So is the derivative of a sign that stands before the layer.
        """
        if (at := getattr(self.given_quantizer, "at", None)) is not None:
            self.current_quantizer = at(progress)
        if isinstance(activation := getattr(self, "activation", None), SignActivation):
            activation.anneal(progress)

    def quantized_weight(self) -> Tensor:
        latent = isinstance(self.weight, nn.Parameter)
        return self.quantizer(self.weight) if latent else self.weight


class QuantConv1d(QuantizedLayer, nn.Conv1d):
    """`nn.Conv1d` whose forward pass uses the quantized weight, [out, in/groups, k]."""

    def forward(self, signals: Tensor) -> Tensor:
        return _convolved(self, F.conv1d, signals, self.quantized_weight())


class QuantConv2d(QuantizedLayer, nn.Conv2d):
    """`nn.Conv2d` whose forward pass uses the quantized weight, [out, in/groups, kh, kw]."""

    def forward(self, images: Tensor) -> Tensor:
        return _convolved(self, F.conv2d, images, self.quantized_weight())


class QuantConv3d(QuantizedLayer, nn.Conv3d):
    """`nn.Conv3d` whose forward pass uses the quantized weight, [out, in/groups, kd, kh, kw]."""

    def forward(self, volumes: Tensor) -> Tensor:
        return _convolved(self, F.conv3d, volumes, self.quantized_weight())


class QuantLinear(QuantizedLayer, nn.Linear):
    """`nn.Linear` whose forward pass uses the quantized weight, [out, in]."""

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.quantized_weight(), self.bias)


def _convolved(layer: Convolution, convolve: Callable[..., Tensor], images: Tensor, weight: Tensor) -> Tensor:
    """What a convolution makes of images with a weight in the place of its own."""
    padding: str | tuple[int, ...] = layer.padding
    if layer.padding_mode != "zeros":  # the functions know no other
        images, padding = F.pad(images, _widths(layer), mode=layer.padding_mode), "valid"
    return convolve(images, weight, layer.bias, layer.stride, padding, layer.dilation, layer.groups)


def _widths(layer: Convolution) -> list[int]:
    """The padding before and after each dimension, the last dimension first, as `F.pad` takes them."""
    if layer.padding == "valid":
        pairs = [(0, 0) for _ in layer.kernel_size]
    elif layer.padding == "same":
        wholes = [dilation * (size - 1) for size, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
        pairs = [(whole // 2, whole - whole // 2) for whole in wholes]
    else:
        pairs = [(int(width), int(width)) for width in layer.padding]
    return [width for pair in reversed(pairs) for width in pair]


_QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
    nn.Conv3d: QuantConv3d,
    nn.Linear: QuantLinear,
}
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WITH_WEIGHTS = (*_CONVOLUTIONS, nn.Linear, nn.Bilinear, nn.RNNBase, nn.MultiheadAttention)


def quantize(
    model: nn.Module,
    quantizer: Quantizer,
    full_precision: Collection[str] = (),
    activations: ActivationConfig = RealActivations(),  # noqa: B008  # frozen
) -> nn.Module:
    """Turn every convolution (`nn.Conv1d`, `2d`, `3d`) and `nn.Linear` into its quantized layer, in place.

    Returns the model. What multiplies with weights and is neither (a subclass, `nn.MultiheadAttention`, recurrent and
    transposed layers), and what shares its weight with such a module, stays in full precision; a warning names it.

    Layers whose name one of the `full_precision` patterns matches stay as they are: `*` stands for anything, as in
    `["conv1", "*.downsample.*", "fc"]`. Parameters, buffers, hooks and names stay, so weights load by the names they
    had. With `activations=SignActivations()` each quantized layer sees the sign of its input; a layer `conv2` then has
    the module `conv2.activation`.

    Raises ValueError for a pattern without a layer, for lazy layers that have no weights yet, and where no layer is
    left to quantize.
    """
    if isinstance(quantizer, type):
        raise ValueError(f"the quantizer is a class, expected an instance: {quantizer.__name__}()")
    if lazy := [name for name, parameter in model.named_parameters() if is_lazy(parameter)]:
        raise ValueError(f"{lazy[0]} has no shape yet, expected a model that has seen a batch (lazy layers)")
    layers = {name: m for name, m in model.named_modules(remove_duplicate=False) if type(m) in _QUANTIZED}
    kept: set[int] = set()
    for pattern in full_precision:
        matched = [id(module) for name, module in layers.items() if fnmatchcase(name, pattern)]
        if not matched:
            names = list(layers) if len(layers) <= 6 else [*list(layers)[:3], "…", *list(layers)[-2:]]
            raise ValueError(f"no layer is named {pattern!r}, expected a pattern for some of {', '.join(names)}")
        kept.update(matched)
    binary = {name: module for name, module in layers.items() if id(module) not in kept}
    elsewhere = _parameters_outside(model, binary.values())
    shared = [name for name, module in binary.items() if id(module.weight) in elsewhere]
    kept.update(id(layers[name]) for name in shared)
    _say_what_stays(model, shared)
    for module in layers.values():
        if type(module) in _QUANTIZED and id(module) not in kept:
            module.__class__ = _QUANTIZED[type(module)]
            setattr(module, "quantizer", quantizer)  # noqa: B010  # a Module types its attributes as tensors
    activations.place(model, {id(module): module for module in layers.values() if id(module) not in kept}.values())
    if not any(True for _ in quantized_layers(model)):
        raise ValueError("the model has no layer to quantize: expected at least one convolution or nn.Linear")
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # in evaluation torch's fused kernel would take the latent weights
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # which that kernel alone could read
    return model


def _parameters_outside(model: nn.Module, layers: Collection[nn.Module]) -> set[int]:
    """The identities of the parameters that modules of another kind hold too, an embedding's say."""
    own = {id(module) for module in layers}
    others = (m for m in model.modules() if id(m) not in own and not isinstance(m, QuantizedLayer))
    return {id(parameter) for other in others for parameter in other.parameters(recurse=False)}


def _say_what_stays(model: nn.Module, shared: list[str]) -> None:
    stays = [f"{name} (its weight is also another module's)" for name in shared]
    owner = ""
    for name, module in model.named_modules():
        inside = bool(owner) and name.startswith(f"{owner}.")
        other = isinstance(module, _WITH_WEIGHTS) and not isinstance(module, QuantizedLayer)
        if other and type(module) not in _QUANTIZED and not inside:
            owner = name
            stays.append(f"{name or 'the model'} ({type(module).__name__})")
    if stays:
        warnings.warn(f"in full precision stay {', '.join(stays)}: see quantize", stacklevel=3)


def dequantize(model: nn.Module) -> nn.Module:
    """The inverse of `quantize`, in place: every quantized layer uses its latent weight; returns the model.

    Signs before the layers stay: they are the network's activations.
    That is the latent network, whose predictions are others: `fsg.binarize` gives the one that predicts the same.
    """
    plain = {quantized: original for original, quantized in _QUANTIZED.items()}
    for module in model.modules():
        if type(module) in plain:
            del module.given_quantizer, module.current_quantizer
            module.__class__ = plain[type(module)]
    return model


def anneal(model: nn.Module, progress: float) -> None:
    """Let every quantizer of a layer, and every sign's derivative, be that of the part of a training that is over.

    `train_step` does this; in a loop of one's own fsg's estimators do it for the layers that they train.
    """
    for layer in model.modules():
        if isinstance(layer, QuantizedLayer | SignActivation):
            layer.anneal(progress)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """Each quantized layer once, in the model's order, under its first name; frozen layers are left out."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLayer) and id(module.weight) not in seen and module.weight.requires_grad:
            seen.add(id(module.weight))
            yield name, module
