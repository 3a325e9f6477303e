"""One step of training, as a whole and in the parts that a graph can replay."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fsg import torch_optimizer
from fsg.accumulation import accumulate
from fsg.diagnostics import Diagnostics
from fsg.estimators import GradientEstimator
from fsg.estimators.contract import proposed, updated
from fsg.estimators.protocol import InParts
from fsg.layers import anneal
from fsg.optimizers import Optimizer


def train_step(
    model: nn.Module,
    estimator: GradientEstimator,
    optimizer: Optimizer | torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    *,
    lr: float,
    progress: float,
    loss_function: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
    teacher: Callable[[Tensor], Tensor] | None = None,
    arithmetic: AbstractContextManager[Any] | None = None,
    diagnostics: Diagnostics | None = None,
    micro_batch: int | None = None,
) -> Tensor:
    """One step of training; returns `loss_function(model(images), labels)`, detached.

    images [b, C, H, W], labels [b]; `progress` is the part of the training that is over, in [0, 1]. The network runs
    within `arithmetic` (`torch.autocast(…)`), the estimator in the weights' own precision. An optimizer of torch's gets
    `lr` too. A loss function with a `teacher` gets its logits by that name. With `micro_batch` only so many images go
    through the network at once; the loss is a mean over images, and so is what is returned:

        Σᵢ bᵢ/b · loss(imagesᵢ)

    Raises ValueError for an estimator that does not do what `GradientEstimator` says, and for an optimizer whose groups
    have several learning rates.
    """
    weights = proposed(estimator, model, lr, progress)

    def loss_of(some: Tensor, wanted: Tensor, given: dict[str, Tensor]) -> Tensor:
        with arithmetic or nullcontext():
            return _loss(model, given, some, wanted, loss_function, teacher)

    def clear() -> None:
        optimizer.zero_grad()
        estimator.zero_grad()

    size = micro_batch or len(images)
    loss = accumulate(loss_of, clear, weights, torch.split(images, size), torch.split(labels, size))
    applies = updated(estimator, model)
    if diagnostics is not None:
        diagnostics.observe(applies)
    if applies:
        _step(optimizer, lr)
    return loss.detach()


def _loss(
    model: nn.Module,
    weights: dict[str, Tensor],
    images: Tensor,
    labels: Tensor,
    loss_function: Callable[..., Tensor],
    teacher: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """The loss of a network with these weights; the loss function is told what the teacher says, where there is one."""
    told = {}
    if teacher is not None:
        with torch.no_grad():
            told = {"teacher": teacher(images)}
    return loss_function(functional_call(model, weights, (images,)), labels, **told)


def _step(optimizer: Optimizer | torch.optim.Optimizer, lr: float) -> None:
    if isinstance(optimizer, torch.optim.Optimizer):
        torch_optimizer.step(optimizer, lr)
    else:
        optimizer.step(lr)


PARTS = ("generate", "descend", "give", "apply")  # of a step, in the order in which they are captured


@dataclass
class StepInParts:
    """`train_step` in parts: `begin`, `descend`, `generate`, `give`, `look`, `apply`.

    `begin` and `look` are the host's. The other four, PARTS, are the device's alone: on the same tensors in every step,
    with the same numbers. Where a graph has replayed them `count_replayed` does what is left to the host. `after` sees
    the loss of a step, detached.
    """

    model: nn.Module
    estimator: InParts
    optimizer: Optimizer
    loss_function: Callable[..., Tensor] = F.cross_entropy
    teacher: Callable[[Tensor], Tensor] | None = None
    arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext
    diagnostics: Diagnostics | None = None
    after: Callable[[Tensor], None] = lambda loss: None
    images: Tensor = field(init=False)
    labels: Tensor = field(init=False)
    loss: Tensor = field(init=False)
    applies: bool = field(init=False)

    def begin(self, images: Tensor, labels: Tensor, lr: float, progress: float) -> None:
        """Put all that is new in a step where its parts find it."""
        if not hasattr(self, "images"):
            self.images, self.labels = torch.empty_like(images), torch.empty_like(labels)
        assert images.shape == self.images.shape
        self.images.copy_(images)
        self.labels.copy_(labels)
        anneal(self.model, progress)
        self.estimator.begin_step(lr, progress)
        self.optimizer.begin_step(lr)

    def descend(self) -> None:
        """Forward and backward pass, and what the estimator learns by them."""
        weights = self.estimator.proposal()
        with self.arithmetic():
            loss = _loss(self.model, weights, self.images, self.labels, self.loss_function, self.teacher)
        self.optimizer.zero_grad()
        self.estimator.zero_grad()
        torch.autograd.backward(loss)
        self.estimator.absorb()
        self.loss = loss.detach()

    def generate(self) -> None:
        self.estimator.generate()

    def give(self) -> None:
        """The gradients for the optimizer."""
        self.applies = self.estimator.give()
        if self.diagnostics is not None:
            self.diagnostics.count()

    def look(self) -> None:
        if self.diagnostics is not None:
            self.diagnostics.look(self.applies)

    def apply(self) -> None:
        if self.applies:
            self.optimizer.apply()
        self.after(self.loss)

    def count_replayed(self) -> None:
        self.estimator.replayed()
        self.optimizer.replayed()
