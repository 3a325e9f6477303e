"""Differences to the baseline: each seed a point, the mean and its interval."""

from collections.abc import Iterable, Sequence
from functools import partial

from matplotlib.figure import Figure

from orchestration.analysis.comparisons import Line, counterpart
from orchestration.analysis.units import Unit
from orchestration.report import marks
from orchestration.report.figures import FIRST, INK, SECOND, dress, plain
from orchestration.report.marks import Marks, Of, Point

_BELOW = 0.22  # rows, from the mean to its seeds


def draw_differences(lines: Sequence[Line], unit: Unit, baseline: str, primary: str) -> Figure | None:
    """A row a line, the table's order from the top; None where there is nothing finite to draw.

    A seed added after a look is hollow. The intervals are the 95 % ones of the table.
    """
    rows = _rows(lines)
    if not rows:
        return None
    figure = Figure(figsize=(9.0, 0.9 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=INK, linewidth=1.0, linestyle="--", zorder=1)
    for place, line in enumerate(rows):
        assert line.comparison is not None
        colour = FIRST if line.variant == primary else SECOND
        named = partial(_gid, rows, place)
        interval = line.comparison.interval
        if interval is not None:
            ends = [end * unit.factor for end in interval]
            axes.plot(
                ends, [place, place], color=colour, linewidth=2.2, solid_capstyle="butt", zorder=2, gid=named("bar")
            )
            axes.plot(ends, [place, place], "|", color=colour, markersize=9, markeredgewidth=1.6, zorder=2,
                      gid=named("ends"))  # fmt: skip
        axes.plot([line.comparison.mean * unit.factor], [place], "D", color=colour, markersize=6.5, zorder=4,
                  gid=named("mean"))  # fmt: skip
        for differences, filled in ((line.comparison, True), (line.explored, False)):
            if differences is None:
                continue
            shown = [
                d * unit.factor
                for d, seed in zip(differences.differences, differences.seeds, strict=True)
                if (seed in line.added) is not filled
            ]
            face = INK if filled else "none"
            axes.plot(shown, [place + _BELOW] * len(shown), "o", markersize=4, markerfacecolor=face, color=INK,
                      alpha=0.65, zorder=3, gid=named("planned" if filled else "added"))  # fmt: skip
    axes.set_yticks(range(len(rows)), [plain(line.short_label) for line in rows])
    for place, (label, line) in enumerate(zip(axes.get_yticklabels(), rows, strict=True)):
        label.set_fontweight("bold" if line.variant == primary else "normal")
        label.set_gid(_gid(rows, place, "name"))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    points = f" ({unit.difference})" if unit.difference else ""
    dress(axes, f"{unit.name}, difference to {baseline}{points}", "", grid="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def difference_marks(lines: Sequence[Line], unit: Unit, baseline: str, figure: Figure) -> Marks:
    """What is under the pointer: each row's mean, and each seed with both of its trainings."""
    rows, axes = _rows(lines), figure.axes[0]
    of_point = {(line.variant, line.grid): line for line in lines}
    found = []
    for place, line in enumerate(rows):
        other = counterpart(of_point, baseline, line.grid)
        assert other is not None
        for x, below, text, of in _said(line, other, unit):
            found.append(Point(of, *marks.place(figure, axes, x * unit.factor, place + below), text))
    return marks.points(_variants(rows), found)


def _said(line: Line, other: Line, unit: Unit) -> Iterable[tuple[float, float, str, Of]]:
    """Of a row: each point's value, how far below the row's middle it lies, its words, and whose it is."""
    compared, name = line.comparison, f"{line.short_label} − {other.short_label}"
    assert compared is not None
    ours, theirs = ({trial.cell.seed: trial for trial in one.trials} for one in (line, other))
    pairs = [trial for seed in compared.seeds for trial in (ours[seed], theirs[seed])]
    of = Of(line.variant, f"{name}, mean of seeds {', '.join(map(str, compared.seeds))}", marks.reproducible(pairs))
    yield compared.mean, 0.0, f"{unit.estimate(compared.mean, compared.interval)} {unit.difference}".strip(), of
    for seed, difference in _by_seed(line).items():
        values = [
            f"{one.variant} {unit.write((one.values | one.added)[seed])}{unit.value and ' ' + unit.value} at step "
            f"{trials[seed].outcome.step:,}"
            for one, trials in ((line, ours), (other, theirs))
        ]
        words = f"{unit.write(difference, True)} {unit.difference}".strip() + f": {'; '.join(values)}"
        note = ", exploratory" if seed in line.added else ""
        cells = marks.reproducible([ours[seed], theirs[seed]])
        yield difference, _BELOW, words, Of(line.variant, f"{name}, seed {seed}{note}", cells)


def _by_seed(line: Line) -> dict[int, float]:
    found = (line.comparison, line.explored)
    return {s: d for one in found if one is not None for s, d in zip(one.seeds, one.differences, strict=True)}


def _rows(lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line.comparison is not None and line.comparison.finite]


def _variants(rows: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line.variant for line in rows))


def _gid(rows: Sequence[Line], place: int, what: str) -> str:
    return marks.gid(_variants(rows), rows[place].variant, f"{what}-{place}")
