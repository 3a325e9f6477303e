"""Seeds of a training's parts, and torch's generators set to them."""

import hashlib

import torch


def derived_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose, so that what one part draws does not shift what another does."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:8]) >> 1


def seed_generators(seed: int) -> None:
    """`torch.manual_seed` for the CPU and, where there is one, the GPU.

    torch's own also leaves a call with a stack trace for every kind of device that there is not, for ever.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)
