"""Images in folders: torchvision's listing and pixels, bits that hang on no worker, and every way to get it wrong."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder as Theirs
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from benchmarks.image_files import write_images
from fsg import image_cache, image_worker
from fsg.data import DataError, ImageFolder
from fsg.image_cache import DecodedCache
from fsg.image_folder import FolderDataset
from fsg.image_stream import ImageWorkers, decoded
from fsg.image_worker import augmented, central, colour_factors, colour_order, crop_box, draws
from fsg.stopping import Stopped, stoppable

SIZE = 16
JITTER = [0.4, 0.3, 0.2, 0.1]
SETUP: dict[str, Any] = {"size": 24, "evaluation_side": 27, "crop_area": 0.08, "flip": True, "jitter": JITTER}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), train=10, val=4)


@pytest.fixture
def folder(images: Path, tmp_path: Path) -> Path:
    """A copy, to be spoiled."""
    return Path(shutil.copytree(images, tmp_path / "set"))


def settings(folder: Path, **changes: Any) -> ImageFolder:
    return ImageFolder(**{"folder": str(folder), "size": SIZE, "validation": 8} | changes)


def epoch(config: ImageFolder, seed: int = 0, number: int = 0, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    return list(config.load().batches(seed, number, 5, start=start))


def same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for pair in zip(one, other, strict=True) for a, b in zip(*pair, strict=True)
    )


def children(parent: int | None = None) -> list[int]:
    """Image workers of a process, this one by default, that are alive."""
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(parent or os.getpid())]  # -ww: nothing is cut off
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return [int(line.split()[0]) for line in listed if "image_worker.py" in line]


def odd_images(folder: Path) -> list[Path]:
    """One image in each of the ways in which a file may hold one."""
    draw = np.random.default_rng(1)
    noise = Image.fromarray(draw.integers(0, 256, (40, 52, 4), np.uint8), "RGBA").resize((104, 80))
    turned = Image.Exif()
    turned[0x0112] = 6
    ways: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "colour.jpg": (noise.convert("RGB"), {}),
        "grey.JPEG": (noise.convert("L"), {}),
        "four inks.jpg": (noise.convert("CMYK"), {}),
        "turned.jpg": (noise.convert("RGB"), {"exif": turned}),
        "palette.png": (noise.convert("RGB").convert("P"), {"transparency": b"\x00\x80"}),
        "transparent.png": (noise, {}),
        "black and white.png": (noise.convert("1"), {}),
        "deep.png": (Image.fromarray(draw.integers(0, 65536, (40, 50), np.uint16)), {}),
        "grey with alpha.webp": (noise.convert("LA").convert("RGBA"), {"lossless": True}),
        "tiff.TIF": (noise.convert("RGB"), {}),
        "thin.bmp": (noise.convert("RGB").resize((3, 90)), {}),
        "flat.ppm": (noise.convert("RGB").resize((90, 3)), {}),
    }
    for name, (image, options) in ways.items():
        image.save(folder / name, **options)
    return [folder / name for name in ways]


def test_an_image_is_made_as_torchvision_makes_it_of_the_same_draws(tmp_path: Path) -> None:
    """Bit for bit, the crop, the colours and the order of these given."""
    loader = Theirs.__init__.__defaults__[2]  # type: ignore[index]
    for path in odd_images(tmp_path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = loader(str(path))
            state = path.stat()
            mine = image_worker.decoded({"file": str(path), "bytes": state.st_size, "time": state.st_mtime_ns})
        assert mine.mode == "RGB"
        assert np.array_equal(np.asarray(mine), np.asarray(theirs)), path
        for key in ("0 0 0", "1 2 3", "5 0 77", "8 8 8"):
            drawn = draws(key)
            left, top, width, height = crop_box(*theirs.size, 0.08, drawn)
            wanted = F.resized_crop(theirs, top, left, height, width, [24, 24])
            wanted = F.horizontal_flip(wanted) if drawn[22] < 0.5 else wanted
            b, c, s, h = colour_factors(JITTER, drawn)
            ways: list[Callable[[Any], Any]] = [
                lambda x, b=b: F.adjust_brightness(x, b),
                lambda x, c=c: F.adjust_contrast(x, c),
                lambda x, s=s: F.adjust_saturation(x, s),
                lambda x, h=h: F.adjust_hue(x, h),
            ]
            for kind in colour_order(drawn):
                wanted = ways[kind](wanted)
            assert np.array_equal(np.asarray(augmented(mine, SETUP, key)), np.asarray(wanted)), (path, key)
        middle = v2.Compose([v2.Resize(27), v2.CenterCrop(24)])(theirs)
        assert np.array_equal(np.asarray(central(mine, SETUP)), np.asarray(middle)), path


@pytest.mark.parametrize("size", [(500, 375), (60, 200), (33, 20)])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    """Kolmogorov and Smirnov's distance of 4,000 draws each, for every number of the box: below 0.1 % by chance."""
    count = 4000
    ours = np.array([crop_box(*size, 0.08, draws(f"0 0 {index}")) for index in range(count)])
    torch.manual_seed(0)
    transform, blank = v2.RandomResizedCrop(24), Image.new("RGB", size)
    drawn = [transform.make_params([blank]) for _ in range(count)]
    theirs = np.array([[one[name] for name in ("left", "top", "width", "height")] for one in drawn])
    for mine, other in zip(ours.T, theirs.T, strict=True):
        at = np.unique(np.concatenate([mine, other]))
        shares = [np.searchsorted(np.sort(each), at, side="right") / count for each in (mine, other)]
        assert np.abs(shares[0] - shares[1]).max() < 1.95 * (2 / count) ** 0.5


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (2, 2000), (1, 1)])
def test_what_no_crop_fits_is_cropped_in_the_middle_as_torchvision_does(size: tuple[int, int]) -> None:
    theirs = v2.RandomResizedCrop(24, scale=(1.0, 1.0)).make_params([Image.new("RGB", size)])
    left, top, width, height = crop_box(*size, 1.0, draws("0"))
    assert {"left": left, "top": top, "width": width, "height": height} == theirs


def test_colours_are_drawn_evenly_and_in_every_order() -> None:
    jitter = [0.4, 1.5, 0.2, 0.1]
    drawn = [draws(f"1 0 {index}") for index in range(5000)]
    factors = np.array([colour_factors(jitter, one) for one in drawn], dtype=float)
    low, high = np.array([0.6, 0.0, 0.8, -0.1]), np.array([1.4, 2.5, 1.2, 0.1])
    even = (factors - low) / (high - low)
    assert even.min() >= 0
    assert even.max() < 1
    assert np.abs(even.mean(0) - 0.5).max() < 0.02
    assert np.abs(np.corrcoef(even.T) - np.eye(4)).max() < 0.06
    orders = [tuple(colour_order(one)) for one in drawn]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 24
    assert max(counts) - min(counts) < 110
    assert colour_factors([0, 0, 0, 0], drawn[0]) == [None] * 4


def test_a_batch_is_what_torchvisions_normalisation_makes_of_the_pixels(images: Path) -> None:
    """The whole way: files, processes, shared memory, device; order and keys as documented."""
    config = settings(images, brightness=0.3)
    dataset, setup = config.load(), {**SETUP, "size": SIZE, "jitter": [0.3, 0, 0, 0]}
    theirs = Theirs(images / "train")
    kept = dataset.parts["train"].indices
    normalise = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(config.mean, config.std)])
    order = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(_seed(3, 2))).numpy()]
    batches = list(dataset.batches(3, 2, 5))
    assert len(batches) == 6
    for number, (pixels, labels) in enumerate(batches):
        some = order[5 * number : 5 * number + 5].tolist()
        assert labels.tolist() == [theirs.targets[index] for index in some]
        assert pixels.is_contiguous(memory_format=torch.channels_last)
        wanted = torch.stack([normalise(augmented(theirs[index][0], setup, f"3 2 {index}")) for index in some])
        assert (pixels - wanted).abs().max() < 2e-6
    whole = torch.cat([pixels for pixels, _ in dataset.evaluation("test", batch_size=7)])
    middle = v2.Compose([v2.Resize(18), v2.CenterCrop(SIZE), normalise])
    wanted = torch.stack([middle(image) for image, _ in Theirs(images / "val")])
    assert (whole - wanted).abs().max() < 2e-6


def _seed(seed: int, number: int) -> int:
    import hashlib

    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:8], "little")


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (3, 2), (5, 7)])
def test_batches_hang_on_seed_and_epoch_alone_and_begin_anywhere(images: Path, workers: int, prefetch: int) -> None:
    wanted = epoch(settings(images), seed=1, number=1)
    config = settings(images, workers=workers, prefetch=prefetch)
    assert same(epoch(config, seed=1, number=1), wanted)
    assert same(epoch(config, seed=1, number=1, start=4), wanted[4:])


def test_another_seed_or_epoch_gives_other_images(images: Path) -> None:
    config = settings(images)
    first = epoch(config)
    assert not same(first, epoch(config, seed=1))
    assert not same(first, epoch(config, number=1))


def test_what_is_drawn_for_an_image_does_not_hang_on_which_others_there_are(images: Path) -> None:
    def by_index(config: ImageFolder) -> dict[int, Tensor]:
        dataset = config.load()
        kept = dataset.parts["train"].indices
        order = kept[torch.randperm(len(kept), generator=torch.Generator().manual_seed(_seed(0, 0))).numpy()]
        pixels = torch.cat([batch for batch, _ in dataset.batches(0, 0, 4)])
        return dict(zip(order.tolist(), pixels, strict=False))

    every, few = by_index(settings(images)), by_index(settings(images, train_limit=12))
    assert len(few) == 12
    assert all(torch.equal(pixels, every[index]) for index, pixels in few.items() if index in every)
    assert len(few.keys() & every.keys()) > 8


def test_classes_and_files_are_listed_as_torchvision_lists_them(folder: Path, tmp_path: Path) -> None:
    inside = folder / "train" / "class 1"
    (inside / "b" / "c").mkdir(parents=True)
    for name in ("b/c/1.png", "b/1.PNG", "z.jpg", "line\nbreak.png"):
        shutil.copy(inside / "0.png", inside / name)
    shutil.copy(inside / "0.png", os.fsencode(inside) + b"/\xff\xfe.png")
    (inside / "notes.txt").write_text("no image")
    outside = Path(shutil.copytree(folder / "val" / "class 2", tmp_path / "elsewhere"))
    (inside / "linked").symlink_to(outside)
    (inside / "linked.png").symlink_to(outside / "1.png")
    theirs, listing = Theirs(folder / "train"), settings(folder).load().parts["train"].listing
    assert [(listing.path(index), int(listing.labels[index])) for index in range(len(listing))] == theirs.samples
    assert list(settings(folder).load().class_names) == theirs.classes
    assert sum(len(labels) for _, labels in epoch(settings(folder, validation=0))) == 50


def test_validation_is_held_out_of_train_and_test_is_val(images: Path) -> None:
    parts = settings(images).load().parts
    assert [os.path.basename(parts[name].listing.folder) for name in parts] == ["train", "train", "val"]
    train, validation = set(parts["train"].indices), set(parts["validation"].indices)
    assert not train & validation
    assert len(train | validation) == 40
    assert np.bincount(parts["validation"].labels).tolist() == [2, 2, 2, 2]
    assert [len(parts[name].indices) for name in parts] == [32, 8, 16]


def test_where_test_is_the_test_val_is_validated_on(tmp_path: Path) -> None:
    write_images(tmp_path, train=5, val=4, test=3)
    parts = settings(tmp_path, test_folder="test").load().parts
    assert [os.path.basename(parts[name].listing.folder) for name in parts] == ["train", "val", "test"]
    assert [len(parts[name].indices) for name in parts] == [20, 8, 12]
    assert np.bincount(parts["validation"].labels).tolist() == [2, 2, 2, 2]
    parts = settings(tmp_path, test_folder="val").load().parts
    assert [os.path.basename(parts[name].listing.folder) for name in parts] == ["train", "train", "val"]


def test_images_of_the_test_without_classes_are_no_test(folder: Path) -> None:
    """As ImageNet's are, whose labels are secret."""
    (folder / "test").mkdir()
    shutil.copy(folder / "val" / "class 0" / "0.png", folder / "test" / "1.png")
    assert os.path.basename(settings(folder).load().parts["test"].listing.folder) == "val"


def spoil(change: Callable[[Path], object], says: str, **changes: Any) -> Any:
    return pytest.param(change, says, changes, id=says.split("(")[0][:50])


def remove(path: str) -> Callable[[Path], object]:
    return lambda folder: shutil.rmtree(folder / path)


def loop(folder: Path) -> None:
    (folder / "train" / "class 0" / "up").symlink_to(folder / "train")


@pytest.mark.parametrize(
    ("change", "says", "changes"),
    [
        spoil(remove("."), "cannot be read (No such file or directory), expected a folder with train and val"),
        spoil(remove("train"), "has no folder train (expected train and val, a folder a class in each); it has val"),
        spoil(remove("val"), "has neither val nor test (expected one of them, a folder a class in it)"),
        spoil(lambda f: [shutil.rmtree(one) for one in (f / "train").iterdir()], "train has no class folders"),
        spoil(lambda f: [shutil.rmtree(one) for one in (f / "val").iterdir()], "val has no class folders"),
        spoil(lambda f: (f / "train" / "empty").mkdir(), "train has no image in the class empty (expected"),
        spoil(lambda f: (f / "val" / "empty").mkdir(), "val has no image in the class empty"),
        spoil(remove("val/class 2"), "val lacks the class class 2 of train (expected the same class folders)"),
        spoil(remove("train/class 3"), "train lacks the class class 3 of val"),
        spoil(lambda f: shutil.copytree(f / "val", f / "test"), "has val and test, expected test_folder: test (then"),
        spoil(lambda f: None, "test_folder is test, and there is none (expected val)", test_folder="test"),
        spoil(lambda f: None, "validation is 40, expected ≤ 39", validation=40),
        spoil(lambda f: None, "train_limit is 33, expected ≤ 32", train_limit=33),
        spoil(loop, "train/class 0/up is a link to a folder that it is in"),
        spoil(lambda f: (f / "val" / "class 1" / "x.png").symlink_to(f / "no"), "1/x.png cannot be read (No such"),
        spoil(
            lambda f: [shutil.rmtree(f / part / f"class {n}") for part in ("train", "val") for n in (1, 2, 3)],
            "train has one class folder, class 0, expected two or more",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(
    folder: Path, change: Callable[[Path], object], says: str, changes: dict[str, Any]
) -> None:
    change(folder)
    with pytest.raises(DataError) as raised:
        settings(folder, **changes).load()
    assert says in str(raised.value)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size": 0}, "size is 0, expected ≥ 1"),
        ({"evaluation_side": 8}, "evaluation_side is 8, expected ≥ 16, which is size"),
        ({"cached_side": 8}, "cached_side is 8, expected ≥ 16, which is size"),
        ({"hue": 0.6}, "hue is 0.6, expected ≤ 0.5"),
        ({"crop_area": 0.0}, "crop_area is 0.0, expected > 0"),
        ({"std": (1, 1, 0)}, "std is [1, 1, 0], expected three finite numbers above 0"),
        ({"mean": (1, 1)}, "mean is [1, 1], expected three finite numbers"),
        ({"mean": (1, 1, float("nan"))}, "mean is [1, 1, nan], expected three finite numbers"),
        ({"test_folder": "train"}, "test_folder is 'train', expected one of auto, val, test"),
        ({"workers": 0}, "workers is 0, expected ≥ 1"),
    ],
)
def test_a_setting_out_of_range_is_refused(images: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="ImageFolder") as raised:
        settings(images, **changes)
    assert says in str(raised.value)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"no image" * 9}[how])


@pytest.mark.parametrize("how", ["truncated", "empty", "text"])
def test_an_unreadable_image_is_named_and_counted_and_left_out_where_allowed(folder: Path, how: str) -> None:
    whole = dict(enumerate(epoch(settings(folder, validation=0))))
    bad = [folder / "train" / "class 1" / "3.png", folder / "train" / "class 2" / "7.png"]
    for path in bad:
        damage(path, how)
    (folder / "train" / "class 0" / "new.png").write_bytes(b"")  # so that it is listed anew
    (folder / "train" / "class 0" / "new.png").unlink()
    with pytest.raises(DataError, match=r"cannot be decoded: .*\.png \(.+\) \(expected ≤ 0, the setting unreadable"):
        epoch(settings(folder, validation=0))
    config = settings(folder, validation=0, unreadable=2)
    with pytest.warns(UserWarning, match="left out, as it cannot be decoded: .*class") as warned:
        found = epoch(config)
    assert {str(path) for path in bad} <= {part for one in warned for part in _paths(str(one.message))}
    assert sum(len(labels) for _, labels in found) == 38
    fewer = [number for number, (pixels, _) in enumerate(found) if len(pixels) < 5]
    for number, (pixels, labels) in enumerate(found):
        assert len(pixels) == len(labels)
        if number not in fewer:
            assert torch.equal(pixels, whole[number][0])
        else:
            rows = {tuple(row.flatten().tolist()) for row in whole[number][0]}
            assert all(tuple(row.flatten().tolist()) in rows for row in pixels)
    assert config.load().left_out().startswith("2 images cannot be decoded: ")
    strict = settings(folder, validation=0, unreadable=1).load()
    with pytest.raises(DataError, match=r"2 images cannot be decoded.*expected ≤ 1"):
        list(strict.evaluation("train"))


def _paths(text: str) -> list[str]:
    return [text.split("decoded: ")[1].rsplit(" (", 1)[0]]


@pytest.mark.parametrize("change", ["written anew", "removed"])
def test_a_file_that_changes_after_it_was_listed_is_named(folder: Path, change: str) -> None:
    config = settings(folder, validation=0, unreadable=40)
    before, dataset, path = config.fingerprint(), config.load(), folder / "train" / "class 3" / "5.png"
    if change == "removed":
        path.unlink()
    else:
        Image.new("RGB", (30, 30)).save(path)
        assert config.load() is dataset  # a folder does not show it
    with pytest.raises(DataError, match=r"class 3/5\.png was changed or removed since the images were listed$"):
        list(dataset.batches(0, 0, 5))
    assert config.fingerprint() != before
    assert config.load() is not dataset
    epoch(config)


def test_a_set_has_one_fingerprint_and_one_listing_until_something_comes_or_goes(folder: Path) -> None:
    config = settings(folder)
    assert settings(folder, validation=3, size=20, workers=1).fingerprint() == config.fingerprint()
    first = config.fingerprint(), config.load()
    assert config.load() is first[1]
    shutil.copy(folder / "train" / "class 1" / "1.png", folder / "train" / "class 1" / "new.png")
    assert config.fingerprint() != first[0]
    assert len(config.load().train_labels) == 33
    (folder / "train" / "class 1" / "new.png").unlink()
    assert config.fingerprint() == first[0]
    (folder / "val" / "class 1" / "1.png").rename(folder / "val" / "class 1" / "1a.png")
    assert config.fingerprint() != first[0]


def test_contents_identify_a_set_wherever_and_whenever_it_was_written(folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile))
    configs = [settings(one, identified_by="contents") for one in (folder, copied)]
    assert configs[0].fingerprint() == configs[1].fingerprint()
    assert settings(folder).fingerprint() != settings(copied).fingerprint()
    assert settings(folder).fingerprint() != configs[0].fingerprint()
    at = copied / "val" / "class 1" / "1.png"
    at.write_bytes(at.read_bytes() + b"\0")
    at.rename(at.with_name("2b.png"))
    at.with_name("2b.png").rename(at)
    assert configs[1].fingerprint() != configs[0].fingerprint()


def test_cached_images_are_the_decoded_ones_and_crops_are_taken_from_them(folder: Path, tmp_path: Path) -> None:
    config = settings(folder, cached_side=20, cache_folder=str(tmp_path / "cache"), evaluation_side=20)
    dataset = config.load()
    listing, part = dataset.parts["train"].listing, dataset.parts["train"].indices
    order = part[torch.randperm(len(part), generator=torch.Generator().manual_seed(_seed(0, 0))).numpy()]
    wanted = []
    for index in order[:5].tolist():
        image = F.resize(Image.open(listing.path(index)).convert("RGB"), [20])
        setup = {**SETUP, "size": SIZE, "jitter": [0] * 4}
        wanted.append(torch.from_numpy(np.array(augmented(image, setup, f"0 0 {index}"))))
    first = list(dataset.batches(0, 0, 5))
    pixels = (first[0][0].permute(0, 2, 3, 1) * torch.tensor(config.std) + torch.tensor(config.mean)) * 255
    assert torch.equal(pixels.round().to(torch.uint8), torch.stack(wanted))
    plain = replace(config, cached_side=None)
    assert same(list(dataset.evaluation("test")), list(plain.load().evaluation("test")))
    for path in (folder / "train").rglob("*.png"):
        os.truncate(path, 0)  # they are not looked at again
    assert same(epoch(config), first)
    assert same(epoch(replace(config, workers=1, prefetch=1)), first)


def test_a_cache_that_is_damaged_is_made_again_and_an_image_that_cannot_be_decoded_is_not_in_it(
    folder: Path, tmp_path: Path
) -> None:
    bad = folder / "train" / "class 1" / "3.png"
    damage(bad, "text")
    config = settings(folder, cached_side=20, cache_folder=str(tmp_path / "cache"), validation=0, unreadable=1)
    with pytest.warns(UserWarning, match=r"class 1/3\.png"):
        first = epoch(config)
    assert sum(len(labels) for _, labels in first) == 39
    (made,) = (one for one in (tmp_path / "cache").iterdir() if one.is_dir())
    os.truncate(made / "0.rgb", 100)
    with pytest.warns(UserWarning, match=r"class 1/3\.png"):
        assert same(epoch(replace(config, workers=3)), first)
    assert (made / "0.rgb").stat().st_size > 100
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="decoded images cannot be kept there"):
        epoch(replace(config, cache_folder=str(tmp_path / "file")))


def test_trainings_at_once_decode_for_the_cache_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, build = [], DecodedCache._build

    def counted(self: DecodedCache, *given: Any) -> None:
        built.append(self)
        build(self, *given)

    monkeypatch.setattr(DecodedCache, "_build", counted)
    config = settings(folder, cached_side=20, cache_folder=str(tmp_path / "cache"))
    with ThreadPoolExecutor(3) as threads:  # each with a dataset of its own, as in processes of their own
        first, *others = threads.map(epoch, [replace(config, workers=number) for number in (1, 2, 3)])
    assert all(same(first, other) for other in others)
    assert len(built) == 1


def test_a_stop_is_noticed_while_a_cache_is_written_or_waited_for_and_nothing_is_left_of_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_cache, "_BATCH", 4)
    config = settings(folder, cached_side=20, cache_folder=str(tmp_path / "cache"))
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 3

    with stoppable(stop), pytest.raises(Stopped):
        epoch(config)
    assert len(asked) == 3
    assert not children()
    (lock,) = (tmp_path / "cache").iterdir()
    assert lock.is_file()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with stoppable(lambda: True), pytest.raises(Stopped):
            epoch(config)
    assert len(epoch(config)) == len(epoch(replace(config, cached_side=None)))


def test_a_stop_is_noticed_while_contents_are_read(folder: Path) -> None:
    config = settings(folder, identified_by="contents")
    with stoppable(lambda: True), pytest.raises(Stopped):
        config.fingerprint()
    with stoppable(lambda: False):
        assert config.fingerprint() == settings(folder, identified_by="contents").fingerprint()


def waiting_for_batch(images: Path) -> Iterator[tuple[Tensor, Tensor]]:
    batches = settings(images, prefetch=1).load().batches(0, 0, 5)
    next(batches)
    return batches


@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [(signal.SIGKILL, MemoryError, "killed"), (signal.SIGSEGV, RuntimeError, "ended with SIGSEGV")],
)
def test_a_worker_that_dies_is_told_in_one_line_and_nobody_waits_for_it(
    images: Path, number: signal.Signals, kind: type[Exception], says: str
) -> None:
    batches = waiting_for_batch(images)
    _, other = children()
    os.kill(other, number)
    began = time.monotonic()
    with pytest.raises(kind, match=f"^an image worker (was )?{says} (at /.*png|while it waited)") as raised:
        list(batches)
    assert time.monotonic() - began < 30
    assert "\n" not in str(raised.value)
    assert not children()


def test_workers_end_with_whoever_asked_for_them(images: Path) -> None:
    batches = waiting_for_batch(images)
    assert len(children()) == 2
    del batches
    assert not children()
    epoch(settings(images))
    assert not children()


def test_workers_end_with_a_process_that_is_killed(images: Path) -> None:
    program = f"""
from fsg.data import ImageFolder
batches = ImageFolder(folder={str(images)!r}, size=16, validation=8).load().batches(0, 0, 5)
next(batches)
print("ready", flush=True)
input()
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    pids = children(child.pid)
    assert len(pids) == 2
    child.kill()
    child.communicate()
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("places", [1, 3])
def test_no_more_is_decoded_ahead_than_there_are_places(images: Path, places: int) -> None:
    listing = settings(images).load().parts["train"].listing
    asked = []

    def orders() -> Iterator[list[dict[str, Any]]]:
        for index in range(len(listing)):
            asked.append(index)
            yield [listing.order(index)]

    with ImageWorkers(SETUP, count=2, batch_size=1, places=places) as workers:
        for number, batch in enumerate(decoded(workers, orders())):
            assert len(asked) <= number + places + 1
            assert len(workers.waiting) < places
            assert batch.pixels.untyped_storage().nbytes() <= 64 + places * 3 * 24**2


def test_a_dataset_of_folders_moves_to_a_device_and_shares_what_it_left_out(images: Path) -> None:
    dataset = settings(images).load()
    moved = dataset.to("meta")
    assert isinstance(moved, FolderDataset)
    assert (moved.device.type, dataset.device.type, moved.train_labels.device.type) == ("meta", "cpu", "meta")
    assert moved.unreadable is dataset.unreadable
