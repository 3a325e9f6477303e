"""From a spec to its cells: what is trained, in which order, under which id, and how long it will take."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import fsg
from fsg import trainer
from fsg.config import Settings, to_dict
from fsg.imported import Imported
from fsg.starting_points import File, Pretrain
from fsg.trainer import TrainConfig

if TYPE_CHECKING:
    from orchestration.ledger import Ledger, Outcome
    from orchestration.specs import ExperimentSpec, Point


@dataclass(frozen=True)
class Cell:
    """One training: a variant at a grid point with a seed, or the pretraining that some wait for."""

    id: str
    kind: Literal["train", "pretrain"]
    variant: str
    grid: dict[str, Any]
    seed: int
    train: TrainConfig
    depends_on: str | None = None
    contaminated: bool = False

    @property
    def label(self) -> str:
        """As people read it: `fsg · optimizer.lr=0.01 · seed 2`."""
        return " · ".join(
            [self.variant, *(f"{path}={value}" for path, value in self.grid.items()), f"seed {self.seed}"]
        )

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _FIELDS} | {"train": to_dict(self.train)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Cell":
        """The inverse of `to_dict`; what it does not know it ignores."""
        from orchestration.specs import train_from_dict

        return cls(**{name: record[name] for name in _FIELDS} | {"train": train_from_dict(record["train"])})


_FIELDS = [one.name for one in fields(Cell)]


def cells(spec: "ExperimentSpec") -> list[Cell]:
    """The cells of a spec: pretrainings first, then breadth first, every point with one seed before the next seed.

    Raises OSError or ValueError where data or starting weights cannot be read.
    """
    before = {index: trainer.pretraining(p.train) for index, p in enumerate(spec.points) if _asks_for_pretraining(p)}
    names = _pretraining_names(spec, before)
    pretrainings: dict[str, Cell] = {}
    trainings: list[Cell] = []
    for seed in spec.seeds:
        for index, point in enumerate(spec.points):
            start = ""
            if index in before:
                variant, grid = names[_canonical(before[index].identity())]
                start = cell_id(before[index], seed)
                pretrainings.setdefault(start, Cell(start, "pretrain", variant, grid, seed, before[index]))
            elif isinstance(point.train.init, File):
                start = point.train.init.fingerprint()
            trainings.append(
                Cell(
                    id=cell_id(point.train, seed, start),
                    kind="train",
                    variant=point.variant,
                    grid=point.grid,
                    seed=seed,
                    train=point.train,
                    depends_on=start if index in before else None,
                    contaminated=_contaminated(point.train),
                )
            )
    return [*pretrainings.values(), *trainings]


def _asks_for_pretraining(point: "Point") -> bool:
    return isinstance(point.train.init, Pretrain)


def _pretraining_names(spec: "ExperimentSpec", before: dict[int, TrainConfig]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Variant and grid of the label of each pretraining: `pretrain`, or what first asks for it where they differ."""
    firsts: dict[str, Point] = {}
    for index, train in before.items():
        firsts.setdefault(_canonical(train.identity()), spec.points[index])
    if len(firsts) == 1:
        return {one: ("pretrain", {}) for one in firsts}
    return {one: (f"pretrain for {point.variant}", point.grid) for one, point in firsts.items()}


def _contaminated(train: TrainConfig) -> bool:
    """Whether the weights that it starts from may have been trained on its validation images."""
    init = train.init
    clean = ("train_without_validation", "other_data")
    return isinstance(init, File) and init.trained_on not in clean and train.data.validation > 0


def cell_id(train: TrainConfig, seed: int, start: str = "") -> str:
    """What determines a training's numbers, as 16 hex digits: `start` stands for the weights that it starts from."""
    determining = {
        "train": train.identity(),
        "seed": seed,
        "data": train.data.fingerprint(),
        "start": start,
        "numerics": fsg.NUMERICS,
    }
    return hashlib.sha256(_canonical(determining).encode()).hexdigest()[:16]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def imported(settings: Settings) -> list[Imported]:
    """The components of the user's own in a training."""
    if isinstance(settings, Imported):
        return [settings]
    values = [getattr(settings, one.name) for one in fields(settings)]
    return [own for value in values if isinstance(value, Settings) for own in imported(value)]


def orphans(planned: Sequence[Cell], entered: Iterable[Cell]) -> list[Cell]:
    """Cells of the ledger that have a planned one's label and another id: code, data or settings were others then."""
    ids = {cell.id for cell in planned}
    labels = {(cell.kind, cell.label) for cell in planned}
    return [cell for cell in entered if cell.id not in ids and (cell.kind, cell.label) in labels]


def total_steps(cell: Cell) -> int:
    """Optimizer steps of a cell."""
    return cell.train.epochs * _steps_per_epoch(cell.train)


def _steps_per_epoch(train: TrainConfig) -> int:
    key = json.dumps([to_dict(train.data), train.batch_size], sort_keys=True)
    if key not in _steps:
        _steps[key] = train.data.load().steps_per_epoch(train.batch_size)
    return _steps[key]


_steps: dict[str, int] = {}


@dataclass(frozen=True)
class Standing:
    """A planned cell, where it stands, and what is expected of it."""

    cell: Cell
    outcome: "Outcome"
    steps: int
    seconds: float | None = None

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do: a divergence is a result, and would come again."""
        return self.outcome.state in ("done", "diverged")

    @property
    def left(self) -> float | None:
        """Expected seconds that are left."""
        if self.over or self.seconds is None:
            return 0.0 if self.over else None
        return self.seconds * (1 - min(self.outcome.step, self.steps) / self.steps) if self.steps else self.seconds


def standings(planned: Sequence[Cell], ledger: "Ledger") -> list[Standing]:
    """Where every planned cell stands in the ledger."""
    return [Standing(cell, ledger.outcome(cell.id), total_steps(cell)) for cell in planned]
