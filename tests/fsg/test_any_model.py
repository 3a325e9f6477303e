"""quantize() in networks that were not written for it: what becomes binary, and what a plain call computes then."""

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from test_estimators import ESTIMATORS, Network, every_estimator
from torch import Tensor, nn

from fsg.estimators import FSG, STE
from fsg.layers import QuantConv1d, QuantConv3d, QuantLinear, quantize, quantized_layers
from fsg.optimizers import Adam
from fsg.quantizers import DoReFa, Sign
from fsg.step import train_step


class Transformer(nn.Module):
    """A small one of torch's own blocks, [b, 16, 8] → [b, 3]."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(block, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(tokens).mean(1))


def trained(config: Any, model: nn.Module, inputs: Tensor, classes: int = 3, steps: int = 3) -> nn.Module:
    estimator, optimizer = config.build(model), Adam(lr=0.01).build(model)
    before = copy.deepcopy(model.state_dict())
    for t in range(steps):
        labels = torch.arange(len(inputs)) % classes
        train_step(model, estimator, optimizer, inputs, labels, lr=0.01, progress=t / steps)
    for name, layer in estimator.layers.items():
        assert torch.isfinite(layer.weight).all()
        assert not torch.equal(layer.weight, before[f"{name}.weight" if name else "weight"]), name
    return model


def with_quantized_weights(model: nn.Module, plain: nn.Module) -> nn.Module:
    """A full-precision network of the same kind that has the quantized weights for its own."""
    plain.load_state_dict(model.state_dict())
    for name, layer in quantized_layers(model):
        plain.get_parameter(f"{name}.weight").data.copy_(layer.quantizer(layer.weight.detach()))
    return plain


ATTENTION = "ignore:in full precision stay encoder:UserWarning"


@pytest.mark.filterwarnings(ATTENTION)
def test_evaluation_of_a_transformer_uses_the_quantized_weights_without_gradients_too() -> None:
    """Where torch would hand the latent weights to a fused kernel that knows nothing of layers."""
    torch.manual_seed(0)
    model = quantize(Transformer(), Sign()).eval()
    plain = with_quantized_weights(model, Transformer()).eval()
    tokens = torch.randn(2, 16, 8)
    expected = plain(tokens).detach()
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), expected, rtol=1e-5, atol=1e-6)
        padding = torch.arange(16).expand(2, 16) >= torch.tensor([[16], [9]])
        masked = model.encoder(tokens, src_key_padding_mask=padding)  # type: ignore[operator]
    kept = plain.encoder(tokens, src_key_padding_mask=padding)  # type: ignore[operator]
    torch.testing.assert_close(masked[~padding], kept.detach()[~padding], rtol=1e-5, atol=1e-6)


def test_attention_stays_in_full_precision_and_is_named() -> None:
    with pytest.warns(
        UserWarning, match=r"in full precision stay encoder.layers.0.self_attn \(MultiheadAttention\), enc"
    ):
        model = quantize(Transformer(), Sign())
    expected = ["encoder.layers.0.linear1", "encoder.layers.0.linear2", "encoder.layers.1.linear1"]
    assert [name for name, _ in quantized_layers(model)] == [*expected, "encoder.layers.1.linear2", "head"]
    assert not isinstance(model.get_submodule("encoder.layers.0.self_attn.out_proj"), QuantLinear)


@pytest.mark.filterwarnings(ATTENTION)
@pytest.mark.parametrize("config", [STE.Config(), FSG.Config(chunk_size=8, hidden=4)], ids=["ste", "fsg"])
def test_transformers_are_trained(config: Any) -> None:
    torch.manual_seed(0)
    trained(config, quantize(Transformer(), DoReFa()), torch.randn(6, 16, 8))
    sizes = {"image_size": 8, "patch_size": 4, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    vision = quantize(torchvision.models.VisionTransformer(**sizes, num_classes=3), DoReFa())
    trained(config, vision, torch.randn(6, 3, 8, 8))


@pytest.mark.parametrize(
    ("layer", "kind", "inputs"),
    [
        (nn.Conv1d(2, 3, 3, padding="same", padding_mode="circular"), QuantConv1d, torch.randn(4, 2, 9)),
        (nn.Conv3d(2, 4, 2, groups=2, stride=2), QuantConv3d, torch.randn(4, 2, 4, 4, 4)),
    ],
)
def test_convolutions_of_one_and_three_dimensions(layer: nn.Module, kind: type, inputs: Tensor) -> None:
    plain = copy.deepcopy(layer)
    model = quantize(layer, Sign())
    assert type(model) is kind
    plain.weight.data = plain.weight.data.sign()
    torch.testing.assert_close(model(inputs), plain(inputs))
    head = nn.Sequential(model, nn.Flatten(), nn.Linear(model(inputs)[0].numel(), 3))
    for config in (STE.Config(), FSG.Config(chunk_size=4, hidden=4)):
        trained(config, head, inputs)


def test_an_mlp_is_trained() -> None:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
    trained(FSG.Config(chunk_size=8, hidden=4), quantize(mlp, DoReFa()), torch.randn(6, 3, 2, 2))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight


def test_a_layer_that_shares_its_weight_with_an_embedding_stays_in_full_precision_and_is_named() -> None:
    with pytest.warns(UserWarning, match=r"in full precision stay head \(its weight is also another module's\)"):
        model = quantize(Tied(), Sign())
    assert [name for name, _ in quantized_layers(model)] == ["inner"]


@pytest.mark.parametrize(
    "other", [nn.ConvTranspose2d(2, 2, 2), nn.LSTM(2, 2), nn.Bilinear(2, 2, 2), type("Mine", (nn.Linear,), {})(2, 2)]
)
def test_what_multiplies_with_weights_and_is_not_quantized_is_named(other: nn.Module) -> None:
    with pytest.warns(UserWarning, match=rf"in full precision stay 1 \({type(other).__name__}\)"):
        model = quantize(nn.Sequential(nn.Linear(2, 2), other), Sign())
    assert [name for name, _ in quantized_layers(model)] == ["0"]


def test_nothing_is_said_where_all_is_quantized() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(torchvision.models.resnet18(), Sign())
        quantize(quantize(Network(), Sign()), Sign())


@every_estimator
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_other_dtypes_are_trained_in_them(config: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = quantize(Network(), DoReFa()).to(dtype)
    estimator, optimizer = config.build(model), Adam(lr=0.01).build(model)
    for t in range(2):
        images = torch.randn(6, 2, 6, 6, dtype=dtype)
        loss = train_step(model, estimator, optimizer, images, torch.arange(6) % 3, lr=0.01, progress=t / 2)
        assert loss.dtype == dtype
        assert torch.isfinite(loss)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        assert parameter.dtype == dtype
        assert parameter.grad is not None
        assert torch.isfinite(parameter).all()


def test_a_compiled_model_trains_to_the_same_numbers_from_one_graph() -> None:
    """With the backend that runs the captured graph as it stands; another fuses, and rounds otherwise."""
    frames: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        frames.append(len(inputs))
        return graph.forward

    def run(compiled: bool) -> list[float]:
        torch.manual_seed(0)
        model = quantize(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)), DoReFa())
        config: Any = ESTIMATORS["fsg"]
        called = torch.compile(model, backend=backend) if compiled else model
        estimator, optimizer = config.build(called), Adam(lr=0.01).build(called)
        losses = []
        for t in range(4):
            images = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(t))
            labels = torch.arange(5) % 3
            losses.append(float(train_step(called, estimator, optimizer, images, labels, lr=0.01, progress=t / 4)))
        called.eval()
        with torch.no_grad():
            losses.append(float(F.cross_entropy(called(images), labels)))
        return losses

    assert run(compiled=True) == run(compiled=False)
    assert len(frames) == 2, "one for training with proposed weights, one for the plain call"
