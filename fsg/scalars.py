"""Numbers that change from step to step: a learning rate, what a step count or an annealing makes of a constant."""

import torch
from torch import Tensor

from fsg import foreach

Scalar = float | Tensor


def in_tensors(device: torch.device) -> bool:
    """Whether such numbers are tensors on a device: everywhere but on the CPU, where no step is captured."""
    return device.type != "cpu"


class Scalars:
    """So many of them, as operations take them.

    On an accelerator each is a tensor without dimension, always the same one: a captured step reads there what was
    `put` last. On the CPU each is a number.
    """

    def __init__(self, *values: float) -> None:
        self._values, self._slots = values, list[Tensor]()

    @torch.no_grad()
    def put(self, *values: float) -> None:
        """The numbers of the next step, as many as there were."""
        self._values = values
        if self._slots:
            foreach.zero_(self._slots)
            foreach.add_(self._slots, list(values))

    def beside(self, tensor: Tensor) -> tuple[Scalar, ...]:
        """The numbers for operations with a tensor like this one: its device, and its dtype if that is no half."""
        if not in_tensors(tensor.device):
            return self._values
        if not self._slots or self._slots[0].device != tensor.device:
            dtype = torch.promote_types(tensor.dtype, torch.float32)
            self._slots = [torch.full((), value, dtype=dtype, device=tensor.device) for value in self._values]
        return tuple(self._slots)
