"""What workers and the driver tell each other. It imports nothing: what only passes it on stays small."""

from typing import NamedTuple

Shape = tuple[tuple[str, float], ...]  # the resources of a worker, such as (("CPU", 1), ("GPU", 0.5))


class Order(NamedTuple):
    """What a worker is to do next: train a cell up to a step; None: to its end."""

    cell: str
    until: int | None


class Arrival(NamedTuple):
    """A worker's first message; `actor` is its pickled handle, by which the driver hears of its end.

    Who unpickles it imports all that a worker imports.
    """

    shape: Shape
    pid: int
    actor: bytes


class WorkerReport(NamedTuple):
    """What a worker reports of its cell, for display: the ledger has the truth."""

    state: str
    reason: str
    note: str
    log: str
    step: int
    total_steps: int
    metrics: dict[str, float]


class Failure(NamedTuple):
    """The last message of a worker that an unexpected error ends."""

    reason: str


Message = Arrival | WorkerReport | Failure
