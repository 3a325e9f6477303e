"""Makes `fashion_mnist_subset.npz`: 10,000 + 2,000 images of Fashion-MNIST, as many of each class.

    python -m fsg.embedded.make_fashion_mnist_subset [SOURCE [TARGET]]

SOURCE is a folder with the four published files, `train-images-idx3-ubyte.gz` and so on; by default the one in which
Debian's package dataset-fashion-mnist has them. The same images give the same bytes.
"""

import gzip
import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsg.data import balanced_order

SOURCE = Path("/usr/share/datasets/fashion-mnist")
TARGET = Path(__file__).with_name("fashion_mnist_subset.npz")
SEED = 2025
PER_SPLIT = {"train": ("train", 10_000), "test": ("t10k", 2_000)}


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in a gzipped IDX file of bytes: the magic number's last byte counts the dimensions that follow it."""
    content = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def subset(source: Path) -> dict[str, NDArray[Any]]:
    """The arrays of the file: images uint8 [n, 28, 28], labels uint8 [n], and which of the published ones they are."""
    arrays: dict[str, NDArray[Any]] = {}
    for split, (prefix, count) in PER_SPLIT.items():
        images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
        chosen = np.sort(balanced_order(labels.astype(np.int64), SEED)[:count])
        arrays[f"{split}_images"] = images[chosen]
        arrays[f"{split}_labels"] = labels[chosen]
        arrays[f"{split}_indices"] = chosen.astype(np.uint16)
    return arrays


def npz(arrays: dict[str, NDArray[Any]]) -> bytes:
    """What `numpy.load` reads, without the time of day, and smaller than `numpy.savez_compressed` makes it."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_LZMA
            member.create_system = 3
            members.writestr(member, content.getvalue())
    return archive.getvalue()


def main(source: Path = SOURCE, target: Path = TARGET) -> None:
    target.write_bytes(npz(subset(source)))
    print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
