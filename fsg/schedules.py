"""Learning-rate schedules: pure functions of the epoch, a real number in [0, epochs]."""

import math
from dataclasses import dataclass
from typing import Literal

from fsg.config import Settings, setting
from fsg.imported import Imported


@dataclass(frozen=True, kw_only=True)
class _WarmUp(Settings):
    warmup_epochs: float = setting(0.0, "Epochs of linear rise from 0 to the learning rate.", ge=0)

    def factor(self, epoch: float, epochs: int) -> float:
        """What the learning rate is multiplied with at an epoch (its fraction counts) of a training of `epochs`."""
        rise = min(1.0, epoch / self.warmup_epochs) if self.warmup_epochs else 1.0
        return rise * self.decay(epoch, epochs)

    def decay(self, epoch: float, epochs: int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Constant(_WarmUp):
    """factor = 1 after the warm-up."""

    name: Literal["constant"] = "constant"


@dataclass(frozen=True, kw_only=True)
class Step(_WarmUp):
    """factor = gamma^⌊epoch / every⌋."""

    name: Literal["step"] = "step"
    every: int = setting(30, "Epochs between two drops.", ge=1)
    gamma: float = setting(0.1, "What a drop multiplies the learning rate with.", gt=0, le=1)

    def decay(self, epoch: float, epochs: int) -> float:
        return self.gamma ** math.floor(epoch / self.every)


@dataclass(frozen=True, kw_only=True)
class Cosine(_WarmUp):
    """factor = ½(1 + cos(π·epoch/epochs)), from 1 to 0.

    Loshchilov and Hutter, SGDR, ICLR 2017 (arXiv:1608.03983), without restarts.
    """

    name: Literal["cosine"] = "cosine"

    def decay(self, epoch: float, epochs: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / epochs)))


ScheduleConfig = Constant | Step | Cosine | Imported
