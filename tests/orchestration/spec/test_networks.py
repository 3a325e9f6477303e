"""What the networks of an experiment cost, each counted once."""

from dataclasses import replace

import pytest
import torch

import fsg
from fsg.data import Arrays, FashionMNISTSubset
from fsg.estimators import STE, FullPrecision
from fsg.models import ResNet
from fsg.train_config import TrainConfig
from orchestration.spec import networks
from orchestration.spec.cells import Cell
from orchestration.spec.networks import NetworkOfLines, cost_texts, networks_of
from orchestration.util.magnitude import magnitude

TRAIN = TrainConfig(
    data=FashionMNISTSubset(train_limit=64), model=ResNet.Config(depth=8, width=2), estimator=STE.Config(), epochs=1
)


def cell(variant: str, train: TrainConfig, seed: int = 0) -> Cell:
    return Cell(f"{variant}{seed}", "train", variant, {}, seed, train)


def test_lines_with_one_network_are_counted_once_and_stand_together(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    count = networks.network_cost
    monkeypatch.setattr(networks, "network_cost", lambda *of: counted.append(of) or count(*of))
    cells = [cell("ste", TRAIN), cell("ste", TRAIN, 1), cell("ede", replace(TRAIN, estimator=fsg.EDE.Config()))]
    cells += [cell("fp", replace(TRAIN, estimator=FullPrecision.Config()))]
    cells += [cell("kept", replace(TRAIN, full_precision_layers=("conv1", "fc")))]
    before = torch.get_rng_state()
    found = networks_of(cells)
    assert torch.equal(torch.get_rng_state(), before)
    assert [one.lines for one in found] == [("ste", "ede"), ("fp",), ("kept",)]
    assert len(counted) == 3
    binary, real, kept = (one.cost for one in found)
    assert binary is not None
    assert real is not None
    assert kept is not None
    assert binary.parameters == real.parameters == kept.parameters == 1384
    assert (real.binary_share, real.packed_bytes) == (0.0, real.float_bytes)
    quantized = 1384 - 10 - 84  # without the linear layer's bias and the batch norms'
    assert binary.binary_share == quantized / 1384
    assert kept.binary_share == (quantized - 18 - 80) / 1384
    assert cost_texts(binary) == ("1,384", "93.2\u00a0%", "5.87\u00a0kB", "914\u00a0B", "317\u00a0k", "5.07\u00a0M")
    assert [NetworkOfLines.from_dict(one.to_dict()) for one in found] == found


def test_a_network_that_cannot_be_counted_says_why() -> None:
    (one,) = networks_of([cell("a", replace(TRAIN, data=Arrays(file="/nowhere.npz")))])
    assert (one.lines, one.cost) == (("a",), None)
    assert "/nowhere.npz" in one.problem


def test_lines_are_named_in_a_few_words() -> None:
    assert NetworkOfLines(("a", "b", "c"), None).of == "a, b, c"
    assert NetworkOfLines(tuple("abcde"), None).of == "a, b, c and 2 more"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1\u00a0k"), (81626368, "81.6\u00a0M"), (999_600, "1\u00a0M"), (2e15, "2\u00a0P")],
)
def test_counts_as_people_read_them(count: float, text: str) -> None:
    assert magnitude(count) == text
