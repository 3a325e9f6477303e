"""Weights from files: every format there and back, and one line for whatever does not fit."""

import argparse
import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fsg.data import FashionMNISTSubset
from fsg.models import ResNet
from fsg.starting_points import File, load_into, load_weights, named_for
from fsg.train_config import TrainConfig
from fsg.trainer import Training


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return ResNet.Config(depth=8, width=4).build((1, 8, 8), 3)


def save_npz(path: Path, weights: dict[str, Tensor]) -> None:
    np.savez(path, **{name: tensor.numpy() for name, tensor in weights.items()})  # type: ignore[arg-type]


def save_pt(path: Path, weights: dict[str, Tensor]) -> None:
    torch.save(weights, path)


def save_safetensors(path: Path, weights: dict[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)


SAVE = {".npz": save_npz, ".safetensors": save_safetensors}
SAVE |= dict.fromkeys((".pt", ".pth", ".pth.tar", ".ckpt"), save_pt)


@pytest.mark.parametrize("suffix", SAVE)
def test_weights_come_back_as_they_were_saved(suffix: str, network: nn.Module, tmp_path: Path) -> None:
    saved = network.state_dict()
    SAVE[suffix](tmp_path / f"weights{suffix}", saved)
    loaded = load_weights(tmp_path / f"weights{suffix}")
    assert loaded.keys() == saved.keys()
    assert all(
        torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype for name, tensor in saved.items()
    )


def test_loaded_weights_make_the_same_network(network: nn.Module, tmp_path: Path) -> None:
    save_npz(tmp_path / "weights.npz", network.state_dict())
    other = ResNet.Config(depth=8, width=4).build((1, 8, 8), 3).to(memory_format=torch.channels_last)
    load_into(other, load_weights(tmp_path / "weights.npz"))
    loaded = other.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in network.state_dict().items())
    weight = other.get_parameter("layer1.0.conv1.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)


WRAPPED: list[Callable[[Any], Any]] = [
    lambda w: {"weights": w, "step": 3},
    lambda w: {"state_dict": w, "epoch": 1},
    lambda w: {"model_state_dict": w, "optimizer_state_dict": {"state": {}}},
    lambda w: {"model": w, "optimizer": {"state": {}}, "best": 0.9},
    lambda w: {"net": w, "acc": 91.0},
    lambda w: {"epoch": 3, "model": {"state_dict": w}},
]


@pytest.mark.parametrize("wrap", WRAPPED)
def test_state_dict_inside_a_checkpoint_is_found(
    wrap: Callable[[Any], Any], network: nn.Module, tmp_path: Path
) -> None:
    torch.save(wrap(network.state_dict()), tmp_path / "checkpoint.pt")
    assert load_weights(tmp_path / "checkpoint.pt").keys() == network.state_dict().keys()


class Lightning(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


@pytest.mark.parametrize(
    "wrap",
    [lambda n: n, nn.DataParallel, torch.compile, Lightning, lambda n: Lightning(torch.compile(nn.DataParallel(n)))],
    ids=["plain", "data parallel", "compiled", "lightning", "all"],
)
def test_what_wrappers_put_before_names_is_taken_off(wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    """Of a network whose own names begin with a word that wrappers use, too."""
    network = nn.Sequential(OrderedDict(module=nn.Linear(2, 2)))
    for one in (ResNet.Config(depth=8, width=4).build((1, 8, 8), 4), network):
        torch.save(wrap(one).state_dict(), tmp_path / "weights.pt")
        names = one.state_dict()
        found = named_for(names, load_weights(tmp_path / "weights.pt"))
        assert found.keys() == names.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in names.items())


def test_names_that_come_to_fit_nothing_stay_as_they_are(network: nn.Module) -> None:
    of_another = {f"module.{name}": tensor for name, tensor in nn.Linear(2, 2).state_dict().items()}
    found = named_for(network.state_dict(), of_another)
    assert [name for name in found if not name.endswith("num_batches_tracked")] == ["module.weight", "module.bias"]
    with pytest.raises(ValueError, match=r"unexpected module\.weight"):
        load_into(network, found)


def test_weights_of_a_torch_that_did_not_count_batches_are_read(network: nn.Module) -> None:
    names = network.state_dict()
    old = {name: tensor for name, tensor in names.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(names)
    found = named_for(names, old)
    assert found.keys() == names.keys()
    assert found["bn1.num_batches_tracked"] == 0
    partly = old | {"bn1.num_batches_tracked": torch.tensor(7)}
    assert named_for(names, partly).keys() == partly.keys()


def test_a_training_starts_from_a_wrapped_file(tmp_path: Path) -> None:
    start = ResNet.Config(depth=8, width=4).build((1, 28, 28), 10)
    torch.save({"state_dict": Lightning(start).state_dict()}, tmp_path / "start.ckpt")
    data = FashionMNISTSubset(validation=100, train_limit=64)
    init = File(path=str(tmp_path / "start.ckpt"))
    config = TrainConfig(data=data, model=ResNet.Config(depth=8, width=4), init=init, epochs=0)
    assert torch.equal(Training(config, 0).weights()["conv1.weight"], start.state_dict()["conv1.weight"])


def test_weights_of_another_dtype_are_converted(network: nn.Module) -> None:
    load_into(network, {name: tensor.double() for name, tensor in network.state_dict().items()})
    assert network.get_parameter("fc.weight").dtype == torch.float32


def test_file_that_is_no_mere_tensors_says_which_object_it_holds_and_what_to_write(
    network: nn.Module, tmp_path: Path
) -> None:
    held = {"a.pth": network, "b.pth.tar": {"args": Fraction(1, 2), "state_dict": network.state_dict()}}
    names = {"a.pth": "fsg.models.resnet.ResNet", "b.pth.tar": "fractions.Fraction"}
    for file, content in held.items():
        torch.save(content, tmp_path / file)
        with pytest.raises(
            ValueError, match=rf"it holds {re.escape(names[file])}, .*expected what torch\.save"
        ) as error:
            load_weights(tmp_path / file)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_published_files_hold_beside_their_weights_is_passed_over(
    zipped: bool, network: nn.Module, tmp_path: Path
) -> None:
    before = set(torch.serialization.get_safe_globals())
    args = argparse.Namespace(lr=np.float32(0.1), to=Path("x"), at=datetime.now(UTC).replace(tzinfo=None))
    best = {"top1": np.float64(0.9), "curve": np.arange(3.0), "names": np.array(["a", None]), "row": np.void(b"12")}
    held = {"args": args, "best": best, "dtype": np.dtype("f4"), "state_dict": network.state_dict()}
    torch.save(held, tmp_path / "weights.pth.tar", _use_new_zipfile_serialization=zipped)
    found = load_weights(tmp_path / "weights.pth.tar")
    assert found.keys() == network.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in network.state_dict().items())
    assert set(torch.serialization.get_safe_globals()) == before


class Crafted:
    """A dtype whose flags come from the file: NumPy would take what is no object for one."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.dtype, ("V8",), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)


@pytest.mark.parametrize("other", [np.zeros(4), np.float32(1), argparse.Namespace(), Crafted()])
def test_of_other_objects_none_is_made_and_in_the_place_of_tensors_they_are_named(
    other: object, network: nn.Module, tmp_path: Path
) -> None:
    torch.save(network.state_dict() | {"fc.bias": other}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"among the weights \(fc\.bias\): expected what torch\.save"):
        load_weights(tmp_path / "weights.pt")


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_pickled_code_is_refused_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Malicious()}, "weights.pt")
    np.savez("weights.npz", weight=np.array([Malicious()], dtype=object))
    for name in ("weights.pt", "weights.npz"):
        with pytest.raises(ValueError, match=f"{name}: not a readable") as caught:
            load_weights(name)
        assert "\n" not in str(caught.value)
    assert not Path("executed").exists()


@pytest.mark.parametrize("suffix", SAVE)
@pytest.mark.parametrize("damage", ["missing", "folder", "text", "truncated"])
def test_file_that_cannot_be_read_gets_one_line(suffix: str, damage: str, network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    SAVE[suffix](path, network.state_dict())
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(b"text\n" if damage == "text" else whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="no such file" if damage == "missing" else "not a readable") as caught:
        load_weights(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([1, 2], "holds a list"),
        ({}, "expected named tensors, found none"),
        ({"epoch": 3, "lr": 0.1}, "expected named tensors, found epoch is a int, lr is a float"),
    ],
)
def test_file_of_something_else_gets_one_line(held: Any, message: str, tmp_path: Path) -> None:
    torch.save(held, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=message):
        load_weights(tmp_path / "weights.pt")


def test_unknown_kind_of_file_names_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"weights.bin: expected a name that ends in .npz, .pt, .pth, .pth.tar, .ckpt, .safetensors"
    ):
        load_weights("weights.bin")


def test_weights_that_do_not_fit_are_named_in_one_line_and_nothing_is_changed(network: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    weights = {name: tensor + 1 for name, tensor in before.items()}
    weights["fc.wieght"] = weights.pop("fc.weight")
    weights["fc.bias"] = torch.zeros(10)
    with pytest.raises(ValueError, match="do not fit") as caught:
        load_into(network, weights)
    message = str(caught.value)
    assert "missing fc.weight;" in message
    assert "unexpected fc.wieght (did you mean fc.weight?);" in message
    assert "of another shape fc.bias (10,) (expected (3,))" in message
    assert "\n" not in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_named_unless_the_network_has_such_itself(
    network: nn.Module, value: float
) -> None:
    network.register_buffer("mask", torch.full((2,), float("-inf")))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    load_into(network, before)
    spoilt = before | {"fc.weight": before["fc.weight"] * value, "bn1.running_var": before["bn1.running_var"] * value}
    with pytest.raises(ValueError, match="the weights hold") as caught:
        load_into(network, spoilt)
    assert str(caught.value) == (
        "the weights hold NaN or infinity: bn1.running_var, fc.weight (expected finite numbers)"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_long_lists_of_names_are_cut_short(network: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"missing conv1.weight, bn1.weight, bn1.bias, bn1.running_mean and \d+ more$"):
        load_into(network, {})


def test_fingerprint_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"whatever")
    assert File(path=str(tmp_path / "weights.pt")).fingerprint() == hashlib.sha256(b"whatever").hexdigest()
    with pytest.raises(ValueError, match=r"none.pt: cannot be read \(No such file or directory\)"):
        File(path=str(tmp_path / "none.pt")).fingerprint()
