"""Folders of images as files, made of the embedded ones (Fashion-MNIST), in torchvision's layout."""

from pathlib import Path

import numpy as np
from PIL import Image

import fsg.data

EMBEDDED = Path(fsg.data.__file__).parent / "embedded" / "fashion_mnist_subset.npz"


def write_images(folder: Path, *, classes: int = 4, suffix: str = ".png", **splits: int) -> Path:
    """So many images of each class below folder/SPLIT/class N, each of another height and width."""
    draw = np.random.default_rng(0)
    with np.load(EMBEDDED) as archive:
        images, labels = archive["train_images"], archive["train_labels"]
    taken = 0
    for split, count in splits.items():
        for label in range(classes):
            at = folder / split / f"class {label}"
            at.mkdir(parents=True)
            for number, image in enumerate(images[labels == label][taken : taken + count]):
                size = tuple(draw.integers(24, 60, 2).tolist())
                grey = Image.fromarray(image).resize(size)
                tinted = [grey.point(lambda value, share=share: value * share) for share in draw.uniform(0.3, 1, 3)]
                Image.merge("RGB", tinted).save(at / f"{number}{suffix}")
        taken += count
    return folder
