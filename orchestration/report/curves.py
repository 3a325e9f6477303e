"""Convergence curves: a mean line, a band from the lowest to the highest seed, and each curve's name at its end."""

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator, PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Okabe and Ito's palette, which the colour-blind tell apart, without its yellow, which white paper swallows.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
_BASELINE = "#000000"
_DASHES = ("-", "--", ":")
_INK = "#1a1f26"
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "fsg", "font.family": "sans-serif", "font.size": 9.5}


@dataclass(frozen=True)
class Curve:
    """What one variant did: `x` [n], the seeds' mean, lowest and highest [n], and each diverged seed's own (x, y)."""

    label: str
    variant: str
    x: Floats
    mean: Floats
    low: Floats
    high: Floats
    diverged: tuple[tuple[Floats, Floats], ...] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes. `styles` tells each variant's place in the palette, so that colours agree between panels."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    styles: dict[str, int | None]
    log: bool = False


def inline_svg(panel: Panel) -> str:
    """The panel as an `<svg>` element of a page, with a name for screen readers."""
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    _draw(figure.subplots(), panel)
    return inline(figure, panel.title, f"{panel.title}: {panel.y_label} by {panel.x_label}")


def inline(figure: Figure, name: str, label: str) -> str:
    """A figure as an `<svg>` element: no prolog, no size of its own, ids that no other `name` on the page has."""
    text = re.sub(r"^.*?(?=<svg)", "", _svg(figure), flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    element, rest = text.split(">", 1)
    element = re.sub(r'\s(width|height|version)="[^"]*"', "", element)
    rest = re.sub(r'(<image\b[^>]*?) id="[^"]*"', r"\1", rest)  # named by their contents: two alike have one id
    prefix = re.sub(r"\W+", "-", name.lower())
    rest = re.sub(r'\b(id="|url\(#|href="#)', rf"\1{prefix}-", rest)
    return f'{element} role="img" aria-label="{html.escape(label)}">{rest}'


def save(rows: Sequence[Sequence[Panel]], folder: Path, name: str) -> list[Path]:
    """All panels as one figure, `<name>.svg` and `<name>.png`, a row a grid point; none where there is none."""
    if not rows:
        return []
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(6.0 * columns, 4.0 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, row in zip(grid, rows, strict=True):
        for axes, panel in zip(axes_row, row, strict=True):
            _draw(axes, panel)
    return save_figure(figure, folder, name)


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """`<name>.svg` and `<name>.png` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    svg, png = folder / f"{name}.svg", folder / f"{name}.png"
    svg.write_text(_svg(figure), encoding="utf-8")
    with matplotlib.rc_context(_STYLE):
        figure.savefig(png, dpi=160, metadata={"Software": None})
    return [svg, png]


def _svg(figure: Figure) -> str:
    with matplotlib.rc_context(_STYLE):
        if figure.get_layout_engine() is not None:
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # it is laid out: to do so at every drawing takes longer than to draw
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _draw(axes: Axes, panel: Panel) -> None:
    for curve in panel.curves:
        colour, dashes = _style(panel.styles[curve.variant])
        strong = panel.styles[curve.variant] in (None, 0)
        mark = "o" if len(curve.x) == 1 else ""
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(curve.x, curve.mean, dashes, color=colour, linewidth=2.1 if strong else 1.3, marker=mark, zorder=3)
        for x, y in curve.diverged:
            axes.plot(x, y, dashes, color=colour, linewidth=0.9, zorder=2)
            axes.plot(x[-1:], y[-1:], "x", color=colour, markersize=8, markeredgewidth=2, zorder=4)
    axes.set_title(panel.title, loc="left", fontsize=10.5, fontweight="bold", color=_INK)
    axes.set_xlabel(panel.x_label, color=_INK)
    axes.set_ylabel(panel.y_label, color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#8a929c")
    axes.tick_params(colors=_INK, length=3, color="#8a929c")
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    drawn = [values for curve in panel.curves for values in (curve.mean, *(y for _, y in curve.diverged))]
    if panel.log:
        if any((values > 0).any() for values in drawn):  # a logarithmic axis of nothing cannot be drawn
            _logarithmic(axes)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    _name_the_curves(axes, panel)


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())


def _style(place: int | None) -> tuple[str, str]:
    if place is None:
        return _BASELINE, "--"
    return _COLOURS[place % len(_COLOURS)], _DASHES[place // len(_COLOURS) % len(_DASHES)]


def _name_the_curves(axes: Axes, panel: Panel) -> None:
    """Names beside the curves' ends, in their order, pushed apart where they would lie on each other."""
    curves = [c for c in panel.curves if len(c.x)]
    if not curves:
        axes.text(0.5, 0.5, "nothing recorded yet", transform=axes.transAxes, ha="center", color=_INK)
        return
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = sorted(((float(to_axes.transform((c.x[-1], c.mean[-1]))[1]), c) for c in curves), key=lambda end: end[0])
    heights = _apart([height for height, _ in ends], gap=min(0.068, 1.06 / len(ends)))
    for height, (_, curve) in zip(heights, ends, strict=True):
        colour, dashes = _style(panel.styles[curve.variant])
        axes.annotate(
            "", (float(curve.x[-1]), float(curve.mean[-1])), (1.035, height), "data", "axes fraction",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0, "alpha": 0.6},
        )  # fmt: skip
        axes.plot([1.035, 1.07], [height] * 2, dashes, color=colour, lw=2.4, transform=axes.transAxes, clip_on=False)
        weight = "bold" if panel.styles[curve.variant] in (None, 0) else "normal"
        axes.text(
            1.082, height, curve.label, transform=axes.transAxes, va="center", fontsize=9, color=_INK, weight=weight
        )


def _apart(heights: list[float], gap: float) -> list[float]:
    """Ascending heights moved as little as a few sweeps need, so that neighbours are a gap apart."""
    placed = list(heights)
    for _ in range(200):
        for i in range(len(placed) - 1):
            missing = gap - (placed[i + 1] - placed[i])
            if missing > 1e-9:
                placed[i] -= missing / 2
                placed[i + 1] += missing / 2
    lift = max(0.0, -placed[0]) - max(0.0, placed[-1] - 1.0)
    return [height + lift for height in placed]
