"""What the networks of an experiment cost, each kind of them counted once."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from fsg.config import to_dict
from fsg.costs import NetworkCost, network_cost
from fsg.layers import quantized_layers
from fsg.train_config import TrainConfig
from fsg.untrained import untrained_network
from orchestration.spec.cells import Cell
from orchestration.util.error_text import first_line
from orchestration.util.magnitude import magnitude


class NetworkOfLines(NamedTuple):
    """A network, and the lines of the table that have it; `problem` says why its cost is not known."""

    lines: tuple[str, ...]
    cost: NetworkCost | None
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {"lines": list(self.lines), "cost": self.cost and self.cost.to_dict(), "problem": self.problem}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "NetworkOfLines":
        cost = record["cost"] and NetworkCost.from_dict(record["cost"])
        return cls(tuple(record["lines"]), cost, record["problem"])

    @property
    def of(self) -> str:
        """The lines in a few words."""
        more = f" and {len(self.lines) - 3} more" if len(self.lines) > 3 else ""
        return ", ".join(self.lines[:3]) + more


def networks_of(cells: Iterable[Cell]) -> list[NetworkOfLines]:
    """The networks of cells and their costs, in the order of the cells."""
    known: dict[str, tuple[NetworkCost | None, str]] = {}
    lines: dict[str, list[str]] = {}
    for name, train in {cell.name: cell.train for cell in cells}.items():
        lines.setdefault(_counted(train, known), []).append(name)
    return [NetworkOfLines(tuple(names), *known[kind]) for kind, names in lines.items()]


COST_COLUMNS = ("parameters", "binary", "float32", "packed", "FLOPs", "BOPs")


def cost_texts(cost: NetworkCost) -> tuple[str, ...]:
    """The cells of those columns."""
    sizes = [magnitude(size, "B") for size in (cost.float_bytes, cost.packed_bytes)]
    operations = [magnitude(count) for count in (cost.flops, cost.bops)]
    return (f"{cost.parameters:,}", f"{100 * cost.binary_share:.1f}\u00a0%", *sizes, *operations)


def _counted(train: TrainConfig, known: dict[str, tuple[NetworkCost | None, str]]) -> str:
    """What tells its network from others; `known` then has its cost, or why there is none."""
    kind, cost, problem = json.dumps(to_dict(train)["model"]), None, ""
    try:
        dataset = train.data.load()
        network = untrained_network(train, dataset.shape, dataset.classes)
        layers = [name for name, _ in quantized_layers(network)]
        kind = json.dumps([kind, dataset.shape, dataset.classes, to_dict(train.quantizer) if layers else None, layers])
        cost = None if kind in known else network_cost(network, dataset.shape)
    except Exception as error:  # a network of the user's own may raise anything; a launch will tell it
        problem = first_line(error)
    known.setdefault(kind, (cost, problem))
    return kind
