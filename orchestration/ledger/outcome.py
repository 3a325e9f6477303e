"""Where a cell stands: waiting, running, how it ended, or missing: planned, and without a record that holds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["waiting", "running", "done", "failed", "diverged", "interrupted", "pruned", "missing"]


@dataclass(frozen=True)
class Outcome:
    """The state of a cell, and the sums over its attempts.

    `seconds` is the time of training and evaluation over the attempts that count, `step` the last one covered;
    `damaged`: it was done, and a part of what it left is lost.
    """

    state: State
    reason: str = ""
    log: Path | None = None
    started_ms: int | None = None
    finished_ms: int | None = None
    seconds: float = 0.0
    digest: str | None = None
    attempts: int = 0
    step: int = 0
    damaged: bool = False
