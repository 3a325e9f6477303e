"""Differences to the baseline: each seed a point, the mean and its interval."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from orchestration.analysis.comparisons import Line
from orchestration.analysis.units import Unit
from orchestration.report.figures import plain

_INK, _SOFT, _PRIMARY, _OTHER = "#1a1f26", "#8a929c", "#D55E00", "#0072B2"


def draw_differences(lines: Sequence[Line], unit: Unit, baseline: str, primary: str) -> Figure | None:
    """A row a line, the table's order from the top; None where there is nothing finite to draw.

    A seed added after a look is hollow. The intervals are the 95 % ones of the table.
    """
    rows = [line for line in lines if line.comparison is not None and line.comparison.finite]
    if not rows:
        return None
    figure = Figure(figsize=(9.0, 0.9 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=_INK, linewidth=1.0, linestyle="--", zorder=1)
    for place, line in enumerate(rows):
        assert line.comparison is not None
        colour = _PRIMARY if line.variant == primary else _OTHER
        interval = line.comparison.interval
        if interval is not None:
            ends = [end * unit.factor for end in interval]
            axes.plot(ends, [place, place], color=colour, linewidth=2.2, solid_capstyle="butt", zorder=2)
            axes.plot(ends, [place, place], "|", color=colour, markersize=9, markeredgewidth=1.6, zorder=2)
        axes.plot([line.comparison.mean * unit.factor], [place], "D", color=colour, markersize=6.5, zorder=4)
        for differences, filled in ((line.comparison, True), (line.explored, False)):
            if differences is None:
                continue
            shown = [
                d * unit.factor
                for d, seed in zip(differences.differences, differences.seeds, strict=True)
                if (seed in line.added) is not filled
            ]
            face = _INK if filled else "none"
            axes.plot(shown, [place + 0.22] * len(shown), "o", markersize=4, markerfacecolor=face, color=_INK,
                      alpha=0.65, zorder=3)  # fmt: skip
    axes.set_yticks(range(len(rows)), [plain(line.short_label) for line in rows])
    for label, line in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if line.variant == primary else "normal")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"{unit.name}, difference to {baseline}" + (f" ({unit.difference})" if unit.difference else ""))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_color(_SOFT)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure
