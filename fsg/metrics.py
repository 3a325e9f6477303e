"""What is measured of a network."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batches = Iterable[tuple[Tensor, Tensor]]
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches) -> tuple[float, float]:
    """Mean cross entropy (nats) and accuracy (in [0, 1]) of the model in evaluation mode.

    Batches are (images [b, C, H, W], labels [b]). The model's mode is put back. Raises ValueError without a batch.
    """
    was_training = model.training
    model.eval()
    loss = correct = torch.zeros((), dtype=torch.float64)
    count = 0
    for images, labels in batches:
        logits = model(images)
        loss = loss + F.cross_entropy(logits, labels, reduction="sum").double()
        correct = correct + (logits.argmax(1) == labels).sum().double()
        count += len(labels)
    model.train(was_training)
    if not count:
        raise ValueError("nothing to evaluate: no images")
    mean_loss, accuracy = (torch.stack([loss, correct]) / count).tolist()  # the one time that a GPU is waited for
    return mean_loss, accuracy


class _PlainAverage:
    """Gives a batch norm the momentum 1/t at its t-th call: `momentum=None` does so by a counter, and waits for it."""

    calls = 0

    def __call__(self, norm: nn.Module, _: object) -> None:
        self.calls += 1
        setattr(norm, "momentum", 1 / self.calls)  # noqa: B010  # a Module types its attributes as tensors


@contextmanager
def recalibrated_batchnorm(model: nn.Module, batches: Batches) -> Iterator[None]:
    """Within, batch norm's statistics are the plain averages over `batches` under the model's current weights.

    The statistics gathered in training follow look-ahead weights and flipping signs; afterwards they are back.
    """
    norms = [m for m in model.modules() if isinstance(m, _BATCH_NORMS) and m.track_running_stats]
    kept = [({n: b.clone() for n, b in m.named_buffers(recurse=False)}, m.momentum) for m in norms]
    was_training = model.training
    model.train()
    hooks = [norm.register_forward_pre_hook(_PlainAverage()) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
    with torch.no_grad():
        for images, _ in batches:
            model(images)
    for hook in hooks:
        hook.remove()
    model.train(was_training)
    try:
        yield
    finally:
        for norm, (buffers, momentum) in zip(norms, kept, strict=True):
            norm.momentum = momentum
            for name, buffer in norm.named_buffers(recurse=False):
                buffer.copy_(buffers[name])
