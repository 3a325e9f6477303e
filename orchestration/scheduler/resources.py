"""What a training takes of a machine, and how many fit at the same time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestration.runtime.messages import Shape
from orchestration.spec.cells import Cell


@dataclass(frozen=True)
class TrialResources:
    """CPUs, GPUs and retries of one cell, and the settings of its worker; `checkpoint_every` is in seconds."""

    gpus: float = 0.0
    cpus: int | None = None
    max_concurrent: int | None = None
    max_retries: int = 3
    checkpoint_every: float = 60.0
    python_path: Sequence[str] = field(default=())

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    def of(self, cell: Cell) -> Shape:
        """The resources of a worker that trains this cell."""
        return (("CPU", self.cpus or cell.train.threads), *((("GPU", self.gpus),) if self.gpus else ()))


def max_concurrency(cells: Sequence[Cell], resources: TrialResources, capacity: Mapping[str, float]) -> int:
    """How many of the largest of these cells fit into a capacity, and are allowed, at the same time; at least 1."""
    fit = {int(min(capacity[name] // amount for name, amount in resources.of(cell) if amount)) for cell in cells}
    return max(1, min(*fit, resources.max_concurrent or len(cells), len(cells)))
