"""Augmented images a second: in memory, a batch at a time, against torchvision's transforms in worker processes."""

from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2

from benchmarks.measuring import Row, interleaved
from fsg.data import Arrays


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
