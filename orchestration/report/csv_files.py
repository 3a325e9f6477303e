"""The report as numbers: tables of results, cells, curves and layers as CSV."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from orchestration.analysis.comparisons import PAPERS_PROTOCOL, Trial, final_loss, grid_text, papers_protocol
from orchestration.report import tables
from orchestration.report.data import Report
from orchestration.report.tables import TextTable

_CURVES = ("train/loss", "train/accuracy", "validation/loss", "validation/accuracy", PAPERS_PROTOCOL)


def csv_files(report: Report) -> dict[str, str]:
    """By name, each file's content."""
    return {
        "report.csv": _csv(tables.results(report)),
        "report.cells.csv": cells_csv(report),
        "report.curves.csv": curves_csv(report),
        "report.layers.csv": layers_csv(report),
    }


def _csv(made: TextTable) -> str:
    return _as_csv([made.header, *(row.cells for row in made.rows)])


def _as_csv(rows: Iterable[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def cells_csv(report: Report) -> str:
    """A row a cell with what every table is made of, so that each number can be computed again."""
    names = [measured.unit.name for measured in report.measured]
    header = ["cell", "kind", "variant", "grid", "seed", "state", "exploratory", *names]
    header += ["training loss of the last epoch", PAPERS_PROTOCOL, "seconds", "digest"]
    rows: list[Sequence[Any]] = []
    for trial in report.trials:
        cell, outcome = trial.cell, trial.outcome
        values = [_of_cell(report, trial, place) for place in range(len(report.measured))]
        rows.append([cell.id, cell.kind, cell.variant, grid_text(cell.grid), cell.seed,
                     trial.state, "yes" if trial.exploratory else "no", *values, _exact(final_loss(trial)),
                     _exact(papers_protocol(trial)), f"{outcome.seconds:.3f}", outcome.digest or ""])  # fmt: skip
    return _as_csv([header, *rows])


def curves_csv(report: Report) -> str:
    """A row a cell and step at which losses or accuracies were recorded: what the curves are drawn from."""
    rows = [
        [trial.cell.id, trial.cell.kind, trial.cell.variant, grid_text(trial.cell.grid), trial.cell.seed, row.step]
        + [_exact(row.values.get(name)) for name in _CURVES]
        for trial in report.trials
        for row in trial.rows
        if any(name in row.values for name in _CURVES)
    ]
    return _as_csv([["cell", "kind", "variant", "grid", "seed", "step", *_CURVES], *rows])


def layers_csv(report: Report) -> str:
    """What the maps draw and what layers cost: a row a line of the table, layer and epoch, a column a quantity.

    A layer without quantized weights has no epochs: its one row says what it costs.
    """
    costs = _layer_costs(report)
    found: dict[tuple[str, str, int], dict[str, float]] = {}
    for title, maps in report.layers.items():
        for each in maps:
            for (place, epoch), value in np.ndenumerate(each.values):
                key = each.label, each.layers[place], each.epochs[epoch]
                found.setdefault(key, {})[title] = float(value)
    none = [""] * len(_OF_A_LAYER)
    rows = [
        [*key, *(_known(values.get(title)) for title in report.layers), *costs.get(key[:2], none)]
        for key, values in found.items()
    ]
    known = {key[:2] for key in found}
    rows += [[*key, "", *[""] * len(report.layers), *cost] for key, cost in costs.items() if key not in known]
    return _as_csv([["line", "layer", "epoch", *report.layers, *_OF_A_LAYER], *rows])


_OF_A_LAYER = ("parameters", "weight_bits", "activation_bits", "flops", "bops")


def _layer_costs(report: Report) -> dict[tuple[str, str], list[int]]:
    """By line and layer."""
    networks = {name: one.cost for one in report.networks for name in one.lines}
    return {
        (line.short_label, layer.layer): [getattr(layer, name) for name in _OF_A_LAYER]
        for line in report.lines
        if (cost := networks.get(line.label)) is not None
        for layer in cost.layers
    }


def _known(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def _of_cell(report: Report, trial: Trial, place: int) -> str:
    if trial.cell.kind != "train" or trial.state not in ("done", "diverged"):
        return ""
    return _exact(report.measured[place].measure.of(trial))


def _exact(value: float | None) -> str:
    return "" if value is None else repr(value)
