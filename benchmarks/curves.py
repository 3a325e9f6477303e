"""How the time of a step grows: over the history's length, the network's parameters and the tokens of the slow net."""

import math
from dataclasses import dataclass, replace

from benchmarks.measuring import Row, interleaved
from benchmarks.steps import ours
from fsg.estimators import FSG, STE
from fsg.train_config import TrainConfig
from fsg.trainer import Training

NOTHING = 1e-6  # seconds: what noise may make of a small difference


@dataclass(frozen=True)
class Curve:
    """Seconds over x; `exponent` is that of the growth between the two largest x, where 1 is linear."""

    name: str
    x: list[float]
    seconds: list[float]
    unit: str

    @property
    def exponent(self) -> float:
        (x, last_x), (y, last_y) = self.x[-2:], self.seconds[-2:]
        return math.log(max(last_y, NOTHING) / max(y, NOTHING)) / math.log(last_x / x)

    def row(self) -> Row:
        measured = {"x": self.x, "seconds": self.seconds, "unit": self.unit}
        return Row(f"{self.name}: exponent at the end (linear: 1)", self.exponent, 1.1, 1.0, measured=measured)


def over_history(config: TrainConfig, lengths: list[int], repetitions: int) -> Curve:
    contestants = {"ste": ours(config, STE.Config())}
    contestants |= {f"{k}": ours(config, FSG.Config(history_length=k)) for k in lengths}
    seconds = interleaved(contestants, repetitions, warm_up=1 + max(lengths))
    added = [seconds[f"{k}"] - seconds["ste"] for k in lengths]
    return Curve("Time that FSG adds to a step, over K", [float(k) for k in lengths], added, "K")


def over_tokens(config: TrainConfig, sizes: list[int], repetitions: int) -> Curve:
    """Over 1/chunk_size, largest chunks first."""
    contestants = {"ste": ours(config, STE.Config())}
    contestants |= {f"{size}": ours(config, FSG.Config(chunk_size=size)) for size in sizes}
    seconds = interleaved(contestants, repetitions, warm_up=6)
    added = [seconds[f"{size}"] - seconds["ste"] for size in sizes]
    return Curve("Time that FSG adds to a step, over 1/chunk_size", [1 / size for size in sizes], added, "1/chunk_size")


def over_parameters(config: TrainConfig, depths: list[int], repetitions: int) -> Curve:
    trainings = [
        Training(replace(config, estimator=FSG.Config(), model=replace(config.model, depth=depth)), 0)
        for depth in depths
    ]
    counts = [float(sum(w.numel() for w in training.estimator.weights)) for training in trainings]
    steps = {f"{depth}": training.advance for depth, training in zip(depths, trainings, strict=True)}
    seconds = interleaved(steps, repetitions, warm_up=6)
    name = f"FSG step over the parameters, ResNet-{depths[0]}…{depths[-1]}"
    return Curve(name, counts, list(seconds.values()), "parameters")
