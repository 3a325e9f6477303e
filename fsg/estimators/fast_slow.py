"""FSG: fast and slow gradient generation."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fsg.config import Settings, choice, setting
from fsg.estimators.look_ahead import LookAhead
from fsg.history import ChunkLayout, GradientHistory
from fsg.hypernetworks import EMA, FastNet, Nonlinearity, SlowNet, SlowNetConfig, average
from fsg.mamba import Mamba
from fsg.scalars import Scalar

AVERAGE_DECAY = 0.9


class FSG(LookAhead):
    """Fast and slow gradient generation (AAAI 2025).

    With g the newest gradient ∂loss/∂Ŵ, W̃ the pre-quantized weight of the forward pass that gave it, c the
    calibration of the current latent weight and [·] = [g_{t−K+1}, …, g_t] the gradient history:

        fast        f = g ⊙ MLP(W̃)                             start: random
                    f = g ⊙ (1 + MLP(W̃))                       start: identity, where MLP = 0 at first
        slow        s = slow net([·])                            start: random
                    s = r·slow net([·]/r) + c ⊙ average([·])     start: identity, where the slow net = 0 at first
                    s = c ⊙ average([·])                         slow_net: ema
        forward     Ŵ = Q(W − lr·(α·s + (1 − α)·c⊙f))            the look-ahead, from the step before
        update      α·s + (1 − α)·c⊙f                            semantics: paper
                    c⊙f                                          semantics: released

    r is the root mean square of a layer's history, which frees the slow net of the gradients' scale; average([·])
    weighs a gradient with 0.9^age; with start: identity, c is zero where a latent weight is saturated, at a
    position |x| > 1, as in the straight-through estimator, which the whole then is at first, averaged over the history.
    The backward pass teaches the hypernetworks through the look-ahead: their own Adams follow
    ∂loss/∂Ŵ ⊙ dŴ/dW ⊙ ∂(look-ahead). Whatever scale they learn is a part's weight beside α; with `normalize` c⊙f and s
    are first brought, layer by layer, to the norm of the calibrated gradient c⊙g_t, by factors that count as constants.
    `applied: previous` updates with the gradient of the step before, the one that the look-ahead used, so the first
    step has no update; `applied: current` with the newest one. Under `released` the quantized layers' biases are looked
    ahead too, by the direction last applied to them.

    W, g, f, s: the layer's shape. All layers share one fast and one slow net.
    """

    derived = LookAhead.derived | {"layout"}

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        """Fast and slow gradient generation."""

        name: Literal["fsg"] = "fsg"
        semantics: Literal["released", "paper"] = choice(
            "paper", "What the optimizer gets: the fast gradient alone (released) or the weighted sum (paper)."
        )
        slow_weight: float = setting(0.9, "α: 0 is the fast gradient alone, 1 the slow one alone.", ge=0, le=1)
        history_length: int = setting(5, "K, the gradients kept: 1 is no history.", ge=1)
        chunk_size: int = setting(64, "Elements of a gradient that make one token of the slow net.", ge=1)
        layer_embedding: bool = setting(True, "Whether a layer's embedding (LRE) heads its sequence.")
        layer_embedding_dim: int = setting(8, "The embedding's dimension, which is the token's width.", ge=1)
        normalize: bool = setting(
            False,
            "Whether fast and slow gradient are brought to one norm, layer by layer, before α weighs them.",
            identity="unless_default",
        )
        slow_net: SlowNetConfig = choice(Mamba, "What reads the history.", discriminator="name")
        hidden: int = setting(100, "Hidden width of the fast net.", ge=1)
        nonlinearity: Nonlinearity = choice("linear", "The fast net's; linear makes it a single learned number.")
        start: Literal["identity", "random"] = choice(
            "identity", "What the hypernetworks return at first: the straight-through gradient, or anything (released)."
        )
        applied: Literal["current", "previous"] = choice(
            "current", "Which gradient the update uses: this step's, or that of the step before (released)."
        )
        fast_lr: float = setting(3.6e-3, "Learning rate of the fast net's Adam.", gt=0)
        slow_lr: float = setting(1e-3, "Learning rate of the slow net's Adam.", gt=0)

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.semantics == "released" and self.slow_weight == 1:
                raise ValueError(
                    "slow_weight is 1: the slow gradient alone has no update under semantics: released "
                    "(expected slow_weight < 1, or semantics: paper)"
                )

        def build(self, model: nn.Module) -> "FSG":
            return FSG(self, model)

    def __init__(self, config: "FSG.Config", model: nn.Module, *, idle: bool = False) -> None:
        """`idle`: whether a net whose gradient has no weight is there as well, as it is in the released code."""
        super().__init__(model)
        self.config = config
        self.identity = config.start == "identity"
        self.layout = ChunkLayout(tuple(w.shape for w in self.weights), config.chunk_size, self.flat)
        self.fast: FastNet | None = None
        self.slow: SlowNet | None = None
        self.average_decay: float | None = None
        if config.slow_weight < 1 or idle:
            self.fast = FastNet(config.hidden, config.nonlinearity)
            self.teach("fast", self.fast, config.fast_lr)
        if uses_slow := config.slow_weight > 0 or idle:
            if isinstance(config.slow_net, EMA):
                self.average_decay = config.slow_net.decay
            else:
                self.slow = SlowNet(config.slow_net, self.layout, config.layer_embedding_dim, config.layer_embedding)
                self.teach("slow", self.slow, config.slow_lr)
                self.average_decay = AVERAGE_DECAY if self.identity else None
        if self.identity and self.fast is not None:
            nn.init.zeros_(self.fast.linear3.weight)
        if self.identity and self.slow is not None:
            self.slow.start_at_zero()
        length = config.history_length if uses_slow else 1
        self.warm_up = max(self.warm_up, length + 1)
        self.history = GradientHistory(length, (self.layout.rows, config.chunk_size), self.weights[0].detach())

    def remember(self, gradients: list[Tensor]) -> None:
        self.history.append(self.layout.pack(gradients))

    def generate(self) -> None:
        """f and the average of the history without their calibration, and the slow net's output: packed, [M, chunk]."""
        history = self.history.oldest_first()
        self.fast_gradient = self.average = self.slow_gradient = None
        if self.fast is not None:
            self.fast_gradient = history[-1] * self.fast(self.layout.pack(self.prequantized))
            if self.identity:
                self.fast_gradient = history[-1] + self.fast_gradient
        if self.average_decay is not None:
            self.average = average(history, self.average_decay)
        if self.slow is not None and self.identity:
            scale = self.layout.root_mean_square(history)
            self.slow_gradient = scale * self.slow(history / scale)
        elif self.slow is not None:
            self.slow_gradient = self.slow(history)

    def look_ahead(self, lr: Scalar) -> list[Tensor]:
        self.factor, self.looked_lr = self._factor(), lr
        with torch.enable_grad():
            self.combined, applied = self._combine()
        self.looked_ahead = self.flat.unpack(self.layout.to_memory(applied.detach()))
        latent = self.layout.from_memory(self.flat.pack(self.latent()))
        return self.layout.unpack(latent - lr * self.combined.detach())

    def learn(self, gradients: list[Tensor]) -> None:
        if self.combined.requires_grad:
            torch.autograd.backward(self.combined, -self.looked_lr * self.layout.pack(gradients))

    def replayed(self) -> None:
        super().replayed()
        self.history.replayed()

    def applied(self) -> list[Tensor] | None:
        if self.config.applied == "previous":
            return self.looked_ahead
        with torch.no_grad():
            if self.looked_ahead is None:
                self.factor = self._factor()
            return self.flat.unpack(self.layout.to_memory(self._combine()[1]))

    def directions(self) -> list[tuple[str, Tensor]]:
        return super().directions() if self.config.semantics == "released" else []

    @torch.no_grad()
    def _factor(self) -> Tensor:
        """c of the current latent weights, packed; from an identity start on with the clipping of saturated ones."""
        seen = self.quantizers.of(self.weights)
        return self.layout.from_memory(self.flat.pack(seen.derivative() if self.identity else seen.calibration))

    def _combine(self) -> tuple[Tensor, Tensor]:
        """The weighted sum α·s + (1 − α)·c⊙f and the gradient for the optimizer, packed."""
        alpha = self.config.slow_weight
        fast, slow = self._parts(self.factor)
        combined = alpha * slow + (1 - alpha) * fast
        return combined, fast if self.config.semantics == "released" else combined

    def _parts(self, factor: Tensor) -> tuple[Tensor, Tensor]:
        """c⊙f and s, packed."""
        zero = torch.zeros_like(factor)
        fast = zero if self.fast_gradient is None else factor * self.fast_gradient
        slow = zero if self.average is None else factor * self.average
        if self.slow_gradient is not None:
            slow = slow + self.slow_gradient
        if self.config.normalize:
            newest = factor * self.history.newest()
            fast, slow = (part * self.layout.scale(part, newest) for part in (fast, slow))
        return fast, slow

    @torch.no_grad()
    def gradients_by_kind(self) -> dict[str, list[Tensor]]:
        """With `fast`, c⊙f, and `slow`, s, as they were generated from this step's gradient."""
        fast, slow = (self.layout.unpack(part) for part in self._parts(self._factor()))
        own = {"fast": fast} if self.fast is not None else {}
        if self.slow is not None or self.average_decay is not None:
            own["slow"] = slow
        return super().gradients_by_kind() | own

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"history": self.history.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history.load_state_dict(state["history"])
        super().load_state_dict(state)
