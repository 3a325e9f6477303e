"""Optimizers of the network: pure directions, and one class that keeps their state.

    W ← W − lr·direction,   and latent weights W ← min(max(W, −a), a) where `clip_latent` is a

Weight decay is a part of the gradient, or, where it is `decoupled`, of the direction.

`step` leaves the direction that it applied in each parameter's `.grad`, where a look-ahead finds it to the last bit
(`applied_direction`).
"""

import functools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from fsg import foreach
from fsg.config import Settings, choice, setting
from fsg.imported import Imported
from fsg.layers import quantized_layers
from fsg.scalars import Scalar, Scalars

State = dict[str, list[Tensor]]


def applied_direction(parameter: Tensor) -> Tensor | None:
    """The direction that an `Optimizer` left in `.grad`; None for a gradient, which other optimizers leave there."""
    return parameter.grad if getattr(parameter.grad, "is_direction", False) else None


def mark_direction(gradient: Tensor, applied: bool) -> None:
    """Say whether what stands in a `.grad` is a direction that was applied."""
    setattr(gradient, "is_direction", applied)  # noqa: B010  # a Tensor has no such attribute of its own


class Rule(Protocol):
    """How gradients become directions."""

    @property
    def weight_decay(self) -> float: ...
    @property
    def decoupled(self) -> bool: ...
    @property
    def clip_latent(self) -> float | None: ...

    def buffers(self) -> tuple[str, ...]:
        """Names of the buffers kept for each parameter, zero at the start, of its shape."""
        ...

    def scalars(self, step: int) -> tuple[float, ...]:
        """What of the rule changes from step to step; `step` counts from 1."""
        ...

    def direction(self, gradients: list[Tensor], state: State, scalars: Sequence[Scalar]) -> None:
        """Turn the gradients into directions, in place."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Rule(Settings):
    lr: float = setting(1e-3, "Learning rate before the schedule.", gt=0)
    weight_decay: float = setting(0.0, "L2 penalty: weight_decay·W is added to the gradient.", ge=0)
    clip_latent: float | None = setting(None, "Latent weights are kept within ± this; null: anywhere.", gt=0)
    decoupled: ClassVar[bool] = False

    def buffers(self) -> tuple[str, ...]:
        return ()

    def scalars(self, step: int) -> tuple[float, ...]:
        return ()

    def direction(self, gradients: list[Tensor], state: State, scalars: Sequence[Scalar]) -> None:
        """The gradient itself."""

    def build(self, model: nn.Module) -> "Optimizer":
        return Optimizer(self, model)


@dataclass(frozen=True, kw_only=True)
class SGD(_Rule):
    """Stochastic gradient descent, with momentum μ where it is not zero.

    direction = m,         m ← μ·m + g      (the first m is g itself)
    direction = g + μ·m                     nesterov: true
    """

    name: Literal["sgd"] = "sgd"
    momentum: float = setting(0.0, "μ; 0 switches it off.", ge=0, lt=1)
    nesterov: bool = setting(False, "Whether the momentum is that of the next step.", identity="unless_default")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov is true, and momentum is 0 (expected a momentum > 0)")

    def buffers(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    def direction(self, gradients: list[Tensor], state: State, scalars: Sequence[Scalar]) -> None:
        if self.momentum:
            foreach.mul_(state["momentum"], self.momentum)
            foreach.add_(state["momentum"], gradients)
            if self.nesterov:
                foreach.add_(gradients, state["momentum"], alpha=self.momentum)
            else:
                foreach.copy_(gradients, state["momentum"])


@dataclass(frozen=True, kw_only=True)
class Adam(_Rule):
    """Adam.

    m ← β₁m + (1 − β₁)g,   v ← β₂v + (1 − β₂)g²
    direction = m̂ / (√v̂ + ε),   m̂ = m/(1 − β₁ⁿ),   v̂ = v/(1 − β₂ⁿ)          (epsilon: corrected)
    direction = m / (√v + ε) · √(1 − β₂ⁿ)/(1 − β₁ⁿ)                            (epsilon: uncorrected)

    The second form, in which the bias correction enlarges ε, is that of the code released for MetaQuant and FSG.
    Kingma and Ba, ICLR 2015 (arXiv:1412.6980).
    """

    name: Literal["adam"] = "adam"
    beta1: float = setting(0.9, "Decay of the mean of the gradient.", ge=0, lt=1)
    beta2: float = setting(0.999, "Decay of the mean of its square.", ge=0, lt=1)
    eps: float = setting(1e-8, "ε.", gt=0)
    epsilon: Literal["corrected", "uncorrected"] = choice("corrected", "Whether ε is added after the bias correction.")

    def buffers(self) -> tuple[str, ...]:
        return ("mean", "square")

    def scalars(self, step: int) -> tuple[float, ...]:
        """What is added to √v, and what m over that is multiplied with."""
        root = math.sqrt(1 - self.beta2**step)
        return self.eps if self.epsilon == "uncorrected" else self.eps * root, root / (1 - self.beta1**step)

    def direction(self, gradients: list[Tensor], state: State, scalars: Sequence[Scalar]) -> None:
        (mean, denominator), (eps, correction) = _moments(self, gradients, state), scalars
        foreach.add_number_(denominator, eps)
        foreach.copy_(gradients, mean)
        foreach.div_(gradients, denominator)
        foreach.mul_(gradients, correction)


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with weight decay beside the adaptive direction: direction = that of Adam, without it, + weight_decay·W.

    Loshchilov and Hutter, ICLR 2019 (arXiv:1711.05101).
    """

    name: Literal["adamw"] = "adamw"  # type: ignore[assignment]
    weight_decay: float = setting(1e-2, "weight_decay·W is added to the direction.", ge=0)
    decoupled: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class NAdam(_Rule):
    """Adam with Nesterov's momentum.

    m ← β₁m + (1 − β₁)g,   v ← β₂v + (1 − β₂)g²,   μₙ = β₁·(1 − ½·0.96^(n·ψ)),   Πₙ = μ₁·…·μₙ
    direction = (μₙ₊₁·m/(1 − Πₙ₊₁) + (1 − μₙ)·g/(1 − Πₙ)) / (√v̂ + ε),   v̂ = v/(1 − β₂ⁿ)

    Dozat, Incorporating Nesterov Momentum into Adam, ICLR workshop 2016.
    """

    name: Literal["nadam"] = "nadam"
    beta1: float = setting(0.9, "Decay of the mean of the gradient.", ge=0, lt=1)
    beta2: float = setting(0.999, "Decay of the mean of its square.", ge=0, lt=1)
    eps: float = setting(1e-8, "ε.", gt=0)
    momentum_decay: float = setting(4e-3, "ψ, how soon μ reaches β₁.", ge=0)

    def buffers(self) -> tuple[str, ...]:
        return ("mean", "square")

    def momentum(self, step: int) -> float:
        """μₙ."""
        return self.beta1 * (1 - 0.5 * 0.96 ** (step * self.momentum_decay))

    def product(self, step: int) -> float:
        """Πₙ, multiplied from the first step on, whichever step a process begins with."""
        known = _products(self)
        while len(known) <= step:
            known.append(known[-1] * self.momentum(len(known)))
        return known[step]

    def scalars(self, step: int) -> tuple[float, ...]:
        """What is added to √v, the factors of g and of m, and that of their sum over √v."""
        root = math.sqrt(1 - self.beta2**step)
        of_gradient = (1 - self.momentum(step)) / (1 - self.product(step))
        return self.eps * root, of_gradient, self.momentum(step + 1) / (1 - self.product(step + 1)), root

    def direction(self, gradients: list[Tensor], state: State, scalars: Sequence[Scalar]) -> None:
        mean, denominator = _moments(self, gradients, state)
        eps, of_gradient, of_mean, correction = scalars
        foreach.add_number_(denominator, eps)
        foreach.mul_(gradients, of_gradient)
        foreach.add_scaled_(gradients, mean, of_mean)
        foreach.div_(gradients, denominator)
        foreach.mul_(gradients, correction)


def _moments(rule: Adam | NAdam, gradients: list[Tensor], state: State) -> tuple[list[Tensor], list[Tensor]]:
    """Moves the means of the gradients and of their squares on; returns m, and √v in new tensors."""
    mean, square = state["mean"], state["square"]
    foreach.lerp_(mean, gradients, 1 - rule.beta1)
    foreach.mul_(square, rule.beta2)
    foreach.addcmul_(square, gradients, gradients, 1 - rule.beta2)
    return mean, list(foreach.sqrt(square))


@functools.cache
def _products(rule: NAdam) -> list[float]:
    return [1.0]


class Optimizer:
    """A rule and its state for the parameters of a model that need a gradient.

    `apart` are parameters that a subclass steps by itself: they have no state of the rule's.
    """

    def __init__(self, rule: Rule, model: nn.Module, apart: Collection[str] = ()) -> None:
        self.rule = rule
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.names = list(trained)
        self.parameters: list[Tensor] = list(trained.values())
        self.ruled: dict[str, Tensor] = {name: p for name, p in trained.items() if name not in apart}
        self.latent: list[Tensor] = [layer.weight for _, layer in quantized_layers(model)]
        self.steps = 0
        self.scalars = Scalars(*self.scalars_of_step(0.0))
        self.state: State = {b: [torch.zeros_like(p) for p in self.ruled.values()] for b in rule.buffers()}

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def step(self, lr: float) -> None:
        """Apply the direction of the gradients; parameters without one count as zero gradient."""
        self.begin_step(lr)
        self.apply()

    def scalars_of_step(self, lr: float) -> tuple[float, ...]:
        """What changes from step to step, of the one that comes next."""
        return (-lr, *self.rule.scalars(self.steps + 1))

    def begin_step(self, lr: float) -> None:
        """Put what changes from step to step where `apply` finds it, or finds it again when it is replayed."""
        self.scalars.put(*self.scalars_of_step(lr))

    def replayed(self) -> None:
        """Count a step whose `apply` a graph has replayed."""
        self.steps += 1

    @torch.no_grad()
    def apply(self) -> None:
        """The step itself, after `begin_step`."""
        self.steps += 1
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        ruled = list(self.ruled.values())
        gradients: list[Tensor] = [p.grad for p in ruled if p.grad is not None]
        if ruled:  # torch's functions on lists refuse an empty one
            decay, decoupled = self.rule.weight_decay, self.rule.decoupled
            if decay and not decoupled:
                foreach.add_(gradients, ruled, alpha=decay)
            descent, *others = self.scalars.beside(ruled[0])
            self.rule.direction(gradients, self.state, others)
            if decay and decoupled:
                foreach.add_(gradients, ruled, alpha=decay)
            foreach.add_scaled_(ruled, gradients, descent)
        if self.rule.clip_latent is not None and self.latent:
            foreach.clamp_min_(self.latent, -self.rule.clip_latent)
            foreach.clamp_max_(self.latent, self.rule.clip_latent)
        for parameter in self.parameters:
            assert parameter.grad is not None
            mark_direction(parameter.grad, True)

    def state_dict(self) -> dict[str, Any]:
        buffers = {b: dict(zip(self.ruled, tensors, strict=True)) for b, tensors in self.state.items()}
        return {"steps": self.steps, "buffers": buffers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """In place, so that memory formats stay. Raises KeyError where a parameter is missing."""
        self.steps = state["steps"]
        for buffer, tensors in self.state.items():
            for name, tensor in zip(self.ruled, tensors, strict=True):
                tensor.copy_(state["buffers"][buffer][name])


@dataclass(frozen=True, kw_only=True)
class Bop(Settings):
    """The binary optimizer: no latent weights. A weight is ±1, and flips when its gradient has insisted.

        m ← (1 − γ)·m + γ·g                                γ follows the schedule of the learning rate
        W ← −W   where |m| > τ and sign m = sign W

    g is the gradient that the estimator gives to a quantized layer's weight W, which starts as the sign of what it
    was; with `ste` and the quantizer `sign` it is ∂loss/∂Ŵ, as in the paper. Quantizers that do not keep ±1 as it is
    are refused. All other parameters follow `others`; `lr` is theirs.
    Helwegen et al., Latent Weights Do Not Exist, NeurIPS 2019 (arXiv:1906.02107).
    """

    name: Literal["bop"] = "bop"
    threshold: float = setting(1e-8, "τ: the larger, the fewer flips.", ge=0)
    gamma: float = setting(1e-4, "γ, how fast m forgets, before the schedule.", gt=0, le=1)
    others: SGD | Adam = choice(
        lambda: Adam(lr=1e-2), "The optimizer of all parameters that are not binary.", discriminator="name"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.others, SGD | Adam):
            raise ValueError(f"others is {self.others!r}, expected SGD or Adam")
        if self.others.clip_latent is not None:
            raise ValueError(f"others.clip_latent is {self.others.clip_latent}: bop has no latent weights to clip")

    @property
    def lr(self) -> float:
        return self.others.lr

    def build(self, model: nn.Module) -> "BinaryOptimizer":
        return BinaryOptimizer(self, model)


class BinaryOptimizer(Optimizer):
    """Bop for the quantized layers' weights, another optimizer for the rest."""

    @torch.no_grad()
    def __init__(self, config: Bop, model: nn.Module) -> None:
        """Makes the quantized layers' weights ±1. Raises ValueError for a quantizer that makes something else of it."""
        layers = dict(quantized_layers(model))
        latent = {id(layer.weight) for layer in layers.values()}
        self.config = config
        self.binary = {name: p for name, p in model.named_parameters() if id(p) in latent}
        super().__init__(config.others, model, apart=self.binary)
        self.mean = [torch.zeros_like(weight) for weight in self.binary.values()]
        self.of_binary = Scalars(0.0, 0.0)
        for name, layer in layers.items():
            layer.weight.copy_(torch.where(layer.weight >= 0, 1.0, -1.0))
            if not torch.equal(layer.quantizer(layer.weight), layer.weight):
                raise ValueError(
                    f"bop: the quantizer of {name} changes weights of ±1, expected one that does not "
                    "(sign, bwn or dorefa)"
                )

    def begin_step(self, lr: float) -> None:
        super().begin_step(lr)
        # W − lr·direction is −W
        self.of_binary.put(self.config.gamma * lr / self.config.lr, 2 / lr if lr else 0.0)

    @torch.no_grad()
    def apply(self) -> None:
        super().apply()
        for weight, mean in zip(self.binary.values(), self.mean, strict=True):
            gradient = weight.grad
            assert gradient is not None
            gamma, flip = self.of_binary.beside(weight)
            mean.lerp_(gradient, gamma)
            flips = (mean * weight > 0) & (mean.abs() > self.config.threshold)
            gradient.copy_(torch.where(flips, flip * weight, 0.0))
            weight.copy_(torch.where(flips, -weight, weight))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"mean": dict(zip(self.binary, self.mean, strict=True))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for name, mean in zip(self.binary, self.mean, strict=True):
            mean.copy_(state["mean"][name])


OptimizerConfig = SGD | Adam | AdamW | NAdam | Bop | Imported
