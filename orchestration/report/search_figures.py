"""The figures of a search: each trial's value, in order, over each setting, at the rungs, and what explains it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from orchestration.analysis.units import Unit
from orchestration.ledger.study_records import TrialRecord
from orchestration.report import marks
from orchestration.report.figures import FIRST, INK, SECOND, SOFT, Drawing, drawing, dress, plain
from orchestration.report.marks import Marks, Of, Point
from orchestration.spec.search_config import MAXIMISED

Floats = NDArray[np.float64]
_STOPPED = "#9aa3ad"
_COLUMNS = 4
MOST, _MOST_POINTS = 250, 2500  # trials that a figure shows, and points of all slices: the page stays small


@dataclass(frozen=True)
class SearchFigures:
    """What there is to draw of one study; `short` names settings, `shares` are their importances, largest first.

    `space` has what each setting was drawn from, as a spec would write it.
    """

    name: str
    trials: Sequence[TrialRecord]
    objectives: Sequence[str]
    space: Mapping[str, Mapping[str, Any]]
    short: Mapping[str, str]
    shares: Mapping[str, float]
    front: Sequence[TrialRecord]

    def draw(self) -> dict[str, Drawing]:
        """By title, those for which there are enough trials and settings."""
        if len(self.complete) < 2:
            return {}
        found = {"History": self._history()}
        if self.shares:
            found["Importances"] = self._importances()
        if len(self._pair) == 2:
            found["Two settings"] = self._two_settings(*self._pair)
        if any(len(trial.intermediate) > 1 for trial in self.trials):
            found["Rungs"] = self._rungs()
        if len(self.objectives) > 1:
            found["Pareto front"] = self._pareto_front()
        paths = [path for path in self.space if self._having(path)]
        return found | ({"Slices": self._slices(paths)} if paths else {})

    @property
    def complete(self) -> list[TrialRecord]:
        """Those that were trained to their end, and have finite values."""
        return [one for one in self.trials if one.state == "COMPLETE" and all(map(math.isfinite, _values(one)))]

    @property
    def caption(self) -> str:
        few = f" Of more than {MOST} trials so many at most are drawn, evenly spread."
        return _CAPTION + few * (len(self.trials) > MOST)

    @property
    def unit(self) -> Unit:
        return Unit.of(self.objectives[0])

    @property
    def _pair(self) -> list[str]:
        """Two settings that are numbers, those that explain most first."""
        numbers = [path for path in self.space if "low" in self.space[path] and len(self._having(path)) > 1]
        return [*(path for path in self.shares if path in numbers), *(p for p in numbers if p not in self.shares)][:2]

    def _having(self, *paths: str) -> list[TrialRecord]:
        return [trial for trial in _spread(self.complete) if all(path in trial.params for path in paths)]

    # The figures

    def _history(self) -> Drawing:
        figure, axes = self._figure("History", "trial")
        y = self._first(self.complete)
        best = np.maximum.accumulate(y) if self.objectives[0] in MAXIMISED else np.minimum.accumulate(y)
        axes.step([trial.number for trial in self.complete], best, where="post", color=FIRST, linewidth=1.6)
        trials = _spread(self.complete)
        x, y = [trial.number for trial in trials], self._first(trials)
        axes.plot(x, y, "o", color=SECOND, markersize=4.5, alpha=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return self._drawing(figure, "History", lambda: self._points(figure, [(axes, x, y, trials)]))

    def _slices(self, paths: Sequence[str]) -> Drawing:
        columns = min(_COLUMNS, len(paths))
        rows = -(-len(paths) // columns)
        figure = Figure(figsize=(6.0 if columns < 3 else 12.0, 2.7 * rows + 0.3), layout="constrained")
        order = Normalize(0, max(trial.number for trial in self.complete) or 1)
        limits, found = _room(self._first(self.complete).tolist(), 0.06), []
        for place, path in enumerate(paths):
            axes = figure.add_subplot(rows, columns, place + 1)
            trials = _spread(self._having(path), _MOST_POINTS // len(paths))
            x, y = self._scale(axes, path, trials), self._first(trials)
            colours = colormaps["Blues"](0.35 + 0.65 * np.array([order(trial.number) for trial in trials]))
            axes.scatter(x, y, c=colours, s=20, edgecolors="none")
            dress(axes, plain(self.short[path]), self._label(0) if place % columns == 0 else "")
            axes.set_ylim(*limits)
            if place % columns:
                axes.tick_params(labelleft=False)
            found.append((axes, x, y, trials))
        return self._drawing(figure, "Slices", lambda: self._points(figure, found))

    def _importances(self) -> Drawing:
        names = [plain(self.short[path]) for path in self.shares][::-1]
        shares = [100 * share for share in self.shares.values()][::-1]
        figure, axes = self._figure("Importances", "share of the variance between trials (%)", "", 0.32 * len(names))
        axes.barh(names, shares, color=SECOND, height=0.62)
        for place, share in enumerate(shares):
            axes.annotate(f"{share:.0f}", (share, place), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
        axes.set_xlim(0, max(shares) * 1.1 or 1)
        axes.grid(visible=False)
        return self._drawing(figure, "Importances")

    def _two_settings(self, one: str, other: str) -> Drawing:
        trials = self._having(one, other)
        figure, axes = self._figure("Two settings", plain(self.short[one]), plain(self.short[other]))
        x, y = self._scale(axes, one, trials), self._scale(axes, other, trials, "y")
        drawn = axes.scatter(x, y, c=self._first(trials), cmap="cividis", s=42, edgecolors="white", linewidths=0.6)
        bar = figure.colorbar(drawn, ax=axes, pad=0.02)
        bar.set_label(self._label(0), color=INK)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=3, color=SOFT)
        return self._drawing(figure, "Two settings", lambda: self._points(figure, [(axes, x, y, trials)]))

    def _rungs(self) -> Drawing:
        figure, axes = self._figure("Means at the rungs", "epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        found = []
        for trial in _spread(self.trials):
            means = {epoch: value for epoch, value in trial.intermediate.items() if math.isfinite(value)}
            x, y = list(means), [value * self.unit.factor for value in means.values()]
            stopped = trial.state == "PRUNED"
            colour = _STOPPED if stopped else SECOND
            axes.plot(x, y, "o-", color=colour, linewidth=0.9, alpha=0.8, markersize=3)
            if stopped:
                axes.plot(x[-1:], y[-1:], "x", color=colour, markersize=7, markeredgewidth=1.6)
            found += [(trial, at, value) for at, value in zip(x, y, strict=True)]
        return self._drawing(figure, "Rungs", lambda: self._rung_marks(figure, found))

    def _rung_marks(self, figure: Figure, found: Iterable[tuple[TrialRecord, int, float]]) -> Marks:
        unit, points = self.unit, list[Point]()
        for trial, epoch, value in found:
            said = f"epoch {epoch}: {unit.name} {unit.write(value / unit.factor)} {unit.value}".strip()
            place = marks.place(figure, figure.axes[0], epoch, value)
            points.append(Point(self._of(trial), *place, said))
        return marks.points([self.name], points)

    def _pareto_front(self) -> Drawing:
        others = self.objectives[1:]
        figure = Figure(figsize=(6.0 * len(others), 4.0), layout="constrained")
        shown = []
        front, trials = {trial.number for trial in self.front}, _spread(self.complete)
        for place, objective in enumerate(others, 1):
            axes, factor = figure.add_subplot(1, len(others), place), Unit.of(objective).factor
            x, y = self._first(trials), np.array([factor * _values(one)[place] for one in trials])
            on = np.array([trial.number in front for trial in trials])
            axes.plot(x[~on], y[~on], "o", color=_STOPPED, markersize=4.5)
            axes.plot(x[on], y[on], "o", color=FIRST, markersize=6)
            dress(axes, self._label(0), self._label(place), "Pareto front" if place == 1 else "")
            shown.append((axes, x, y, trials))
        return self._drawing(figure, "Pareto front", lambda: self._points(figure, shown))

    # What they share

    def _figure(self, title: str, x: str, y: str | None = None, height: float | None = None) -> tuple[Figure, Axes]:
        size = 4.0 if height is None else min(8.0, height + 1.0)
        figure = Figure(figsize=(6.0, size), layout="constrained")
        axes = figure.subplots()
        dress(axes, x, self._label(0) if y is None else y, title)
        return figure, axes

    def _label(self, place: int) -> str:
        unit = Unit.of(self.objectives[place])
        return f"{unit.name} ({unit.value})" if unit.value else unit.name

    def _first(self, trials: Iterable[TrialRecord]) -> Floats:
        return np.array([self.unit.factor * _values(trial)[0] for trial in trials])

    def _scale(self, axes: Axes, path: str, trials: Sequence[TrialRecord], which: str = "x") -> list[float]:
        """Where each trial's value of a setting lies; the axis gets its scale, or a tick a choice."""
        space, values = self.space[path], [trial.params[path] for trial in trials]
        axis = axes.xaxis if which == "x" else axes.yaxis
        if "choices" in space:
            choices = _different([*space["choices"], *values])
            named = [plain(str(one)) for one in choices]
            crowded = sum(map(len, named)) > 20
            axis.set_ticks(
                range(len(choices)), named, rotation=30 if crowded else 0, ha="right" if crowded else "center"
            )
            (axes.set_xlim if which == "x" else axes.set_ylim)(-0.5, len(choices) - 0.5)
            return [float(_place(choices, value)) for value in values]
        log = bool(space.get("log"))
        low, high = _room([space["low"], space["high"], *values], 0.05, log)
        if log:
            (axes.set_xscale if which == "x" else axes.set_yscale)("log")
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 60 else (1.0,)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))  # without a formula, which takes long
            axis.set_minor_locator(NullLocator())
        (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
        return [float(value) for value in values]

    def _points(
        self, figure: Figure, shown: Iterable[tuple[Axes, Iterable[float], Iterable[float], list[TrialRecord]]]
    ) -> Marks:
        found = [
            Point(self._of(trial), *marks.place(figure, axes, x, y), self._said(trial))
            for axes, at, value, trials in shown
            for x, y, trial in zip(at, value, trials, strict=True)
        ]
        return marks.points([self.name], found)

    def _of(self, trial: TrialRecord) -> Of:
        """A trial and its trainings: those that were stopped early cannot be reproduced to an end."""
        cells = tuple(trial.cells.values()) if trial.state == "COMPLETE" else ()
        stopped = ", stopped early" if trial.state == "PRUNED" else ""
        settings = settings_text(trial.params, self.short)
        return Of(self.name, f"{self.name}, trial {trial.number}{stopped}", cells, note=settings)

    def _said(self, trial: TrialRecord) -> str:
        units = [Unit.of(one) for one in self.objectives]
        return "; ".join(
            f"{one.name} {one.write(v)} {one.value}".strip() for one, v in zip(units, _values(trial), strict=True)
        )

    def _drawing(self, figure: Figure, title: str, found: Callable[[], Marks] = dict) -> Drawing:
        return drawing(figure, f"search-{self.name}-{title}", f"Search {self.name}: {title.lower()}", found)


_CAPTION = (
    "Point: a trial that was trained to its end, the mean over the search's seeds; the line of the history is the best "
    "so far, and later trials are darker in the slices. Rungs: the mean there; grey, ending in a cross, was stopped."
)


def _spread(trials: Sequence[TrialRecord], most: int = MOST) -> list[TrialRecord]:
    if len(trials) <= most:
        return list(trials)
    return [trials[place] for place in np.linspace(0, len(trials) - 1, most).round().astype(int)]


def settings_text(params: Mapping[str, Any], short: Mapping[str, str]) -> str:
    """`slow_weight 0.5, lr 0.001`."""
    return ", ".join(f"{short.get(path, path)} {plain_value(value)}" for path, value in params.items())


def plain_value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _values(trial: TrialRecord) -> list[float]:
    return [float(value) for value in (trial.end or {})["values"]]


def _different(values: Iterable[Any]) -> list[Any]:
    """Each once: True is not 1, nor 1 the 1.0 beside it."""
    return [value for _, value in dict.fromkeys((type(value), value) for value in values)]


def _place(choices: Sequence[Any], value: Any) -> int:
    return [(type(one), one) for one in choices].index((type(value), value))


def _room(values: Sequence[float], share: float, log: bool = False) -> tuple[float, float]:
    """From the lowest to the highest, and a share of that more at both ends."""
    low, high = (math.log(end) if log else float(end) for end in (min(values), max(values)))
    more = share * (high - low) or 0.5
    low, high = low - more, high + more
    return (math.exp(low), math.exp(high)) if log else (low, high)
