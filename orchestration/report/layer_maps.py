"""What happened in the layers: flip rates, cosines and norms of gradients by layer and epoch, as heat maps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Table = Mapping[str, Any]

COLUMNS = 4
MAX_MAPS = 16  # variants on a figure

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


def maps(tables: Mapping[str, Sequence[Sequence[Table]]]) -> dict[str, list[Map]]:
    """By quantity, the map of each line that has it; `tables` are the diagnostics of each line's seeds, by epoch."""
    found: dict[str, list[Map]] = {}
    for title, column in QUANTITIES.items():
        for label, seeds in tables.items():
            made = _mean([seed for seed in seeds if seed and column(seed[0]) is not None], column, label)
            if made is not None:
                found.setdefault(title, []).append(made)
    return found


def _mean(seeds: Sequence[Sequence[Table]], column: Callable[[Table], Column | None], label: str) -> Map | None:
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
    return Map(label, layers, tuple(epochs), np.where(count > 0, total / np.maximum(count, 1), np.nan))


def draw_maps(title: str, found: Sequence[Map]) -> Figure:
    """A small map a line of the table, all on one scale. Colours that the colour-blind tell apart, and grey prints."""
    shown = found[:MAX_MAPS]
    columns = min(COLUMNS, max(2, len(shown)))
    rows = -(-len(shown) // columns)
    height = max(1.5, min(4.2, 0.5 + 0.13 * max(len(each.layers) for each in shown)))
    figure = Figure(figsize=(11.0, height * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    colours, norm = _scale(title, shown)
    for place, axes in enumerate(grid.flat):
        if place >= len(shown):
            axes.set_visible(False)
            continue
        each = shown[place]
        last = axes.imshow(each.values, aspect="auto", cmap=colours, norm=norm, interpolation="nearest",
                           extent=(0.5, len(each.epochs) + 0.5, len(each.layers) - 0.5, -0.5))  # fmt: skip
        axes.set_title(each.label, fontsize=9, loc="left")
        step = max(1, -(-len(each.layers) // 12))
        names = [name if i % step == 0 else "" for i, name in enumerate(each.layers)]
        axes.set_yticks(range(len(names)), names if place % columns == 0 else [""] * len(names), fontsize=7)
        ticks = sorted({1, len(each.epochs)})
        axes.set_xticks(ticks, [str(each.epochs[tick - 1]) for tick in ticks], fontsize=7)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_facecolor("#c4cbd3")
    bar = figure.colorbar(last, ax=list(grid[:, -1]), fraction=0.08, aspect=14)
    bar.ax.tick_params(which="both", labelsize=7)
    bar.outline.set_visible(False)
    figure.supxlabel("epoch", fontsize=8)
    return figure


def _scale(title: str, found: Sequence[Map]) -> tuple[str, Normalize]:
    if title.startswith("Cosine"):
        return "PuOr", Normalize(-1, 1)
    values = np.concatenate([each.values.reshape(-1) for each in found])
    above = values[np.isfinite(values) & (values > 0)]
    if not len(above):
        return "cividis", Normalize(0, 1)
    return "cividis", LogNorm(max(above.min(), above.max() / 1e4), max(above.max(), above.min() * 1.01))


def note(found: Mapping[str, Sequence[Map]]) -> str:
    """What the maps leave out, and what they are."""
    left_out = max((len(each) - MAX_MAPS for each in found.values()), default=0)
    more = f" The first {MAX_MAPS} lines are drawn; {left_out} more are in the ledger." if left_out > 0 else ""
    return (
        "Each small map is a line of the table, mean over its planned seeds that are done: layers from the input at "
        "the top, epochs from left to right. Flip rate: share of a layer's quantized weights whose sign changes in a "
        "step, on a logarithmic scale, as are the norms. Norms and cosines: of the gradients of some steps an epoch, "
        f"each layer's taken as one vector. Grey: not defined, as where a gradient is zero.{more}"
    )
