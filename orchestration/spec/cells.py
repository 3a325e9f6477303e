"""From a spec to its cells: what is trained, in which order, and under which id."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import fsg
from fsg import train_config
from fsg.config import Settings, to_dict
from fsg.import_closure import is_installed
from fsg.imported import Imported, closure
from fsg.starting_points import File, Pretrain
from fsg.train_config import TrainConfig
from orchestration.spec.experiment import ExperimentSpec
from orchestration.spec.fields import nearest, train_from_dict
from orchestration.spec.resolver import Point, line_name
from orchestration.util.nested import flatten

# A training of the table, the pretraining that some wait for, a search's trial with one of its seeds, and a training
# of one of a search's best settings with a fresh seed.
Kind = Literal["train", "pretrain", "trial", "candidate"]


@dataclass(frozen=True)
class Cell:
    """One training, with one seed. `continues` names the candidate from whose end it resumes: only the test is left."""

    id: str
    kind: Kind
    variant: str
    grid: dict[str, Any]
    seed: int
    train: TrainConfig
    depends_on: str | None = None
    contaminated: bool = False
    continues: str | None = None

    @property
    def label(self) -> str:
        """As people read it: `fsg · optimizer.lr=0.01 · seed 2`."""
        return f"{self.name} · seed {self.seed}"

    @property
    def name(self) -> str:
        """The label without the seed: what is averaged over seeds."""
        return line_name(self.variant, self.grid)

    @property
    def whole(self) -> "Cell":
        """The same training from its own start: its id is of the settings, not of where it goes on."""
        return replace(self, continues=None)

    def to_dict(self) -> dict[str, Any]:
        record = {name: getattr(self, name) for name in _FIELDS} | {"train": to_dict(self.train)}
        return {name: value for name, value in record.items() if name != "continues" or value is not None}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Cell":
        """The inverse of `to_dict`; what it does not know it ignores."""
        known = {name: record[name] for name in _FIELDS if name in record}
        return cls(**known | {"train": train_from_dict(record["train"])})


_FIELDS = [one.name for one in fields(Cell)]


class WorkItem(NamedTuple):
    """A cell to train, to its end or up to a step."""

    cell: Cell
    until: int | None = None


def cells(spec: ExperimentSpec) -> list[Cell]:
    """The cells of a spec: pretrainings first, then breadth first, every point with one seed before the next seed.

    Raises OSError or ValueError where data or starting weights cannot be read.
    """
    before = {
        index: train_config.pretraining(p.train) for index, p in enumerate(spec.points) if _asks_for_pretraining(p)
    }
    names = _pretraining_names(spec, before)
    pretrainings: dict[str, Cell] = {}
    trainings: list[Cell] = []
    for seed in spec.seeds:
        for index, point in enumerate(spec.points):
            name = names[_canonical(before[index].identity())] if index in before else ("", {})
            pretraining, cell = cells_of(point.train, "train", point.variant, point.grid, seed, name)
            if pretraining is not None:
                pretrainings.setdefault(pretraining.id, pretraining)
            trainings.append(cell)
    return [*pretrainings.values(), *trainings]


def cells_of(
    train: TrainConfig,
    kind: Kind,
    variant: str,
    grid: dict[str, Any],
    seed: int,
    pretraining_name: tuple[str, dict[str, Any]] = ("pretrain", {}),
) -> tuple[Cell | None, Cell]:
    """A training with a seed, and the pretraining that it waits for, if there is one."""
    pretraining, start = None, ""
    if isinstance(train.init, Pretrain):
        before = train_config.pretraining(train)
        pretraining = Cell(cell_id(before, seed), "pretrain", *pretraining_name, seed, before)
        start = cell_id(replace(before, test="end"), seed)  # the same weights, whoever looks at them
    elif isinstance(train.init, File):
        start = train.init.fingerprint()
    cell = Cell(
        id=cell_id(train, seed, start),
        kind=kind,
        variant=variant,
        grid=grid,
        seed=seed,
        train=train,
        depends_on=pretraining.id if pretraining else None,
        contaminated=contaminated(train),
    )
    return pretraining, cell


def _asks_for_pretraining(point: Point) -> bool:
    return isinstance(point.train.init, Pretrain)


def _pretraining_names(spec: ExperimentSpec, before: dict[int, TrainConfig]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Variant and grid of the label of each pretraining: `pretrain`, or what first asks for it where they differ."""
    firsts: dict[str, Point] = {}
    for index, train in before.items():
        firsts.setdefault(_canonical(train.identity()), spec.points[index])
    if len(firsts) == 1:
        return {one: ("pretrain", {}) for one in firsts}
    return {one: (f"pretrain for {point.variant}", point.grid) for one, point in firsts.items()}


def contaminated(train: TrainConfig) -> bool:
    """Whether the weights that it starts from may have been trained on its validation images."""
    init = train.init
    clean = ("train_without_validation", "other_data")
    return isinstance(init, File) and init.trained_on not in clean and train.data.validation > 0


def cell_id(train: TrainConfig, seed: int, start: str = "") -> str:
    """A hash of everything that determines a training's numbers, 16 hex digits; `start`: its starting weights."""
    return _id(train.identity(), seed, train.data.fingerprint(), start, fsg.NUMERICS, train.test)


def with_current_id(cell: Cell, by_id: Callable[[str], Cell]) -> Cell:
    """The cell with the id that it would get now, and its pretraining's; they differ where the numerics changed."""
    if cell.depends_on is None:
        start = cell.train.init.fingerprint() if isinstance(cell.train.init, File) else ""
        return replace(cell, id=cell_id(cell.train, cell.seed, start))
    before = with_current_id(by_id(cell.depends_on), by_id).id
    return replace(cell, id=cell_id(cell.train, cell.seed, before), depends_on=before)


def numerics_of(cell: Cell, recorded: dict[str, Any]) -> int | None:
    """The NUMERICS version that produced this id, if only NUMERICS or newly added settings differ; otherwise None.

    `recorded` are the cell's settings as they were written down.
    """
    start = cell.depends_on or (cell.train.init.fingerprint() if isinstance(cell.train.init, File) else "")
    identity, data = _within(cell.train.identity(), recorded), cell.train.data.fingerprint()
    known = range(fsg.NUMERICS, 0, -1)
    return next((n for n in known if _id(identity, cell.seed, data, start, n, cell.train.test) == cell.id), None)


def _within(identity: dict[str, Any], recorded: dict[str, Any]) -> dict[str, Any]:
    """The part of an identity whose settings the record has."""
    return {
        name: _within(value, recorded[name]) if isinstance(value, dict) and isinstance(recorded[name], dict) else value
        for name, value in identity.items()
        if name in recorded
    }


def _id(identity: dict[str, Any], seed: int, data: str, start: str, numerics: int, test: str) -> str:
    determining = {"train": identity, "seed": seed, "data": data, "start": start, "numerics": numerics}
    if test != "end":  # rows without the test images; named only here, so that no older cell's id changes
        determining["test"] = test
    return hashlib.sha256(_canonical(determining).encode()).hexdigest()[:16]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def imported(settings: Settings) -> list[Imported]:
    """The components of the user's own in a training."""
    if isinstance(settings, Imported):
        return [settings]
    values = [getattr(settings, one.name) for one in fields(settings)]
    return [own for value in values if isinstance(value, Settings) for own in imported(value)]


def own_code(spec: ExperimentSpec) -> Path | None:
    """The folder of the user's own components, if a spec names any."""
    return spec.source.parent if any(imported(train) for train in spec.trains) else None


def own_folders(spec: ExperimentSpec) -> list[str]:
    """The folders that a spec's own components are imported from, but for those of what is installed."""
    paths = sorted({own.path for train in spec.trains for own in imported(train)})
    roots = dict.fromkeys(closure(path).root for path in paths)
    return [str(root) for root in roots if not is_installed(root)]


def orphans(planned: Sequence[Cell], entered: Iterable[Cell]) -> list[Cell]:
    """Cells of the ledger with the label of a planned cell and another id: other code, data or settings."""
    ids = {cell.id for cell in planned}
    labels = {(cell.kind, cell.label) for cell in planned}
    return [cell for cell in entered if cell.id not in ids and (cell.kind, cell.label) in labels]


def changed_settings(before: Cell, now: Cell) -> dict[str, tuple[Any, Any]]:
    """What determines the numbers of two cells and differs, by path; nothing where the settings of one are no more."""
    try:
        old, new = flatten(before.train.identity()), flatten(now.train.identity())
    except (TypeError, ValueError, KeyError):
        return {}
    paths = [path for path in {**old, **new} if old.get(path) != new.get(path)]
    return {f"train.{path}": (old.get(path, "absent"), new.get(path, "absent")) for path in paths}


def find_cell(cells: Sequence[Cell], name: str) -> Cell:
    """A cell by its id, the beginning of it, or its label. Raises ValueError."""
    found = [cell for cell in cells if cell.label == name] or [cell for cell in cells if cell.id.startswith(name)]
    if len({cell.id for cell in found}) == 1:
        return found[0]  # a search may choose the settings of another line: one training of two names
    labels = ", ".join(f"'{cell.label}'" for cell in (found or cells)[:4])
    what = "several cells begin with that" if found else "no such cell"
    near = "" if found else nearest(name, (cell.label for cell in cells))
    raise ValueError(f"{name or 'CELL'}: {what} (expected an id or a label, as in {labels}, …){near}")


def total_steps(cell: Cell) -> int:
    """Optimizer steps of a cell; one that continues another's end has none."""
    return 0 if cell.continues is not None else cell.train.epochs * steps_per_epoch(cell.train)


def steps_per_epoch(train: TrainConfig) -> int:
    """Optimizer steps of an epoch."""
    key = json.dumps([to_dict(train.data), train.images_a_step], sort_keys=True)
    if key not in _steps:
        _steps[key] = train.data.load().steps_per_epoch(train.images_a_step)
    return _steps[key]


_steps: dict[str, int] = {}
