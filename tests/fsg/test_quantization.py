"""All layers at once compute what each layer's functions do, to the last bit."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from test_estimators import QUANTIZERS
from torch import Tensor, nn

from fsg.estimators.quantization import Quantizers, clipped, derivative, pull_back
from fsg.flat import FlatLayout
from fsg.history import ChunkLayout
from fsg.layers import quantize, quantized_layers
from fsg.quantizers import BWN, DoReFa, Sign


class Shifted(DoReFa):
    """A user's own: what it inherits says nothing of it."""

    def prequantize(self, weight: Tensor) -> Tensor:
        return super().prequantize(weight) + 0.25


def network(quantizer: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Layers of several kinds, in the memory format of a training; zeros, one weight, and numbers of any size."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 1), nn.Conv1d(3, 2, 5)]
    model = nn.ModuleList([*convolutions, *(nn.Linear(*sizes) for sizes in ((7, 3), (1, 1), (3, 3), (2, 2)))])
    with torch.no_grad():
        model[6].weight.zero_()
        model[7].weight.copy_(torch.tensor([[1e-40, 0.0], [-1e-39, 1e-38]]))
    return quantize(model, quantizer).to(dtype=dtype, memory_format=torch.channels_last)


def same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def steep(position: Tensor) -> Tensor:
    return 3 / (1 + position.square())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("surrogate", [clipped, steep])
@pytest.mark.parametrize("quantizer", [*QUANTIZERS, Shifted()], ids=str)
def test_all_layers_at_once_are_each_layer_by_itself(
    quantizer: Any, surrogate: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    layers = [layer for _, layer in quantized_layers(network(quantizer, dtype))]
    weights = [layer.weight.detach() for layer in layers]
    gradients = [torch.randn_like(weight) for weight in weights]
    seen = Quantizers(layers).of(weights)
    prequantized = [quantizer.prequantize(weight) for weight in weights]
    same(seen.prequantized, prequantized)
    quantized = [quantizer.quantize(w) for w in prequantized]
    same(seen.quantized, quantized)
    assert [one.stride() for one in seen.quantized] == [one.stride() for one in quantized], "a convolution's kernel"
    same(seen.calibration, [quantizer.calibration(weight) for weight in weights])
    each = list(zip(prequantized, weights, strict=True))
    same(seen.derivative(surrogate), [derivative(quantizer, w, weight, surrogate) for w, weight in each])
    back = [pull_back(quantizer, *one, g, surrogate) for one, g in zip(each, gradients, strict=True)]
    same(seen.pull_back(gradients, surrogate), back)


def test_layers_of_several_quantizers_are_each_seen_by_their_own() -> None:
    layers = [layer for _, layer in quantized_layers(network(DoReFa()))]
    for layer, quantizer in zip(layers[::2], (Sign(), BWN(), Sign(), Shifted()), strict=True):
        layer.quantizer = quantizer
    weights = [layer.weight.detach() for layer in layers]
    seen = Quantizers(layers).of(weights)
    same(seen.quantized, [layer.quantizer(layer.weight.detach()) for layer in layers])
    ones = [torch.ones_like(weight) for weight in weights]
    each = zip(layers, seen.prequantized, weights, ones, strict=True)
    same(seen.pull_back(ones), [pull_back(layer.quantizer, w, weight, one) for layer, w, weight, one in each])


def test_a_vector_keeps_shapes_and_memory_formats_and_is_packed_again_without_a_copy() -> None:
    weights = [layer.weight.detach() for _, layer in quantized_layers(network(Sign()))]
    layout = FlatLayout.like(weights)
    assert FlatLayout.like([weight.clone() for weight in weights]) is layout
    vector = layout.pack(weights)
    views = layout.unpack(vector)
    same(views, weights)
    assert [view.stride() for view in views] == [weight.stride() for weight in weights]
    assert layout.pack(views) is vector
    assert layout.pack(list(views)).data_ptr() != vector.data_ptr()
    contiguous = [weight.contiguous() for weight in weights]
    other = FlatLayout.like(contiguous)
    assert torch.equal(layout.pack(contiguous), vector)
    assert torch.equal(other.pack(views), other.pack(contiguous)), "another order: not this vector"
    assert not torch.equal(other.pack(views), vector)
    numbers = torch.arange(len(weights), dtype=torch.float32)
    same(layout.unpack(layout.spread(numbers)), [torch.full_like(w, i) for i, w in enumerate(weights)])


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_a_vector_becomes_rows_of_chunks_and_comes_back(chunk_size: int) -> None:
    weights = [layer.weight.detach() for _, layer in quantized_layers(network(Sign()))]
    memory = FlatLayout.like(weights)
    layout = ChunkLayout(tuple(weight.shape for weight in weights), chunk_size, memory)
    rows, vector = layout.pack(weights), memory.pack(weights)
    found = layout.from_memory(vector)
    assert found.shape == rows.shape
    same(layout.unpack(found), weights)
    assert torch.equal(layout.to_memory(rows), vector)
