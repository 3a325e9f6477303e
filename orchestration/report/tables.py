"""The tables of a report, as text: the same cells in the page, in Markdown, in LaTeX and on the terminal."""

import math
import shlex
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from orchestration.analysis import statistics
from orchestration.analysis.comparisons import SIGNIFICANCE, Comparison, Line, Measure, Trial, lines_of
from orchestration.analysis.units import Spread, Unit
from orchestration.analysis.verdict import Contrast, Family, p_text
from orchestration.report.convergence import best_validation, validated_more_than_once
from orchestration.report.data import Measured, Report
from orchestration.report.places import PLACE_COLUMNS
from orchestration.spec.networks import COST_COLUMNS, cost_texts
from orchestration.util.duration import duration
from orchestration.util.metric_names import PEAK_MEMORY

EMPTY = "–"
SIGNIFICANT = "*"


class TextRow(NamedTuple):
    """Cells, and what kind of line they are of: `primary`, `baseline`, `exploratory` or nothing; `best` if marked.

    `variant` is the one that the row is of, if it is of one.
    """

    cells: tuple[str, ...]
    kind: str = ""
    best: bool = False
    line: Line | None = None
    variant: str = ""


class TextTable(NamedTuple):
    """A table with a title and notes below it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[TextRow, ...]
    notes: tuple[str, ...] = ()


def results(report: Report) -> TextTable:
    """The table: what each variant reached, its difference to the baseline, and whether that is shown."""
    unit = report.unit
    metric, difference = _with(unit.name, unit.value), _with(f"difference to {report.baseline}", unit.difference)
    header = ("variant", "cells", metric, difference, "p", *_optional(report), "training loss", "time a cell")
    rows = []
    for line in report.lines:
        rows.append(
            TextRow(tuple(_result(report, line)), _kind(report, line), _is_best(report, line), line, line.variant)
        )
        if line.added:
            rows.append(TextRow(tuple(_explored(report, line)), "exploratory", line=line, variant=line.variant))
    return TextTable("Variants", header, tuple(rows), tuple(_notes(report)))


def _kind(report: Report, line: Line) -> str:
    return {report.primary: "primary", report.baseline: "baseline"}.get(line.variant, "")


def _is_best(report: Report, line: Line) -> bool:
    return report.best is not None and report.best.marked and report.best.line is line


def _result(report: Report, line: Line) -> Iterable[str]:
    test = report.measured[0].test(line.variant)
    yield line.label
    yield f"{line.done}/{len(line.planned)}" + (f", {line.diverged} diverged" if line.diverged else "")
    yield report.unit.spread(line.metric)
    yield _difference(report, line, report.unit)
    yield _p(test) if test is not None and test.points == 1 else EMPTY
    if _has_papers_protocol(report):
        yield paper_style(line.papers_protocol)
    if _has_published(report):
        yield _published(report, line)
    yield Unit.of("train/loss")._replace(digits=3).spread(line.loss)
    yield time(line.seconds)


def _explored(report: Report, line: Line) -> Iterable[str]:
    """The same over all seeds, those added after a look among them: no test."""
    every = list((line.values | line.added).values())
    spread = Spread(statistics.mean(every), statistics.standard_deviation(every), len(every))
    yield f"{line.label}, exploratory: {len(every)} seeds"
    yield f"+{len(line.added)}"
    yield report.unit.spread(spread)
    yield _estimate(report.unit, line.explored)
    yield from [EMPTY] * (3 + len(_optional(report)))


def _optional(report: Report) -> list[str]:
    """The columns that some experiments have."""
    columns = {"papers' protocol (%)": _has_papers_protocol, _with("published", report.unit.value): _has_published}
    return [name for name, there in columns.items() if there(report)]


def _with(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


def _difference(report: Report, line: Line, unit: Unit) -> str:
    return "baseline" if line.variant == report.baseline else _estimate(unit, line.comparison)


def _estimate(unit: Unit, comparison: Comparison | None) -> str:
    return unit.estimate(comparison.mean, comparison.interval) if comparison and comparison.n else EMPTY


def _p(test: Contrast | None) -> str:
    if test is None or test.adjusted is None:
        return EMPTY
    return p_text(test.adjusted) + SIGNIFICANT * test.shown


def _published(report: Report, line: Line) -> str:
    stated = report.published(line)
    if stated is None:
        return EMPTY
    digits = 2 if report.metric.endswith("accuracy") else 4
    spread = "" if stated.variance is None else f" ({stated.variance:.3f})"
    spread = f"\u00a0±\u00a0{stated.sd:.{digits}f}" if stated.sd is not None else spread
    return f"{stated.mean:.{digits}f}{spread}"


def _protocols(report: Report) -> str:
    """What is known of the protocols of the published figures."""
    figures = {line.label: stated for line in report.lines if (stated := report.published(line))}
    same = list(dict.fromkeys(path for stated in figures.values() for path in stated.protocol or {}))
    unstated = [label for label, stated in figures.items() if not stated.protocol]
    said = f"The runs have the figures' own {', '.join(same)}." if same else ""
    if unstated:
        said += f" No protocol is stated for {', '.join(unstated)}: the conditions may be others."
    return said.strip()


def _has_papers_protocol(report: Report) -> bool:
    return any(line.papers_protocol.n for line in report.lines)


def _has_published(report: Report) -> bool:
    return any(report.published(line) for line in report.lines)


def paper_style(spread: Spread) -> str:
    """Mean (variance), in per cent and per cent squared."""
    if not spread.n:
        return EMPTY
    variance = f" ({(100 * spread.deviation) ** 2:.3f})" if math.isfinite(spread.deviation) else ""
    return f"{100 * spread.mean:.2f}{variance}"


def time(seconds: float) -> str:
    return duration(seconds) if math.isfinite(seconds) else EMPTY


def _notes(report: Report) -> Iterable[str]:
    unit, family = report.unit, report.measured[0].family
    others = f", of the {family.size} others corrected together (Holm)" if family.size > 1 else ""
    yield (
        f"{unit.name[:1].upper()}{unit.name[1:]}: mean ± sample standard deviation over seeds; a diverged seed counts "
        f"as {unit.lost_text}. Difference: mean over seeds of the paired difference to {report.baseline}, with its "
        f"95 % paired-t interval, not corrected. p: of the exact sign-flip test; the primary one stands alone{others}; "
        f"{SIGNIFICANT} a difference is shown at 5 %. Training loss: mean over the last epoch, of the seeds that are "
        "done. Time: training and evaluation of one cell, mean."
    )
    yield _about_the_best(report)
    if _has_papers_protocol(report):
        yield (
            "Papers' protocol: trained on all training images, test accuracy averaged over the last ten epochs; mean "
            "(variance) over seeds, in per cent."
        )
    if _has_published(report):
        sources = {stated.source: None for line in report.lines if (stated := report.published(line))}
        runs = {stated.runs for line in report.lines if (stated := report.published(line)) and stated.runs}
        of = f", of {' or '.join(map(str, sorted(runs)))} runs" if runs else ""
        yield (
            f"Published: as stated, mean (variance) or mean ± standard deviation{of}; other code and seeds, so it is "
            f"beside the tests and in none of them. {_protocols(report)} Source: {'; '.join(sources)}."
        )
    if report.pretraining:
        done = [trial.outcome.seconds for trial in report.pretraining if trial.state == "done"]
        yield (
            f"Pretraining: {len(done)} of {len(report.pretraining)} cells done, "
            f"{time(statistics.mean(done))} each on average, not in the times above."
        )


def _about_the_best(report: Report) -> str:
    best = report.best
    if best is None:
        return "None is marked best: that takes every line with all of its planned seeds, and values to compare."
    name = best.line.short_label
    if best.marked:
        return f"Best, in bold: {name}, which the test and the interval tell apart from every other line."
    rest = [line.short_label for line in best.not_told_apart]
    named = ", ".join(rest) if len(rest) < 4 else f"{len(rest)} others"
    return (
        f"None is marked best: the highest mean is {name}'s, which is not told apart from {named}."
        if (report.unit.higher_is_better)
        else f"None is marked best: the lowest mean is {name}'s, which is not told apart from {named}."
    )


# The tests


def tests(report: Report) -> TextTable:
    """Every comparison with the baseline: what it is held to, and how many seeds it would take."""
    unit, measured = report.unit, report.measured[0]
    effect = report.asked.smallest_effect
    wanted = f"{unit.write(effect)} {unit.difference}".strip() if effect else "the difference found"
    difference = _with("mean difference", unit.difference)
    header = ("comparison", "role", "seeds", difference, "interval", "p", "corrected p", "deviation",
              f"seeds to show {wanted}")  # fmt: skip
    rows = [
        TextRow(tuple(_tested(test, report)), "primary" * (test.role == "primary"), variant=test.variant)
        for test in measured.contrasts
    ]
    return TextTable("Tests", header, tuple(rows), tuple(_about_tests(report)))


def _tested(test: Contrast, report: Report) -> Iterable[str]:
    unit, family, comparison = report.unit, report.measured[0].family, test.comparison
    inside = f"one of {family.size}" if family.size > 1 else "alone in its family"
    role = {"primary": "primary", "family": inside, "untested": "not tested"}[test.role]
    yield f"{test.variant} − {report.baseline}" + (f", {test.points} grid points" if test.points > 1 else "")
    yield role + (f", look {test.look.number} of {test.look.of}" if test.look else "")
    yield str(comparison.n)
    yield unit.write(comparison.mean, True)
    yield unit.interval(interval) if (interval := test.interval) else EMPTY
    yield p_text(test.p) if test.p is not None else EMPTY
    yield _p(test)
    yield unit.write(comparison.deviation)
    level = test.level if test.role == "primary" else SIGNIFICANCE / max(1, family.size)
    needed = comparison.seeds_for(report.asked.smallest_effect or comparison.mean, level)
    yield str(needed) if needed else EMPTY


def _about_tests(report: Report) -> Iterable[str]:
    family = report.measured[0].family
    primary = next((test for test in report.measured[0].contrasts if test.role == "primary"), None)
    rule = report.plan.rule
    if rule is not None:
        levels = statistics.looks_levels(tuple(rule.looks), rule.boundary)
        looks = ", ".join(f"{n} seeds: {p_text(level)}" for n, level in zip(rule.looks, levels, strict=True))
        name = {"obrien_fleming": "O'Brien and Fleming", "pocock": "Pocock"}[rule.boundary]
        yield (
            f"Looks declared beforehand, p to reach at each ({name}): {looks}. The interval of a look is as much "
            "wider. The other comparisons are tested once, at the last look."
        )
    elif primary is not None and primary.comparison.n:
        n = primary.comparison.n
        yield (
            f"With {n} seed{'s' * (n > 1)} the smallest p that the sign-flip test can give is "
            f"{p_text(statistics.smallest_p(n))}; 5 % takes {statistics.seeds_to_reject(SIGNIFICANCE)} seeds."
        )
    yield from _about_family(family)
    yield (
        "Deviation: of the paired differences. Seeds to show: at which the paired test has 80 % power if the truth is "
        "that difference and this scatter, the family's at its strictest level; an estimate from few seeds is rough."
    )


def _about_family(family: Family) -> Iterable[str]:
    if not family.size:
        return
    level = 100 * SIGNIFICANCE / family.size
    enough = "enough" if family.seeds >= family.seeds_to_reject else "not enough"
    yield (
        f"The family is {', '.join(test.variant for test in family.tests)}. Corrected by Holm, its strictest step is "
        f"held to 5 %/{family.size} = {level:.2g} %, which takes {family.seeds_to_reject} seeds at least; "
        f"it has {family.seeds}: {enough}."
    )


# Convergence, cost


def convergence(report: Report) -> list[TextTable]:
    """A table a measure of convergence, and the validations'."""
    return [*(_of_measure(report, measured) for measured in report.measured[1:]), *_validations(report)]


def _validations(report: Report) -> Iterable[TextTable]:
    """The validation accuracy at the end and at its best, where a training has several."""
    trials = [trial for line in report.lines for trial in line.trials]
    if not any(validated_more_than_once(trial) for trial in trials):
        return
    best, epoch = best_validation()
    unit = best.unit
    difference = _with(f"difference to {report.baseline}", unit.difference)
    spoiled = " (contaminated)" if any(line.contaminated for line in report.lines) else ""
    name = f"{unit.name}{spoiled}"
    header = ("variant", f"{name} at the end (%)", difference, "at its best (%)", difference, "epoch of the best")
    measured = (
        lines_of(trials, measure, report.baseline) for measure in (Measure.metric("validation/accuracy"), best, epoch)
    )
    rows = []
    for line, *both, when in zip(report.lines, *measured, strict=True):
        cells = [cell for one in both for cell in (unit.spread(one.metric), _difference(report, one, unit))]
        cells += [epoch.unit.spread(when.metric)]
        rows.append(TextRow((line.label, *cells), _kind(report, line), variant=line.variant))
    yield TextTable(name, header, tuple(rows))


def _of_measure(report: Report, measured: Measured) -> TextTable:
    unit = measured.unit
    header = ("variant", unit.name, _with(f"difference to {report.baseline}", unit.difference), "corrected p")
    rows = []
    for line in measured.lines:
        test = measured.test(line.variant)
        p = _p(test) if test is not None and test.points == 1 else EMPTY
        rows.append(
            TextRow(
                (line.label, unit.spread(line.metric), _difference(report, line, unit), p),
                _kind(report, line),
                variant=line.variant,
            )
        )
    return TextTable(unit.name, header, tuple(rows))


CONVERGENCE_NOTE = (
    "Convergence: lower is faster. Area under the loss curve, an epoch: the training loss averaged over all steps. "
    "Epochs and seconds until the validation accuracy first reaches a value, as validations see it; a seed that never "
    "does counts with all its epochs, so the mean is a lower bound. Each measure is a family of its own, the primary "
    "variant in it, corrected by Holm; planned seeds alone. Validation accuracy at its best: the highest of all of a "
    "training's validations, which chance alone lifts above the last; its differences are not tested."
)


def cost(report: Report) -> TextTable:
    """What each line took, and what was expected of it."""
    header = ("variant", "cells", "time a cell", "all cells", "peak of tensors", "of the process", "of its GPU")
    groups = [(line.label, _kind(report, line), line.variant, line.trials) for line in report.lines]
    groups += [("pretraining", "", "", report.pretraining)] if report.pretraining else []
    rows = [TextRow((label, *_cost(report, trials)), kind, variant=variant) for label, kind, variant, trials in groups]
    every = [trial for *_, trials in groups for trial in trials]
    total = sum(trial.outcome.seconds for trial in every)
    rows.append(TextRow(("all", str(len(every)), EMPTY, time(total), *_peaks(every)), "primary"))
    return TextTable("Cost", header, tuple(rows), tuple(_about_cost(report)))


def _cost(report: Report, trials: Sequence[Trial]) -> Iterable[str]:
    done = [trial for trial in trials if trial.state == "done"]
    took = statistics.mean([trial.outcome.seconds for trial in done])
    yield f"{len(done)}/{len(trials)}"
    yield time(took)
    yield time(sum(trial.outcome.seconds for trial in trials))
    yield from _peaks(trials)


def _peaks(trials: Sequence[Trial]) -> Iterable[str]:
    for metric in (PEAK_MEMORY, "system/memory_megabytes", "system/gpu_memory_megabytes"):
        seen = [row.values[metric] for trial in trials for row in trial.rows if metric in row.values]
        yield f"{max(seen):,.0f}\u00a0MB" if seen else EMPTY


def _about_cost(report: Report) -> Iterable[str]:
    yield (
        "Time: training and evaluation, over all attempts that count. Peak of tensors: the most that weights, history, "
        "images and all that a step makes took at once, in the last step of the first epoch. Of the process: the "
        "largest seen, looked at every ten seconds and at the end; a warm process keeps some of what it trained before."
    )


def networks(report: Report) -> TextTable:
    """What each network costs, where the launch has counted it."""
    rows = [TextRow((one.of, *cost_texts(one.cost))) for one in report.networks if one.cost is not None]
    return TextTable("Networks", ("network of", *COST_COLUMNS), tuple(rows), (_ABOUT_NETWORKS,))


_ABOUT_NETWORKS = (
    "Binary: the share of parameters that are one-bit weights. Packed: all tensors, quantized weights eight signs to a "
    "byte. FLOPs: multiplications and additions of an image's forward pass, as if all were floating point. BOPs: half "
    "of them times the bits of the weight and of what it meets (32 for real numbers). report.layers.csv has the layers."
)


def places(report: Report) -> TextTable:
    """On what the cells were trained: a row a combination of whatever determines the bits."""
    rows = [TextRow((place.cells, *place.determinants)) for place in report.places]
    return TextTable("Processors and kernels", ("cells", *PLACE_COLUMNS), tuple(rows), (_ABOUT_PLACES,))


_ABOUT_PLACES = (
    "Each cell by its last attempt; –: none, or not recorded. Another processor, kernel or library may round "
    "otherwise, and a training then goes another way. The ledger has all of it."
)


def cells(report: Report) -> TextTable:
    """Every cell, and the command that trains it again."""
    metric = _with(report.unit.name, report.unit.value)
    rows = [TextRow(tuple(_cell(report, trial)), "exploratory" * trial.exploratory) for trial in report.trials]
    return TextTable("Cells", ("cell", "state", metric, "time", "again"), tuple(rows))


def _cell(report: Report, trial: Trial) -> Iterable[str]:
    yield ("pretraining: " if trial.cell.kind == "pretrain" else "") + trial.cell.label
    yield trial.state
    over = trial.cell.kind == "train" and trial.state in ("done", "diverged")
    value = report.measured[0].measure.of(trial) if over else None
    yield EMPTY if value is None else report.unit.write(value)
    yield time(trial.outcome.seconds) if trial.outcome.seconds else EMPTY
    yield shlex.join(["fsg", "reproduce", str(report.folder), trial.cell.id])


# The terminal


def terminal_table(report: Report) -> Table:
    """The table for a terminal of 80 columns; what does not fit stands in the page."""
    unit, papers = report.unit, _has_papers_protocol(report)
    left_out = "time" if papers else "papers' protocol"
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    made.caption, made.caption_justify = "\n".join(_captions(report)) or None, "left"
    names = {
        "variant": "variant",
        "cells": "cells",
        "metric": f"{unit.name} {unit.value}".replace(" ", "\n", 1).strip(),
    }
    names |= {"difference": f"− {report.baseline}\n{unit.difference} [95 %]", "papers' protocol": "papers'\nprotocol"}
    names |= {"training loss": "train\nloss", "time": "time\na cell"}
    for name, title in names.items():
        if name != left_out:
            wraps = name in ("variant", "difference")
            made.add_column(title, justify="left" if name == "variant" else "right", no_wrap=not wraps, overflow="fold")
    for line in report.lines:
        test = report.measured[0].test(line.variant)
        loss = Unit.of("train/loss")._replace(digits=3).write(line.loss.mean)
        cells = (
            f"{line.done}/{len(line.planned)}" + " ✗" * bool(line.diverged) + f"+{len(line.added)}" * bool(line.added)
        )
        difference = _difference(report, line, unit) + SIGNIFICANT * bool(test and test.points == 1 and test.shown)
        shown = [line.short_label, cells, unit.spread(line.metric) + "★" * _is_best(report, line), difference]
        shown += [paper_style(line.papers_protocol), loss] if papers else [loss, _short(time(line.seconds))]
        made.add_row(*map(Text, shown), style="bold" if line.variant in (report.primary, report.baseline) else "")
    return made


def _captions(report: Report) -> Iterable[str]:
    tests: Sequence[Contrast] = report.measured[0].contrasts
    if any(test.shown for test in tests):
        yield f"{SIGNIFICANT} shown at 5 %: primary alone, others corrected (Holm)"
    if report.best is not None and report.best.marked:
        yield "★ best: told apart from every other line"
    if report.nothing_measured:
        yield report.nothing_measured
    if any(line.diverged for line in report.lines):
        yield f"✗ diverged, counted as {report.unit.lost_text}"
    for breach in report.plan.breaches:
        yield f"exploratory, nothing is claimed: {breach}"
    if missing := [trial.cell.label for trial in report.trials if trial.state == "missing"]:
        yield f"missing, as the record of the cell is lost or damaged: {', '.join(missing)}"
    if report.plan.added:
        yield f"+{len(report.plan.added)} exploratory: seeds added when results could be seen, in no number here"
    if report.plan.late:
        yield f"exploratory, added when results could be seen and not tested: {report.plan.late}"
    if report.mixed:
        yield f"cells of different {', '.join(report.mixed)}: the report says which"


def _short(text: str) -> str:
    """`2m5s` for `2 min 5 s`."""
    return text.replace(" min", "m").replace(" ", "")
