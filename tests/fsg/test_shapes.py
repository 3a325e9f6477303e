import subprocess
import sys

import pytest
import torch
from torch import nn

from fsg.models import ResNet, VGGSmall
from fsg.shapes import shapes_only


@pytest.mark.parametrize("config", [ResNet.Config(), VGGSmall.Config()])
def test_a_network_without_numbers_has_the_shapes_of_one_with_them(config: ResNet.Config | VGGSmall.Config) -> None:
    before = torch.get_rng_state()
    with shapes_only():
        network = config.build((3, 32, 32), 10)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    expected = {name: tensor.shape for name, tensor in config.build((3, 32, 32), 10).state_dict().items()}
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == expected


def test_what_is_made_elsewhere_has_its_numbers() -> None:
    with shapes_only(), torch.device("cpu"):
        weight = nn.init.constant_(torch.empty(3), 2.0)
        drawn = torch.zeros(100).normal_()
    assert weight.tolist() == [2.0, 2.0, 2.0]
    assert 0.5 < drawn.std() < 2


def test_no_compiler_is_imported_for_it() -> None:
    look = """
import sys
from fsg.models import ResNet, VGGSmall
from fsg.shapes import shapes_only
with shapes_only():
    ResNet.Config().build((3, 32, 32), 10), VGGSmall.Config().build((3, 32, 32), 10)
print("torch" in sys.modules, "torch._dynamo" in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", look], check=True, capture_output=True, text=True)
    assert said.stdout.split() == ["True", "False"]
