"""The validations and tests of a training."""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from fsg.finite import Diverged
from fsg.image_dataset import ImageDataset
from fsg.metrics import evaluate, recalibrated_batchnorm
from fsg.precision import arithmetic
from fsg.train_config import TrainConfig

PAPERS_EPOCHS = 10


def validations(epochs: float, every: float) -> int:
    """How many validations are due within so many epochs, one `every` so many: ⌊epochs / every⌋."""
    return int(epochs / every + 1e-9)  # ten tenths are one, whatever the last bits


class Evaluations:
    """A network's evaluations: `best` is the best validation's step and accuracy, `seconds` what all have taken."""

    def __init__(self, config: TrainConfig, model: nn.Module, dataset: ImageDataset, device: torch.device) -> None:
        self.config, self.model, self.dataset, self.device = config, model, dataset, device
        self.steps_per_epoch: int = dataset.steps_per_epoch(config.images_a_step)
        self.best = (0, 0.0)
        self.seconds = 0.0

    def due(self, step: int) -> list[Literal["validation", "test"]]:
        """What is due after a step: a validation, and the papers' test after each of the last epochs."""
        before, now = ((step - back) / self.steps_per_epoch for back in (1, 0))
        every, epochs = self.config.evaluate_every, self.config.epochs
        validated = validations(now, every) > validations(before, every) and len(self.dataset.validation_labels) > 0
        last = step % self.steps_per_epoch == 0 and now > epochs - PAPERS_EPOCHS
        papers = last and not self.config.data.validation and self.config.test == "end"
        return [*(["validation"] if validated else []), *(["test"] if papers else [])]  # type: ignore[list-item]

    def make(self, step: int, due: list[Literal["validation", "test"]]) -> dict[str, float]:
        """The measures of what is due, the papers' test under a name of its own. Raises Diverged."""
        values: dict[str, float] = {}
        with self.evaluating():
            for split in due:
                found = self._evaluate(split, step)
                values |= found if split == "validation" else {"papers_protocol/test_accuracy": found["test/accuracy"]}
        if values.get("validation/accuracy", 0.0) > self.best[1]:
            self.best = (step, values["validation/accuracy"])
        return values

    def test(self, step: int) -> dict[str, float]:
        """The test at the end of a training. Raises Diverged."""
        with self.evaluating():
            return self._evaluate("test", step)

    def _evaluate(self, split: Literal["validation", "test"], step: int) -> dict[str, float]:
        with arithmetic(self.config.precision, self.device):
            loss, accuracy = evaluate(self.model, self.dataset.evaluation(split))
        if loss - loss != 0:
            raise Diverged(f"the {split} loss is {loss} after step {step}; the training losses are finite")
        return {f"{split}/loss": loss, f"{split}/accuracy": accuracy}

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within, the network is as it is evaluated: batch norm re-estimated where that is asked for."""
        began = time.perf_counter()
        images, batch = self.config.recalibrate_batchnorm, self.config.batch_size
        if images:
            some = itertools.islice(self.dataset.evaluation("train", batch_size=batch), -(-images // batch))
            with arithmetic(self.config.precision, self.device), recalibrated_batchnorm(self.model, some):
                yield
        else:
            yield
        self.seconds += time.perf_counter() - began
