"""What a page's script is told of a figure: where its marks lie on the SVG, and what each one is of.

Places are in the SVG's own units, from its top left corner. Values are rounded for reading; the CSV files are exact.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from orchestration.analysis.comparisons import Line, Trial

Floats = NDArray[np.float64]
Marks = dict[str, Any]


@dataclass(frozen=True)
class Of:
    """The trainings that a mark is of: their variant, what they are called, steps an epoch where that is known.

    `cells` are those that can be reproduced, `note` is said after the words of each mark.
    """

    variant: str
    name: str
    cells: tuple[str, ...] = ()
    steps_an_epoch: float | None = None
    note: str = ""

    @classmethod
    def trials(cls, line: Line, trials: Sequence[Trial], steps_an_epoch: float | None = None, note: str = "") -> "Of":
        """`fsg, seed 3`, or `fsg, mean of seeds 0, 1, 2`, and the note."""
        seeds = ", ".join(str(trial.cell.seed) for trial in trials)
        which = f"seed {seeds}" if len(trials) == 1 else f"mean of seeds {seeds}"
        name = ", ".join(filter(None, (line.short_label, which, note)))
        return cls(line.variant, name, reproducible(trials), steps_an_epoch)

    def as_json(self) -> Marks:
        more: Marks = {} if self.steps_an_epoch is None else {"epoch": self.steps_an_epoch}
        more |= {"note": self.note} if self.note else {}
        return {"variant": self.variant, "name": self.name, "cells": self.cells, **more}


class Trace(NamedTuple):
    """A curve of one seed, or of the mean of some: x and y [n]."""

    of: Of
    x: Floats
    y: Floats


class Point(NamedTuple):
    """A place, and what is said of it."""

    of: Of
    x: float
    y: float
    text: str


def reproducible(trials: Iterable[Trial]) -> tuple[str, ...]:
    """The ids of those that are over."""
    return tuple(trial.cell.id for trial in trials if trial.state in ("done", "diverged"))


def gid(variants: Sequence[str], variant: str, what: str) -> str:
    """The id of a part of a figure that shows a variant; `what` tells it from the variant's other parts."""
    return f"v{variants.index(variant)}-{what}"


def curves(figure: Figure, variants: Sequence[str], quantity: str, traces: Sequence[Trace], factor: float) -> Marks:
    """The traces of a figure of one pair of axes; the values shown are `factor` times those drawn."""
    axes = figure.axes[0]
    log = axes.get_yscale() == "log"
    left, bottom = place(figure, axes, 0.0, 1.0 if log else 0.0)
    right, top = place(figure, axes, 1.0, 10.0 if log else 1.0)
    shared = list(dict.fromkeys(tuple(map(_short, trace.x)) for trace in traces))
    of = list(dict.fromkeys(trace.of for trace in traces))
    return {
        "kind": "curves",
        "variants": list(variants),
        "x": [left, right - left],
        "y": [bottom, (top - bottom) / (1.0 if log else factor)],
        "log": log,
        "name": quantity,
        "unit": "" if factor == 1.0 else "%",
        "xs": shared,
        "of": [one.as_json() for one in of],
        "series": [
            {
                "of": of.index(trace.of),
                "x": shared.index(tuple(map(_short, trace.x))),
                "y": [_short(factor * value) if value > 0 or not log else None for value in trace.y],
            }
            for trace in traces
        ],
    }


def points(variants: Sequence[str], found: Sequence[Point]) -> Marks:
    """Points, each of which says something of its own."""
    of = {one: place for place, one in enumerate(dict.fromkeys(point.of for point in found))}
    shown = [{"of": of[one.of], "x": round(one.x, 1), "y": round(one.y, 1), "text": one.text} for one in found]
    return {"kind": "points", "variants": list(variants), "of": [one.as_json() for one in of], "series": shown}


def place(figure: Figure, axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Where a point of the axes lies on the SVG of a figure that is laid out."""
    across, up = axes.transData.transform((x, y)) * 72 / figure.dpi
    return round(float(across), 3), round(72 * figure.get_figheight() - float(up), 3)


def _short(value: float) -> float | None:
    return short(value, 5)


def short(value: float, digits: int) -> float | None:
    """To so many digits; None for what is no number."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def embedded(command: str, figures: Mapping[str, Marks]) -> str:
    """JSON that can stand in a script element; `command` reproduces a cell if its id is written after it."""
    text = json.dumps({"command": command, "figures": figures}, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")
