"""How two variants differ along their curves: `python -m benchmarks.differences RESULTS… --variant V --figure FILE`.

At each validation of an experiment, the differences of the seeds that both have, variant − baseline: their mean and its
95 % paired-t interval. A band that stays above −margin all along shows non-inferiority by that margin at each step;
over all steps together it is a description, since the intervals are not corrected for their number.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from orchestration.analysis.statistics import mean, paired_differences, t_interval
from orchestration.ledger.ledger import Ledger

METRICS = {"validation/accuracy": ("validation accuracy (points)", 100.0), "train/loss": ("training loss (nats)", 1.0)}
COLOURS = ("#D55E00", "#0072B2", "#009E73")


class Difference(NamedTuple):
    """Variant − baseline at a step: mean over n seeds and the ends of its interval."""

    step: int
    mean: float
    low: float
    high: float
    n: int


def curves(folder: Path, metric: str, bin_steps: int) -> dict[str, dict[int, dict[int, float]]]:
    """By variant, step and seed: the metric, averaged over the `bin_steps` steps up to each multiple of it."""
    ledger = Ledger(folder)
    found: dict[str, dict[int, dict[int, float]]] = {}
    for cell in ledger.cells():
        if cell.kind != "train" or ledger.outcome(cell.id).state != "done":
            continue
        binned: dict[int, list[float]] = {}
        for row in ledger.rows(cell.id):
            if metric in row.values:
                binned.setdefault(-(-row.step // bin_steps) * bin_steps, []).append(row.values[metric])
        for step, values in binned.items():
            found.setdefault(cell.variant, {}).setdefault(step, {})[cell.seed] = mean(values)
    return found


def differences(folder: Path, metric: str, variant: str, baseline: str, bin_steps: int) -> list[Difference]:
    """At every step, over the seeds that both have. Raises KeyError for a variant without a finished training."""
    by_variant = curves(folder, metric, bin_steps)
    made = []
    for step, ours in sorted(by_variant[variant].items()):
        paired = paired_differences(ours, by_variant[baseline].get(step, {}))
        interval = t_interval(paired)
        if interval is not None:
            made.append(Difference(step, mean(paired), interval.low, interval.high, len(paired)))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.differences", description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="folders of experiments")
    parser.add_argument("--variant", required=True, action="append", help="once for each curve")
    parser.add_argument("--baseline", default="ste")
    parser.add_argument("--bin", type=int, default=50, help="steps whose training losses are averaged")
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    figure = Figure(figsize=(4.6 * len(arguments.results), 6.4), layout="constrained")
    grid = figure.subplots(len(METRICS), len(arguments.results), squeeze=False, sharex="col", sharey="row")
    console = Console()
    for column, folder in zip(grid.T, arguments.results, strict=True):
        for axes, (metric, (label, factor)) in zip(column, METRICS.items(), strict=True):
            title = f"{label}, − {arguments.baseline}"
            found = {
                variant: [
                    Difference(one.step, *(factor * value for value in one[1:4]), one.n)
                    for one in differences(folder, metric, variant, arguments.baseline, arguments.bin)
                ]
                for variant in arguments.variant
            }
            draw(axes, found)
            axes.set_ylabel(title if folder == arguments.results[0] else "")
            console.print(table(f"{folder.name}: {title}", found))
        column[0].set_title(folder.name, loc="left", fontweight="bold")
        column[-1].set_xlabel("step")
        column[0].legend(frameon=False)
    if arguments.figure:
        figure.savefig(arguments.figure, dpi=160, metadata={"Software": None})


def draw(axes: Axes, found: Mapping[str, Sequence[Difference]]) -> None:
    """The mean differences as lines, their intervals as bands."""
    axes.axhline(0, color="#000000", linewidth=1)
    for (variant, line), colour in zip(found.items(), COLOURS, strict=False):
        steps, middle, low, high, counts = np.array(line).T
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(steps, middle, color=colour, linewidth=2, label=f"{variant} ({int(counts.max())} seeds)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)


def table(title: str, found: Mapping[str, Sequence[Difference]]) -> Table:
    """A line a step, a column a variant."""
    made = Table(title=title, title_justify="left")
    for heading in ("step", *(f"{variant} [95 %]" for variant in found)):
        made.add_column(heading, justify="right")
    for at in zip(*found.values(), strict=True):
        made.add_row(str(at[0].step), *(f"{d.mean:+.3g} [{d.low:+.3g}, {d.high:+.3g}]" for d in at))
    return made


if __name__ == "__main__":
    main()
