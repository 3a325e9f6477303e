"""From the ledger to a page: the verdict, the table, the curves, and where they come from.

Everything is read from the ledger, so a report can be made of an experiment that is half done; it says what is missing.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from rich.table import Table
from rich.text import Text

from orchestration import figures, statistics
from orchestration.convergence import panels
from orchestration.figures import Panel
from orchestration.judgement import Line, Spread, Trial, Unit, Verdict, judge, lines_of
from orchestration.ledger import Ledger
from orchestration.plan import Cell, orphans
from orchestration.progress import duration

_UNFINISHED = ("diverged", "failed", "interrupted", "running", "waiting")


@dataclass(frozen=True)
class Report:
    """What there is to say about an experiment."""

    folder: Path
    name: str
    question: str
    metric: str
    baseline: str
    primary: str
    verdict: Verdict
    lines: tuple[Line, ...]
    pretraining: tuple[Trial, ...]
    unfinished: tuple[Trial, ...]
    warnings: tuple[str, ...]
    panels: tuple[tuple[Panel, ...], ...]
    provenance: dict[str, str]
    command: str

    @property
    def trials(self) -> list[Trial]:
        return [*self.pretraining, *(trial for line in self.lines for trial in line.trials)]

    @property
    def unit(self) -> "Unit":
        return Unit.of(self.metric)


# What the ledger says


def build(ledger: Ledger) -> Report:
    """The report of an experiment as its last launch planned it, from its ledger alone.

    Raises ValueError where nothing was ever launched.
    """
    launches = ledger.launches()
    if not launches:
        raise ValueError(f"{ledger.folder}: no launch is recorded there")
    launch = launches[-1]
    spec, every = launch["spec"], {cell.id: cell for cell in ledger.cells()}
    planned = [every[cell_id] for cell_id in launch["cells"] if cell_id in every]
    trials = [Trial(cell, ledger.outcome(cell.id), tuple(ledger.rows(cell.id))) for cell in planned]
    metric, baseline, primary = (spec["report"][key] for key in ("metric", "baseline", "primary"))
    lines = lines_of([trial for trial in trials if trial.cell.kind == "train"], metric, baseline)
    return Report(
        folder=ledger.folder,
        name=spec["name"] + (f" · {spec['profile']}" if spec["profile"] else ""),
        question=spec["question"],
        metric=metric,
        baseline=baseline,
        primary=primary,
        verdict=judge(lines, metric, primary, baseline),
        lines=tuple(lines),
        pretraining=tuple(trial for trial in trials if trial.cell.kind == "pretrain"),
        unfinished=tuple(sorted((t for t in trials if t.state != "done"), key=lambda t: _UNFINISHED.index(t.state))),
        warnings=(
            *_warnings(lines, trials, metric),
            *_mixed(ledger, launches, trials),
            *_left_out(orphans(planned, every.values())),
        ),
        panels=tuple(panels(lines, baseline, primary)),
        provenance=_provenance(launches),
        command=launch["command"],
    )


# What must be known beside it


def _warnings(lines: Sequence[Line], trials: Sequence[Trial], metric: str) -> Iterable[str]:
    missing = sum(trial.state not in ("done", "diverged") for trial in trials)
    if missing:
        yield f"{missing} of {len(trials)} cells are not done: this is what there is so far; they are named below."
    diverged = [trial.cell.label for trial in trials if trial.state == "diverged"]
    if diverged:
        lost = "an accuracy of 0 %" if metric.endswith("accuracy") else "an infinite loss"
        yield f"Diverged, and counted with {lost}: {', '.join(diverged)}."
    contaminated = [line.label for line in lines if line.contaminated]
    if contaminated:
        whose = "all variants" if len(contaminated) == len(lines) else ", ".join(contaminated)
        yield (
            "Validation figures are contaminated: the starting weights may have been trained on the validation images "
            f"({whose})."
        )


def _left_out(orphaned: Sequence[Cell]) -> Iterable[str]:
    if orphaned:
        of = "of the same names, but of other settings, code or data"
        yield f"Earlier cells {of}, are left out (orphans): {len(orphaned)}."


_COMPARED = {
    "git_commit": "commits",
    "git_diff_sha256": "uncommitted changes",
    "fsg_source_sha256": "training code",
    "device": "devices",
    "versions": "versions",
    "cpu": "CPU types",
}


def _mixed(ledger: Ledger, launches: Sequence[dict[str, Any]], trials: Sequence[Trial]) -> Iterable[str]:
    """What differs between the cells of the table; where an attempt says nothing of itself, its launch does."""
    seen: dict[str, set[str]] = {"threads": {str(trial.cell.train.threads) for trial in trials}}
    by_number = dict(enumerate(launches, start=1))
    for trial in trials:
        for attempt in ledger.attempts(trial.cell.id):
            launch = by_number.get(attempt.get("launch", 0), {})
            record = launch | {"cpu": launch.get("hardware", {}).get("cpu")} | attempt
            for key, what in _COMPARED.items():
                if record.get(key):
                    seen.setdefault(what, set()).add(_text(record[key]))
    for what, found in seen.items():
        if len(found) > 1:
            yield f"Cells of different {what} stand in one table: {', '.join(sorted(found))}."


def _provenance(launches: Sequence[dict[str, Any]]) -> dict[str, str]:
    launch = launches[-1]
    changed = ", with changes that are not committed" if launch["git_diff_sha256"] else ""
    return {
        "Launched": _when(launch["started"]) + (f" (launch {len(launches)})" if len(launches) > 1 else ""),
        "Commit": (launch["git_commit"] or "none: not run from a git checkout") + changed,
        "Training code": f"SHA-256 {launch['fsg_source_sha256']}",
        "Spec": f"{launch['spec_source']}, resolved SHA-256 {launch['spec_sha256']}",
        "Versions": _text(launch["versions"]),
        "Hardware": _text(launch["hardware"]),
    }


def _when(milliseconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(milliseconds / 1000))


def _text(value: Any) -> str:
    """Plain text of a recorded value: a mapping as `name value, …`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {_text(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    return str(value)


# What is written


def write(report: Report) -> list[Path]:
    """`report.md`, `report.html` and `figures/convergence.{svg,png}` in the experiment's folder."""
    drawn = figures.save(report.panels, report.folder / "figures", "convergence")
    markdown, page = report.folder / "report.md", report.folder / "report.html"
    svgs = [[figures.inline_svg(panel) for panel in row] for row in report.panels]
    page.write_text(_rendered("report.html.j2", report, autoescape=True, svgs=svgs), encoding="utf-8")
    markdown.write_text(_rendered("report.md.j2", report, autoescape=False), encoding="utf-8")
    return [markdown, page, *drawn]


def _rendered(template: str, report: Report, autoescape: bool, **more: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    low, high = _range(report)
    return environment.get_template(template).render(
        report=report,
        header=_header(report),
        rows=[(line, _cells(report, line), _dots(report, line, low, high)) for line in report.lines],
        strip_range=f"{report.unit.write(low)} to {report.unit.write(high)}" if math.isfinite(low) else "",
        notes=list(_notes(report)),
        caption=_CAPTION,
        **more,
    )


_CAPTION = (
    "Line: mean over the seeds that are done; band: from the lowest to the highest of them. A seed that diverged is a "
    "thin line of its own that ends in a cross. The baseline is black and dashed. Long trainings are drawn with "
    "neighbouring values averaged."
)


def _notes(report: Report) -> Iterable[str]:
    unit = report.unit
    yield (
        f"{unit.name[:1].upper()}{unit.name[1:]}: mean ± sample standard deviation over seeds; a diverged seed counts "
        f"as {unit.lost_text}. Difference: mean over seeds of the paired difference to {report.baseline}, with its "
        "95 % paired-t interval, not corrected for the number of comparisons; only the primary one is tested. Training "
        "loss: mean over the last epoch, of the seeds that are done. Time: training and evaluation of one cell, mean."
    )
    if _has_papers_protocol(report):
        yield (
            "Papers' protocol: trained on all training images, test accuracy averaged over the last ten epochs; mean "
            "(variance) over seeds, in per cent."
        )
    if report.pretraining:
        done = [trial.outcome.seconds for trial in report.pretraining if trial.state == "done"]
        yield (
            f"Pretraining: {len(done)} of {len(report.pretraining)} cells done, "
            f"{_time(statistics.mean(done))} each on average, not in the times above."
        )


def _range(report: Report) -> tuple[float, float]:
    """From the lowest to the highest seed that is done, over all variants."""
    values = [v for line in report.lines for seed, v in line.values.items() if seed not in _lost(line)]
    return (min(values), max(values)) if values else (math.nan, math.nan)


def _lost(line: Line) -> set[int]:
    return {trial.cell.seed for trial in line.trials if trial.state == "diverged"}


def _dots(report: Report, line: Line, low: float, high: float) -> dict[str, Any]:
    """Where a line's seeds stand on a strip that is 150 wide."""
    width, lost, unit = high - low or 1.0, _lost(line), report.unit
    ids = {trial.cell.seed: trial.cell.id for trial in line.trials}
    found = [
        (
            round(10 + 130 * (value - low) / width, 1),
            f"seed {seed}: {unit.write(value)} {unit.value} (cell {ids[seed]})",
        )
        for seed, value in line.values.items()
        if seed not in lost
    ]
    mean = round(sum(place for place, _ in found) / len(found), 1) if found else None
    return {
        "found": found,
        "lost": [f"seed {seed}: diverged (cell {ids[seed]})" for seed in sorted(lost)],
        "mean": mean,
    }


def _header(report: Report) -> list[str]:
    unit = report.unit
    metric = f"{unit.name} ({unit.value})" if unit.value else unit.name
    difference = f"difference to {report.baseline}" + (f" ({unit.difference})" if unit.difference else "")
    papers = ["papers' protocol"] if _has_papers_protocol(report) else []
    return ["variant", "cells", metric, difference, *papers, "training loss", "time a cell"]


def _has_papers_protocol(report: Report) -> bool:
    return any(line.papers_protocol.n for line in report.lines)


def _cells(report: Report, line: Line) -> list[str]:
    unit = report.unit
    compared = "baseline" if line.variant == report.baseline else "–"
    if line.comparison is not None and line.comparison.n:
        compared = unit.comparison(line.comparison)
    papers = line.papers_protocol
    return [
        line.label,
        f"{line.done}/{len(line.trials)}" + (f", {line.diverged} diverged" if line.diverged else ""),
        unit.spread(line.metric),
        compared,
        *([_as_papers_write_it(papers)] if _has_papers_protocol(report) else []),
        Unit.of("train/loss")._replace(digits=3).spread(line.loss),
        _time(line.seconds),
    ]


def _as_papers_write_it(spread: Spread) -> str:
    """Mean (variance), in per cent and per cent squared."""
    if not spread.n:
        return "–"
    variance = f" ({(100 * spread.deviation) ** 2:.3f})" if math.isfinite(spread.deviation) else ""
    return f"{100 * spread.mean:.2f}{variance}"


def _time(seconds: float) -> str:
    return duration(seconds) if math.isfinite(seconds) else "–"


def table(report: Report) -> Table:
    """The table for a terminal of 80 columns; what does not fit stands in the page."""
    unit, papers = report.unit, _has_papers_protocol(report)
    left_out = "time" if papers else "papers' protocol"
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    if any(line.diverged for line in report.lines):
        made.caption, made.caption_justify = f"✗ diverged, counted as {unit.lost_text}", "left"
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
        _, cells, metric, difference, *rest = _cells(report, line)
        loss = Unit.of("train/loss")._replace(digits=3).write(line.loss.mean)
        shown = [line.short_label, cells.split(",")[0] + " ✗" * bool(line.diverged), metric, difference]
        shown += [rest[0], loss] if papers else [loss, _short(_time(line.seconds))]
        made.add_row(*map(Text, shown), style="bold" if line.variant in (report.primary, report.baseline) else "")
    return made


def _short(text: str) -> str:
    """`2m5s` for `2 min 5 s`."""
    return text.replace(" min", "m").replace(" ", "")
