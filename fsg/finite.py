"""Noticing values that are no numbers, where and when they first came up."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fsg import foreach
from fsg.checkpoint import leaves


class Diverged(Exception):
    """The training holds values that are not finite: it has no future."""


class Watch:
    """Keeps what a training looked like at the first step with a loss or a gradient that is not finite.

    `see` queues work on the device, which a graph can replay, and never waits for it; `check` does.
    """

    def __init__(self, names: list[str], parameters: list[Tensor], step: int = 0) -> None:
        """`step` is the number of steps that were made before."""
        self.names, self.parameters = names, parameters
        self.now = torch.full((), step, dtype=torch.int64, device=parameters[0].device)
        self.step = torch.zeros_like(self.now)
        self.seen = torch.zeros(1 + len(parameters), device=parameters[0].device)
        self.news = False  # whether a step came since the last check that found nothing: the host's to say

    @torch.no_grad()
    def see(self, loss: Tensor) -> None:
        """The loss of the next step, and the gradients, or what the optimizer made of them, in the `.grad`s."""
        self.now += 1
        largest = foreach.norm([p if p.grad is None else p.grad for p in self.parameters], float("inf"))
        seen = torch.stack([value.to(self.seen.dtype) for value in (loss, *largest)])
        finite = seen.norm(float("inf")) < float("inf")
        first = torch.logical_or(self.step, finite).logical_not_()
        torch.where(first, seen, self.seen, out=self.seen)
        torch.where(first, self.now, self.step, out=self.step)

    def check(self) -> tuple[int, str] | None:
        """The first step that was not finite and what was not; None where all were."""
        if not self.news:
            return None
        step = int(self.step)
        if not step:
            self.news = False
            return None
        loss, *largest = self.seen.tolist()
        bad = [(name, value) for name, value in zip(self.names, largest, strict=True) if not _finite(value)]
        more = f" (and of {len(bad) - 1} more)" if len(bad) > 1 else ""
        if _finite(loss):
            return step, f"the gradient of {bad[0][0]} is {bad[0][1]} at step {step}{more}"
        where = (
            f"the first gradient with such values is that of {bad[0][0]}{more}" if bad else "the gradients are finite"
        )
        return step, f"the loss is {loss} at step {step}; {where}"


@torch.no_grad()
def not_finite(state: Mapping[str, Any]) -> list[str]:
    """The names of the tensors, in nested mappings and lists, that hold NaN or infinity (`/model/conv1.weight`)."""
    found = [(n, v) for n, v in leaves(state) if isinstance(v, Tensor) and v.is_floating_point() and v.numel()]
    if not found:
        return []
    names, values = zip(*found, strict=True)
    # One wait for the device where all is well, as nearly always.
    largest = [norm.double() for norm in foreach.norm(values, float("inf"))]
    if torch.isfinite(torch.stack([norm.to(largest[0].device) for norm in largest])).all():
        return []
    return [name for name, value in zip(names, values, strict=True) if not torch.isfinite(value).all()]


def _finite(value: float) -> bool:
    return value - value == 0
