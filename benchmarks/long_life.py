"""What grows in a long launch: `python -m benchmarks.long_life [TRAININGS]` (2,000 unless given).

One launch of so many short trainings, two at a time, with MLflow. Its processes, their memory and what they hold open,
and its temporary files, are looked at while it runs; the table has medians about a tenth of it and at its end.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]

from benchmarks.measuring import ROOT, number

SPEC = """
name: life
train:
  data: {{name: arrays, file: life.npz, validation: 16, crop_padding: 0}}
  model: {{name: resnet, depth: 8, width: 2}}
  epochs: 1
  batch_size: 32
variants: {{ste: {{}}, slower: {{optimizer.lr: 1.0e-4}}}}
seeds: {seeds}
report: {{baseline: ste, primary: slower}}
"""
WINDOWS = {"at a tenth": (0.1, 0.15), "at the end": (0.95, 1.0)}  # parts of the trainings that are done
PAUSE = 1.0  # seconds between two looks
DRIVER, WORKER = "driver", "workers"
Look = dict[str, float]


def prepare(folder: Path, trainings: int) -> None:
    """Write the spec and its images."""
    draw = np.random.default_rng(0)
    pixels, labels = draw.integers(0, 255, (80, 8, 8), dtype=np.uint8), np.arange(80) % 4
    np.savez(folder / "life.npz", train_images=pixels[:48], train_labels=labels[:48],
             test_images=pixels[48:], test_labels=labels[48:])  # fmt: skip
    (folder / "life.yaml").write_text(SPEC.format(seeds=list(range(trainings // 2))))


def look(driver: psutil.Process, temporary: Sequence[Path]) -> Look:
    """What there is now: memory in MB (a process's own), descriptors, threads, files in MB and their number."""
    found: dict[str, float] = {"processes": 0}
    shared: dict[int, int] = {}
    for process in [driver, *driver.children(recursive=True)]:
        with suppress(psutil.Error, OSError):
            kind = DRIVER if process == driver else WORKER if _is_worker(process) else "the rest of Ray"
            sizes = {
                "MB": process.memory_full_info().uss / 1e6,
                "descriptors": process.num_fds(),
                "threads": process.num_threads(),
            }
            for what, size in sizes.items():
                found[f"{kind}: {what}"] = found.get(f"{kind}: {what}", 0.0) + size
            found["processes"] += 1
            shared |= dict(_shared_memory(process))
    found["/dev/shm: MB"] = sum(shared.values()) / 1e6
    files = [path.lstat() for place in temporary for path in _files(place)]
    return found | {"temporary files": len(files), "temporary files: MB": sum(one.st_size for one in files) / 1e6}


def _is_worker(process: psutil.Process) -> bool:
    return bool(re.match(r"ray::(WorkerTrial|ImplicitFunc)", process.name() + "".join(process.cmdline()[:1])))


def _shared_memory(process: psutil.Process) -> Iterator[tuple[int, int]]:
    """Number and bytes of the files in /dev/shm that a process holds open, also ones without a name."""
    for path in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(OSError):
            if os.readlink(path).startswith("/dev/shm/"):
                held = path.stat()
                yield held.st_ino, 512 * held.st_blocks


def _files(place: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(place):
        yield from (Path(folder, name) for name in names if os.path.lexists(os.path.join(folder, name)))


def _sessions(driver: psutil.Process) -> set[Path]:
    """The folder of its Ray's, as the commands of its processes tell."""
    said = [" ".join(child.cmdline()) for child in driver.children()]
    return {Path(path) for text in said for path in re.findall(r"/tmp/fsg-\w+", text)}


def observe(folder: Path, trainings: int) -> list[tuple[int, Look]]:
    """Launch it, and look at it again and again: how many trainings were done, and what there was."""
    prepare(folder, trainings)
    temporary, output, looks = folder / "temporary", folder / "output.txt", list[tuple[int, Look]]()
    temporary.mkdir()
    with output.open("w") as stream:
        words = [sys.executable, str(ROOT / "orchestration" / "launch.py"), "life.yaml"]
        environment = os.environ | {"TMPDIR": str(temporary)}
        launch = subprocess.Popen(words, cwd=folder, env=environment, stdout=stream, stderr=stream)
        driver = psutil.Process(launch.pid)
        while launch.poll() is None:
            time.sleep(PAUSE)
            done = [0, *map(int, re.findall(rf" (\d+)/{trainings} cells", output.read_text()))][-1]
            with suppress(psutil.Error, OSError):
                seen = look(driver, [temporary, *_sessions(driver)])
                if f"{WORKER}: MB" in seen:  # or the workers have left, and there is nothing to compare
                    looks.append((done, seen))
    if launch.returncode:
        raise RuntimeError(output.read_text()[-2000:])
    return looks


def medians(looks: Sequence[tuple[int, Look]], trainings: int) -> dict[str, Look]:
    """Of each figure, in each window; where no look fell into one, that of the nearest."""
    found = {}
    for name, (low, high) in WINDOWS.items():
        within = [seen for done, seen in looks if low <= done / trainings <= high]
        middle = (low + high) / 2
        within = within or [min(looks, key=lambda one: abs(one[0] / trainings - middle))[1]]
        found[name] = {what: statistics.median(seen.get(what, 0.0) for seen in within) for what in within[0]}
    return found


def table(found: dict[str, Look]) -> str:
    """In Markdown, a line a figure."""
    before, after = found.values()
    lines = [f"| | {' | '.join(found)} | difference |", "|---|---:|---:|---:|"]
    lines += [
        f"| {what} | {number(before[what])} | {number(after[what])} | {after[what] - before[what]:+.3g} |"
        for what in before
        if what in after
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_life", description=str(__doc__).splitlines()[0])
    parser.add_argument("trainings", type=int, nargs="?", default=2000)
    parser.add_argument("--json", type=Path, help="also keep every look in a file")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fsg-bench-") as made:
        looks = observe(Path(made), given.trainings)
    if given.json:
        given.json.write_text(json.dumps(looks))
    print(table(medians(looks, given.trainings)))


if __name__ == "__main__":
    main()
