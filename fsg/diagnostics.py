"""What a researcher of binary networks looks at, a layer at a time: flips, saturation, norms and cosines of gradients.

    diagnostics = Diagnostics(estimator)
    train_step(model, estimator, optimizer, images, labels, lr=lr, progress=progress, diagnostics=diagnostics)
    diagnostics.finish(epoch=1, step=391)     # the table of the steps since the last one

The table has one row a layer and these columns, as lists:

    layer            the layer's name;  weights: how many it has
    flip_rate        share of the quantized weights Q(W) whose sign differs from the step before's: mean over the steps
    never_flipped    share of the weights whose sign never changed since the diagnostics began, `observed_steps` ago
    saturated        share of the latent weights, at the end, where the quantizer passes hardly any gradient: its
                     clipped straight-through derivative, c ⊙ 1[|x| ≤ 1], is below FAINT of the layer's largest
    norm_<kind>      root mean square, over the sampled steps, of the norm of a gradient
    cosine_<a>_<b>   cosine of two gradients, all sampled steps taken as one long vector; None where one is zero

The kinds of gradient are those that the estimator has (`GradientEstimator.gradients_by_kind`): `quantized` is g at Ŵ,
`ste` the straight-through gradient, `fast` and `slow` FSG's, `applied` what the optimizer got.

Flips are counted in every step; the gradients are looked at in a few steps an epoch alone (every `sample_every`th),
since their norms and cosines cost as much as several steps of the optimizer. Nothing here changes any number of the
training or draws from a random generator.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from fsg.estimators.protocol import GradientEstimator
from fsg.estimators.quantization import derivative
from fsg.quantizers import Quantizer

FAINT = 0.01

Table = dict[str, Any]


def positive(quantized: Sequence[Tensor]) -> Tensor:
    """Whether each quantized weight is ≥ 0: bool, flat, one layer after the other."""
    return torch.cat([(weight >= 0).reshape(-1) for weight in quantized])


def saturated(quantizer: Quantizer, weight: Tensor) -> Tensor:
    """Share of the latent weights whose straight-through derivative is 0 or below FAINT of the largest."""
    slope = derivative(quantizer, quantizer.prequantize(weight), weight).abs()
    return ((slope < FAINT * slope.amax()) | (slope == 0)).double().mean()


def gram(gradients: Sequence[Tensor]) -> Tensor:
    """All inner products of K gradients of one shape: [K, K], float64."""
    rows = torch.stack([gradient.detach().reshape(-1).double() for gradient in gradients])
    return rows @ rows.T


def over_all_layers(table: Table) -> dict[str, float]:
    """A table's shares over the weights of all layers, as metrics: `weights/flip_rate` and the like."""
    total = sum(table["weights"])
    return {
        f"weights/{column}": sum(n * share for n, share in zip(table["weights"], table[column], strict=True)) / total
        for column in ("flip_rate", "never_flipped", "saturated")
    }


class Diagnostics:
    """Counts and sums over an epoch; `observe` belongs between the estimator's update and the optimizer's step."""

    @torch.no_grad()
    def __init__(self, estimator: GradientEstimator, *, sample_every: int = 50) -> None:
        """Raises ValueError for `sample_every` below 1, and for an estimator without quantized layers."""
        if not estimator.layers:
            raise ValueError("the estimator has no quantized layer to look at")
        if sample_every < 1:
            raise ValueError(f"sample_every is {sample_every}, expected ≥ 1")
        self.estimator, self.sample_every = estimator, sample_every
        self.sizes = [weight.numel() for weight in estimator.weights]
        self.positive = positive([layer.quantizer(layer.weight) for layer in estimator.layers.values()])
        self.flips = torch.zeros_like(self.positive, dtype=torch.int32)
        self.flips_before = self._flips_of_layers()
        self.observed = 0
        self.kinds: list[str] = []
        self._begin()

    @torch.no_grad()
    def observe(self, applied: bool = True) -> None:
        """Look at a step: after `estimator.update`, which said whether something is `applied`."""
        self.count()
        self.look(applied)

    @torch.no_grad()
    def count(self) -> None:
        """The flips of a step, which a graph can replay."""
        now = positive(self.estimator.quantized_weights())
        self.flips += now != self.positive
        self.positive.copy_(now)

    @torch.no_grad()
    def look(self, applied: bool = True) -> None:
        """The gradients, where it is a sampled step's turn, after `count`."""
        if self.steps % self.sample_every == self.sample_every // 2:
            self._sample(applied)
        self.steps += 1
        self.observed += 1

    @torch.no_grad()
    def finish(self, epoch: int, step: int) -> Table:
        """The table of the steps since the last one, in numbers and text that JSON can hold; begins the next."""
        flips = self._flips_of_layers()
        never = torch.stack([(each == 0).double().mean() for each in torch.split(self.flips, self.sizes)])
        sizes = torch.tensor(self.sizes, dtype=torch.float64, device=flips.device)
        rates = (flips - self.flips_before).double() / (sizes * max(1, self.steps))
        layers = self.estimator.layers
        beyond = torch.stack([saturated(layer.quantizer, layer.weight.detach()) for layer in layers.values()])
        table: Table = {
            "epoch": epoch,
            "step": step,
            "steps": self.steps,
            "sampled_steps": self.samples,
            "observed_steps": self.observed,
            "layer": list(layers),
            "weights": self.sizes,
            "flip_rate": rates.tolist(),
            "never_flipped": never.tolist(),
            "saturated": beyond.tolist(),
        }
        norms = (self.gram.diagonal(dim1=1, dim2=2) / max(1, self.samples)).sqrt()
        for i, kind in enumerate(self.kinds):
            table[f"norm_{kind}"] = norms[:, i].tolist()
        for (i, a), (j, b) in combinations(enumerate(self.kinds), 2):
            cosine = self.gram[:, i, j] / (self.gram[:, i, i].sqrt() * self.gram[:, j, j].sqrt())
            table[f"cosine_{a}_{b}"] = [value if value == value else None for value in cosine.clamp(-1, 1).tolist()]
        self.flips_before = flips
        self._begin()
        return table

    def state_dict(self) -> dict[str, Any]:
        return {
            "positive": self.positive,
            "flips": self.flips,
            "flips_before": self.flips_before,
            "observed": self.observed,
            "steps": self.steps,
            "samples": self.samples,
            "kinds": list(self.kinds),
            "gram": self.gram,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.positive.copy_(state["positive"])
        self.flips.copy_(state["flips"])
        self.flips_before.copy_(state["flips_before"])
        self.observed, self.steps, self.samples = state["observed"], state["steps"], state["samples"]
        self.kinds, self.gram = list(state["kinds"]), state["gram"].to(self.flips.device, copy=True)

    def _begin(self) -> None:
        self.steps = self.samples = 0
        self.kinds.clear()
        self.gram = torch.zeros(len(self.sizes), 0, 0, dtype=torch.float64, device=self.flips.device)

    def _flips_of_layers(self) -> Tensor:
        return torch.stack([each.sum() for each in torch.split(self.flips, self.sizes)])

    def _sample(self, applied: bool) -> None:
        found = self.estimator.gradients_by_kind()
        if not applied:
            found.pop("applied", None)
        if new := [kind for kind in found if kind not in self.kinds]:
            self.kinds += new
            self.gram = torch.nn.functional.pad(self.gram, (0, len(new), 0, len(new)))
        zeros = [torch.zeros_like(weight) for weight in self.estimator.weights]
        each = zip(*(found.get(kind, zeros) for kind in self.kinds), strict=True)
        self.gram += torch.stack([gram(gradients) for gradients in each])
        self.samples += 1
