"""A process that decodes images. It is started by the path of this file: it imports Pillow, and neither torch nor fsg.

    python image_worker.py SETUP DESCRIPTOR

reads orders from its standard input and answers each on its standard output, a line of JSON each. Pixels go into the
shared memory of that descriptor. It ends where its input does, so also with the process that started it.

What is drawn for an image is a function of its key alone, (seed, epoch, index): no process has a generator.
"""

import hashlib
import json
import math
import mmap
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from PIL.Image import Image

TRIES, RATIO = 10, (3 / 4, 4 / 3)
_CORNER, _FLIP, _COLOUR = 2 * TRIES, 2 * TRIES + 2, 2 * TRIES + 3
DRAWS = _COLOUR + 7
CHANGED = "changed"
CELL = 8  # bytes in which a worker says which image it is at
IDLE = 2**64 - 1
_LONGEST = 120
Box = tuple[int, int, int, int]


def draws(key: str) -> list[float]:
    """Numbers in [0, 1) that are a pure function of a key: 53 bits each of SHAKE-256."""
    stream = hashlib.shake_256(key.encode()).digest(8 * DRAWS)
    return [(int.from_bytes(stream[at : at + 8], "little") >> 11) * 2.0**-53 for at in range(0, 8 * DRAWS, 8)]


def crop_box(width: int, height: int, smallest: float, drawn: Sequence[float]) -> Box:
    """left, top, width, height of a random crop, as torchvision's RandomResizedCrop draws it.

    Its share of the area is uniform in [smallest, 1], the logarithm of its width/height in [log 3/4, log 4/3]. Where
    ten such crops do not fit, it is the largest central one whose ratio does not leave these bounds.
    """
    low, high = map(math.log, RATIO)
    for first in range(0, 2 * TRIES, 2):
        area = width * height * (smallest + drawn[first] * (1 - smallest))
        ratio = math.exp(low + drawn[first + 1] * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            down, across = drawn[_CORNER : _CORNER + 2]
            return int(across * (width - w + 1)), int(down * (height - h + 1)), w, h
    w, h = width, height
    if width / height < RATIO[0]:
        h = round(w / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(h * RATIO[1])
    return (width - w) // 2, (height - h) // 2, w, h


def colour_order(drawn: Sequence[float]) -> list[int]:
    """A permutation of brightness, contrast, saturation and hue (0 to 3)."""
    order = list(range(4))
    for last in (3, 2, 1):
        other = int(drawn[_COLOUR + 3 + last] * (last + 1))
        order[last], order[other] = order[other], order[last]
    return order


def colour_factors(jitter: Sequence[float], drawn: Sequence[float]) -> list[float | None]:
    """Of brightness, contrast and saturation in [max(0, 1 − j), 1 + j], of hue in [−j, j]; None where j is 0."""
    found: list[float | None] = []
    for kind, (j, u) in enumerate(zip(jitter, drawn[_COLOUR : _COLOUR + 4], strict=True)):
        low, high = (-j, j) if kind == 3 else (max(0.0, 1 - j), 1 + j)
        found.append(low + u * (high - low) if j else None)
    return found


def with_hue(image: "Image", factor: float) -> "Image":
    """Every hue moved by a factor of the circle, in 255ths, towards zero."""
    from PIL import Image

    hue, saturation, value = image.convert("HSV").split()
    moved = hue.point([(old + int(factor * 255)) % 256 for old in range(256)])
    return Image.merge("HSV", (moved, saturation, value)).convert("RGB")


def coloured(image: "Image", jitter: Sequence[float], drawn: Sequence[float]) -> "Image":
    """Brightness, contrast, saturation and hue changed at random, in a random order, as torchvision's ColorJitter."""
    from PIL import ImageEnhance

    change = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = colour_factors(jitter, drawn)
    for kind in colour_order(drawn):
        factor = factors[kind]
        if factor is not None:
            image = with_hue(image, factor) if kind == 3 else change[kind](image).enhance(factor)
    return image


def augmented(image: "Image", setup: dict[str, Any], key: str) -> "Image":
    """[size, size] of a random crop, resized, mirrored and coloured at random."""
    from PIL import Image

    drawn, size = draws(key), setup["size"]
    left, top, width, height = crop_box(*image.size, setup["crop_area"], drawn)
    image = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
    if setup["flip"] and drawn[_FLIP] < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return coloured(image, setup["jitter"], drawn) if any(setup["jitter"]) else image


def with_side(image: "Image", side: int) -> "Image":
    """Resized so that the shorter side is `side`, the longer one rounded down."""
    from PIL import Image

    width, height = image.size
    shorter, longer = min(width, height), int(side * max(width, height) / min(width, height))
    new = (side, longer) if width <= height else (longer, side)
    return image if shorter == side else image.resize(new, Image.Resampling.BILINEAR)


def central(image: "Image", setup: dict[str, Any]) -> "Image":
    """[size, size] from the middle of the image, whose shorter side is made `evaluation_side` before."""
    size, image = setup["size"], with_side(image, setup["evaluation_side"])
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


class Changed(Exception):
    """A file that is no longer what was listed."""


def decoded(order: dict[str, Any]) -> "Image":
    """The image of a file in RGB, its orientation as stored. Raises Changed, and whatever Pillow raises."""
    from PIL import Image

    try:
        stream = open(order["file"], "rb")  # noqa: SIM115  # the with below closes it
    except FileNotFoundError:
        raise Changed from None
    with stream:
        state = os.fstat(stream.fileno())
        if (state.st_size, state.st_mtime_ns) != (order["bytes"], order["time"]):
            raise Changed
        with Image.open(stream) as image:
            return image.convert("RGB")


class Worker:
    """Does one order after another; `answer` is what it says of it."""

    def __init__(self, setup: dict[str, Any], descriptor: int) -> None:
        self.setup = setup
        self.memory = mmap.mmap(descriptor, 0)
        self._maps: dict[str, mmap.mmap] = {}
        self._shard: BinaryIO | None = open(setup["shard"], "wb") if setup.get("shard") else None  # noqa: SIM115

    def answer(self, order: dict[str, Any]) -> dict[str, Any]:
        """Decode the images of an order: into the shared memory, or to the end of the shard.

        `failed` are those that could not be, by position, each with the reason; `sizes` those in the shard.
        """
        failed: dict[int, str] = {}
        sizes: dict[int, tuple[int, int]] = {}
        for image in order["images"]:
            position = image["position"]
            self._say_where(position)
            try:
                found = self._read(image)
                made = self._made(found, image.get("key"))
            except Changed:
                failed[position] = CHANGED
            except MemoryError:
                raise
            except Exception as error:  # a damaged file makes Pillow raise a dozen kinds
                failed[position] = _reason(error) if len(failed) < 4 else ""
            else:
                self._put(made, order["at"], position)
                sizes[position] = made.size
        self._say_where(IDLE)
        return {"failed": failed} | ({"sizes": sizes} if self._shard is not None else {})

    def _say_where(self, position: int) -> None:
        """For those who find this process dead."""
        here = CELL * self.setup["number"]
        self.memory[here : here + CELL] = position.to_bytes(CELL, "little")

    def _read(self, image: dict[str, Any]) -> "Image":
        if "offset" not in image:
            return decoded(image)
        from PIL import Image

        path, size, first = image["file"], (image["width"], image["height"]), image["offset"]
        if path not in self._maps:
            with open(path, "rb") as stream:
                self._maps[path] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        with memoryview(self._maps[path]) as whole:
            return Image.frombytes("RGB", size, bytes(whole[first : first + 3 * size[0] * size[1]]))

    def _made(self, image: "Image", key: str | None) -> "Image":
        if self._shard is not None:
            side = self.setup["cached_side"]
            return with_side(image, side) if min(image.size) > side else image
        return central(image, self.setup) if key is None else augmented(image, self.setup, key)

    def _put(self, image: "Image", at: int, position: int) -> None:
        pixels = image.tobytes()
        if self._shard is not None:
            self._shard.write(pixels)
            self._shard.flush()
            return
        first = at + position * len(pixels)
        self.memory[first : first + len(pixels)] = pixels


def _reason(error: Exception) -> str:
    """One short line, without what differs between processes."""
    text = str(error).partition("<_io.")[0].strip() or type(error).__name__
    return " ".join(text.split())[:_LONGEST]


def main(setup: str, descriptor: str) -> None:
    warnings.simplefilter("ignore")  # of Pillow's about odd files
    out = sys.stdout.buffer

    def say(answer: dict[str, Any]) -> None:
        out.write(json.dumps(answer).encode() + b"\n")
        out.flush()

    with suppress(BrokenPipeError):  # whoever asked is gone
        try:
            worker = Worker(json.loads(setup), int(descriptor))
            for line in sys.stdin.buffer:
                say(worker.answer(json.loads(line)))
        except (Exception, MemoryError) as error:
            say({"error": _reason(error), "kind": type(error).__name__})


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # without flushing into a pipe that may be closed
