"""What the papers' experiments would cost on GPUs, estimated; nothing is measured here.

    python -m benchmarks.gpu_hours [NAME.yaml …]        of configs/paper; all but laptop_* unless named

    hours = Σ over cells of  steps · depth · 0.6 ms · factor / 3600 s

These networks are so small that a GPU waits for its next kernel most of the time: 0.6 ms a layer and step is some 40
kernels, forward, backward and optimizer, of 15 µs each. The factor is 1 without hypernetworks, 2 with them, and 4 for a
slow net over single elements or an LSTM of each weight. The slow net's scan is taken to be Triton's, which comes with
torch's CUDA builds; without Triton it is torch's, several times as many kernels, and the hours of FSG are too few.
Several trainings on one GPU overlap their waits, so the hours are those of one at a time. `fsg plan` on the GPU
measures a few steps of each kind instead, and `make gpu` a step of each method.
"""

import sys
from pathlib import Path

from ruamel.yaml import YAML

from fsg.estimators import EDE, FSG, LSTMFC, STE, FullPrecision, ReSTE
from fsg.models import ResNet
from fsg.starting_points import Pretrain
from fsg.trainer import TrainConfig, pretraining
from orchestration.spec.experiment import load_spec

PAPER = Path(__file__).resolve().parents[1] / "configs" / "paper"
SECONDS_A_LAYER = 0.6e-3
ASSUMED = "An estimate: nothing was measured. FSG's slow net is taken to scan in Triton, as torch's CUDA builds do."
TRAINING_IMAGES = {"cifar10": 50_000, "cifar100": 50_000}


def factor(train: TrainConfig) -> float:
    estimator = train.estimator
    if isinstance(estimator, STE.Config | EDE.Config | ReSTE.Config | FullPrecision.Config):
        return 1.0
    elementwise = isinstance(estimator, FSG.Config) and estimator.chunk_size == 1
    return 4.0 if elementwise or isinstance(estimator, LSTMFC.Config) else 2.0


def hours(train: TrainConfig) -> float:
    assert isinstance(train.model, ResNet.Config)
    images = TRAINING_IMAGES[train.data.name] - train.data.validation
    steps = train.epochs * (images // train.images_a_step)
    return steps * train.model.depth * SECONDS_A_LAYER * factor(train) / 3600


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
    names = sys.argv[1:] or [path.name for path in sorted(PAPER.glob("*.yaml")) if not path.name.startswith("laptop_")]
    print(ASSUMED)
    for name in names:
        path, total = PAPER / name, 0.0
        for profile in (None, *YAML(typ="safe").load(path).get("profiles", {})):
            cells, spent = of_spec(path, profile)
            total += spent
            print(f"{name:24}{profile or '(no profile)':24}{cells:6} cells {spent:8.0f} GPU-hours, estimated")
        print(f"{name:24}{'all':24}{'':12} {total:8.0f} GPU-hours, estimated")


if __name__ == "__main__":
    main()
