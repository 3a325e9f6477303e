"""What a training computes in, and that its bits repeat."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["fp32", "tf32", "bf16"]


def set_precision(precision: Precision, device: torch.device, *, own_model: bool) -> None:
    """Set how this process multiplies matrices and, on a GPU, that bits repeat: for an own model, where they can.

    Everything is set at every call: a worker that is warm may have had it otherwise.
    """
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    if device.type != "cpu":  # on a CPU they are; to say so would import torch's compiler, seconds
        torch.use_deterministic_algorithms(True, warn_only=own_model)


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Within, the network computes in that precision."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
