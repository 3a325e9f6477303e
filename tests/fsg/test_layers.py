from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fsg.estimators import FSG, STE, GradientEstimator
from fsg.layers import QuantConv2d, QuantLinear, dequantize, quantize, quantized_layers
from fsg.optimizers import SGD
from fsg.quantizers import BaseQuantizer, Sign
from fsg.step import train_step


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))


def test_quantize_replaces_convolutions_and_linear_layers_and_keeps_everything_else() -> None:
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantize(model, Sign())
    assert type(model[0]) is QuantConv2d
    assert type(model[3]) is QuantLinear
    assert type(model[1]) is nn.BatchNorm2d
    assert {n: t.tolist() for n, t in model.state_dict().items()} == {n: t.tolist() for n, t in before.items()}


def test_a_plain_call_quantizes_the_latent_weight() -> None:
    model = quantize(small(), Sign()).eval()
    images = torch.randn(2, 3, 8, 8)
    plain = small().eval()
    plain.load_state_dict(model.state_dict())
    for layer in (plain[0], plain[3]):
        layer.weight.data = layer.weight.data.sign()
    torch.testing.assert_close(model(images), plain(images), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", ["valid", "same", (3, 1)], ids=str)
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_convolutions_pad_as_torch_does(dimensions: int, padding: str | tuple[int, int], mode: str) -> None:
    """Bit for bit, with kernels of several sizes, and an even one whose `same` padding is uneven."""
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    sizes, dilation = (4, 3, 2)[:dimensions], (2, 1, 3)[:dimensions]
    widths = padding if isinstance(padding, str) else (*padding, 2)[:dimensions]
    stride = 1 if padding == "same" else (1, 2, 3)[:dimensions]
    settings = {"stride": stride, "padding": widths, "dilation": dilation, "groups": 2, "padding_mode": mode}
    plain = convolution(4, 6, sizes, **settings)  # type: ignore[arg-type]
    model = quantize(nn.Sequential(convolution(4, 6, sizes, **settings)), Sign())  # type: ignore[arg-type]
    model[0].load_state_dict(plain.state_dict())
    plain.weight.data = plain.weight.data.sign()
    images = torch.randn(2, 4, *(9, 10, 11)[:dimensions])
    torch.testing.assert_close(model(images), plain(images), rtol=0, atol=0)


def test_a_weight_put_in_by_functional_call_is_used_as_it_is() -> None:
    model = quantize(small(), Sign()).eval()
    images = torch.randn(2, 3, 8, 8)
    proposed = {"0.weight": torch.full((4, 3, 3, 3), 0.25), "3.weight": torch.full((5, 144), 0.5)}
    features = nn.functional.conv2d(images, proposed["0.weight"])
    expected = nn.functional.linear(model[1](features).flatten(1), proposed["3.weight"], model[3].bias)
    torch.testing.assert_close(functional_call(model, proposed, (images,)), expected, rtol=0, atol=0)


def test_shared_and_frozen_layers_are_listed_once_or_not_at_all() -> None:
    shared = nn.Linear(4, 4)
    model = quantize(nn.Sequential(shared, nn.Linear(4, 4), shared), Sign())
    model[1].weight.requires_grad_(False)
    assert [name for name, _ in quantized_layers(model)] == ["0"]


def test_layers_named_stay_in_full_precision() -> None:
    model = nn.Sequential(small(), nn.Linear(5, 5), nn.Linear(5, 2))
    quantize(model, Sign(), ["0.0", "*2"])
    assert [name for name, _ in quantized_layers(model)] == ["0.3", "1"]
    assert type(model[2]) is nn.Linear


def test_a_shared_layer_stays_in_full_precision_by_any_of_its_names() -> None:
    shared = nn.Linear(4, 4)
    model = quantize(nn.Sequential(shared, nn.Linear(4, 4), shared), Sign(), ["2"])
    assert [name for name, _ in quantized_layers(model)] == ["1"]


def test_a_pattern_without_a_layer_is_refused_and_changes_nothing() -> None:
    model = small()
    with pytest.raises(ValueError, match=r"no layer is named '1', expected a pattern for some of 0, 3"):
        quantize(model, Sign(), ["1"])
    assert type(model[0]) is nn.Conv2d
    with pytest.raises(ValueError, match="no layer to quantize"):
        quantize(model, Sign(), ["*"])


@dataclass(frozen=True)
class Growing(BaseQuantizer):
    """±size, which grows from 1 to 2."""

    size: float = 3.0

    def quantize(self, prequantized: torch.Tensor) -> torch.Tensor:
        return self.size * super().quantize(prequantized)

    def at(self, progress: float) -> "Growing":
        return Growing(1 + progress)


class OfOnesOwn(GradientEstimator):
    """As docs/library.md has one: it knows of no annealing."""

    def propose(self, model: nn.Module, *, lr: float, progress: float) -> dict[str, torch.Tensor]:
        self.quantized = {
            f"{name}.weight": layer.quantizer(layer.weight.detach()).requires_grad_()
            for name, layer in self.layers.items()
        }
        return self.quantized

    def update(self, model: nn.Module) -> bool:
        for name, layer in self.layers.items():
            layer.weight.grad = self.quantized[f"{name}.weight"].grad
        return True


@pytest.mark.parametrize(
    "build", [STE.Config().build, FSG.Config(hidden=4).build, OfOnesOwn], ids=["ste", "fsg", "own"]
)
def test_an_annealed_quantizer_is_that_of_the_moment_in_training_and_evaluation(build: Any) -> None:
    model = quantize(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), Growing())
    model[0].weight.requires_grad_(False)
    assert set(model[1].quantizer(model[1].weight).abs().unique().tolist()) == {3.0}
    estimator, optimizer = build(model), SGD(lr=0.1).build(model)
    for progress in (0.0, 0.5, 0.25):
        images, labels = torch.randn(5, 3), torch.arange(5) % 2
        train_step(model, estimator, optimizer, images, labels, lr=0.1, progress=progress)
        assert set(estimator.quantized_weights()[0].abs().unique().tolist()) == {1 + progress}
        for layer in model:
            torch.testing.assert_close(layer.quantized_weight().abs(), torch.full_like(layer.weight, 1 + progress))
    weights = estimator.propose(model, lr=0.1, progress=0.75)  # in a loop of one's own
    assert isinstance(estimator, OfOnesOwn) or weights["1.weight"].abs().max() == 1.75
    dequantize(model)
    assert {"quantizer", "given_quantizer"} & {name for layer in model for name in dir(layer)} == set()


def test_a_layer_may_be_given_a_quantizer_of_its_own() -> None:
    model = quantize(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), Growing())
    model[1].quantizer = Sign()
    estimator, optimizer = STE.Config().build(model), SGD(lr=0.1).build(model)
    train_step(model, estimator, optimizer, torch.randn(4, 3), torch.arange(4) % 2, lr=0.1, progress=0.5)
    assert [layer.quantized_weight().abs().max().item() for layer in model] == [1.5, 1.0]


def test_a_quantizer_without_annealing_stays_the_same_object_and_needs_no_method_for_it() -> None:
    class Plain:
        def __getattr__(self, name: str) -> Any:
            if name in ("at", "scale_gradient"):
                raise AttributeError(name)
            return getattr(Sign(), name)

        def __call__(self, weight: torch.Tensor) -> torch.Tensor:
            return Sign()(weight)

    for quantizer in (Sign(), Plain()):
        model = quantize(nn.Sequential(nn.Linear(3, 2)), quantizer)  # type: ignore[arg-type]
        estimator, optimizer = STE.Config().build(model), SGD(lr=0.1).build(model)
        train_step(model, estimator, optimizer, torch.randn(4, 3), torch.arange(4) % 2, lr=0.1, progress=0.5)
        assert model[0].quantizer is quantizer
        assert torch.isfinite(model[0].weight).all()


def test_dequantize_is_the_inverse_of_quantize() -> None:
    model, plain = small().eval(), small().eval()
    plain.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 8, 8)
    quantize(model, Sign())[0].weight.requires_grad_(False)
    assert not torch.equal(model(images), plain(images))
    assert torch.equal(dequantize(model)(images), plain(images))
    assert [type(module) for module in model] == [type(module) for module in plain]
    quantize(model, Sign())
    assert type(model[0]) is QuantConv2d
