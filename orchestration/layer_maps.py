"""What happened in the layers: flip rates and cosines of gradients by layer and epoch, as heat maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Table = Mapping[str, Any]

COLUMNS = 4
MOST = 16  # variants on a figure

# What is drawn, in this order: the column of a table, or the two kinds of gradient whose cosine it is.
QUANTITIES: dict[str, tuple[str, ...]] = {
    "Flip rate a step": ("flip_rate",),
    "Cosine of fast and slow gradient": ("fast", "slow"),
    "Cosine of fast and straight-through gradient": ("fast", "ste"),
    "Cosine of slow and straight-through gradient": ("slow", "ste"),
    "Cosine of applied and straight-through gradient": ("applied", "ste"),
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
    for title, kinds in QUANTITIES.items():
        for label, seeds in tables.items():
            made = _mean([seed for seed in seeds if seed and _column(seed[0], kinds) is not None], kinds, label)
            if made is not None:
                found.setdefault(title, []).append(made)
    return found


def _column(table: Table, kinds: tuple[str, ...]) -> str | None:
    names = kinds if len(kinds) == 1 else (f"cosine_{kinds[0]}_{kinds[1]}", f"cosine_{kinds[1]}_{kinds[0]}")
    return next((name for name in names if name in table), None)


def _mean(seeds: Sequence[Sequence[Table]], kinds: tuple[str, ...], label: str) -> Map | None:
    """Over the seeds, epoch by epoch as far as they all have come; what no seed has is not a number."""
    if not seeds:
        return None
    epochs = sorted(set.intersection(*({table["epoch"] for table in seed} for seed in seeds)))
    layers = tuple(seeds[0][0]["layer"])
    if not epochs or any(tuple(table["layer"]) != layers for seed in seeds for table in seed):
        return None
    name = _column(seeds[0][0], kinds) or ""
    by_seed = []
    for seed in seeds:
        by_epoch = {table["epoch"]: table.get(name) for table in seed}
        empty = [None] * len(layers)
        by_seed.append(np.array([by_epoch[epoch] or empty for epoch in epochs], dtype=np.float64).T)
    stacked = np.array(by_seed)
    known = np.isfinite(stacked)
    total, count = np.where(known, stacked, 0.0).sum(0), known.sum(0)
    return Map(label, layers, tuple(epochs), np.where(count > 0, total / np.maximum(count, 1), np.nan))


def drawn(title: str, found: Sequence[Map]) -> Figure:
    """A small map a line of the table, all on one scale. Colours that the colour-blind tell apart, and grey prints."""
    shown = found[:MOST]
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
    left_out = max((len(each) - MOST for each in found.values()), default=0)
    more = f" The first {MOST} lines are drawn; {left_out} more are in the ledger." if left_out > 0 else ""
    return (
        "Each small map is a line of the table, mean over its planned seeds that are done: layers from the input at "
        "the top, epochs from left to right. Flip rate: share of a layer's quantized weights whose sign changes in a "
        "step, on a logarithmic scale. Cosines: of the gradients of some steps an epoch, each layer's taken as one "
        f"vector. Grey: not defined, as where a gradient is zero.{more}"
    )
