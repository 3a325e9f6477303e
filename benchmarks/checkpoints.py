"""What it costs to lose nothing: `python -m benchmarks.checkpoints` (make bench-checkpoints).

ResNet-20, batch 128, 32x32 images, FSG with a history of 5: the seconds of a checkpoint (state, bytes, SHA-256 and a
durable write) against the seconds between two of them; the size of the state on disk against that of the tensors in
it; and how long a warm worker that gets an interrupted cell takes to train it again. All in one run.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import Tensor

from fsg import checkpoint
from fsg.data import Arrays
from fsg.estimators import FSG
from fsg.models import ResNet
from fsg.train_config import TrainConfig
from fsg.trainer import Training
from orchestration.ledger.ledger import Ledger
from orchestration.runtime.cell_training import CellTraining
from orchestration.spec.cells import Cell
from orchestration.spec.fields import Resources


def random_images(path: Path, count: int) -> None:
    draw = np.random.default_rng(0)
    arrays = {
        f"{split}_{kind}": draw.integers(0, high, shape, dtype=np.uint8)
        for split in ("train", "test")
        for kind, high, shape in (("images", 255, (count, 32, 32, 3)), ("labels", 10, (count,)))
    }
    np.savez(path, **arrays)


def raw_bytes(training: Training) -> int:
    """Of the tensors that a training cannot do without; each counted once."""
    found = {
        (value.untyped_storage().data_ptr(), value.storage_offset(), value.shape): value.nbytes
        for _, value in checkpoint.leaves(training.state_dict())
        if isinstance(value, Tensor)
    }
    return sum(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=10)
    parser.add_argument("--steps", type=int, default=2, help="between two checkpoints")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    chosen = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        random_images(folder / "random.npz", 128 * 40)
        config = TrainConfig(
            data=Arrays(file=str(folder / "random.npz"), validation=0, crop_padding=4),
            model=ResNet.Config(depth=chosen.depth, width=16),
            estimator=FSG.Config(history_length=5, slow_weight=0.9),
            batch_size=128,
            epochs=1,
        )
        ledger = Ledger(folder / "experiment")
        interrupted, warming = (Cell(name * 16, "train", name, {}, 0, config) for name in "ab")
        for cell in (interrupted, warming):
            ledger.add(cell)

        training = CellTraining(ledger, interrupted, checkpoint_every=1e9)
        took, a_step = [], []
        while len(took) < chosen.checkpoints:
            for _ in range(chosen.steps):
                began = time.perf_counter()
                training.run_for(0.0)
                a_step.append(time.perf_counter() - began)
            going = training._run
            assert going is not None
            if going.training.step:
                began = time.perf_counter()
                going.checkpoint()
                took.append(time.perf_counter() - began)
        assert going is not None
        raw = raw_bytes(going.training)
        point = ledger.resume_point(interrupted.id)
        assert point is not None
        on_disk = point.path.stat().st_size

        CellTraining(ledger, warming).run_for(0.0)  # the worker is warm: it has just trained something else
        again = CellTraining(ledger, interrupted)
        began = time.perf_counter()
        again.run_for(0.0)  # to just before its first step
        resumed = time.perf_counter() - began
        again.run_for(0.0)
        assert again.step == point.step + 1

    every = Resources().checkpoint_every
    cost, size = statistics.median(took), on_disk / raw
    print(f"{'a checkpoint':<42}{cost:.3f} s, {100 * cost / every:.2f} % of the {every:.0f} s between two by default")
    print(f"{'its file':<42}{on_disk / 2**20:.2f} MiB, {size:.3f} times its tensors ({raw / 2**20:.2f} MiB)")
    step = statistics.median(a_step)
    print(f"{'until an interrupted cell trains again':<42}{resumed:.2f} s on a warm worker; a step is {step:.2f} s")
    if chosen.json:
        figures = {"checkpoint_part": cost / every, "file_by_tensors": size, "resume_seconds": resumed}
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
