"""A user's own estimator to which things happen."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fsg.config import Settings, setting
from fsg.estimators.straight_through import StraightThrough


class Unlucky(StraightThrough):
    """The straight-through estimator, but for one step, before which something happens."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        what: str = setting("nothing", "The method that is called.")
        at: int = setting(5, "Before which step.")

        def build(self, model: nn.Module) -> "Unlucky":
            return Unlucky(model, self)

    def __init__(self, model: nn.Module, config: Config) -> None:
        super().__init__(model)
        self.config, self.steps = config, 0

    def surrogate(self, position: Tensor) -> Tensor:
        return torch.ones_like(position)

    def propose(self, model: nn.Module, *, lr: float, progress: float) -> dict[str, Tensor]:
        self.steps += 1
        if self.steps == self.config.at:
            getattr(self, self.config.what)(model)
        return super().propose(model, lr=lr, progress=progress)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]

    def nothing(self, model: nn.Module) -> None:
        pass

    def raises(self, model: nn.Module) -> None:
        raise ValueError("an idea\nthat does not work")

    def diverges(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.data.fill_(float("nan"))

    def spoils(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.data.zero_()

    def out_of_memory(self, model: nn.Module) -> None:
        raise MemoryError("no room")

    def takes_too_much(self, model: nn.Module) -> None:
        torch.empty(2**50)

    def faults(self, model: nn.Module) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCompile with …")

    def eats(self, model: nn.Module) -> None:
        """Memory, 11 GB at most, and then waits a little for what comes of it."""
        eaten = []
        for _ in range(88):
            eaten.append(np.ones(2**24))
            time.sleep(0.05)
        time.sleep(5)
        raise RuntimeError("nobody stopped it")

    def dies(self, model: nn.Module) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def dies_once(self, model: nn.Module) -> None:
        """The file `died` in the working directory says that it has."""
        if not Path("died").exists():
            Path("died").touch()
            self.dies(model)

    def waits(self, model: nn.Module) -> None:
        """For the file `go` in the working directory."""
        while not Path("go").exists():
            time.sleep(0.05)

    def leaves_traces(self, model: nn.Module) -> None:
        """Changes everything in the process that could reach another training."""
        torch.set_num_threads(2)
        torch.set_grad_enabled(True)
        torch.manual_seed(12345)
        torch.rand(7)
        np.random.seed(3)
        torch.backends.mkldnn.flags = torch.backends.mkldnn.flags  # touched, as a library might
        torch.set_default_dtype(torch.float64)
        torch.set_flush_denormal(True)
