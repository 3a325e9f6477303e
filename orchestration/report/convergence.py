"""Convergence: the curves of an experiment by epoch, over its seeds, and measures of how fast it converged."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from orchestration.analysis.comparisons import PAPERS_PROTOCOL, Line, Measure, Trial
from orchestration.analysis.units import Unit
from orchestration.report.curves import Curve, Panel
from orchestration.report.marks import Of, Trace

Floats = NDArray[np.float64]

_POINTS_A_CURVE = 150
_POINTS_OF_ALL_SEEDS = 40_000


def panels(lines: Sequence[Line], baseline: str, primary: str) -> Iterable[tuple[Panel, ...]]:
    """A row of panels a grid point: training loss, and validation accuracy or what the papers plot in its place."""
    variants = dict.fromkeys(line.variant for line in lines)
    others = [variant for variant in variants if variant not in (baseline, primary)]
    styles: dict[str, int | None] = {baseline: None, primary: 0}
    styles |= {name: place for place, name in enumerate(others, start=1)}
    grids = list(dict.fromkeys(line.grid for line in lines))
    trials = sum(len(line.trials) for line in lines)
    points = max(30, min(_POINTS_A_CURVE, 600 // max(1, len(grids)), _POINTS_OF_ALL_SEEDS // max(1, trials)))
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
    done = [trial for trial in line.planned if trial.state == "done"]
    drawn = _recorded(done or [trial for trial in line.planned if trial.state != "diverged"], metric)
    lost = _recorded([trial for trial in line.planned if trial.state == "diverged"], metric)
    if not drawn and not lost:
        return None
    common = sorted(set.intersection(*(set(x) for _, x, _ in drawn))) if drawn else []
    values = np.array([y[np.isin(x, common)] for _, x, y in drawn]).reshape(len(drawn), len(common))
    x, thin = _thinned(np.array(common), values, points)
    empty = np.zeros(0)
    mean, low, high = (thin.mean(0), thin.min(0), thin.max(0)) if drawn else (empty, empty, empty)
    name = line.variant if done else f"{line.variant} (unfinished)"
    traces = [Trace(_of(line, [trial for trial, _, _ in drawn]), x, mean)] if len(drawn) > 1 else []
    traces += [Trace(_of(line, [trial]), x, y) for (trial, _, _), y in zip(drawn, thin, strict=True)]
    diverged = []
    for trial, own_x, own_y in lost:
        own_x, thinned = _thinned(own_x, own_y[None], points)
        diverged.append((own_x, thinned[0]))
        traces.append(Trace(_of(line, [trial], "diverged"), own_x, thinned[0]))
    return Curve(name, line.variant, x, mean, low, high, tuple(diverged), tuple(traces))


def _recorded(trials: Sequence[Trial], metric: str) -> list[tuple[Trial, Floats, Floats]]:
    """Those that have recorded the metric, and their curves."""
    return [(trial, x, y) for trial in trials for x, y in [_by_epoch(trial, metric)] if len(x)]


def _of(line: Line, trials: Sequence[Trial], note: str = "") -> Of:
    return Of.trials(line, trials, steps_an_epoch(trials[0]), note)


def _by_epoch(trial: Trial, metric: str) -> tuple[Floats, Floats]:
    steps, values = trial.series(metric)
    an_epoch = steps_an_epoch(trial)
    return (steps if an_epoch is None else steps / an_epoch), values


def _thinned(x: Floats, values: Floats, points: int) -> tuple[Floats, Floats]:
    """Neighbours averaged so that at most so many points are left: x [n] → [m], values [k, n] → [k, m]."""
    if len(x) <= points:
        return x, values
    bins = np.array_split(np.arange(len(x)), points)
    return np.array([x[b].mean() for b in bins]), np.stack([values[:, b].mean(1) for b in bins], axis=1)


# As numbers


def measures(reach: Sequence[float]) -> list[Measure]:
    """The area under the loss curve, and epochs and seconds until the validation accuracy first reaches each value."""
    area = Unit("area under the loss curve, an epoch", 1.0, 4, "", "", math.inf)
    return [Measure(area, loss_area), *times_to_reach(reach)]


def times_to_reach(reach: Sequence[float]) -> list[Measure]:
    """Epochs and seconds until the validation accuracy first reaches each value."""
    found = []
    for target in reach:
        text = f"{100 * target:g}\u00a0%"
        epochs, seconds = (Unit(f"{what} to {text}", 1.0, 1, "", what, math.inf) for what in ("epochs", "seconds"))
        found += [
            Measure(epochs, lambda trial, target=target: epochs_to_reach(trial, target)),  # type: ignore[misc]
            Measure(seconds, lambda trial, target=target: seconds_to_reach(trial, target)),  # type: ignore[misc]
        ]
    return found


def loss_area(trial: Trial) -> float | None:
    """Σ lossᵢ·(eᵢ − eᵢ₋₁) / e: the training loss, averaged over all steps of the training; infinite if it diverged.

    A recorded loss is the mean since the one before, so the sum is exact.
    """
    if trial.state == "diverged":
        return math.inf
    epochs, losses = _by_epoch(trial, "train/loss")
    if not len(epochs) or not epochs[-1]:
        return None
    return float((losses * np.diff(epochs, prepend=0.0)).sum() / epochs[-1])


def reached(trial: Trial, target: float) -> float | None:
    """The step of the first validation that reaches an accuracy; None where none does, or the training diverged."""
    steps, values = trial.series("validation/accuracy")
    hits = np.flatnonzero(values >= target)
    return None if trial.state == "diverged" or not len(hits) else float(steps[hits[0]])


def epochs_to_reach(trial: Trial, target: float) -> float | None:
    """Epochs until then; where it is never reached, all that it had. None without validation."""
    steps, _ = trial.series("validation/accuracy")
    if not len(steps) and trial.cell.train.data.validation == 0:
        return None
    step, an_epoch = reached(trial, target), steps_an_epoch(trial)
    return float(trial.cell.train.epochs) if step is None or an_epoch is None else step / an_epoch


def seconds_to_reach(trial: Trial, target: float) -> float | None:
    """Seconds of training, evaluation left out, until then; where never, what all of its epochs take or would take."""
    steps, seconds = trial.series("time/train_seconds")
    an_epoch = steps_an_epoch(trial)
    if epochs_to_reach(trial, target) is None or not len(steps) or an_epoch is None:
        return None
    step = reached(trial, target)
    if step is None:
        return float(seconds[-1] * trial.cell.train.epochs * an_epoch / steps[-1])
    return float(np.interp(step, np.concatenate([[0.0], steps]), np.concatenate([[0.0], seconds])))


def validated_more_than_once(trial: Trial) -> bool:
    return len(trial.series("validation/accuracy")[0]) > 1


def best_validation() -> tuple[Measure, Measure]:
    """The best validation accuracy, and the epoch that first reached it."""
    accuracy = Measure(
        Unit.of("validation/accuracy"), lambda trial: 0.0 if trial.state == "diverged" else _best_validation(trial)[1]
    )
    return accuracy, Measure(Unit("epoch", 1.0, 1, "", "epochs", math.nan), lambda trial: _best_validation(trial)[0])


def _best_validation(trial: Trial) -> tuple[float, float] | tuple[None, None]:
    epochs, values = _by_epoch(trial, "validation/accuracy")
    return (float(epochs[values.argmax()]), float(values.max())) if len(values) else (None, None)


def steps_an_epoch(trial: Trial) -> float | None:
    """As its last row has it; None where none has."""
    at = next((row for row in reversed(trial.rows) if row.values.get("epoch")), None)
    return None if at is None else at.step / at.values["epoch"]
