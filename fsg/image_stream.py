"""Batches of images, decoded by worker processes some batches ahead of who asks for them.

Memory is bounded: a batch is decoded into one of a few places in shared memory, and a place is used again only once
its batch was taken. Each worker decodes every so manieth image of each batch.
"""

import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from fsg.image_worker import CELL

Order = dict[str, Any]


class Decoded(NamedTuple):
    """A batch: pixels uint8 [b, size, size, 3], valid until the next one is asked for, and what failed, by position.

    `sizes` are the (width, height) of what was written to a worker's shard instead.
    """

    pixels: Tensor
    failed: dict[int, str]
    sizes: dict[int, tuple[int, int]]


class ImageWorkers:
    """Worker processes and the shared memory that they decode into. Use it as a context: they end with it.

    `setup` is what `fsg.image_worker` needs to know, `shards` are files for the workers to append to instead.
    """

    def __init__(
        self, setup: Mapping[str, Any], *, count: int, batch_size: int, places: int, shards: Sequence[str] = ()
    ) -> None:
        self.size, self.places = setup["size"], places
        self._bytes = batch_size * 3 * self.size**2
        self._head = -(-CELL * count // 64) * 64
        self._memory = _shared(self._head + places * self._bytes)
        self._pixels = torch.frombuffer(self._memory.mapped, dtype=torch.uint8)
        self._sent = 0
        self.waiting: deque[tuple[int, Sequence[Order]]] = deque()
        self._processes: list[subprocess.Popen[bytes]] = []
        for number in range(count):
            own = {**setup, "number": number} | ({"shard": shards[number]} if shards else {})
            self._processes.append(_start(own, self._memory.descriptor))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):  # what was not sent is not to be
                        pipe.close()
            with suppress(subprocess.TimeoutExpired):  # one that waits for a file server ends when that answers
                process.wait(timeout=10)
        os.close(self._memory.descriptor)

    def send(self, images: Sequence[Order]) -> None:
        """Let a batch be decoded, into the place that is free the longest. Raises what `receive` does."""
        at = self._head + self._sent % self.places * self._bytes
        self._sent += 1
        self.waiting.append((at, images))
        numbered = [image | {"position": position} for position, image in enumerate(images)]
        for number, process in enumerate(self._processes):
            line = json.dumps({"at": at, "images": numbered[number :: len(self._processes)]}).encode() + b"\n"
            assert process.stdin is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
            except BrokenPipeError:
                self._check_alive(number)

    def receive(self) -> Decoded:
        """The batch sent first. Raises MemoryError for a worker that was killed, RuntimeError for one that fails."""
        failed: dict[int, str] = {}
        sizes: dict[int, tuple[int, int]] = {}
        for number, process in enumerate(self._processes):
            assert process.stdout is not None
            line = process.stdout.readline()
            answer = json.loads(line) if line.endswith(b"\n") else self._dead(number)
            if "error" in answer:
                kind = MemoryError if answer["kind"] == "MemoryError" else RuntimeError
                raise kind(f"an image worker {self._at(number)}: {answer['kind']}: {answer['error']}")
            failed |= {int(position): reason for position, reason in answer["failed"].items()}
            sizes |= {int(position): tuple(size) for position, size in answer.get("sizes", {}).items()}
        at, images = self.waiting.popleft()
        pixels = self._pixels[at : at + len(images) * 3 * self.size**2].view(-1, self.size, self.size, 3)
        return Decoded(pixels, failed, sizes)

    def _check_alive(self, number: int) -> None:
        """What a worker said last explains why it takes no more orders."""
        while self.waiting:
            self.receive()
        self._dead(number)

    def _dead(self, number: int) -> dict[str, Any]:
        code = self._processes[number].wait()
        if code == -signal.SIGKILL:
            raise MemoryError(f"an image worker was killed {self._at(number)}, probably for want of memory")
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        raise RuntimeError(f"an image worker ended with {how} {self._at(number)}")

    def _at(self, number: int) -> str:
        position = int.from_bytes(self._memory.mapped[CELL * number : CELL * (number + 1)], "little")
        images = self.waiting[0][1] if self.waiting else []
        return f"at {shown(images[position]['file'])}" if position < len(images) else "while it waited"


def decoded(workers: ImageWorkers, batches: Iterable[Sequence[Order]]) -> Generator[Decoded]:
    """The batches in their order, as many decoded or being decoded ahead as there are places."""
    for images in batches:
        if len(workers.waiting) == workers.places:
            yield workers.receive()
        workers.send(images)
    while workers.waiting:
        yield workers.receive()


class _Shared(NamedTuple):
    descriptor: int
    mapped: mmap.mmap


def _shared(size: int) -> _Shared:
    """Memory that belongs to no file which could stay behind, nor to /dev/shm, which is small in containers."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("images")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return _Shared(descriptor, mmap.mmap(descriptor, size))


def _start(setup: Mapping[str, Any], descriptor: int) -> "subprocess.Popen[bytes]":
    """A fresh process, not a fork: the one that asks may have threads. A session of its own: Ctrl-C is not for it."""
    program = Path(__file__).with_name("image_worker.py")
    return subprocess.Popen(
        [sys.executable, "-P", str(program), json.dumps(setup), str(descriptor)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=[descriptor],
        start_new_session=True,
    )


def shown(path: str) -> str:
    """A path as a message can print it, on one line, whatever its bytes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
