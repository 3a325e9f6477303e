"""The weights of all layers as their quantizers see them, and how a gradient goes back through that."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fsg.flat import FlatLayout
from fsg.layers import QuantizedLayer
from fsg.once import once
from fsg.quantizers import Flat, Quantizer

Surrogate = Callable[[Tensor], Tensor]


def clipped(position: Tensor) -> Tensor:
    """1[|x| ≤ 1], the derivative of the hard tanh."""
    return position.abs() <= 1


def derivative(quantizer: Quantizer, prequantized: Tensor, weight: Tensor, surrogate: Surrogate = clipped) -> Tensor:
    """c ⊙ surrogate(x): what stands in for dŴ/dW at a weight. Same shape as the weight.

    c is the quantizer's calibration, x the position of W̃; the surrogate stands in for the derivative of the rounding.
    """
    return quantizer.calibration(weight) * surrogate(quantizer.position(prequantized))


def pull_back(
    quantizer: Quantizer, prequantized: Tensor, weight: Tensor, gradient: Tensor, surrogate: Surrogate = clipped
) -> Tensor:
    """∂L/∂W from g = ∂L/∂Ŵ: g ⊙ surrogate(x), pulled back through the pre-quantization. Same shape as the weight.

    A quantizer whose gradient goes through its scale adds what reaches the weight there, of g itself.
    """
    through_rounding = quantizer.pull_back(weight, gradient * surrogate(quantizer.position(prequantized)))
    scale_gradient = getattr(quantizer, "scale_gradient", None)
    through_scale = None if scale_gradient is None else scale_gradient(weight, gradient)
    return through_rounding if through_scale is None else through_rounding + through_scale


class _Part(Protocol):
    """Weights of one quantizer: a tensor for each, everywhere. Each property is computed once."""

    @property
    def prequantized(self) -> list[Tensor]: ...
    @property
    def quantized(self) -> list[Tensor]: ...
    @property
    def calibration(self) -> list[Tensor]: ...
    def derivative(self, surrogate: Surrogate) -> list[Tensor]: ...
    def pull_back(self, gradients: Sequence[Tensor], surrogate: Surrogate) -> list[Tensor]: ...


class _OneByOne:
    """One layer after the other."""

    def __init__(self, quantizer: Quantizer, weights: Sequence[Tensor]) -> None:
        self.quantizer, self.weights = quantizer, weights

    @once
    def prequantized(self) -> list[Tensor]:
        return [self.quantizer.prequantize(weight) for weight in self.weights]

    @once
    def quantized(self) -> list[Tensor]:
        return [self.quantizer.quantize(prequantized) for prequantized in self.prequantized]

    @once
    def calibration(self) -> list[Tensor]:
        return [self.quantizer.calibration(weight) for weight in self.weights]

    def derivative(self, surrogate: Surrogate) -> list[Tensor]:
        each = zip(self.prequantized, self.weights, strict=True)
        return [derivative(self.quantizer, w, weight, surrogate) for w, weight in each]

    def pull_back(self, gradients: Sequence[Tensor], surrogate: Surrogate) -> list[Tensor]:
        each = zip(self.prequantized, self.weights, gradients, strict=True)
        return [pull_back(self.quantizer, w, weight, g, surrogate) for w, weight, g in each]


class _AllAtOnce:
    """All layers in one vector."""

    def __init__(self, flat: Flat) -> None:
        self.flat, self.layout = flat, flat.layout

    @once
    def prequantized(self) -> list[Tensor]:
        return self.layout.unpack(self.flat.prequantized())

    @once
    def calibration(self) -> list[Tensor]:
        return self.layout.unpack(self.flat.calibration())

    @once
    def quantized(self) -> list[Tensor]:
        return self.layout.unpack(self.flat.quantizer.quantize(self.layout.pack(self.prequantized)))

    def derivative(self, surrogate: Surrogate) -> list[Tensor]:
        return self.layout.unpack(self.layout.pack(self.calibration) * self._slope(surrogate))

    def pull_back(self, gradients: Sequence[Tensor], surrogate: Surrogate) -> list[Tensor]:
        through_rounding = self.layout.pack(gradients) * self._slope(surrogate)
        return self.layout.unpack(through_rounding * self.layout.pack(self.calibration))

    def _slope(self, surrogate: Surrogate) -> Tensor:
        return surrogate(self.flat.quantizer.position(self.layout.pack(self.prequantized)))


class Quantization:
    """Weights of many layers, and what their quantizers make of them: a tensor a layer, everywhere.

        prequantized, quantized, calibration    as in `fsg.quantizers`, each computed once
        derivative(surrogate)                   c ⊙ surrogate(x)
        pull_back(gradients, surrogate)         ∂L/∂W from g = ∂L/∂Ŵ

    A quantizer that has a `flat` in its own class sees all its layers in one vector.
    """

    def __init__(self, parts: Iterable[tuple[Sequence[int], _Part]]) -> None:
        self._parts = list(parts)

    @property
    def prequantized(self) -> list[Tensor]:
        return self._joined([part.prequantized for _, part in self._parts])

    @property
    def quantized(self) -> list[Tensor]:
        return self._joined([part.quantized for _, part in self._parts])

    @property
    def calibration(self) -> list[Tensor]:
        return self._joined([part.calibration for _, part in self._parts])

    def derivative(self, surrogate: Surrogate = clipped) -> list[Tensor]:
        return self._joined([part.derivative(surrogate) for _, part in self._parts])

    def pull_back(self, gradients: Sequence[Tensor], surrogate: Surrogate = clipped) -> list[Tensor]:
        return self._joined(
            [
                part.pull_back(gradients if len(self._parts) == 1 else [gradients[i] for i in of], surrogate)
                for of, part in self._parts
            ]
        )

    def _joined(self, found: Sequence[list[Tensor]]) -> list[Tensor]:
        """Of the parts, in the order of the layers."""
        if len(found) == 1:
            return found[0]
        layers: dict[int, Tensor] = {}
        for (of, _), tensors in zip(self._parts, found, strict=True):
            layers |= dict(zip(of, tensors, strict=True))
        return [layers[i] for i in range(len(layers))]


class Quantizers:
    """The quantizers of a model's layers, as they are in a step."""

    def __init__(self, layers: Sequence[QuantizedLayer]) -> None:
        self._layers = layers

    @torch.no_grad()
    def of(self, weights: Sequence[Tensor]) -> Quantization:
        """What they make of weights, one a layer, of which nothing is differentiated."""
        alike: dict[int, list[int]] = {}
        for index, layer in enumerate(self._layers):
            alike.setdefault(id(layer.quantizer), []).append(index)
        if len(alike) == 1:
            return Quantization([(range(len(weights)), self._part(self._layers[0].quantizer, weights))])
        parts = [(of, self._part(self._layers[of[0]].quantizer, [weights[i] for i in of])) for of in alike.values()]
        return Quantization(parts)

    def _part(self, quantizer: Quantizer, weights: Sequence[Tensor]) -> _Part:
        if "flat" not in vars(type(quantizer)):  # one that is inherited is of another quantizer
            return _OneByOne(quantizer, [weight.detach() for weight in weights])
        return _AllAtOnce(quantizer.flat(FlatLayout.like(weights), weights))  # type: ignore[attr-defined]
