"""Heat maps by layer and epoch: flip rates, cosines and norms of gradients."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from orchestration.report import marks
from orchestration.report.figures import plain
from orchestration.report.marks import Marks, Of

Floats = NDArray[np.float64]
Table = Mapping[str, Any]

COLUMNS = 4
MAX_MAPS = 16  # variants on a figure
MAX_VALUES = 16_000  # of a figure, that the page has as numbers too
_TITLE, _BETWEEN = 0.3, 0.04  # inches above a map, and widths of a map between two

Column = Sequence[float | None]


def _flips(table: Table) -> Column | None:
    return table.get("flip_rate")


def _cosine(a: str, b: str) -> Callable[[Table], Column | None]:
    return lambda table: table.get(f"cosine_{a}_{b}", table.get(f"cosine_{b}_{a}"))


def _ratio(a: str, b: str) -> Callable[[Table], Column | None]:
    """Of the norms of two gradients."""

    def of(table: Table) -> Column | None:
        if f"norm_{a}" not in table or f"norm_{b}" not in table:
            return None
        return [x / y if y else None for x, y in zip(table[f"norm_{a}"], table[f"norm_{b}"], strict=True)]

    return of


# What is drawn, in this order, and how it is read off the table of an epoch.
QUANTITIES: dict[str, Callable[[Table], Column | None]] = {
    "Flip rate a step": _flips,
    "Norm of fast over straight-through gradient": _ratio("fast", "ste"),
    "Norm of slow over straight-through gradient": _ratio("slow", "ste"),
    "Cosine of fast and slow gradient": _cosine("fast", "slow"),
    "Cosine of fast and straight-through gradient": _cosine("fast", "ste"),
    "Cosine of slow and straight-through gradient": _cosine("slow", "ste"),
    "Cosine of applied and straight-through gradient": _cosine("applied", "ste"),
}


@dataclass(frozen=True)
class Map:
    """A quantity of one line of the table, mean over its seeds: `values` [layers, epochs]."""

    label: str
    layers: tuple[str, ...]
    epochs: tuple[int, ...]
    values: Floats
    of: Of = field(default_factory=lambda: Of("", ""))


class Diagnosed(NamedTuple):
    """A line of the table, and the diagnostics of its seeds, by epoch."""

    label: str
    of: Of
    seeds: Sequence[Sequence[Table]]


def maps(lines: Sequence[Diagnosed]) -> dict[str, list[Map]]:
    """By quantity, the map of each line that has it."""
    found: dict[str, list[Map]] = {}
    for title, column in QUANTITIES.items():
        for line in lines:
            made = _mean([seed for seed in line.seeds if seed and column(seed[0]) is not None], column, line)
            if made is not None:
                found.setdefault(title, []).append(made)
    return found


def _mean(seeds: Sequence[Sequence[Table]], column: Callable[[Table], Column | None], line: Diagnosed) -> Map | None:
    """Over the seeds, epoch by epoch as far as they all have come; what no seed has is not a number."""
    if not seeds:
        return None
    epochs = sorted(set.intersection(*({table["epoch"] for table in seed} for seed in seeds)))
    layers = tuple(seeds[0][0]["layer"])
    if not epochs or any(tuple(table["layer"]) != layers for seed in seeds for table in seed):
        return None
    by_seed = []
    for seed in seeds:
        by_epoch = {table["epoch"]: column(table) for table in seed}
        empty = [None] * len(layers)
        by_seed.append(np.array([by_epoch[epoch] or empty for epoch in epochs], dtype=np.float64).T)
    stacked = np.array(by_seed)
    known = np.isfinite(stacked)
    total, count = np.where(known, stacked, 0.0).sum(0), known.sum(0)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return Map(line.label, layers, tuple(epochs), mean, line.of)


def draw_maps(title: str, found: Sequence[Map]) -> Figure:
    """A small map a line of the table, all on one scale. Colours that the colour-blind tell apart, and grey prints.

    The maps are boxes of width and height 1 on one pair of axes: many axes take many times as long to draw.
    """
    shown = found[:MAX_MAPS]
    columns, rows, height, gap = _grid(shown)
    figure = Figure(figsize=(11.0, height * rows + 0.6), layout="constrained")
    axes = figure.subplots()
    colours, norm = _scale(title, shown)
    assert norm.vmin is not None
    heights: list[tuple[float, str]] = []
    places: dict[float, str] = {}
    for place, each in enumerate(shown):
        left, top = _corner(place, columns, gap)
        box = (left, left + 1, top + 1, top)
        axes.fill_between(box[:2], top, top + 1, color="#c4cbd3", linewidth=0, zorder=0, gid=_gid(shown, place, "box"))
        values = np.where(each.values <= norm.vmin, norm.vmin, each.values)  # 0 as well has a colour, the lowest
        last = axes.imshow(values, cmap=colours, norm=norm, interpolation="nearest", extent=box,
                           gid=_gid(shown, place, "map"))  # fmt: skip
        name = _gid(shown, place, "name")
        axes.text(left, top - 0.02, plain(each.label), fontsize=9, ha="left", va="bottom", gid=name)
        if place % columns == 0:
            step = max(1, -(-len(each.layers) // 12))
            heights += [(top + (i + 0.5) / len(each.layers), each.layers[i]) for i in range(0, len(each.layers), step)]
        if place + columns >= len(shown):
            epochs = sorted({0, len(each.epochs) - 1})
            places |= {left + (i + 0.5) / len(each.epochs): str(each.epochs[i]) for i in epochs}
    axes.set_xlim(0, columns * (1 + _BETWEEN) - _BETWEEN)
    axes.set_ylim(rows * (1 + gap) - gap, -gap)
    axes.set_aspect("auto")
    axes.set_xticks(list(places), list(places.values()), fontsize=7)
    axes.set_yticks([place for place, _ in heights], [plain(name) for _, name in heights], fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("epoch", fontsize=8)
    bar = figure.colorbar(last, ax=axes, fraction=0.03, pad=0.01, aspect=14 * rows)
    bar.ax.tick_params(which="both", labelsize=7)
    bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # a formula takes longer than the rest of the map
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    if title.startswith("Norm"):
        bar.ax.axhline(1.0, color="#D55E00", linewidth=1.6)
        bar.set_label("orange line at 1: equal norms", fontsize=7)
    bar.outline.set_visible(False)
    return figure


def map_marks(title: str, found: Sequence[Map], figure: Figure) -> Marks:
    """What is under the pointer: every layer and epoch, as far as there is room for the values on the page."""
    shown, axes = found[:MAX_MAPS], figure.axes[0]
    columns, _, _, gap = _grid(shown)
    said = sum(each.values.size for each in shown) <= MAX_VALUES
    boxes = []
    for place, each in enumerate(shown):
        left, top = _corner(place, columns, gap)
        (x, y), (right, bottom) = (marks.place(figure, axes, left + d, top + d) for d in (0, 1))
        values = [[marks.short(value, 3) for value in row] for row in each.values.tolist()]
        boxes.append({"of": place, "box": [x, y, right - x, bottom - y], "layers": each.layers, "x": each.epochs,
                      "values": values if said else None})  # fmt: skip
    of = [each.of.as_json() for each in shown]
    return {"kind": "maps", "variants": _variants(shown), "name": title, "of": of, "maps": boxes}


def _grid(shown: Sequence[Map]) -> tuple[int, int, float, float]:
    """Columns and rows of maps, the height of one in inches, and the gap above it in its heights."""
    columns = min(COLUMNS, max(2, len(shown)))
    height = max(1.5, min(4.2, 0.5 + 0.13 * max(len(each.layers) for each in shown)))
    return columns, -(-len(shown) // columns), height, _TITLE / height


def _corner(place: int, columns: int, gap: float) -> tuple[float, float]:
    row, column = divmod(place, columns)
    return column * (1 + _BETWEEN), row * (1 + gap)


def _variants(shown: Sequence[Map]) -> list[str]:
    return list(dict.fromkeys(each.of.variant for each in shown))


def _gid(shown: Sequence[Map], place: int, what: str) -> str:
    return marks.gid(_variants(shown), shown[place].of.variant, f"{what}-{place}")


def _scale(title: str, found: Sequence[Map]) -> tuple[str, Normalize]:
    """From −1 to 1, or logarithmic; a ratio's has 1 on it."""
    if title.startswith("Cosine"):
        return "PuOr", Normalize(-1, 1)
    values = np.concatenate([each.values.reshape(-1) for each in found])
    above = values[np.isfinite(values) & (values > 0)]
    if not len(above):
        return "cividis", Normalize(0, 1)
    low, high = max(above.min(), above.max() / 1e4), above.max()
    if title.startswith("Norm"):
        low, high = min(low, 0.9), max(high, 1.1)
    return "cividis", LogNorm(low, max(high, low * 1.01))


def note(found: Mapping[str, Sequence[Map]]) -> str:
    """What the maps leave out, and what they are."""
    left_out = max((len(each) - MAX_MAPS for each in found.values()), default=0)
    more = f" The first {MAX_MAPS} lines are drawn; {left_out} more are in the ledger." if left_out > 0 else ""
    return (
        "Each small map is a line of the table, mean over its planned seeds that are done: layers from the input at "
        "the top, epochs from left to right. Flip rate: share of a layer's quantized weights whose sign changes in a "
        "step, on a logarithmic scale, as are the norms. Norms and cosines: of the gradients of some steps an epoch, "
        f"each layer's taken as one vector. The lowest colour is that or less, 0 as well. Grey: not defined, as a "
        f"cosine or ratio where a gradient is zero.{more}"
    )
