"""What a checkpoint says that it is of."""

from collections.abc import Mapping
from typing import Any

import torch

import fsg
from fsg.checkpoint import leaves
from fsg.config import Settings


def made_by(config: Settings, seed: int) -> dict[str, Any]:
    """The settings, seed and version that determine a training."""
    return {"numerics": fsg.NUMERICS, "seed": seed, "config": config.identity()}


def refuse_another(state: Mapping[str, Any], ours: Mapping[str, Any], device: torch.device) -> None:
    """Raises ValueError, in one line that says what differs, for the state of a training that is not `ours`."""
    if "made_by" not in state:
        raise ValueError("the checkpoint does not say what it is of: it is of an older version, or of no training")
    there, here = ("cuda" if cuda else "cpu" for cuda in ("cuda" in state["random"], device.type == "cuda"))
    if there != here:
        raise ValueError(f"the checkpoint is of a training on {there} (here {here}), whose bits are others")
    was, now = dict(leaves(state["made_by"])), dict(leaves(ours))
    other = [
        f"{'.'.join(way.strip('/').split('/')).removeprefix('config.')} is {was.get(way, 'absent')!r} "
        f"(here {now.get(way, 'absent')!r})"
        for way in [*now, *(way for way in was if way not in now)]
        if was.get(way, "absent") != now.get(way, "absent")
    ]
    if other:
        more = f" and {len(other) - 4} more" if len(other) > 4 else ""
        raise ValueError(f"the checkpoint is of another training: {', '.join(other[:4])}{more}")
