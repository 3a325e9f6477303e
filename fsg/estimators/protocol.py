"""What a gradient estimator is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fsg.layers import quantized_layers


class GradientEstimator(ABC):
    """Where the gradient of the quantized weights comes from. One training step:

        weights = estimator.propose(model, lr=lr, progress=progress)
        loss = cross_entropy(functional_call(model, weights, images), labels)
        optimizer.zero_grad(); estimator.zero_grad()
        loss.backward()
        if estimator.update(model):
            optimizer.step(lr)

    A new one derives from this class, and has a `Config` with a `build(model)` nested in it. `derived` are attributes
    that follow from its state and the model's.
    """

    derived: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, model: nn.Module) -> None:
        """Raises ValueError for a model without a trainable quantized layer."""
        self.layers = dict(quantized_layers(model))
        if not self.layers:
            raise ValueError("the model has no trainable quantized layer; quantize(model, quantizer) makes them")

    @property
    def weights(self) -> list[Tensor]:
        """The latent weights W."""
        return [layer.weight for layer in self.layers.values()]

    @abstractmethod
    def propose(self, model: nn.Module, *, lr: float, progress: float) -> dict[str, Tensor]:
        """The quantized weights Ŵ that the forward pass shall use, by parameter name, and what else it shall.

        `lr` is the learning rate of this step, `progress` the part of the training that is over, in [0, 1]: what is
        annealed follows it (a quantizer by `anneal`).
        """

    def anneal(self, progress: float) -> None:
        """Let the layers' quantizers be those of this moment."""
        for layer in self.layers.values():
            layer.anneal(progress)

    @abstractmethod
    def update(self, model: nn.Module) -> bool:
        """Take g = ∂loss/∂Ŵ after the backward pass and write the latent weights' `.grad`.

        Returns whether there is something for the optimizer to apply.
        """

    def gradients_by_kind(self) -> dict[str, list[Tensor]]:
        """What the last `update` worked with, by kind, a tensor a layer: for diagnostics, before the optimizer's step.

        `quantized` is g = ∂loss/∂Ŵ, `ste` the straight-through gradient, `applied` what the optimizer gets; others are
        the estimator's own. Here `applied` alone.
        """
        return {"applied": gradients_of(self.weights)}

    @torch.no_grad()
    def quantized_weights(self) -> list[Tensor]:
        """Ŵ = Q(W) of this step's latent weights, not looked ahead: for diagnostics, before the optimizer's step."""
        return [layer.quantizer(layer.weight) for layer in self.layers.values()]

    def zero_grad(self) -> None:
        """Clear what is learned beside the network."""
        return

    def state_dict(self) -> dict[str, Any]:
        """Everything that is not in the network's and the optimizer's state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """In place. The network's and the optimizer's states are loaded before this one."""
        return


class InParts(GradientEstimator):
    """An estimator whose step is made of parts that a graph can replay: on the same tensors, with the same numbers.

        propose   begin_step, proposal
        update    absorb, generate, give

    What changes from step to step `begin_step` puts into `Scalars`, and `replayed` counts on the host what the parts
    would have. Between `absorb` and `generate` nothing is on autograd's tape, and what `generate` reads is the state
    alone, at places that stay. All parts but `generate` read what was made before them. All this holds after `warm_up`
    steps.
    """

    warm_up = 3

    def begin_step(self, lr: float, progress: float) -> None:
        """Put what changes from step to step where the parts find it."""
        self.anneal(progress)

    @abstractmethod
    def proposal(self) -> dict[str, Tensor]:
        """What `propose` returns."""

    def absorb(self) -> None:
        """Learn by g = ∂loss/∂Ŵ, and remember it."""
        return

    def generate(self) -> None:
        """Make of what is remembered what `give` and the next step's proposal read: twice is as good as once."""
        return

    @abstractmethod
    def give(self) -> bool:
        """Write the latent weights' `.grad`, as `update` does."""

    def replayed(self) -> None:
        """Count a step whose parts a graph has replayed."""
        return

    def propose(self, model: nn.Module, *, lr: float, progress: float) -> dict[str, Tensor]:
        self.begin_step(lr, progress)
        return self.proposal()

    def update(self, model: nn.Module) -> bool:
        self.absorb()
        self.generate()
        return self.give()


def leaf(tensor: Tensor) -> Tensor:
    """It with a gradient of its own; torch's compiler cannot say so of a result, and leaves it to `proposed`."""
    return tensor.detach() if torch.compiler.is_compiling() else tensor.detach().requires_grad_()


def gradients_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of each, zeros where the loss did not hang on it."""
    return [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in tensors]
