"""Parameters, bytes and operations, counted by hand."""

import pytest
import torch
from torch import nn

import fsg
from fsg import costs
from fsg.costs import LayerCost, NetworkCost, network_cost
from fsg.models import ResNet, VGGSmall


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm, self.sign = nn.BatchNorm2d(4), fsg.SignActivation()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.fc = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.conv(self.sign(self.norm(self.stem(images))))
        return self.fc(self.fc(features.mean((2, 3)))[:, [0, 1, 2, 0]])


STEM, CONV, FC = 4 * 5 * 6 * 2 * 9, 4 * 5 * 6 * 2 * 9, 2 * 4 * 3  # multiply-accumulates; the linear layer runs twice


def test_each_layer_is_counted_as_by_hand() -> None:
    cost = network_cost(fsg.quantize(Net(), fsg.DoReFa(), ["stem"]), (2, 5, 6))
    assert cost.layers == (
        LayerCost("stem", 76, 0, 32, 32, 2 * STEM),
        LayerCost("norm", 8, 0, 32, 32, 0),
        LayerCost("conv", 72, 72, 1, 1, 2 * CONV),
        LayerCost("fc", 15, 12, 1, 32, 2 * FC),
    )
    assert [layer.bops for layer in cost.layers] == [STEM * 32 * 32, 0, CONV, FC * 32]
    assert (cost.parameters, cost.binary_share) == (171, 84 / 171)
    assert (cost.flops, cost.bops) == (2 * (STEM + CONV + FC), STEM * 1024 + CONV + FC * 32)
    assert cost.float_bytes == 4 * (171 + 8)  # with the statistics of the batch norm
    assert cost.packed_bytes == (84 + 4) // 8 + 2 * 4 + 4 * (171 + 8 - 84)
    assert NetworkCost.from_dict(cost.to_dict()) == cost


def test_bits_of_weights_count() -> None:
    cost = network_cost(fsg.quantize(nn.Sequential(nn.Linear(40, 30)), fsg.DoReFa(weight_bits=4)), (40,))
    (layer,) = cost.layers
    assert (layer.weight_bits, layer.quantized, layer.bops) == (4, 1200, 1200 * 4 * 32)
    assert (cost.binary_share, cost.packed_bytes) == (0.0, 600 + 4 * 4 + 4 * 30)


def test_a_shared_layer_has_its_parameters_once_and_all_its_operations() -> None:
    layer = nn.Linear(4, 4)
    cost = network_cost(fsg.quantize(nn.Sequential(layer, nn.ReLU(), layer), fsg.Sign()), (4,))
    assert cost.layers == (LayerCost("0", 20, 16, 1, 32, 2 * 2 * 16),)


def test_attention_counts_as_its_own_layer() -> None:
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with pytest.warns(UserWarning, match="in full precision stay self_attn"):
        cost = network_cost(fsg.quantize(block, fsg.Sign()), (5, 8))
    flops = {layer.layer: layer.flops for layer in cost.layers}
    attention = 2 * 5 * 8 * 24 + 2 * (2 * 5 * 5 * 4) * 2  # projections to q, k, v; q·k and ·v of two heads
    assert flops["self_attn"] + flops["self_attn.out_proj"] == attention + 2 * 5 * 8 * 8
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_resnet_of_the_papers() -> None:
    """40.6 M multiply-accumulates follow from the paper's table; 1x1 shortcuts come to them."""
    cost = network_cost(fsg.quantize(ResNet.Config().build((3, 32, 32), 10), fsg.DoReFa()), (3, 32, 32))
    shortcuts = 16 * 16 * 16 * 32 + 8 * 8 * 32 * 64
    assert cost.flops // 2 == 40_551_040 + shortcuts
    assert cost.float_bytes / cost.packed_bytes > 20


OURS = {
    "resnet": ResNet.Config(depth=8, width=4),
    "zeros": ResNet.Config(depth=8, width=4, shortcut="A", activation_bits=1),
    "pooled": ResNet.Config(depth=8, width=4, shortcut="pooled", classifier_norm=True),
    "vgg": VGGSmall.Config(width=8),
    "hard": VGGSmall.Config(width=8, nonlinearity="hardtanh"),
}


@pytest.mark.parametrize("config", OURS.values(), ids=OURS.keys())
def test_the_layers_of_our_networks_come_to_what_torch_counts(
    config: ResNet.Config | VGGSmall.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = fsg.quantize(config.build((3, 16, 16), 10), fsg.DoReFa())
    alone = network_cost(network, (3, 16, 16))
    monkeypatch.setattr(costs, "_LAYERS", set())  # so that no network is layers alone
    assert network_cost(network, (3, 16, 16)) == alone
    assert alone.flops > 0


def test_what_is_no_layer_is_counted_too() -> None:
    class Product(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images @ images.transpose(1, 2)

    cost = network_cost(fsg.quantize(nn.Sequential(nn.Linear(4, 4), Product()), fsg.Sign()), (3, 4))
    assert cost.flops == 2 * 3 * 4 * 4 + 2 * 3 * 4 * 3


def test_counting_leaves_the_threads_as_they_were() -> None:
    were = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        network_cost(fsg.quantize(nn.Linear(4, 4), fsg.Sign()), (4,))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(were)
