"""A figure, laid out and drawn once: the SVG of the page, of Markdown and of the folder."""

import html
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from orchestration.report.marks import Marks

INK, SOFT, _FAINT = "#1a1f26", "#8a929c", "#e4e7eb"
FIRST, SECOND = "#D55E00", "#0072B2"  # of Okabe and Ito's palette: what a figure is about, and what it is beside
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "fsg", "font.family": "sans-serif", "font.size": 9.5}


@dataclass(frozen=True)
class Drawing:
    """A figure as it is drawn; `name` is its file's, `label` a screen reader's, `marks` the script's of the page."""

    name: str
    label: str
    svg: str
    marks: Marks = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        """`<name>.svg` in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.svg"
        path.write_text(self.svg, encoding="utf-8")
        return path

    @property
    def inline(self) -> str:
        """An `<svg>` element, its id `name`: no prolog, no size of its own, ids that no other on the page has."""
        text = re.sub(r"^.*?(?=<svg)", "", self.svg, flags=re.DOTALL)
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        element, rest = text.split(">", 1)
        element = re.sub(r'\s(width|height|version)="[^"]*"', "", element)
        rest = re.sub(r'\b(id="|url\(#|href="#)', rf"\1{self.name}-", rest)
        return f'{element} id="{self.name}" role="img" aria-label="{html.escape(self.label)}">{rest}'


def drawing(figure: Figure, name: str, label: str, marks: Callable[[], Marks] = dict) -> Drawing:
    """Lay a figure out, and draw it; `marks` is asked when it is laid out."""
    with matplotlib.rc_context(_STYLE):
        svg = io.BytesIO()
        canvas = FigureCanvasSVG(figure)
        engine = figure.get_layout_engine()
        if engine is not None:
            engine.execute(figure)
            figure.set_layout_engine("none")  # to lay out again at every drawing takes longer than to draw
        figure.set_dpi(72)  # an SVG's
        found = marks()
        canvas.print_svg(svg, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    return Drawing(slug(name), label, svg.getvalue().decode(), found)


def dress(axes: Axes, x: str, y: str, title: str = "", grid: Literal["both", "x", "y"] = "both") -> None:
    """Give axes their labels and title, open at the top and on the right, with a faint grid behind what is drawn."""
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    if title:
        axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SOFT)
    axes.tick_params(length=3, color=SOFT, labelcolor=INK)
    axes.grid(axis=grid, color=_FAINT, linewidth=0.8)
    axes.set_axisbelow(True)


def plain(text: str) -> str:
    """Text for a figure in which each `$` is one, and begins no formula."""
    return text.replace("$", r"\$")


def slug(name: str) -> str:
    """`layers-flip-rate-a-step`: what is safe as a file's name and as an id."""
    return re.sub(r"\W+", "-", name.lower()).strip("-")
