"""MetaQuant: one hypernetwork, looked ahead by the optimizer's direction in value and by its own gradient in slope."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fsg.config import Settings, choice, setting
from fsg.estimators.look_ahead import LookAhead
from fsg.flat import kept
from fsg.hypernetworks import FastNet, Nonlinearity, activation
from fsg.scalars import Scalar


@dataclass(frozen=True, kw_only=True)
class _MetaQuantConfig(Settings):
    hidden: int = setting(100, "Hidden width of the hypernetwork.", ge=1)
    hyper_lr: float = setting(1e-3, "Learning rate of the hypernetwork's Adam.", gt=0)
    hyper_weight_decay: float = setting(
        0.0, "L2 penalty of that Adam; 5e-4 in MetaQuant's published runs.", ge=0, identity="unless_default"
    )


class MetaQuant(LookAhead):
    """MetaQuant as released: what FCGrad, MultiFC and LSTMFC share.

    With g the newest gradient ∂loss/∂Ŵ, W̃ the pre-quantized weight of the forward pass that gave it, c the
    calibration of the current latent weight and d the direction last applied to W (the straight-through gradient
    before there is one):

        generated   m, by the subclass, from g and W̃
        forward     Ŵ = Q(W − lr·(c⊙m + stopgrad(d − c⊙m)))
        update      c⊙m

    so the value of the look-ahead is that of the optimizer's last step and its slope is the hypernetwork's. Biases of
    quantized layers are looked ahead too. W, g, m: the layer's shape; all layers share the hypernetwork. MetaQuant's
    two forward rules are the quantizers `dorefa`, and `bwn` with `scale: layer` and `calibrate: false`.

    Chen et al., MetaQuant: Learning to Quantize by Learning to Penetrate Non-differentiable Quantization, NeurIPS 2019.
    """

    def __init__(self, model: nn.Module, net: nn.Module, config: _MetaQuantConfig) -> None:
        super().__init__(model)
        self.net = net
        self.teach("meta", net, config.hyper_lr, config.hyper_weight_decay)
        self.gradients: list[Tensor] = [torch.zeros_like(w) for w in self.weights]

    @abstractmethod
    def generate_one(self, layer: int, gradient: Tensor, prequantized: Tensor) -> Tensor:
        """m of one layer from g and W̃, of their shape."""

    def remember(self, gradients: list[Tensor]) -> None:
        self.gradients = kept(self.gradients, gradients)

    def generate(self) -> None:
        pairs = zip(self.gradients, self.prequantized, strict=True)
        self.generated = self.flat.pack([self.generate_one(layer, g, w) for layer, (g, w) in enumerate(pairs)])

    def look_ahead(self, lr: Scalar) -> list[Tensor]:
        latent, self.looked_lr = self.latent(), lr
        self.calibration = self.flat.pack(self.quantizers.of(latent).calibration)
        calibrated, direction = self.calibration * self.generated.detach(), self.flat.pack(self._directions())
        self.looked_ahead = self.flat.unpack(calibrated)
        return self.flat.unpack(self.flat.pack(latent) - lr * (calibrated + (direction - calibrated)))

    def _directions(self) -> Sequence[Tensor]:
        """The weights' own, as one vector where an optimizer left them in the gradients that it was given."""
        found = [self.direction(f"{name}.weight", layer.weight) for name, layer in self.layers.items()]
        left = all(one is given for one, given in zip(found, self.given, strict=True))
        return self.given if left else [one for one in found if one is not None]

    def learn(self, gradients: list[Tensor]) -> None:
        torch.autograd.backward(self.generated, -self.looked_lr * self.flat.pack(gradients) * self.calibration)

    def directions(self) -> list[tuple[str, Tensor]]:
        weights = [(f"{name}.weight", layer.weight) for name, layer in self.layers.items()]
        return [*weights, *super().directions()]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"gradients": dict(zip(self.layers, self.gradients, strict=True))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.gradients = [
            torch.empty_like(w).copy_(state["gradients"][name])
            for name, w in zip(self.layers, self.weights, strict=True)
        ]
        super().load_state_dict(state)


class MultiFC(MetaQuant):
    """m = g ⊙ MLP(W̃), the MLP 1 → h → h → 1 without biases; linear, it is one learned number: m = k·g⊙W̃."""

    @dataclass(frozen=True, kw_only=True)
    class Config(_MetaQuantConfig):
        """MetaQuant's MultiFC."""

        name: Literal["multifc"] = "multifc"
        nonlinearity: Nonlinearity = choice("linear", "After each layer but the last.")

        def build(self, model: nn.Module) -> "MultiFC":
            return MultiFC(model, FastNet(self.hidden, self.nonlinearity), self)

    def generate_one(self, layer: int, gradient: Tensor, prequantized: Tensor) -> Tensor:
        return gradient * self.net(prequantized)


class FCGradNet(nn.Module):
    """The MLP 1 → h → 1 without biases, applied to each element; linear, it is one learned number."""

    def __init__(self, hidden: int, nonlinearity: Nonlinearity) -> None:
        super().__init__()
        self.linear1 = nn.Linear(1, hidden, bias=False)
        self.linear2 = nn.Linear(hidden, 1, bias=False)
        self.activation = activation(nonlinearity)

    def forward(self, gradient: Tensor) -> Tensor:
        if self.activation is None:
            return (self.linear2.weight @ self.linear1.weight).reshape(()) * gradient
        hidden = self.activation(self.linear1(gradient.reshape(-1, 1)))
        return self.linear2(hidden).view(gradient.shape)


class FCGrad(MetaQuant):
    """m = MLP(g), the MLP 1 → h → 1 without biases."""

    @dataclass(frozen=True, kw_only=True)
    class Config(_MetaQuantConfig):
        """MetaQuant's FCGrad."""

        name: Literal["fcgrad"] = "fcgrad"
        nonlinearity: Nonlinearity = choice("linear", "After each layer but the last.")

        def build(self, model: nn.Module) -> "FCGrad":
            return FCGrad(model, FCGradNet(self.hidden, self.nonlinearity), self)

    def generate_one(self, layer: int, gradient: Tensor, prequantized: Tensor) -> Tensor:
        return self.net(gradient)


class LSTMFCNet(nn.Module):
    """fc(LSTM(w)), one time step, 1 → h → 1; each element of a tensor is a sequence of its own."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.lstm1 = nn.LSTM(1, hidden)
        self.fc1 = nn.Linear(hidden, 1)

    def forward(self, weight: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        output, state = self.lstm1(weight.reshape(1, -1, 1), state)
        return self.fc1(output).view(weight.shape), state


class LSTMFC(MetaQuant):
    """m = g ⊙ fc(LSTM(W̃)): one time step of the LSTM a training step, its state carried without gradient.

    The state is hidden·2 numbers an element of each weight.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(_MetaQuantConfig):
        """MetaQuant's LSTMFC."""

        name: Literal["lstmfc"] = "lstmfc"

        def build(self, model: nn.Module) -> "LSTMFC":
            return LSTMFC(model, LSTMFCNet(self.hidden), self)

    def __init__(self, model: nn.Module, net: LSTMFCNet, config: _MetaQuantConfig) -> None:
        super().__init__(model, net, config)
        self.states: list[Tensor] = [
            w.new_zeros(1, w.numel(), config.hidden) for w in self.weights for _ in range(2)
        ]  # h and c of the first layer, h and c of the second, …
        self.next_states = list(self.states)

    def remember(self, gradients: list[Tensor]) -> None:
        super().remember(gradients)
        self.states = kept(self.states, self.next_states)

    def generate_one(self, layer: int, gradient: Tensor, prequantized: Tensor) -> Tensor:
        its = slice(2 * layer, 2 * layer + 2)
        factor, state = self.net(prequantized, tuple(self.states[its]))
        self.next_states[its] = [tensor.detach() for tensor in state]
        return gradient * factor

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"lstm": [list(state) for state in zip(*[iter(self.states)] * 2, strict=True)]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        both = zip(self.weights, state["lstm"], strict=True)
        self.states = [tensor.detach().to(w, copy=True) for w, pair in both for tensor in pair]
        self.next_states = list(self.states)
        super().load_state_dict(state)
