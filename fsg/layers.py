"""Layers with quantized weights.

A layer keeps its latent weight as an ordinary parameter. Called plainly it quantizes that weight; called through
`torch.func.functional_call` with a weight put in its place, it uses what it was given. So a gradient estimator
can quantize once a step, from outside, whatever it likes (a look-ahead, say), and shared layers just work.
"""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from fsg.quantizers import Quantizer


class _Quantized(nn.Module):
    weight: Tensor
    quantizer: Quantizer

    def quantized_weight(self) -> Tensor:
        latent = isinstance(self.weight, nn.Parameter)
        return self.quantizer(self.weight) if latent else self.weight


class QuantConv2d(_Quantized, nn.Conv2d):
    """`nn.Conv2d` whose forward pass uses the quantized weight, [out, in/groups, kh, kw]."""

    def forward(self, images: Tensor) -> Tensor:
        return self._conv_forward(images, self.quantized_weight(), self.bias)


class QuantLinear(_Quantized, nn.Linear):
    """`nn.Linear` whose forward pass uses the quantized weight, [out, in]."""

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.quantized_weight(), self.bias)


_QUANTIZED: dict[type[nn.Module], type[_Quantized]] = {nn.Conv2d: QuantConv2d, nn.Linear: QuantLinear}


def quantize(model: nn.Module, quantizer: Quantizer) -> nn.Module:
    """Turn every `nn.Conv2d` and `nn.Linear` of a model into its quantized layer, in place; returns the model.

    Parameters, buffers, hooks and names stay, so weights load by the names they had.
    Raises ValueError where there is no such layer.
    """
    for module in model.modules():
        if type(module) in _QUANTIZED:
            module.__class__ = _QUANTIZED[type(module)]
            setattr(module, "quantizer", quantizer)  # noqa: B010  # a Module types its attributes as tensors
    if not any(True for _ in quantized_layers(model)):
        raise ValueError("the model has no layer to quantize: expected at least one nn.Conv2d or nn.Linear")
    return model


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, _Quantized]]:
    """Each quantized layer once, in the model's order, under its first name; frozen layers are left out."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, _Quantized) and id(module.weight) not in seen and module.weight.requires_grad:
            seen.add(id(module.weight))
            yield name, module
