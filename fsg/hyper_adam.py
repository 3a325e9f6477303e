"""The hypernetworks' own optimizer."""

from typing import Any

import torch
from torch import Tensor, nn

from fsg import foreach
from fsg.scalars import Scalars


class HyperAdam(torch.optim.Adam):
    """PyTorch's Adam, in numbers and in state, whose step a graph can replay: `step` is `begin_step` and `apply`.

        m ← β₁m + (1 − β₁)g,   v ← β₂v + (1 − β₂)g²,   W ← W − lr/(1 − β₁ⁿ) · m / (√v/√(1 − β₂ⁿ) + ε)

    Parameters without a gradient stay as they are. Kingma and Ba, ICLR 2015 (arXiv:1412.6980).
    """

    def __init__(self, net: nn.Module, lr: float, weight_decay: float) -> None:
        super().__init__(net.parameters(), lr=lr, weight_decay=weight_decay)
        self.steps = 0
        self.scalars = Scalars(*self._of_next_step())

    def begin_step(self) -> None:
        """Put what changes from step to step where `apply` finds it, or finds it again when it is replayed."""
        self.scalars.put(*self._of_next_step())

    def replayed(self) -> None:
        """Count a step whose `apply` a graph has replayed."""
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """PyTorch's, with its `step` for each parameter."""
        for state in self.state.values():
            state["step"] = torch.full_like(state["step"], self.steps)
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.steps = max((int(state["step"]) for state in self.state.values()), default=0)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure is called
        self.begin_step()
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """The step itself, after `begin_step`."""
        group = self.param_groups[0]
        taught: list[Tensor] = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not taught:
            return
        self.steps += 1
        states = [self._state_of(parameter) for parameter in taught]
        gradients: Any = [parameter.grad for parameter in taught]
        means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        if group["weight_decay"]:
            foreach.add_(gradients, taught, alpha=group["weight_decay"])
        beta1, beta2 = group["betas"]
        foreach.lerp_(means, gradients, 1 - beta1)
        foreach.mul_(squares, beta2)
        foreach.addcmul_(squares, gradients, gradients, 1 - beta2)
        root, descent = self.scalars.beside(taught[0])
        denominators = list(foreach.sqrt(squares))
        foreach.div_(denominators, root)
        foreach.add_(denominators, group["eps"])
        if isinstance(descent, Tensor):
            foreach.addcdiv_(taught, foreach.mul(means, descent), denominators)
        else:
            foreach.addcdiv_(taught, means, denominators, descent)

    def _of_next_step(self) -> tuple[float, float]:
        """√(1 − β₂ⁿ) and −lr/(1 − β₁ⁿ)."""
        group, step = self.param_groups[0], self.steps + 1
        beta1, beta2 = group["betas"]
        return (1 - beta2**step) ** 0.5, -(group["lr"] / (1 - beta1**step))

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """As PyTorch has it, the host's count of steps among it."""
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
            state["step"] = torch.zeros((), dtype=dtype, device="cpu")
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state
