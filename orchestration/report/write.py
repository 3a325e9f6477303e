"""The report of an experiment: one page that stands alone, and the same as Markdown, LaTeX and CSV."""

import logging
import math
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from orchestration.analysis.comparisons import Line
from orchestration.ledger import store
from orchestration.ledger.ledger import Ledger
from orchestration.report import curves, differences, layer_maps, marks, tables
from orchestration.report.csv_files import csv_files
from orchestration.report.data import Report
from orchestration.report.figures import Drawing, drawing
from orchestration.report.forecast import HEADER
from orchestration.report.marks import Of, Point
from orchestration.report.resolved import resolved_text
from orchestration.report.search import StudySection, sections
from orchestration.report.stamp import TEMPLATES
from orchestration.report.tables import TextTable

logger = logging.getLogger(__name__)


def write(report: Report) -> list[Path]:
    """`report.html`, `.md`, `.tex`, `.csv`, those of cells and layers, and `figures/`, in the experiment's folder."""
    with store.of(report.folder).staging_dir(report.folder) as staging_dir:
        paths = _written(report, staging_dir)
    logger.info("report written to %s: %d files", report.folder, len(paths))
    return [report.folder / path.relative_to(staging_dir).as_posix() for path in paths]


def _written(report: Report, folder: Path) -> list[Path]:
    figures = _Figures.of(report)
    files = [one.save(folder / "figures") for one in figures.all()]
    more = {"layer_note": layer_maps.note(report.layers)}
    written = {
        "report.md": _rendered("report.md.j2", report, figures, autoescape=False, **more),
        "report.html": _rendered("report.html.j2", report, figures, autoescape=True, **more),
        "report.tex": latex(report),
        **csv_files(report),
    }
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [*(folder / name for name in written), *files]


class _Figures(NamedTuple):
    """A row of panels a grid point, the differences if there are any, a map a quantity, and each search's."""

    panels: list[list[Drawing]]
    differences: Drawing | None
    layers: dict[str, Drawing]
    searches: list[tuple[StudySection, dict[str, Drawing]]]

    @classmethod
    def of(cls, report: Report) -> "_Figures":
        panels = [[_panel(panel, place) for panel in row] for place, row in enumerate(report.panels)]
        maps = {title: _map(title, found) for title, found in report.layers.items()}
        searches = sections(Ledger(report.folder), report.launches[-1]["spec"])
        return cls(panels, _differences(report), maps, [(one, one.draw()) for one in searches])

    def all(self) -> list[Drawing]:
        seeds = [] if self.differences is None else [self.differences]
        searches = [one for _, found in self.searches for one in found.values()]
        return [*(one for row in self.panels for one in row), *seeds, *self.layers.values(), *searches]


def _panel(panel: curves.Panel, place: int) -> Drawing:
    figure = curves.draw_panel(panel)
    name = f"convergence-{panel.title}" + f"-{place}" * bool(place)  # two titles may differ by a sign alone
    label = f"{panel.title}: {panel.y_label} by {panel.x_label}"
    return drawing(figure, name, label, lambda: curves.panel_marks(panel, figure))


def _differences(report: Report) -> Drawing | None:
    lines, unit, baseline = report.lines, report.unit, report.baseline
    figure = differences.draw_differences(lines, unit, baseline, report.primary)
    if figure is None:
        return None
    label = f"Differences to {baseline}, each seed a point"
    return drawing(figure, "differences", label, lambda: differences.difference_marks(lines, unit, baseline, figure))


def _map(title: str, found: list[layer_maps.Map]) -> Drawing:
    figure = layer_maps.draw_maps(title, found)
    name, label = f"layers-{title}", f"{title}, by layer and epoch"
    return drawing(figure, name, label, lambda: layer_maps.map_marks(title, found, figure))


def _rendered(template: str, report: Report, figures: _Figures, autoescape: bool, **more: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    low, high = _range(report)
    strips = {line.label: _strip(report, line, low, high, f"seeds-{place}") for place, line in enumerate(report.lines)}
    found = {one.name: one.marks for one in figures.all() if one.marks} | {one.id: one.marks for one in strips.values()}
    return environment.get_template(template).render(
        report=report,
        figures=figures,
        forecast_header=HEADER,
        results=tables.results(report),
        strips=strips,
        marks=marks.embedded(shlex.join(["fsg", "reproduce", str(report.folder)]), found),
        strip_range=f"{report.unit.write(low)} to {report.unit.write(high)}" if math.isfinite(low) else "",
        tests=tables.tests(report),
        convergence=tables.convergence(report),
        convergence_note=tables.CONVERGENCE_NOTE,
        cost=tables.cost(report),
        networks=tables.networks(report),
        cells=tables.cells(report),
        places=tables.places(report),
        resolved=resolved_text(report.launches[-1]["spec"], report.primary),
        difference_note=_DIFFERENCES,
        caption=_CAPTION,
        **more,
    )


_CAPTION = (
    "Line: mean over the planned seeds that are done; band: from the lowest to the highest of them. A seed that "
    "diverged is a thin line of its own that ends in a cross. The baseline is black and dashed. Long trainings are "
    "drawn with neighbouring values averaged."
)


_DIFFERENCES = (
    "Point: a seed, its difference to the baseline's same seed (hollow: exploratory); diamond: mean over the planned "
    "seeds; bar: its 95 % interval, not corrected. Right of the dashed line is more than the baseline."
)


# Each seed as a point


def _range(report: Report) -> tuple[float, float]:
    """From the lowest to the highest seed that is done, over all variants."""
    values = [v for line in report.lines for seed, v in _all(line).items() if seed not in _lost(line)]
    return (min(values), max(values)) if values else (math.nan, math.nan)


def _all(line: Line) -> dict[int, float]:
    return line.values | line.added


def _lost(line: Line) -> set[int]:
    return {trial.cell.seed for trial in line.trials if trial.state == "diverged"}


class _Dot(NamedTuple):
    """A seed on a strip: where, what is said of it, and whether it is exploratory."""

    x: float
    text: str
    added: bool


class _Strip(NamedTuple):
    """A line's seeds on a strip that is 150 wide: those that are done, those that diverged, their mean."""

    id: str
    dots: list[_Dot]
    lost: list[str]
    mean: float | None
    marks: marks.Marks


def _strip(report: Report, line: Line, low: float, high: float, strip_id: str) -> _Strip:
    width, lost, unit = high - low or 1.0, _lost(line), report.unit
    trials = {trial.cell.seed: trial for trial in line.trials}
    done = {seed: value for seed, value in _all(line).items() if seed not in lost}
    words = {seed: f"{unit.write(value)} {unit.value}".strip() for seed, value in done.items()}
    words |= dict.fromkeys(lost, "diverged")
    words = {seed: f"{text}, at step {trials[seed].outcome.step:,}" for seed, text in words.items()}
    places = {seed: round(10 + 130 * (value - low) / width, 1) for seed, value in done.items()}
    planned = [place for seed, place in places.items() if seed not in line.added]
    points = [
        Point(Of.trials(line, [trials[seed]], note="exploratory" * (seed in line.added)), x, 11.0, words[seed])
        for seed, x in (places | dict.fromkeys(sorted(lost), 5.0)).items()
    ]
    return _Strip(
        strip_id,
        [_Dot(x, f"seed {seed}: {words[seed]}", seed in line.added) for seed, x in places.items()],
        [f"seed {seed}: {words[seed]}" for seed in sorted(lost)],
        round(sum(planned) / len(planned), 1) if planned else None,
        marks.points([line.variant], points),
    )


# LaTeX


def latex(report: Report) -> str:
    """The tables of results and tests as LaTeX, for `\\usepackage{booktabs}`."""
    lines = [f"% {report.name}: made by fsg report; \\usepackage{{booktabs}}", ""]
    for made in (tables.results(report), tables.tests(report)):
        caption = " ".join([f"{report.name}: {made.title.lower()}.", *made.notes])
        lines += [*_latex_table(made, caption), ""]
    return "\n".join([*lines, f"% Verdict: {_one_line(report.verdict.text)}", ""])


def _latex_table(made: TextTable, caption: str) -> Iterable[str]:
    yield "\\begin{table}"
    yield f"\\caption{{{_tex(caption)}}}"
    yield f"\\begin{{tabular}}{{l{'r' * (len(made.header) - 1)}}}"
    yield "\\toprule"
    yield " & ".join(map(_tex, made.header)) + " \\\\"
    yield "\\midrule"
    for row in made.rows:
        cells = [_tex(cell) for cell in row.cells]
        if row.best:
            cells[2] = f"\\textbf{{{cells[2]}}}"
        if row.kind == "exploratory":
            cells = [f"\\textit{{{cell}}}" for cell in cells]
        yield " & ".join(cells) + " \\\\"
    yield "\\bottomrule"
    yield "\\end{tabular}"
    yield "\\end{table}"


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "\u00a0": "~", "−": "$-$", "±": r"$\pm$", "∞": r"$\infty$", "·": r"$\cdot$", "–": "--",
    "≥": r"$\geq$", "≤": r"$\leq$",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(re.split(r"[\n\r\t ]+", text))
