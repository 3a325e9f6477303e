"""A launched epoch against the same loop in plain PyTorch: `python -m benchmarks.epoch --images N --threads T`.

The launch is the whole product: spec, ledger, Ray, checkpoints, tracking, diagnostics; its time is that of training as
the ledger has it. The plain loop runs as many steps before and after it, and their mean is what it is compared to.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.measuring import ROOT, machine
from benchmarks.steps import config, plain, random_images
from orchestration.ledger.ledger import Ledger

SPEC = """
name: epoch
train:
  data: {{name: arrays, file: {file}, validation: 0, crop_padding: 4, flip: true}}
  model: {{name: resnet, depth: 20}}
  optimizer: {{name: adam, lr: 1.0e-3}}
  lr_schedule: constant
  threads: {threads}
  epochs: 1
variants: {{ste: {{estimator: ste}}, identity: {{estimator: {{name: ste, derivative: identity}}}}}}
seeds: [0]
report: {{baseline: ste, primary: identity}}
resources: {{max_concurrent: 1}}
"""


def launched(folder: Path, file: Path, threads: int) -> float:
    """Seconds that the epoch trained."""
    spec = folder / "epoch.yaml"
    spec.write_text(SPEC.format(file=file, threads=threads))
    command = [sys.executable, str(ROOT / "orchestration" / "launch.py"), str(spec), "--results", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    ledger = Ledger(folder / "epoch")
    (cell,) = (cell for cell in ledger.cells() if cell.variant == "ste")  # a spec compares two, of which one will do
    return max(row.values.get("time/train_seconds", 0.0) for row in ledger.rows(cell.id))


def plainly(file: Path, threads: int, steps: int) -> float:
    torch.set_num_threads(threads)
    step = plain(replace(config(file, threads), epochs=1))
    began = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.epoch", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=12_800)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    with TemporaryDirectory() as folder:
        file = random_images(Path(folder), chosen.images)
        steps = chosen.images // 128
        before = plainly(file, chosen.threads, steps)
        ours = launched(Path(folder), file, chosen.threads)
        after = plainly(file, chosen.threads, steps)
    ratio = ours / ((before + after) / 2)
    print(
        f"{steps} steps: launched {ours:.1f} s, plain loop {before:.1f} s before and {after:.1f} s after: {ratio:.3f}"
    )
    print(machine(chosen.threads))


if __name__ == "__main__":
    main()
