"""An optimizer of torch's in the place of one of fsg's."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn


class TorchOptimizer:
    """What a training asks of an optimizer, answered by one of torch's, whose learning rate it sets at every step.

    Raises ValueError for one whose step needs a closure, or whose groups have several learning rates.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            name = type(optimizer).__name__
            raise ValueError(f"{name}.step needs a closure (expected an optimizer that steps by the gradients)")
        self.optimizer = optimizer
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(trained), list[Tensor](trained.values())

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def step(self, lr: float) -> None:
        step(self.optimizer, lr)

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Tensors of a parameter's shape get its memory format: another one may be summed up to other bits."""
        self.optimizer.load_state_dict(state)
        for parameter, kept in self.optimizer.state.items():
            for name, value in kept.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    kept[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def adapted(optimizer: Any, model: nn.Module) -> Any:
    """The optimizer itself, or, where it is one of torch's, as a training asks for it."""
    return TorchOptimizer(optimizer, model) if isinstance(optimizer, torch.optim.Optimizer) else optimizer


def step(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """A step with this learning rate. Raises ValueError where the groups have several."""
    if len({float(group["lr"]) for group in optimizer.param_groups}) > 1:
        raise ValueError("the optimizer's groups have several learning rates, expected one (or a loop of your own)")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
