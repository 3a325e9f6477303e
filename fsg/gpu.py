"""Whether torch can compute on a GPU here, and if not, why."""

import re
import warnings
from collections.abc import Sequence

import torch


def why_no_gpu() -> str:
    """What keeps torch from a CUDA GPU in this process, in a few words; empty where nothing does.

    It may be that there is none, that the driver is missing or too old, or that this torch has no code for the GPU.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reason is told below
        if not torch.cuda.is_available():
            return _refusal()
        capability, architectures = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    if runs_on(capability, architectures):
        return ""
    mine = ".".join(map(str, capability))
    return f"this torch has no code for a GPU of compute capability {mine} (it has {', '.join(architectures)})"


def runs_on(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether code for `architectures` (as in sm_86, compute_90) runs on a GPU of a compute capability.

    A binary (sm) runs on its own major version from its minor one on, PTX (compute) on everything from its own on.
    """
    for kind, major, minor in re.findall(r"\b(sm|compute)_(\d+)(\d)", " ".join(architectures)):
        made_for = int(major), int(minor)
        if made_for <= capability and (kind == "compute" or made_for[0] == capability[0]):
            return True
    return not any(name.startswith("sm_") for name in architectures)  # other makers' names say nothing here


def _refusal() -> str:
    """The first sentence of what torch raises instead of starting CUDA."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (AssertionError, RuntimeError) as error:
        return re.split(r"\.\s+(?=[A-Z])|\n", str(error).strip())[0].rstrip(".")
    return "torch finds no CUDA GPU"
