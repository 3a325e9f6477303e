"""The report of an experiment: one page that stands alone, and the same as Markdown, LaTeX and CSV."""

import logging
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from orchestration.analysis.comparisons import Line
from orchestration.ledger import store
from orchestration.ledger.ledger import Ledger
from orchestration.report import curves, differences, layer_maps, tables
from orchestration.report.csv_files import csv_files
from orchestration.report.data import Report
from orchestration.report.figures import Drawing, drawing
from orchestration.report.forecast import HEADER
from orchestration.report.resolved import resolved_text
from orchestration.report.search import as_data_uri, sections
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
    files = [path for one in figures.all() for path in one.save(folder / "figures")]
    searches = [
        (one, one.draw(folder / "figures")) for one in sections(Ledger(report.folder), report.launches[-1]["spec"])
    ]
    shown = [(one, {title: as_data_uri(path) for title, path in files.items()}) for one, files in searches]
    more = {"searches": shown, "layer_note": layer_maps.note(report.layers), "figures": figures}
    written = {
        "report.md": _rendered("report.md.j2", report, autoescape=False, **more),
        "report.html": _rendered("report.html.j2", report, autoescape=True, **more),
        "report.tex": latex(report),
        **csv_files(report),
    }
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [*(folder / name for name in written), *files, *(path for _, own in searches for path in own.values())]


class _Figures(NamedTuple):
    """All but a search's: a row of panels a grid point, the differences if there are any, a map a quantity."""

    panels: list[list[Drawing]]
    differences: Drawing | None
    layers: dict[str, Drawing]

    @classmethod
    def of(cls, report: Report) -> "_Figures":
        panels = [
            [
                drawing(
                    curves.draw_panel(panel),
                    f"convergence-{panel.title}" + f"-{place}" * bool(place),  # two titles may differ by a sign alone
                    f"{panel.title}: {panel.y_label} by {panel.x_label}",
                )
                for panel in row
            ]
            for place, row in enumerate(report.panels)
        ]
        seeds = differences.draw_differences(report.lines, report.unit, report.baseline, report.primary)
        label = f"Differences to {report.baseline}, each seed a point"
        maps = {
            title: drawing(layer_maps.draw_maps(title, found), f"layers-{title}", f"{title}, by layer and epoch")
            for title, found in report.layers.items()
        }
        return cls(panels, None if seeds is None else drawing(seeds, "differences", label), maps)

    def all(self) -> list[Drawing]:
        seeds = [] if self.differences is None else [self.differences]
        return [*(one for row in self.panels for one in row), *seeds, *self.layers.values()]


def _rendered(template: str, report: Report, autoescape: bool, **more: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    low, high = _range(report)
    return environment.get_template(template).render(
        report=report,
        forecast_header=HEADER,
        results=tables.results(report),
        dots={line.label: _dots(report, line, low, high) for line in report.lines},
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


def _dots(report: Report, line: Line, low: float, high: float) -> dict[str, Any]:
    """Where a line's seeds stand on a strip that is 150 wide; hollow are the exploratory ones."""
    width, lost, unit = high - low or 1.0, _lost(line), report.unit
    ids = {trial.cell.seed: trial.cell.id for trial in line.trials}
    found = [
        (
            round(10 + 130 * (value - low) / width, 1),
            f"seed {seed}: {unit.write(value)} {unit.value} (cell {ids[seed]})",
            seed in line.added,
        )
        for seed, value in _all(line).items()
        if seed not in lost
    ]
    planned = [place for place, _, added in found if not added]
    return {
        "found": found,
        "lost": [f"seed {seed}: diverged (cell {ids[seed]})" for seed in sorted(lost)],
        "mean": round(sum(planned) / len(planned), 1) if planned else None,
    }


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
