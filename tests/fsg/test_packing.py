"""Weights as planes of signs, and the files of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fsg.packing import PackedNetwork, Planes, packed_signs, planes_of, read, write
from fsg.quantizers import BWN, DoReFa, Libra, Quantizer, ReCU, Sign

QUANTIZERS: dict[str, tuple[Quantizer, int]] = {
    "dorefa": (DoReFa(), 1),
    "dorefa of 2 bits": (DoReFa(weight_bits=2), 2),
    "dorefa of 4 bits": (DoReFa(weight_bits=4), 4),
    "sign": (Sign(), 1),
    "bwn": (BWN(), 1),
    "bwn, a scale a layer": (BWN(scale="layer"), 1),
    "libra": (Libra(), 1),
    "recu": (ReCU(), 1),
}


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("shape", [(5, 3), (4, 2, 3, 3), (1, 1)])
def test_planes_give_what_the_quantizer_gave(name: str, shape: tuple[int, ...]) -> None:
    quantizer, bits = QUANTIZERS[name]
    weight = quantizer(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    planes = planes_of(weight)
    assert planes is not None
    assert len(planes.positive) <= bits  # a few weights of four bits may lie on two signs
    assert torch.allclose(planes.weight, weight, rtol=0, atol=2e-6)
    if bits == 1:
        assert torch.equal(planes.weight, weight)


def test_many_weights_of_k_bits_are_k_planes() -> None:
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    for bits in (1, 2, 4):
        planes = planes_of(DoReFa(weight_bits=bits)(weight))  # type: ignore[arg-type]
        assert planes is not None
        assert (len(planes.positive), planes.scale.shape) == (bits, (bits, 1, 1))


def test_a_scale_is_kept_once_where_all_channels_have_the_same() -> None:
    both = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    kept, each = planes_of(3 * both), planes_of(torch.tensor([[3.0], [2.0]]) * both)
    assert kept is not None
    assert each is not None
    assert kept.scale.tolist() == [[[3.0]]]
    assert each.scale.tolist() == [[[3.0], [2.0]]]


@pytest.mark.parametrize(
    "weight",
    [
        torch.tensor([[1.0, 0.0, -1.0]]),  # three levels
        torch.tensor([[1.0, -1.00001]]),
        torch.tensor([[1.0, torch.nan]]),
        torch.linspace(-1, 1, 17).reshape(1, -1),
    ],
)
def test_other_levels_are_no_planes(weight: torch.Tensor) -> None:
    assert planes_of(weight) is None


def test_a_channel_of_zeros_stays_zero() -> None:
    planes = planes_of(torch.tensor([[0.0, 0.0], [2.0, -2.0]]))
    assert planes is not None
    assert planes.weight.tolist() == [[0.0, 0.0], [2.0, -2.0]]


def test_signs_lie_eight_to_a_byte_the_first_highest() -> None:
    one = Planes(torch.tensor([[[True, False, False], [False, False, False]]]), torch.ones(1, 1, 1))
    two = Planes(torch.tensor([[[True, True, False, False]]]), torch.ones(1, 1, 1))
    assert packed_signs([one, two]).tolist() == [0b10000011, 0b00000000]
    assert packed_signs([]).tolist() == []


@pytest.fixture
def network() -> PackedNetwork:
    draw = torch.Generator().manual_seed(0)
    weights = {
        "a.weight": BWN()(torch.randn(3, 5, generator=draw)),
        "b": DoReFa(weight_bits=2)(torch.randn(7, 1, 3, 3)),
    }
    planes = {name: found for name, weight in weights.items() if (found := planes_of(weight)) is not None}
    return PackedNetwork(planes, {"a.bias": torch.randn(3), "n": torch.tensor(4)}, {"mean": "[0.5]"})


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_file_gives_back_what_was_written(suffix: str, network: PackedNetwork, tmp_path: Path) -> None:
    write(network, tmp_path / f"x{suffix}")
    back = read(tmp_path / f"x{suffix}")
    assert back.about == {"mean": "[0.5]"}
    assert list(back.planes) == list(network.planes)
    for name, tensor in network.tensors().items():
        assert torch.equal(back.tensors()[name], tensor), name
    assert back.nbytes == network.nbytes == 1 + (15 + 2 * 63 - 1) // 8 + 4 * (3 + 2) + 4 * 3 + 8


def test_numpy_reads_the_npz_without_us(network: PackedNetwork, tmp_path: Path) -> None:
    """Bit by bit, in another way than the documentation's."""
    write(network, tmp_path / "x.npz")
    file = np.load(tmp_path / "x.npz")
    place = 0
    for name, shape in json.loads(str(file["shapes"])).items():
        scale, expected = file[f"{name}.scale"], network.planes[name].weight.numpy()
        found = np.zeros(shape)
        for plane in range(len(scale)):
            for index in np.ndindex(*shape):
                bit = file["signs"][place // 8] >> (7 - place % 8) & 1
                found[index] += (1 if bit else -1) * scale[(plane, index[0] % scale.shape[1], *[0] * (len(shape) - 1))]
                place += 1
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_is_no_such_file_is_told(network: PackedNetwork, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.pt: expected a name that ends in \.npz or \.safetensors"):
        write(network, tmp_path / "x.pt")
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match=r"x\.npz: has no shapes and signs \(expected a file of fsg export\)"):
        read(tmp_path / "x.npz")
