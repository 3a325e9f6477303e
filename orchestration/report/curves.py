"""Convergence curves: a mean line, a band from the lowest to the highest seed, and each curve's name at its end."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator, PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray

from orchestration.report import marks
from orchestration.report.figures import FIRST, INK, SECOND, dress, plain
from orchestration.report.marks import Marks, Trace

Floats = NDArray[np.float64]

# Okabe and Ito's palette, which the colour-blind tell apart, without its yellow, which white paper swallows.
_COLOURS = (FIRST, SECOND, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
_BASELINE = "#000000"
_DASHES = ("-", "--", ":")


@dataclass(frozen=True)
class Curve:
    """What one variant did: `x` [n], the seeds' mean, lowest and highest [n], and each diverged seed's own (x, y).

    `traces` are the mean and every seed, the diverged too: what the page says of them.
    """

    label: str
    variant: str
    x: Floats
    mean: Floats
    low: Floats
    high: Floats
    diverged: tuple[tuple[Floats, Floats], ...] = ()
    traces: tuple[Trace, ...] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes. `styles` tells each variant's place in the palette, so that colours agree between panels."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    styles: dict[str, int | None]
    log: bool = False

    @property
    def variants(self) -> list[str]:
        return list(self.styles)

    def gid(self, curve: Curve, what: str) -> str:
        return marks.gid(self.variants, curve.variant, what)


def draw_panel(panel: Panel) -> Figure:
    """The panel alone."""
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    _draw(figure.subplots(), panel)
    return figure


def panel_marks(panel: Panel, figure: Figure) -> Marks:
    """What is under the pointer: every seed, and the mean."""
    traces = [trace for curve in panel.curves for trace in curve.traces]
    return marks.curves(figure, panel.variants, panel.title, traces, 1.0 if panel.log else 100.0)


def _draw(axes: Axes, panel: Panel) -> None:
    for curve in panel.curves:
        colour, dashes = _style(panel.styles[curve.variant])
        strong = panel.styles[curve.variant] in (None, 0)
        mark = "o" if len(curve.x) == 1 else ""
        axes.fill_between(
            curve.x, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0, gid=panel.gid(curve, "band")
        )
        axes.plot(curve.x, curve.mean, dashes, color=colour, linewidth=2.1 if strong else 1.3, marker=mark, zorder=3,
                  gid=panel.gid(curve, "mean"))  # fmt: skip
        for place, (x, y) in enumerate(curve.diverged):
            axes.plot(x, y, dashes, color=colour, linewidth=0.9, zorder=2, gid=panel.gid(curve, f"lost{place}"))
            axes.plot(x[-1:], y[-1:], "x", color=colour, markersize=8, markeredgewidth=2, zorder=4,
                      gid=panel.gid(curve, f"cross{place}"))  # fmt: skip
    dress(axes, panel.x_label, panel.y_label, plain(panel.title), grid="y")
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
        axes.text(0.5, 0.5, "nothing recorded yet", transform=axes.transAxes, ha="center", color=INK)
        return
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = sorted(((float(to_axes.transform((c.x[-1], c.mean[-1]))[1]), c) for c in curves), key=lambda end: end[0])
    heights = _apart([height for height, _ in ends], gap=min(0.068, 1.06 / len(ends)))
    for height, (_, curve) in zip(heights, ends, strict=True):
        colour, dashes = _style(panel.styles[curve.variant])
        pointer = axes.annotate(
            "", (float(curve.x[-1]), float(curve.mean[-1])), (1.035, height), "data", "axes fraction",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0, "alpha": 0.6},
        )  # fmt: skip
        if pointer.arrow_patch is not None:
            pointer.arrow_patch.set_gid(panel.gid(curve, "pointer"))
        axes.plot([1.035, 1.07], [height] * 2, dashes, color=colour, lw=2.4, transform=axes.transAxes, clip_on=False,
                  gid=panel.gid(curve, "key"))  # fmt: skip
        weight, name = "bold" if panel.styles[curve.variant] in (None, 0) else "normal", plain(curve.label)
        axes.text(1.082, height, name, transform=axes.transAxes, va="center", fontsize=9, color=INK, weight=weight,
                  gid=panel.gid(curve, "name"))  # fmt: skip


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
