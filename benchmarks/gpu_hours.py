"""What the papers' experiments would cost on GPUs, estimated; nothing is measured here.

    python -m benchmarks.gpu_hours [FILE.yaml …]        those of configs/paper and configs/recipes

    hours = Σ over cells of  steps · max(layers · 0.6 ms · factor, 3 · FLOPs · batch / 10 TFLOP/s) / 3600 s

CIFAR's ResNets are so small that a GPU waits for its next kernel most of the time: 0.6 ms a layer and step is some 40
kernels, forward, backward and optimizer, of 15 µs each. The factor is 1 without hypernetworks, 2 with them, and 4 for a
slow net over single elements or an LSTM of each weight. The slow net's scan is taken to be Triton's, which comes with
torch's CUDA builds; without Triton it is torch's, several times as many kernels, and the hours of FSG are too few.
Wide networks are bound by their arithmetic instead: backward twice as much as forward, at 10 TFLOP/s.
Several trainings on one GPU overlap their waits, so the hours are those of one at a time. `fsg plan` on the GPU
measures a few steps of each kind instead, and `make gpu` a step of each method.
"""

import sys
from functools import cache
from pathlib import Path

import torch
from ruamel.yaml import YAML
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fsg.estimators import EDE, FSG, LSTMFC, STE, FullPrecision, ReSTE
from fsg.models import ModelConfig
from fsg.starting_points import Pretrain
from fsg.train_config import TrainConfig, pretraining
from orchestration.spec.experiment import load_spec

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SECONDS_A_LAYER = 0.6e-3
FLOPS_A_SECOND = 1e13
ASSUMED = "An estimate: nothing was measured. FSG's slow net is taken to scan in Triton, as torch's CUDA builds do."
TRAINING_IMAGES = {"cifar10": 50_000, "cifar100": 50_000}


def factor(train: TrainConfig) -> float:
    estimator = train.estimator
    if isinstance(estimator, STE.Config | EDE.Config | ReSTE.Config | FullPrecision.Config):
        return 1.0
    elementwise = isinstance(estimator, FSG.Config) and estimator.chunk_size == 1
    return 4.0 if elementwise or isinstance(estimator, LSTMFC.Config) else 2.0


@cache
def size(model: ModelConfig) -> tuple[int, int]:
    """Layers and FLOPs an image of a network for 32x32 images.

    The 1x1 convolutions of shortcuts, which run beside others, are no layers.
    """
    network = model.build((3, 32, 32), 10)
    found = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    layers = sum(not (isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)) for m in found)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, 32, 32))
    return layers, counter.get_total_flops()


def hours(train: TrainConfig) -> float:
    layers, flops = size(train.model)
    images = TRAINING_IMAGES[train.data.name] - train.data.validation
    steps = train.epochs * (images // train.images_a_step)
    work = 3 * flops * train.images_a_step / FLOPS_A_SECOND
    seconds = max(layers * SECONDS_A_LAYER * factor(train), work)
    return steps * seconds / 3600


def of_spec(path: Path, profile: str | None) -> tuple[int, float]:
    """Cells and hours: each full-precision training once a seed, what a tuning tries as if nothing were stopped."""
    spec = load_spec(path, profile)
    trial_seeds = {seed for study in spec.studies for seed in study.seeds}
    before = {str(p): p for p in (pretraining(t) for t in spec.trains if isinstance(t.init, Pretrain))}
    every = [(train, len(spec.seeds) + len(trial_seeds)) for train in before.values()]
    every += [(point.train, len(spec.seeds)) for point in spec.points]
    for study in spec.studies:
        every.append((study.train, study.trials * len(study.seeds) + max(1, study.best) * len(study.table_seeds)))
    return sum(count for _, count in every), sum(hours(train) * count for train, count in every)


def main() -> None:
    every = sorted((*CONFIGS.glob("paper/*.yaml"), *CONFIGS.glob("recipes/*.yaml")))
    wanted = [path for path in every if not path.name.startswith("laptop_")]
    print(ASSUMED)
    for path in [Path(name) for name in sys.argv[1:]] or wanted:
        name, total = path.name, 0.0
        for profile in (None, *YAML(typ="safe").load(path).get("profiles", {})):
            cells, spent = of_spec(path, profile)
            total += spent
            print(f"{name:32}{profile or '(no profile)':24}{cells:6} cells {spent:8.0f} GPU-hours, estimated")
        print(f"{name:32}{'all':24}{'':12} {total:8.0f} GPU-hours, estimated")


if __name__ == "__main__":
    main()
