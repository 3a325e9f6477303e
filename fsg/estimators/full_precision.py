"""No quantization, and so nothing to estimate."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from fsg.config import Settings
from fsg.estimators.protocol import InParts
from fsg.layers import anneal, dequantize


class FullPrecision(InParts):
    """Full-precision weights, trained and evaluated, whatever the quantizer is.

    Forward:   Ŵ = W
    Backward:  ∂L/∂W, by autograd

    It takes the quantizers off the model's layers, frozen ones included, so that an evaluation uses W as well; no
    quantized layer is left. Activations stay: the model's own 1-bit ones, and signs that `quantize` put there.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        """No quantization of the weights: what full-precision pretraining uses, and the upper reference."""

        name: Literal["full_precision"] = "full_precision"

        def build(self, model: nn.Module) -> "FullPrecision":
            return FullPrecision(model)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        dequantize(model)
        self.layers, self.model = {}, model

    def begin_step(self, lr: float, progress: float) -> None:
        anneal(self.model, progress)

    def proposal(self) -> dict[str, Tensor]:
        return {}

    def give(self) -> bool:
        return True
