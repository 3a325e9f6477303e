"""What hypernetwork estimators share: they are taught through a look-ahead weight."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fsg import foreach
from fsg.estimators.protocol import InParts, gradients_of, leaf
from fsg.estimators.quantization import Quantizers
from fsg.flat import FlatLayout, Unpacked, kept
from fsg.hyper_adam import HyperAdam
from fsg.optimizers import applied_direction, mark_direction
from fsg.scalars import Scalar, Scalars


class LookAhead(InParts):
    """Hypernetworks generate a gradient; the forward pass quantizes a weight that has already followed it.

        W_eff = W − lr·direction(hypernetworks),   Ŵ = Q(W_eff)

    so the backward pass reaches the hypernetworks, whose own Adams step along

        ∂loss/∂Ŵ ⊙ c ⊙ 1[|x| ≤ 1]  at W_eff, with x the quantizer's position of W̃.

    Nothing is looked ahead in the first step, for there is no gradient yet.

    What an optimizer did is seen by its result, so that any will do: the direction last applied to a parameter is what
    it lost over lr. fsg's own optimizers leave it in `.grad`, to the last bit.
    """

    derived = frozenset({"before", "known", "applied_lr", "given", "bias_gradients", "rate"})

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.quantizers = Quantizers(list(self.layers.values()))
        self.flat = FlatLayout.like(self.weights)
        self.prequantized: list[Tensor] = [torch.zeros_like(w) for w in self.weights]
        self.nets: dict[str, nn.Module] = {}
        self.optimizers: dict[str, HyperAdam] = {}
        self.looked_ahead: list[Tensor] | None = None
        self.ready = False
        self.given: list[Tensor] = self.latent()  # gradients for the optimizer
        self.bias_gradients: list[Tensor] = []
        self.lr = self.applied_lr = 0.0
        self.rate = Scalars(self.lr)
        self.before: dict[str, Tensor] = {}  # what the optimizer got
        self.known: dict[str, Tensor] = {}  # directions of a step without an optimizer's, or of a state

    def teach(self, name: str, net: nn.Module, lr: float, weight_decay: float = 0.0) -> None:
        """Give a hypernetwork its own Adam (PyTorch's), and both a place in the state."""
        self.nets[name] = net.to(self.weights[0].detach())
        # 0 and not 0.0 without a decay: torch's own default, which digests of recorded trainings have
        self.optimizers[name] = HyperAdam(net, lr, weight_decay or 0)

    @abstractmethod
    def remember(self, gradients: list[Tensor]) -> None:
        """Keep g = ∂loss/∂Ŵ of every layer, the newest, for as long as it is needed."""

    @abstractmethod
    def generate(self) -> None:
        """Let the hypernetworks make gradients of what is remembered: with a tape, for the next look-ahead."""

    @abstractmethod
    def look_ahead(self, lr: Scalar) -> list[Tensor]:
        """W_eff of every layer, from what was generated; leaves the gradients to apply in `looked_ahead`."""

    @abstractmethod
    def learn(self, gradients: list[Tensor]) -> None:
        """Go back from ∂loss/∂W_eff of every layer through the look-ahead to the hypernetworks' parameters."""

    def applied(self) -> list[Tensor] | None:
        """The gradients for the optimizer: those that the look-ahead followed; None where there was none."""
        return self.looked_ahead

    def latent(self) -> Unpacked:
        """A copy of the latent weights, views of one vector."""
        return self.flat.unpack(self.flat.pack([weight.detach() for weight in self.weights]))

    def biases(self, lr: Scalar) -> dict[str, Tensor]:
        """The quantized layers' biases, looked ahead by the direction d that was last applied to them.

            b_eff = b − lr·d

        Where none was applied yet, d is the raw gradient.
        """
        found = [(name, bias, self.direction(name, bias)) for name, bias in self._biases()]
        return {name: bias - lr * direction for name, bias, direction in found if direction is not None}

    def begin_step(self, lr: float, progress: float) -> None:
        super().begin_step(lr, progress)
        self.lr = lr
        self.rate.put(lr)
        for optimizer in self.optimizers.values():
            optimizer.begin_step()

    def proposal(self) -> dict[str, Tensor]:
        (lr,) = self.rate.beside(self.weights[0])
        proposed = self.biases(lr) if self.ready else {}
        with torch.no_grad():
            self.effective = self.look_ahead(lr) if self.ready else self.latent()
            self.quantization = self.quantizers.of(self.effective)
            self.quantized = [leaf(tensor) for tensor in self.quantization.quantized]
        return proposed | {f"{name}.weight": w for name, w in zip(self.layers, self.quantized, strict=True)}

    def absorb(self) -> None:
        gradients = gradients_of(self.quantized)
        if self.ready and self.optimizers:
            self.learn(self.straight_through(gradients))
            for optimizer in self.optimizers.values():
                optimizer.apply()
        self.prequantized = kept(self.prequantized, self.quantization.prequantized)
        self.remember(gradients)

    def give(self) -> bool:
        applied = self.applied()
        with torch.no_grad():  # in the weights' memory format, for the optimizer
            gradients = applied or self.straight_through(gradients_of(self.quantized))
            self.given = kept(self.given, self.flat.unpack(self.flat.pack(gradients)))
        for weight, gradient in zip(self.weights, self.given, strict=True):
            weight.grad = gradient
            mark_direction(gradient, False)
        self.ready = True
        self._keep(applied is not None)
        return applied is not None

    def _keep(self, applies: bool) -> None:
        """Keep what the direction of this step will be found by."""
        self.applied_lr, followed = self.lr, dict(self.directions())
        biases = [bias for name, bias in self._biases() if name in followed and bias.grad is not None]
        self.bias_gradients = kept(self.bias_gradients, [bias.grad for bias in biases if bias.grad is not None])
        for bias, gradient in zip(biases, self.bias_gradients, strict=True):
            bias.grad = gradient
            mark_direction(gradient, False)
        self.known = {} if applies else {name: p.grad.clone() for name, p in followed.items() if p.grad is not None}
        if not applies or not followed:
            self.before = {}
        elif self.before:
            foreach.copy_(list(self.before.values()), [p.detach() for p in followed.values()])
        else:
            self.before = {name: p.detach().clone() for name, p in followed.items()}

    def replayed(self) -> None:
        super().replayed()
        self.applied_lr = self.lr
        for optimizer in self.optimizers.values():
            optimizer.replayed()

    def direction(self, name: str, parameter: Tensor) -> Tensor | None:
        """The direction last applied to one of `directions()`; the raw gradient where none was; None where no such is.

        Raises ValueError where another optimizer than fsg's own applied it with a learning rate of 0, which hides it.
        """
        if name in self.known or name not in self.before:
            return self.known.get(name)
        if (left := applied_direction(parameter)) is not None:
            return left
        if not self.applied_lr:
            raise ValueError(f"a step with lr 0 hides the direction of {name}: expected lr > 0, or an optimizer of fsg")
        return (self.before[name] - parameter.detach()) / self.applied_lr

    @torch.no_grad()
    def straight_through(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """∂loss/∂W_eff by the straight-through derivative of the quantizer."""
        return self.quantization.pull_back(gradients)

    def gradients_by_kind(self) -> dict[str, list[Tensor]]:
        """`ste` is the straight-through gradient at the looked-ahead weight."""
        quantized = gradients_of(self.quantized)
        with torch.no_grad():  # computed anew: a graph replays no cache
            straight_through = self.quantizers.of(self.effective).pull_back(quantized)
        return {"quantized": quantized, "ste": straight_through} | super().gradients_by_kind()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()

    def _biases(self) -> list[tuple[str, Tensor]]:
        found = [(f"{name}.bias", x.get_parameter("bias")) for name, x in self.layers.items() if x.bias is not None]
        return [(name, bias) for name, bias in found if bias.requires_grad]

    def directions(self) -> list[tuple[str, Tensor]]:
        """The parameters whose direction, as it was last applied, the next look-ahead reads."""
        return self._biases()

    def state_dict(self) -> dict[str, Any]:
        """What was generated is not in it: it follows from the rest.

        Directions of biases that nothing looks ahead are in it as well, as in the digests of recorded trainings.
        """
        directions = {name: bias.grad for name, bias in self._biases()}
        directions |= {name: self.direction(name, parameter) for name, parameter in self.directions()}
        return {
            "ready": self.ready,
            "prequantized": dict(zip(self.layers, self.prequantized, strict=True)),
            "directions": {name: direction for name, direction in directions.items() if direction is not None},
            "nets": {name: net.state_dict() for name, net in self.nets.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ready = state["ready"]
        with torch.no_grad():
            for prequantized, name in zip(self.prequantized, self.layers, strict=True):
                prequantized.copy_(state["prequantized"][name])
        parameters = dict(self._biases() + self.directions())
        kept = {name: torch.empty_like(parameters[name]).copy_(x) for name, x in state["directions"].items()}
        followed = dict(self.directions())
        self.known, self.before = {name: direction for name, direction in kept.items() if name in followed}, {}
        for name in kept.keys() - followed.keys():
            parameters[name].grad = kept[name]
        for name, net in self.nets.items():
            net.load_state_dict(state["nets"][name])
            self.optimizers[name].load_state_dict(state["optimizers"][name])
        if self.ready:
            self.generate()
