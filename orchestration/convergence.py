"""The curves of an experiment: each variant's mean over its seeds, and how far they lie apart, by epoch."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from orchestration.figures import Curve, Panel
from orchestration.judgement import PAPERS_PROTOCOL, Line, Trial

Floats = NDArray[np.float64]

_POINTS_A_CURVE = 150


def panels(lines: Sequence[Line], baseline: str, primary: str) -> Iterable[tuple[Panel, ...]]:
    """A row of panels a grid point: training loss, and validation accuracy or what the papers plot in its place."""
    variants = dict.fromkeys(line.variant for line in lines)
    others = [variant for variant in variants if variant not in (baseline, primary)]
    styles: dict[str, int | None] = {baseline: None, primary: 0}
    styles |= {name: place for place, name in enumerate(others, start=1)}
    grids = list(dict.fromkeys(line.grid for line in lines))
    points = max(30, min(_POINTS_A_CURVE, 600 // max(1, len(grids))))
    validated = any(trial.last("validation/accuracy") is not None for line in lines for trial in line.trials)
    metric = "validation/accuracy" if validated else PAPERS_PROTOCOL
    name = "Validation accuracy" if validated else "Test accuracy (papers' protocol)"
    for grid in grids:
        at = [line for line in lines if line.grid == grid]
        where = f" · {grid}" if grid else ""
        spoiled = " (contaminated)" if validated and any(line.contaminated for line in at) else ""
        losses = tuple(curve for line in at if (curve := _curve(line, "train/loss", points)) is not None)
        accuracies = tuple(curve for line in at if (curve := _curve(line, metric, points)) is not None)
        yield (
            Panel(f"Training loss{where}", "epoch", "cross entropy (log scale)", losses, styles, log=True),
            Panel(f"{name}{spoiled}{where}", "epoch", "accuracy (%)", accuracies, styles),
        )


def _curve(line: Line, metric: str, points: int) -> Curve | None:
    """Over the seeds that are done or, where none is, over those under way, as far as they all have come."""
    done = [trial for trial in line.trials if trial.state == "done"]
    drawn = done or [trial for trial in line.trials if trial.state != "diverged"]
    series = [(x, y) for trial in drawn if len((found := _by_epoch(trial, metric))[0]) for x, y in [found]]
    lost = [_by_epoch(trial, metric) for trial in line.trials if trial.state == "diverged"]
    if not series and not lost:
        return None
    common = sorted(set.intersection(*(set(x) for x, _ in series))) if series else []
    values = np.array([y[np.isin(x, common)] for x, y in series]).reshape(len(series), len(common))
    x, thin = _thinned(np.array(common), values, points)
    empty = np.zeros(0)
    mean, low, high = (thin.mean(0), thin.min(0), thin.max(0)) if len(series) else (empty, empty, empty)
    name = line.variant if done else f"{line.variant} (unfinished)"
    diverged = tuple((x, y[0]) for x, y in (_thinned(x, y[None], points) for x, y in lost if len(x)))
    return Curve(name, line.variant, x, mean, low, high, diverged)


def _by_epoch(trial: Trial, metric: str) -> tuple[Floats, Floats]:
    steps, values = trial.series(metric)
    at = next((row for row in reversed(trial.rows) if row.values.get("epoch")), None)
    return (steps * at.values["epoch"] / at.step if at is not None else steps), values


def _thinned(x: Floats, values: Floats, points: int) -> tuple[Floats, Floats]:
    """Neighbours averaged so that at most so many points are left: x [n] → [m], values [k, n] → [k, m]."""
    if len(x) <= points:
        return x, values
    bins = np.array_split(np.arange(len(x)), points)
    return np.array([x[b].mean() for b in bins]), np.stack([values[:, b].mean(1) for b in bins], axis=1)
