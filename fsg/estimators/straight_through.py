"""Straight-through estimators: the derivative of the rounding is replaced by a simple one, its surrogate."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fsg.config import Settings, choice, setting
from fsg.estimators.protocol import InParts, gradients_of, leaf
from fsg.estimators.quantization import Quantizers, clipped
from fsg.scalars import Scalars


class StraightThrough(InParts):
    """What straight-through estimators share: they differ in the surrogate alone.

    Forward:   Ŵ = Q(W̃)
    Backward:  ∂L/∂W = pull-back of (surrogate(x) ⊙ g) = c ⊙ surrogate(x) ⊙ g,   g = ∂L/∂Ŵ

    with c the quantizer's calibration and x the position of W̃ (0 at the threshold, ±1 at the levels beside it); the
    pull-back of a quantizer with statistics of its own is in its docstring. W, g, x: the layer's shape.
    """

    derived = frozenset({"scalars"})
    progress = 0.0

    @abstractmethod
    def surrogate(self, position: Tensor) -> Tensor:
        """What stands in for the derivative of the rounding at x, in the step of `self.progress`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.quantizers = Quantizers(list(self.layers.values()))

    def begin_step(self, lr: float, progress: float) -> None:
        super().begin_step(lr, progress)
        self.progress = progress

    def proposal(self) -> dict[str, Tensor]:
        with torch.no_grad():
            self.quantization = self.quantizers.of(self.weights)
            self.quantized = [leaf(tensor) for tensor in self.quantization.quantized]
        return {f"{name}.weight": tensor for name, tensor in zip(self.layers, self.quantized, strict=True)}

    @torch.no_grad()
    def give(self) -> bool:
        gradients = self.quantization.pull_back(gradients_of(self.quantized), self.surrogate)
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient
        return True

    def quantized_weights(self) -> list[Tensor]:
        return [tensor.detach() for tensor in self.quantized]

    @torch.no_grad()
    def gradients_by_kind(self) -> dict[str, list[Tensor]]:
        """`ste` has the clipped surrogate, whatever this estimator's own is."""
        gradients = gradients_of(self.quantized)
        return {"quantized": gradients, "ste": self.quantization.pull_back(gradients)} | super().gradients_by_kind()


class STE(StraightThrough):
    """The straight-through estimator.

    Forward:   Ŵ = Q(W̃)
    Backward:  ∂L/∂W = c ⊙ 1[|x| ≤ 1] ⊙ g      derivative: clipped
               ∂L/∂W = c ⊙ g                   derivative: identity

    with g, c and x as in `StraightThrough`.
    Bengio et al., 2013 (arXiv:1308.3432); Courbariaux et al., 2016 (arXiv:1602.02830) for the clipping.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        """The straight-through estimator: the plain rival of learned gradients."""

        name: Literal["ste"] = "ste"
        derivative: Literal["clipped", "identity"] = choice(
            "clipped", "Whether saturated weights, beyond the outermost level, get no gradient."
        )

        def build(self, model: nn.Module) -> "STE":
            return STE(model, self)

    def __init__(self, model: nn.Module, config: "STE.Config") -> None:
        super().__init__(model)
        self.config = config

    def surrogate(self, position: Tensor) -> Tensor:
        return clipped(position) if self.config.derivative == "clipped" else torch.ones_like(position)


class EDE(StraightThrough):
    """The error decay estimator of IR-Net: the derivative of a tanh that sharpens into the sign.

    Forward:   Ŵ = Q(W̃)
    Backward:  ∂L/∂W = c ⊙ k·t·(1 − tanh²(t·x)) ⊙ g,   t = T_min·(T_max/T_min)^progress,   k = max(1/t, 1)

    with g, c and x as in `StraightThrough`: the surrogate is the derivative of k·tanh(t·x), which is nearly x at first.
    IR-Net is this with the quantizer `libra`. Its code sets t once an epoch, from epoch/epochs (`anneal: epoch`), and
    begins at T_min 0.1 with real activations, at 1e-3 with one-bit ones, whose derivative there is this one as well.
    Qin et al., CVPR 2020 (arXiv:1909.10788).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        """IR-Net's error decay estimator: the derivative of a tanh that sharpens during the training."""

        name: Literal["ede"] = "ede"
        t_min: float = setting(0.1, "t at the start.", gt=0)
        t_max: float = setting(10.0, "t at the end.", gt=0)

        def build(self, model: nn.Module) -> "EDE":
            return EDE(model, self)

    def __init__(self, model: nn.Module, config: "EDE.Config") -> None:
        super().__init__(model)
        self.config = config
        self.scalars = Scalars(*self._of_step())

    def sharpness(self) -> tuple[float, float]:
        """t and k of this step."""
        t = self.config.t_min * (self.config.t_max / self.config.t_min) ** self.progress
        return t, max(1 / t, 1.0)

    def begin_step(self, lr: float, progress: float) -> None:
        super().begin_step(lr, progress)
        self.scalars.put(*self._of_step())

    def surrogate(self, position: Tensor) -> Tensor:
        t, height = self.scalars.beside(position)
        return height * (1 - torch.tanh(t * position).square())

    def _of_step(self) -> tuple[float, float]:
        """t and k·t."""
        t, k = self.sharpness()
        return t, k * t


class ReSTE(StraightThrough):
    """The rectified straight-through estimator: the derivative of a power function that steepens into the sign.

    Forward:   Ŵ = Q(W̃)
    Backward:  ∂L/∂W = c ⊙ r(x) ⊙ g

        o = 1 + (o_end − 1)·progress                          schedule: linear
        o = 1 + (o_end − 1)·(1 − cos(½π·progress))            schedule: cosine
        r(x) = |x|^((1 − o)/o) / o      m < |x| ≤ t: the derivative of f(x) = sign(x)·|x|^(1/o)
        r(x) = m^((1 − o)/o)            |x| ≤ m, where that derivative has a pole: the slope f(m)/m of the chord instead
        r(x) = 0                        |x| > t

    with g, c and x as in `StraightThrough`. At o = 1 it is the straight-through estimator, clipped at t. o_end 3, m 0.1
    and t 1.5 are the paper's. The released code is `schedule: cosine`, o set once an epoch (`anneal: epoch`), over raw
    weights and through their scale: the quantizer `bwn` with `scale: layer` and `gradient: through_scale`.
    Wu et al., Estimator Meets Equilibrium Perspective: A Rectified Straight Through Estimator for Binary Neural
    Networks Training, ICCV 2023 (arXiv:2308.06689).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        """ReSTE's rectified power estimator: from the straight-through estimator towards the sign."""

        name: Literal["reste"] = "reste"
        o_end: float = setting(3.0, "o at the end; it is 1 at the start.", ge=1)
        schedule: Literal["cosine", "linear"] = choice(
            "linear", "How o goes there: slowly at first (cosine, released), or evenly.", identity="unless_default"
        )
        m: float = setting(0.1, "|x| up to which the slope is that of the chord.", gt=0)
        t: float = setting(1.5, "|x| beyond which there is no gradient.", gt=0)

        def build(self, model: nn.Module) -> "ReSTE":
            return ReSTE(model, self)

    def __init__(self, model: nn.Module, config: "ReSTE.Config") -> None:
        super().__init__(model)
        self.config = config
        self.scalars = Scalars(*self._of_step())

    def power(self) -> float:
        """o of this step."""
        cosine = self.config.schedule == "cosine"
        risen = 1 - math.cos(math.pi / 2 * self.progress) if cosine else self.progress
        return 1 + (self.config.o_end - 1) * risen

    def begin_step(self, lr: float, progress: float) -> None:
        super().begin_step(lr, progress)
        self.scalars.put(*self._of_step())

    def surrogate(self, position: Tensor) -> Tensor:
        m, t = self.config.m, self.config.t
        exponent, o, chord = self.scalars.beside(position)
        size = position.abs()
        slope = size.clamp_min(m) ** exponent / o
        return torch.where(size <= m, chord, slope) * (size <= t)

    def _of_step(self) -> tuple[float, float, float]:
        """(1 − o)/o, o, and the slope of the chord."""
        o = self.power()
        return (1 - o) / o, o, self.config.m ** ((1 - o) / o)
