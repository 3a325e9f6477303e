"""A step's gradients from several micro-batches, one after the other."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def accumulate(
    loss_of: Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor],
    clear: Callable[[], object],
    weights: dict[str, Tensor],
    images: Sequence[Tensor],
    labels: Sequence[Tensor],
) -> Tensor:
    """Σᵢ bᵢ/b · loss(imagesᵢ, labelsᵢ, weights) of micro-batches [bᵢ, …], one after the other; leaves its gradients.

    `clear` takes those of before away. Where there are several, what the weights were made of is gone back through
    once, with the sum of the gradients at the weights.
    """
    several, count = len(images) > 1, sum(map(len, images))
    made = {name: weight for name, weight in weights.items() if several and weight.grad_fn is not None}
    leaves_of = {name: weight.detach().requires_grad_() for name, weight in made.items()}
    total: Tensor | None = None
    for some, wanted in zip(images, labels, strict=True):
        loss = loss_of(some, wanted, weights | leaves_of)
        if several:
            loss = loss * (len(some) / count)
        if total is None:
            clear()
        torch.autograd.backward(loss)
        total = loss.detach() if total is None else total + loss.detach()
    reached = [name for name, leaf in leaves_of.items() if leaf.grad is not None]
    if reached:
        torch.autograd.backward([made[name] for name in reached], [leaves_of[name].grad for name in reached])
    assert total is not None
    return total
