"""Datasets: what each must hold to, an augmentation found again by brute force, and every way to get it wrong."""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import URLError

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import fsg.data
from fsg.data import (
    CIFAR10,
    CIFAR100,
    Arrays,
    DataError,
    Dataset,
    FashionMNIST,
    FashionMNISTSubset,
    Images,
    RawImages,
    balanced_order,
)
from fsg.imported import Imported

Content = dict[str, NDArray[Any]]
USERS_OWN = """
from dataclasses import dataclass
import numpy as np
from fsg.data import Images, RawImages

@dataclass(frozen=True, kw_only=True)
class Stripes(Images):
    count: int = 40

    def read(self):
        random = np.random.default_rng(1)
        pixels = random.integers(0, 256, (self.count, 8, 10, 3), np.uint8)
        labels = np.arange(self.count) % 4
        return RawImages(pixels, labels, pixels[:8], labels[:8])
"""


def content(train: int = 60, test: int = 10, shape: tuple[int, ...] = (9, 11, 3), classes: int = 5) -> Content:
    """Noise, so that every image is another one."""
    random = np.random.default_rng(0)
    return {
        "train_images": random.integers(0, 256, (train, *shape), np.uint8),
        "train_labels": np.arange(train, dtype=np.uint8) % classes,
        "test_images": random.integers(0, 256, (test, *shape), np.uint8),
        "test_labels": np.arange(test, dtype=np.int16) % classes,
    }


def save(path: Path, held: Content) -> None:
    np.savez(path, **held)  # type: ignore[arg-type]


@pytest.fixture
def arrays(tmp_path: Path) -> Callable[..., Arrays]:
    def write(held: Content | None = None, **settings: Any) -> Arrays:
        save(tmp_path / "own.npz", content() if held is None else held)
        return Arrays(file=str(tmp_path / "own.npz"), **{"validation": 0} | settings)

    return write


@pytest.fixture(scope="module", params=["embedded", "grey", "colour", "imported"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images | Imported]:
    """One of each kind of dataset that is here without a network."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "embedded":
            yield FashionMNISTSubset()
        elif request.param == "imported":
            (folder / "users_own.py").write_text(USERS_OWN)
            patch.syspath_prepend(folder)
            yield Imported(path="users_own:Stripes", settings={"validation": 8})
        else:
            save(folder / "own.npz", content(shape=(9, 11) if request.param == "grey" else (9, 11, 3)))
            yield Arrays(file=str(folder / "own.npz"), validation=10)


def sevenths(data: Dataset) -> int:
    """A batch size of which an epoch has seven batches, or eight, and perhaps a rest."""
    return len(data.train_labels) // 7


def flat(batches: Iterator[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [tensor for batch in batches for tensor in batch]


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def rows(images: Tensor) -> set[bytes]:
    return {image.contiguous().numpy().tobytes() for image in images}


# What every dataset must hold to


def test_dataset_has_bytes_labels_and_statistics_of_the_promised_form(config: Images) -> None:
    data = config.load()
    for split in ("train", "validation", "test"):
        images, labels = getattr(data, f"{split}_images"), getattr(data, f"{split}_labels")
        assert images.dtype == torch.uint8
        assert images.shape == (len(labels), *data.shape)
        assert labels.dtype == torch.int64
        assert 0 <= int(labels.min()) <= int(labels.max()) < data.classes
    assert len(data.validation_labels) == config.validation
    assert data.mean.shape == data.std.shape == data.shape[:1]
    assert data.mean.dtype == data.std.dtype == torch.float32


def test_dataset_is_read_once_a_process(config: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    first = config.load()
    monkeypatch.setattr(fsg.data, "_read", lambda _: pytest.fail("read again"))
    assert config.load() is first
    assert len(config.fingerprint()) == 64


def test_resumed_epoch_gives_the_very_same_remaining_batches(config: Images) -> None:
    data = config.load()
    size = sevenths(data)
    whole = list(data.batches(3, 2, size))
    assert len(whole) == data.steps_per_epoch(size) >= 7
    for start in (1, len(whole) - 1, len(whole)):
        assert equal(flat(iter(whole[start:])), flat(data.batches(3, 2, size, start=start)))


def test_epoch_is_a_function_of_seed_and_epoch_alone(config: Images) -> None:
    data = config.load()
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    size = sevenths(data)
    once = flat(data.batches(12, 3, size))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(1)
    interleaved = zip(data.batches(12, 3, size), data.batches(12, 4, size), strict=True)
    assert equal(once, [tensor for pair in interleaved for tensor in pair[0]])
    for seed, epoch in ((12, 4), (13, 3), (1, 23)):
        assert not equal(once[:2], list(next(data.batches(seed, epoch, size))))


def test_batches_are_float_and_channels_last_where_there_is_more_than_one_channel(config: Images) -> None:
    data = config.load()
    for images, _ in (next(data.batches(0, 0, 8)), next(data.evaluation("test", 8)), next(data.evaluation("train", 8))):
        assert images.dtype == torch.float32
        wanted = torch.contiguous_format if data.shape[0] == 1 else torch.channels_last
        assert images.is_contiguous(memory_format=wanted)


def test_evaluation_normalises_every_image_in_order(config: Images) -> None:
    data = config.load()
    mean, std = (moment.double().view(-1, 1, 1) for moment in (data.mean, data.std))
    for split in ("train", "validation", "test"):
        batches = list(data.evaluation(split, 7))
        images = torch.cat([b[0] for b in batches]).double()
        difference = images - (getattr(data, f"{split}_images").double() / 255 - mean) / std
        assert float(difference.abs().max()) < 2e-6
        assert torch.equal(torch.cat([b[1] for b in batches]), getattr(data, f"{split}_labels"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT RUN: there is no GPU here")
def test_device_does_not_change_the_draws(config: Images) -> None:
    data = config.load()
    there = data.to("cuda")
    assert torch.equal(there.train_images.cpu(), data.train_images)
    for (here, labels), (images, others) in zip(data.batches(1, 1, 8), there.batches(1, 1, 8), strict=True):
        assert torch.equal(labels, others.cpu())
        torch.testing.assert_close(images.cpu(), here, rtol=0, atol=2e-6)


def test_dataset_moves_to_a_device_whole_and_the_original_stays(config: Images) -> None:
    data = config.load()
    moved = data.to("meta")
    for name in ("train", "validation", "test"):
        assert getattr(moved, f"{name}_images").device.type == getattr(moved, f"{name}_labels").device.type == "meta"
        assert getattr(moved, f"{name}_images").shape == getattr(data, f"{name}_images").shape
        assert getattr(data, f"{name}_images").device.type == "cpu"


# Augmentation


def reference_crops(images: NDArray[Any], padding: int) -> dict[bytes, tuple[int, int, int, bool]]:
    """Every crop, mirrored and not, of every image [n, h, w, c], padded with black, and how it was made."""
    height, width = images.shape[1:3]
    found = {}
    for index, image in enumerate(images):
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        for top in range(2 * padding + 1):
            for left in range(2 * padding + 1):
                crop = padded[top : top + height, left : left + width]
                found[crop.tobytes()] = (index, top, left, False)
                found[crop[:, ::-1].tobytes()] = (index, top, left, True)
    return found


def pixels(images: Tensor, data: Dataset) -> NDArray[np.uint8]:
    """Normalisation undone: uint8 [b, h, w, c]; fails where the values are not close to whole numbers."""
    mean, std = (moment.double().view(-1, 1, 1) for moment in (data.mean, data.std))
    values = (images.double() * std + mean) * 255
    assert torch.allclose(values, values.round(), rtol=0, atol=1e-3)
    return np.ascontiguousarray(values.round().to(torch.uint8).permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("shape", [(9, 11), (9, 11, 3)])
def test_every_augmented_image_is_one_crop_of_one_image_with_its_label(
    arrays: Callable[..., Arrays], shape: tuple[int, ...]
) -> None:
    held = content(train=20, shape=shape)
    data = arrays(held, crop_padding=2).load()
    known = reference_crops(held["train_images"].reshape(20, 9, 11, -1), padding=2)
    assert len(known) == 20 * 5 * 5 * 2
    made = []
    for epoch in range(60):
        seen = []
        for images, labels in data.batches(5, epoch, 5):
            for image, label in zip(pixels(images, data), labels.tolist(), strict=True):
                index, *how = known[image.tobytes()]
                assert held["train_labels"][index] == label
                seen.append(index)
                made.append(how)
        assert sorted(seen) == list(range(20))
    tops, lefts, mirrored = np.array(made).T
    for offsets in (tops, lefts):
        assert np.bincount(offsets, minlength=5).min() > 1200 / 5 * 0.75
    assert 0.45 < mirrored.mean() < 0.55
    assert abs(np.corrcoef([tops, lefts, mirrored]) - np.eye(3)).max() < 0.1


@pytest.mark.parametrize(("padding", "flip"), [(0, False), (0, True), (2, False)])
def test_augmentations_can_be_switched_off(arrays: Callable[..., Arrays], padding: int, flip: bool) -> None:
    held = content(train=20)
    data = arrays(held, crop_padding=padding, flip=flip).load()
    known = reference_crops(held["train_images"], padding)
    images = [image for epoch in range(5) for batch, _ in data.batches(0, epoch, 20) for image in pixels(batch, data)]
    made = [known[image.tobytes()] for image in images]
    assert {mirrored for *_, mirrored in made} == ({False, True} if flip else {False})
    assert ({top for _, top, _, _ in made} == {0}) == (padding == 0)


def test_switching_augmentations_off_leaves_the_order_of_images(arrays: Callable[..., Arrays]) -> None:
    plain, augmented = (arrays(crop_padding=p, flip=f).load() for p, f in ((0, False), (4, True)))
    for (_, some), (_, others) in zip(plain.batches(0, 0, 8), augmented.batches(0, 0, 8), strict=True):
        assert torch.equal(some, others)


def test_incomplete_batch_is_dropped_unless_it_is_the_only_one(arrays: Callable[..., Arrays]) -> None:
    data = arrays(content(train=20)).load()
    for batch_size, lengths in ((5, [5] * 4), (6, [6] * 3), (20, [20]), (50, [20])):
        assert [len(labels) for _, labels in data.batches(0, 0, batch_size)] == lengths
        assert data.steps_per_epoch(batch_size) == len(lengths)
    with pytest.raises(ValueError, match="batch_size is 0, expected ≥ 1"):
        data.steps_per_epoch(0)


def test_embedded_batches_are_those_of_the_recorded_numerics() -> None:
    """Raise `fsg.NUMERICS` with this digest: cells that are finished were trained on these batches."""
    data = FashionMNISTSubset().load()
    total = hashlib.sha256()
    for images, labels in data.batches(0, 0, 500):
        total.update(pixels(images[:50], data).tobytes() + labels.numpy().tobytes())
    assert total.hexdigest() == "78b477ef79885caa8dece46cb55d3e4becbe545111414de981391098320bc0fe"


# The split


def test_validation_is_held_out_of_training(config: Images) -> None:
    data = config.load()
    assert not rows(data.train_images) & rows(data.validation_images)
    raw = fsg.data._checked(config.read(), "")
    assert len(data.train_labels) + len(data.validation_labels) == len(raw.train_labels)
    everything = rows(data.train_images) | rows(data.validation_images)
    assert everything == rows(torch.from_numpy(raw.train_images).permute(0, 3, 1, 2))


def test_embedded_split_is_balanced_and_never_changes() -> None:
    data = FashionMNISTSubset().load()
    assert data.train_labels.bincount().tolist() == [900] * 10
    assert data.validation_labels.bincount().tolist() == [100] * 10
    assert data.test_labels.bincount().tolist() == [200] * 10
    held_out = hashlib.sha256(data.validation_images.contiguous().numpy().tobytes()).hexdigest()
    assert held_out == "84e4184eae8cd9d797f06f626d318709b719a86fb6c008c13ffd17b89b164fc4"


def test_limited_embedded_images_are_balanced_and_never_change() -> None:
    data = FashionMNISTSubset(train_limit=100).load()
    assert data.train_labels.bincount().tolist() == [10] * 10
    assert hashlib.sha256(data.train_images.contiguous().numpy().tobytes()).hexdigest() == (
        "3da321d2a3eefd2fda99295047c813e5b5c3802c792dbe8db49988f7f88c7f60"
    )


def test_split_hangs_on_its_seed(arrays: Callable[..., Arrays]) -> None:
    one, other = (arrays(validation=20, validation_seed=seed).load() for seed in (0, 1))
    assert rows(one.validation_images) != rows(other.validation_images)


def test_larger_validation_and_larger_limit_contain_the_smaller(arrays: Callable[..., Arrays]) -> None:
    held = content(train=60)
    validations = [rows(arrays(held, validation=n).load().validation_images) for n in (0, 5, 17, 59)]
    assert [len(images) for images in validations] == [0, 5, 17, 59]
    assert all(small < large for small, large in pairwise(validations))
    limited = [arrays(held, validation=10, train_limit=n).load() for n in (5, 20, 50)]
    trained = [rows(data.train_images) for data in limited]
    assert [len(images) for images in trained] == [5, 20, 50]
    assert all(small < large for small, large in pairwise(trained))
    assert [data.train_labels.bincount().tolist() for data in limited] == [[1] * 5, [4] * 5, [10] * 5]
    assert all(not images & rows(limited[0].validation_images) for images in trained)


def test_every_beginning_of_the_balanced_order_has_the_classes_in_proportion() -> None:
    labels = np.random.default_rng(3).choice(4, 500, p=[0.5, 0.3, 0.15, 0.05])
    order = balanced_order(labels, seed=7)
    assert sorted(order) == list(range(500))
    share = np.bincount(labels) / 500
    for length in range(1, 501):
        counts = np.bincount(labels[order[:length]], minlength=4)
        assert abs(counts - length * share).max() <= 1
    assert (balanced_order(labels, seed=8) != order).any()


def test_no_validation_means_every_image_is_trained_on(arrays: Callable[..., Arrays]) -> None:
    data = arrays(validation=0).load()
    assert len(data.train_labels) == 60
    assert list(data.evaluation("validation")) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation": 60}, "validation is 60, expected ≤ 59"),
        ({"validation": 20, "train_limit": 41}, "train_limit is 41, expected ≤ 40"),
    ],
)
def test_split_that_leaves_too_little_names_the_limit(
    arrays: Callable[..., Arrays], settings: dict[str, int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        arrays(**settings).load()


# Statistics and fingerprints


def test_statistics_of_own_arrays_are_those_of_all_training_images(arrays: Callable[..., Arrays]) -> None:
    held = content()
    held["train_images"][..., 1] //= 3
    held["train_images"][..., 2] = 7
    data = arrays(held, validation=20).load()
    scaled = held["train_images"].astype(np.float64) / 255
    np.testing.assert_allclose(data.mean, scaled.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(data.std[:2], scaled.std((0, 1, 2))[:2], rtol=1e-6)
    assert data.std[2] == 1
    assert all(images.isfinite().all() for images, _ in data.batches(0, 0, 8))


def test_fingerprint_ignores_the_split_and_sees_every_pixel_and_label(arrays: Callable[..., Arrays]) -> None:
    first = arrays().fingerprint()
    assert arrays(validation=30, crop_padding=0, train_limit=3).fingerprint() == first
    assert arrays(content() | {"train_labels": content()["train_labels"].astype(np.int64)}).fingerprint() == first
    for name in RawImages._fields:
        changed = content()
        changed[name].flat[7] = (int(changed[name].flat[7]) + 1) % 5
        assert arrays(changed).fingerprint() != first
    reshaped = content()
    for name in ("train_images", "test_images"):
        reshaped[name] = reshaped[name].reshape(-1, 11, 9, 3)
    assert arrays(reshaped).fingerprint() != first


def test_another_split_does_not_read_the_images_again_for_their_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    first = FashionMNISTSubset().fingerprint()
    monkeypatch.setattr(fsg.data, "_read", lambda _: pytest.fail("read again"))
    assert FashionMNISTSubset(validation=7, train_limit=3, flip=False).fingerprint() == first


def test_fingerprint_of_the_embedded_images_is_the_recorded_one() -> None:
    assert FashionMNISTSubset().fingerprint() == "c8ce276f293df9d2ec378de3836c623dad0abb7c5c485fd2aeeeac4bd61f532d"


def test_file_that_is_written_anew_is_read_anew(arrays: Callable[..., Arrays]) -> None:
    first = arrays()
    before, loaded = first.fingerprint(), first.load()
    again = arrays(content(train=50))
    assert again == first
    assert again.fingerprint() != before
    assert again.load() is not loaded
    assert len(again.load().train_labels) == 50


def test_license_of_the_embedded_images_lies_beside_them() -> None:
    notice = (Path(fsg.data.__file__).parent / "embedded" / "LICENSE.fashion-mnist").read_text()
    assert "Zalando SE" in notice
    assert "above copyright notice and this permission notice shall be included" in " ".join(notice.split())


# What users get wrong


def without(name: str) -> Callable[[Content], Content]:
    return lambda held: {key: array for key, array in held.items() if key != name}


def replaced(name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Content], Content]:
    return lambda held: held | {name: change(held[name])}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("test_labels"), "lacks test_labels; it has train_images, train_labels, test_images"),
        (replaced("train_images", lambda a: a / 255), "train_images are float64, expected uint8"),
        (replaced("train_images", lambda a: a[0, 0]), r"train_images have the shape \(11, 3\), expected \[n, height"),
        (replaced("test_images", lambda a: a[:0]), r"test_images have the shape \(0, 9, 11, 3\), expected \[n, height"),
        (replaced("test_images", lambda a: a.transpose(0, 3, 1, 2)), r"\(10, 3, 9, 11\), expected the channels last"),
        (
            replaced("test_images", lambda a: a[:, 1:]),
            r"train_images are \(9, 11, 3\) each but test_images \(8, 11, 3\)",
        ),
        (replaced("train_labels", lambda a: a.astype(float)), "train_labels are float64, expected integers"),
        (replaced("train_labels", lambda a: a[:, None]), r"train_labels have the shape \(60, 1\), expected \(60,\)"),
        (replaced("test_labels", lambda a: a[1:]), r"test_labels have the shape \(9,\), expected \(10,\)"),
        (
            replaced("test_labels", lambda a: a - 1),
            "test_labels have negative values: -1, expected classes counted from 0",
        ),
        (replaced("test_labels", lambda a: a + 5), "classes that train_labels lack: 5, 6, 7, 8, 9"),
        (
            lambda held: held | {f"{split}_labels": 0 * held[f"{split}_labels"] for split in ("train", "test")},
            "train_labels have one class, expected two or more",
        ),
        (replaced("train_labels", lambda a: a + np.uint64(2**40)), "train_labels go up to 1099511627780"),
        (
            replaced("train_labels", lambda a: a + 1),
            r"go up to 5 and have no 0, expected classes .* without gaps \(1→0, 2→1, 3→2, 4→3, 5→4: np\.searchsorted",
        ),
        (replaced("train_labels", lambda a: np.where(a == 2, 3, a)), "go up to 4 and have no 2, expected classes"),
        (replaced("train_labels", lambda a: a.astype(object)), "not a readable .npz without pickled objects"),
    ],
)
def test_arrays_that_do_not_fit_get_one_line_with_the_file(
    arrays: Callable[..., Arrays], spoil: Callable[[Content], Content], message: str
) -> None:
    config = arrays(spoil(content()))
    for call in (config.load, config.fingerprint):
        with pytest.raises(DataError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(config.file)


@dataclass(frozen=True, kw_only=True)
class Own(Images):
    """Whatever a test puts there."""

    raw: ClassVar[Any]

    def read(self) -> RawImages:
        return self.raw


def test_flipped_arrays_are_those_that_they_show() -> None:
    """Colours in the other order, as OpenCV has them, rows upside down, labels from behind."""
    held = content()
    flipped = {name: array[::-1, ::-1, :, ::-1] if array.ndim == 4 else array[::-1] for name, array in held.items()}
    found = []
    for arrays in (flipped, {name: array.copy() for name, array in flipped.items()}):
        Own.raw = RawImages(**arrays)
        fsg.data._load.cache_clear()
        data = Own(validation=7).load()
        found.append([data.train_images, data.train_labels, data.validation_images, data.test_images, data.test_labels])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda raw: raw._replace(train_images=raw.train_images.tolist()),
            "Own: train_images are a list, expected a NumPy",
        ),
        (
            lambda raw: raw._replace(test_labels=torch.zeros(10)),
            "Own: test_labels are a Tensor, expected a NumPy array",
        ),
    ],
)
def test_own_data_of_another_kind_is_named(spoil: Callable[[RawImages], RawImages], message: str) -> None:
    Own.raw = spoil(RawImages(**content()))
    fsg.data._load.cache_clear()
    with pytest.raises(DataError, match=message):
        Own().load()


@pytest.mark.parametrize("damage", ["missing", "folder", "text", "truncated", "npy", "empty"])
def test_file_that_cannot_be_read_gets_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "own.npz"
    save(path, content())
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif damage != "missing":
        path.write_bytes({"text": b"a,b\n1,2\n", "truncated": whole[: len(whole) // 2], "empty": b""}[damage])
    with pytest.raises(DataError, match="no such file" if damage == "missing" else "not a readable .npz") as caught:
        Arrays(file=str(path)).load()
    assert "\n" not in str(caught.value)


# Published datasets, by way of a stand-in for torchvision


class Published:
    """CIFAR-10 as torchvision has it, with a network or without."""

    network = True
    meanwhile: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, root: str | Path, train: bool = True, download: bool = False) -> None:
        kept = Path(root) / "cifar-10-batches-py"
        if download:
            if not self.network:
                raise URLError("Name or service\n not known")
            kept.mkdir()
            (kept / "whole").touch()
            self.meanwhile()
        if not (kept / "whole").exists():
            raise RuntimeError("Dataset not found or corrupted.")
        held = content(shape=(32, 32, 3), classes=10)
        self.data = held["train_images" if train else "test_images"]
        self.targets = held["train_labels" if train else "test_labels"].tolist()


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> type[Published]:
    fresh = type("Fresh", (Published,), {})
    monkeypatch.setattr(fsg.data, "_torchvision_class", lambda name: fresh)
    return fresh


def test_missing_dataset_is_downloaded_and_only_whole(published: type[Published], tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "data"
    data = CIFAR10(folder=str(folder), validation=10).load()
    assert (data.shape, data.classes, len(data.train_labels)) == ((3, 32, 32), 10, 50)
    assert [path.name for path in folder.iterdir()] == ["cifar-10-batches-py"]
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_download_that_another_process_finished_first_is_used(published: type[Published], tmp_path: Path) -> None:
    def meanwhile() -> None:
        (tmp_path / "cifar-10-batches-py").mkdir()
        (tmp_path / "cifar-10-batches-py" / "whole").touch()

    published.meanwhile = staticmethod(meanwhile)
    assert CIFAR10(folder=str(tmp_path), validation=0).load().classes == 10
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-py"]


def test_dataset_out_of_reach_names_the_folder_and_what_to_put_there(
    published: type[Published], tmp_path: Path
) -> None:
    published.network = False
    with pytest.raises(
        DataError, match=r"the download failed .*Name or service not known.*cifar-10-python.tar.gz"
    ) as e:
        CIFAR10(folder=str(tmp_path / "nowhere")).load()
    assert str(tmp_path / "nowhere") in str(e.value)
    assert "cifar-10-batches-py" in str(e.value)
    assert "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []


def test_damaged_dataset_names_the_folder_to_remove(published: type[Published], tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match=r"incomplete or damaged.*remove that folder") as caught:
        CIFAR10(folder=str(tmp_path)).fingerprint()
    assert str(tmp_path / "cifar-10-batches-py") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fashion_mnist_of_other_content_is_refused(published: type[Published], tmp_path: Path) -> None:
    (tmp_path / "FashionMNIST" / "raw").mkdir(parents=True)
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "whole").touch()
    with pytest.raises(DataError, match="FashionMNIST/raw are not the published ones"):
        FashionMNIST(folder=str(tmp_path)).load()


@pytest.mark.parametrize("config", [CIFAR10, CIFAR100, FashionMNIST])
def test_torchvision_itself_says_what_is_missing(config: Any, tmp_path: Path) -> None:
    kept = tmp_path / config.holds
    kept.mkdir(parents=True)
    (kept / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03")
    with pytest.raises(DataError, match="incomplete or damaged"):
        config(folder=str(tmp_path)).load()


@pytest.mark.parametrize(
    ("config", "mean", "std"),
    [
        (CIFAR10, [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
        (CIFAR100, [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
        (FashionMNIST, [0.2860], [0.3530]),
        (FashionMNISTSubset, [0.2860], [0.3530]),
    ],
)
def test_published_datasets_have_the_usual_constants(config: Any, mean: list[float], std: list[float]) -> None:
    nothing = RawImages(*(np.zeros(0, np.uint8) for _ in range(4)))
    assert tuple(map(list, config().normalisation(nothing))) == (mean, std)


@pytest.mark.parametrize(
    ("values", "mapping"),
    [
        ([1, 2, 3], "1→0, 2→1, 3→2"),
        ([-1, 1], "-1→0, 1→1"),
        ([10, 20, 70], "10→0, 20→1, 70→2"),
        (["cat", "dog"], "cat→0, dog→1"),
        ([0.0, 1.0], "0.0→0, 1.0→1"),
        ([False, True], "False→0, True→1"),
    ],
)
def test_labels_not_counted_from_0_are_refused_with_what_mends_them(
    tmp_path: Path, values: list[object], mapping: str
) -> None:
    labels = np.array(values)[np.arange(60) % len(values)]
    mended = np.searchsorted(np.unique(labels), labels)
    images = np.zeros((60, 8, 8), dtype=np.uint8)
    for name, own in (("wrong", labels), ("mended", mended)):
        np.savez(tmp_path / f"{name}.npz", train_images=images, train_labels=own, test_images=images, test_labels=own)
    with pytest.raises(DataError, match=re.escape(f"({mapping}: np.searchsorted(np.unique(train_labels), labels))")):
        Arrays(file=str(tmp_path / "wrong.npz"), validation=6).load()
    Arrays(file=str(tmp_path / "mended.npz"), validation=6).load()
