"""Errors of a training that are not its own: of memory, or of the device that it runs on."""

import torch

_OF_LIBRARIES = ("CUDA error:", "cuDNN error:", "cuDNN Frontend error:", "NCCL error")  # RuntimeErrors, by their text


class DeviceFault(Exception):
    """The device refuses this process from now on: another process has to go on."""


def is_lack_of_memory(error: Exception) -> bool:
    """On a CPU, torch reports a lack of memory as a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator: can't" in str(error)


def is_device_fault(error: Exception) -> bool:
    """An illegal access, say, or a library's handle that failed: every later call of this process fails as well."""
    if isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and str(error).startswith(_OF_LIBRARIES)
