"""What a training minimises; evaluations are of cross entropy and accuracy, whatever it is."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch.nn.functional as F
from torch import Tensor

from fsg.config import Settings, setting
from fsg.imported import Imported


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Settings):
    """−Σ q·log softmax(logits), the mean over a batch; q is 1 − ε at the label, and ε/classes is added everywhere.

    Szegedy et al., CVPR 2016 (arXiv:1512.00567), section 7, for the smoothing ε.
    """

    name: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: float = setting(0.0, "ε, what of the target is spread evenly over the classes.", ge=0, le=1)
    needs_teacher: ClassVar[bool] = False

    def build(self) -> Self:
        return self

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """logits [b, classes], labels [b] → a number."""
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class Distillation(Settings):
    """Cross entropy with the labels and with what a teacher says: the full-precision network of `init: pretrain`.

        (1 − w)·CE(logits, labels) + w·T²·KL(softmax(teacher/T) ‖ softmax(logits/T))

    Hinton, Vinyals and Dean, 2015 (arXiv:1503.02531).
    """

    name: Literal["distillation"] = "distillation"
    temperature: float = setting(4.0, "T: the higher, the more the teacher's small probabilities count.", gt=0)
    weight: float = setting(0.5, "w, the teacher's part of the loss.", ge=0, le=1)
    needs_teacher: ClassVar[bool] = True

    def build(self) -> Self:
        return self

    def __call__(self, logits: Tensor, labels: Tensor, *, teacher: Tensor) -> Tensor:
        """logits and the teacher's [b, classes], labels [b] → a number."""
        says, believed = F.log_softmax(teacher / self.temperature, 1), F.log_softmax(logits / self.temperature, 1)
        distance = F.kl_div(believed, says, reduction="batchmean", log_target=True)
        return (1 - self.weight) * F.cross_entropy(logits, labels) + self.weight * self.temperature**2 * distance


LossConfig = CrossEntropy | Distillation | Imported
