"""A user's own estimator that falls asleep once, until it is woken: what a cut-off machine does."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fsg.config import Settings, setting
from fsg.estimators.straight_through import StraightThrough


class Sleeper(StraightThrough):
    """The straight-through estimator; at one step it sleeps while the folder has `asleep` and no `wake`."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        folder: str = setting("", "Where it leaves word.")
        at: int = setting(40, "Before which step.")

        def build(self, model: nn.Module) -> "Sleeper":
            return Sleeper(model, self)

    def __init__(self, model: nn.Module, config: Config) -> None:
        super().__init__(model)
        self.config, self.steps = config, 0

    def surrogate(self, position: Tensor) -> Tensor:
        return torch.ones_like(position)

    def propose(self, model: nn.Module, *, lr: float, progress: float) -> dict[str, Tensor]:
        self.steps += 1
        folder = Path(self.config.folder)
        if self.steps == self.config.at and self.config.folder and not (folder / "asleep").exists():
            (folder / "asleep").write_text(os.readlink("/proc/self/ns/net"))
            for _ in range(3000):
                if (folder / "wake").exists():
                    break
                time.sleep(0.1)
            (folder / "awake").touch()
        return super().propose(model, lr=lr, progress=progress)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
