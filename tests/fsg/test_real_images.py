"""What only the published images can show: those in the folder that FSG_DATA names, in torchvision's layout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fsg.data import CIFAR10, Arrays, DataError, FashionMNIST, FashionMNISTSubset
from fsg.embedded import make_fashion_mnist_subset as make
from fsg.models import ResNet
from fsg.starting_points import load_into, load_weights

SHARED = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where CIFAR-10 and Fashion-MNIST are: named by FSG_DATA, or unpacked from ../shared/data for the session."""
    if "FSG_DATA" in os.environ:
        return Path(os.environ["FSG_DATA"])
    if not (SHARED / "unpack.py").exists():
        pytest.skip(f"no real images: FSG_DATA is not set, and {SHARED} has no unpack.py")
    unpacked = tmp_path_factory.mktemp("real")
    subprocess.run([sys.executable, SHARED / "unpack.py", unpacked], check=True)
    return unpacked


@pytest.fixture
def cifar10(folder: Path) -> CIFAR10:
    if not (folder / CIFAR10.holds).is_dir():
        pytest.skip(f"{folder} has no {CIFAR10.holds}")
    return CIFAR10(folder=str(folder))


@pytest.fixture
def fashion_mnist(folder: Path) -> FashionMNIST:
    if not (folder / FashionMNIST.holds).is_dir():
        pytest.skip(f"{folder} has no {FashionMNIST.holds}")
    return FashionMNIST(folder=str(folder))


@pytest.fixture
def published_files() -> Path:
    if not make.SOURCE.is_dir():
        pytest.skip(f"{make.SOURCE} is not there: Debian's package dataset-fashion-mnist is not installed")
    return make.SOURCE


def test_full_precision_resnet20_has_its_published_accuracy_on_cifar10(cifar10: CIFAR10) -> None:
    file = SHARED / "resnet20_cifar10_full_precision.npz"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    network = ResNet.Config(depth=20).build((3, 32, 32), 10)
    load_into(network, load_weights(file))
    network = network.to(memory_format=torch.channels_last).eval()
    with torch.inference_mode():
        batches = cifar10.load().evaluation("test", 500)
        correct = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in batches)
    assert correct == 9150


def test_cifar10_is_split_and_counted_as_published(cifar10: CIFAR10) -> None:
    data = cifar10.load()
    assert (data.shape, data.classes) == ((3, 32, 32), 10)
    assert data.train_labels.bincount().tolist() == [4900] * 10
    assert data.validation_labels.bincount().tolist() == [100] * 10
    assert data.test_labels.bincount().tolist() == [1000] * 10
    pixels = torch.cat([data.train_images, data.validation_images]).permute(1, 0, 2, 3).reshape(3, -1)
    means = [float(channel.double().mean()) / 255 for channel in pixels]
    np.testing.assert_allclose(means, data.mean, atol=5e-5)
    assert cifar10.fingerprint() == "63ba0011177279f01ccefd3f0b45383efcf47e21d56cde3a2a5f97f6d3712a38"


def test_resumed_epoch_of_cifar10_gives_the_same_batches(cifar10: CIFAR10) -> None:
    data = cifar10.load()
    whole = list(data.batches(0, 0, 4096))
    for (images, labels), (again, others) in zip(whole[5:], data.batches(0, 0, 4096, start=5), strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, others)


def test_one_changed_byte_of_cifar10_is_noticed(cifar10: CIFAR10, tmp_path: Path) -> None:
    shutil.copytree(Path(cifar10.folder) / CIFAR10.holds, tmp_path / CIFAR10.holds)
    batch = tmp_path / CIFAR10.holds / "data_batch_2"
    content = bytearray(batch.read_bytes())
    content[100_000] ^= 1
    batch.write_bytes(content)
    with pytest.raises(DataError, match="incomplete or damaged"):
        CIFAR10(folder=str(tmp_path)).load()


def test_one_changed_byte_of_fashion_mnist_is_noticed(fashion_mnist: FashionMNIST, tmp_path: Path) -> None:
    raw = tmp_path / FashionMNIST.holds
    shutil.copytree(Path(fashion_mnist.folder) / FashionMNIST.holds, raw)
    assert FashionMNIST(folder=str(tmp_path)).load().train_labels.bincount().tolist() == [5900] * 10
    content = bytearray((raw / "train-images-idx3-ubyte").read_bytes())
    content[100_000] ^= 1
    (raw / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match="are not the published ones"):
        FashionMNIST(folder=str(tmp_path), validation=0).load()


def test_embedded_images_are_the_published_ones(fashion_mnist: FashionMNIST) -> None:
    published, embedded = fashion_mnist.read(), FashionMNISTSubset().read()
    with np.load(make.TARGET) as file:
        for split in ("train", "test"):
            chosen = file[f"{split}_indices"]
            assert (np.diff(chosen.astype(int)) > 0).all()
            for kind in ("images", "labels"):
                theirs, ours = (getattr(raw, f"{split}_{kind}") for raw in (published, embedded))
                assert (theirs[chosen].reshape(ours.shape) == ours).all()


def test_script_makes_the_embedded_file_byte_for_byte(published_files: Path, tmp_path: Path) -> None:
    make.main(published_files, tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == make.TARGET.read_bytes()
    assert make.TARGET.stat().st_size < 5_000_000


def test_hundred_classes_are_read_as_an_array_file() -> None:
    file = SHARED / "cifar100_subset.npz"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    data = Arrays(file=str(file), validation=1000).load()
    assert (data.shape, data.classes) == ((3, 32, 32), 100)
    assert data.train_labels.bincount().tolist() == [90] * 100
    assert data.validation_labels.bincount().tolist() == [10] * 100
