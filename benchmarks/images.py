"""Augmented images a second, in memory and from files, against torchvision's transforms in worker processes."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import datasets
from torchvision.transforms import v2

from benchmarks.measuring import Row, interleaved
from fsg.data import Arrays, FashionMNISTSubset, ImageFolder


class Images(TorchDataset):  # type: ignore[type-arg]
    """As torchvision's CIFAR10 serves them: a PIL image at a time."""

    def __init__(self, file: Path) -> None:
        with np.load(file) as archive:
            self.images, self.labels = archive["train_images"], archive["train_labels"]
        self.transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=4),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.5, 0.5, 0.5], [0.25, 0.25, 0.25]),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(v2.functional.to_pil_image(self.images[index])), int(self.labels[index])


def augmentation(file: Path, repetitions: int) -> Row:
    dataset = Arrays(file=str(file), validation=0, crop_padding=4, flip=True).load()
    loader = DataLoader(Images(file), 128, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True)
    epochs = iter(range(10_000))

    def ours() -> None:
        for _ in dataset.batches(0, next(epochs), 128):
            pass

    def theirs() -> None:
        for _ in loader:
            pass

    seconds = interleaved({"ours": ours, "theirs": theirs}, repetitions, warm_up=1)
    count = 128 * (len(dataset.train_labels) // 128)
    measured = {"images_a_second": {name: count / value for name, value in seconds.items()}}
    return Row(
        "Augmented images a second, ours / torchvision's transforms, 2 workers",
        seconds["theirs"] / seconds["ours"], 10, 30, at_least=True, measured=measured,
    )  # fmt: skip


def write_files(folder: Path, count: int) -> Path:
    """Photographs as ImageNet's are: JPEGs of 500x375, some 100 kB each, of the embedded images, coloured and noisy."""
    draw = np.random.default_rng(0)
    raw = FashionMNISTSubset().read()
    for split, number in (("train", count), ("val", 4)):
        for index in range(number):
            path = folder / split / f"class {index % 2}" / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            grey = Image.fromarray(raw.train_images[index]).resize((500, 375), Image.Resampling.BICUBIC)
            colours = np.asarray(grey)[:, :, None] * draw.uniform(0.4, 1, 3) + draw.normal(0, 12, (375, 500, 3))
            Image.fromarray(colours.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return folder


def from_files(folder: Path, repetitions: int, count: int, workers: int = 2) -> Row:
    """Whole epochs, the start of the workers included; torchvision's stay from epoch to epoch."""
    write_files(folder, count)
    batch = min(64, count)
    dataset = ImageFolder(folder=str(folder), validation=0, workers=workers).load()
    mean, std = dataset.mean.tolist(), dataset.std.tolist()
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(224, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
            v2.ToPureTensor(),
        ]
    )
    files = datasets.ImageFolder(folder / "train", transform)
    loader = DataLoader(files, batch, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True)
    epochs = iter(range(10_000))

    def ours() -> None:
        for _ in dataset.batches(0, next(epochs), batch):
            pass

    def theirs() -> None:
        for _ in loader:
            pass

    seconds = interleaved({"ours": ours, "theirs": theirs}, repetitions, warm_up=1)
    whole = batch * (count // batch)
    return Row(
        "Images a second from files (JPEG, 500x375 → 224), ours / torchvision's DataLoader, 2 workers",
        seconds["theirs"] / seconds["ours"], 1, 1.2, at_least=True,
        measured={"images_a_second": {name: whole / value for name, value in seconds.items()}},
    )  # fmt: skip
