"""A figure, laid out and drawn once: the SVG of the page, of Markdown and of the folder."""

import html
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from orchestration.report.marks import Marks

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


def plain(text: str) -> str:
    """Text for a figure in which each `$` is one, and begins no formula."""
    return text.replace("$", r"\$")


def slug(name: str) -> str:
    """`layers-flip-rate-a-step`: what is safe as a file's name and as an id."""
    return re.sub(r"\W+", "-", name.lower()).strip("-")
