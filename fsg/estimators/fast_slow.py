"""FSG: fast and slow gradient generation."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fsg.config import Settings, choice, setting
from fsg.estimators.protocol import GradientEstimator
from fsg.estimators.straight_through import derivative
from fsg.history import ChunkLayout, GradientHistory
from fsg.hypernetworks import EMA, FastNet, Mamba, Nonlinearity, SlowNet, SlowNetConfig, average

AVERAGE_DECAY = 0.9


class FSG(GradientEstimator):
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
    weighs a gradient with 0.9^age; from start: identity on, c is zero where |W̃| is beyond the quantizer's
    saturation, as in the straight-through estimator, which the whole then is at first, averaged over the history.
    The backward pass teaches the hypernetworks through the look-ahead: their own Adams follow
    ∂loss/∂Ŵ ⊙ dŴ/dW ⊙ ∂(look-ahead). `applied: previous` updates with the gradient of the step before, the one that
    the look-ahead used, so the first step has no update; `applied: current` with the newest one. Under `released`
    the quantized layers' biases are looked ahead too, by the direction last applied to them.

    W, g, f, s: the layer's shape. All layers share one fast and one slow net.
    """

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
        slow_net: SlowNetConfig = choice(Mamba, "What reads the history.", discriminator="name")
        hidden: int = setting(100, "Hidden width of the fast net.", ge=1)
        nonlinearity: Nonlinearity = choice("linear", "The fast net's; linear makes it a single learned number.")
        start: Literal["identity", "random"] = choice(
            "identity", "What the hypernetworks return at first: the straight-through gradient, or anything (released)."
        )
        applied: Literal["current", "previous"] = choice(
            "current", "Which gradient the update uses: this step's, or that of the step before (released)."
        )
        fast_lr: float = setting(1e-2, "Learning rate of the fast net's Adam.", gt=0)
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

    def __init__(self, config: "FSG.Config", model: nn.Module) -> None:
        super().__init__(model)
        self.config = config
        self.identity = config.start == "identity"
        like = self.weights[0].detach()
        self.layout = ChunkLayout(tuple(w.shape for w in self.weights), config.chunk_size)
        uses_fast, uses_slow = config.slow_weight < 1, config.slow_weight > 0
        self.fast = FastNet(config.hidden, config.nonlinearity).to(like) if uses_fast else None
        self.slow: SlowNet | None = None
        self.average_decay: float | None = None
        if uses_slow and isinstance(config.slow_net, EMA):
            self.average_decay = config.slow_net.decay
        elif uses_slow and isinstance(config.slow_net, Mamba):
            self.slow = SlowNet(config.slow_net, self.layout, config.layer_embedding_dim, config.layer_embedding).to(like)
            self.average_decay = AVERAGE_DECAY if self.identity else None
        if self.identity and self.fast is not None:
            nn.init.zeros_(self.fast.linear3.weight)
        if self.identity and self.slow is not None:
            self.slow.start_at_zero()
        rates = {"fast": config.fast_lr, "slow": config.slow_lr}
        self.optimizers = {name: torch.optim.Adam(net.parameters(), lr=rates[name]) for name, net in self._nets()}
        length = config.history_length if uses_slow else 1
        self.history = GradientHistory(length, (self.layout.rows, config.chunk_size), like)
        self.prequantized = [torch.zeros_like(w) for w in self.weights]
        self.generated: _Generated | None = None

    def propose(self, model: nn.Module, *, lr: float, progress: float) -> dict[str, Tensor]:
        layers = self.layers.values()
        self.looked_ahead: list[Tensor] | None = None
        self.effective, proposed = self.weights, {}
        if self.generated is not None:
            combined, self.looked_ahead = self._combine(self.generated)
            self.effective = [w.detach() - lr * d for w, d in zip(self.weights, combined, strict=True)]
            if self.config.semantics == "released":
                proposed = {name: bias - lr * bias.grad for name, bias in self._biases() if bias.grad is not None}
        with torch.no_grad():
            self.prequantized = [x.quantizer.prequantize(w.detach()) for x, w in zip(layers, self.effective, strict=True)]
            quantized = [x.quantizer.quantize(w) for x, w in zip(layers, self.prequantized, strict=True)]
        self.quantized = [tensor.detach().requires_grad_() for tensor in quantized]
        return proposed | {f"{name}.weight": w for name, w in zip(self.layers, self.quantized, strict=True)}

    def update(self, model: nn.Module) -> bool:
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.quantized]
        self._learn(gradients)
        self.history.append(self.layout.pack(gradients))
        self.generated = self._generate()
        applied = self.looked_ahead
        if self.config.applied == "current":
            with torch.no_grad():
                _, applied = self._combine(self.generated)
        for weight, gradient in zip(self.weights, applied or [], strict=applied is not None):
            weight.grad = gradient.detach()
        return applied is not None

    def zero_grad(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()

    def _learn(self, gradients: list[Tensor]) -> None:
        """Step the hypernetworks along ∂loss/∂(look-ahead weight), where there was a look-ahead."""
        if self.generated is None or not self.optimizers:
            return
        with torch.no_grad():
            chained = [
                g * derivative(layer.quantizer, prequantized, weight)
                for layer, g, prequantized, weight in zip(
                    self.layers.values(), gradients, self.prequantized, self.effective, strict=True
                )
            ]
        torch.autograd.backward(self.effective, chained)
        for optimizer in self.optimizers.values():
            optimizer.step()

    def _generate(self) -> "_Generated":
        """What the hypernetworks make of the newest gradient and the history, before calibration."""
        history = self.history.oldest_first()
        fast = average_ = slow = None
        if self.fast is not None:
            fast = [g * self.fast(w) for g, w in zip(self.layout.unpack(history[-1]), self.prequantized, strict=True)]
            if self.identity:
                fast = [g + f for g, f in zip(self.layout.unpack(history[-1]), fast, strict=True)]
        if self.average_decay is not None:
            average_ = self.layout.unpack(average(history, self.average_decay))
        if self.slow is not None:
            scale = self.layout.root_mean_square(history) if self.identity else torch.ones_like(history[0, :, :1])
            slow = self.layout.unpack(scale * self.slow(history / scale))
        return _Generated(fast, average_, slow)

    def _combine(self, generated: "_Generated") -> tuple[list[Tensor], list[Tensor]]:
        """The weighted sum, and the gradient that the optimizer gets."""
        alpha = self.config.slow_weight
        combined, applied = [], []
        for i, (layer, prequantized) in enumerate(zip(self.layers.values(), self.prequantized, strict=True)):
            with torch.no_grad():
                c = layer.quantizer.calibration(layer.weight)
                if self.identity:
                    c = derivative(layer.quantizer, prequantized, layer.weight)
            fast = c * generated.fast[i] if generated.fast else torch.zeros_like(c)
            slow = c * generated.average[i] if generated.average else torch.zeros_like(c)
            if generated.slow:
                slow = slow + generated.slow[i]
            combined.append(alpha * slow + (1 - alpha) * fast)
            applied.append(fast if self.config.semantics == "released" else combined[-1])
        return combined, applied

    def _biases(self) -> list[tuple[str, Tensor]]:
        found = [(f"{name}.bias", layer.get_parameter("bias")) for name, layer in self.layers.items() if layer.bias is not None]
        return [(name, bias) for name, bias in found if bias.requires_grad]

    def state_dict(self) -> dict[str, Any]:
        """The generated gradients are not in it: they follow from the rest."""
        return {
            "history": self.history.state_dict(),
            "prequantized": dict(zip(self.layers, self.prequantized, strict=True)),
            "bias_directions": {name: bias.grad for name, bias in self._biases() if bias.grad is not None},
            "nets": {name: net.state_dict() for name, net in self._nets()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history.load_state_dict(state["history"])
        for name, net in self._nets():
            net.load_state_dict(state["nets"][name])
            self.optimizers[name].load_state_dict(state["optimizers"][name])
        with torch.no_grad():
            for prequantized, name in zip(self.prequantized, self.layers, strict=True):
                prequantized.copy_(state["prequantized"][name])
            for name, bias in self._biases():
                if name in state["bias_directions"]:
                    bias.grad = torch.empty_like(bias).copy_(state["bias_directions"][name])
        if len(self.history):
            self.generated = self._generate()

    def _nets(self) -> list[tuple[str, nn.Module]]:
        return [(name, net) for name, net in (("fast", self.fast), ("slow", self.slow)) if net is not None]


@dataclass(frozen=True)
class _Generated:
    """A list of tensors, one a layer, from each part; None for a part that is switched off."""

    fast: list[Tensor] | None
    average: list[Tensor] | None
    slow: list[Tensor] | None
