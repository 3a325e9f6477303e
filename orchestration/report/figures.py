"""A figure, laid out and drawn once: the SVG of page and folder, and a PNG for Markdown."""

import html
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "fsg", "font.family": "sans-serif", "font.size": 9.5}
_DPI = 160


@dataclass(frozen=True)
class Drawing:
    """A figure as it is drawn; `name` is its files', `label` what a screen reader says."""

    name: str
    label: str
    svg: str
    png: bytes

    def save(self, folder: Path) -> list[Path]:
        """`<name>.svg` and `<name>.png` in a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        svg, png = folder / f"{self.name}.svg", folder / f"{self.name}.png"
        svg.write_text(self.svg, encoding="utf-8")
        png.write_bytes(self.png)
        return [svg, png]

    @property
    def inline(self) -> str:
        """An `<svg>` element: no prolog, no size of its own, ids that no other `name` on the page has."""
        text = re.sub(r"^.*?(?=<svg)", "", self.svg, flags=re.DOTALL)
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        element, rest = text.split(">", 1)
        element = re.sub(r'\s(width|height|version)="[^"]*"', "", element)
        rest = re.sub(r'(<image\b[^>]*?) id="[^"]*"', r"\1", rest)  # named by their contents: two alike have one id
        rest = re.sub(r'\b(id="|url\(#|href="#)', rf"\1{self.name}-", rest)
        return f'{element} role="img" aria-label="{html.escape(self.label)}">{rest}'


def drawing(figure: Figure, name: str, label: str) -> Drawing:
    """Lay a figure out, and draw it in both forms; the SVG has no background."""
    with matplotlib.rc_context(_STYLE):
        svg, png = io.BytesIO(), io.BytesIO()
        canvas = FigureCanvasSVG(figure)
        engine = figure.get_layout_engine()
        if engine is not None:
            engine.execute(figure)
            figure.set_layout_engine("none")  # to lay out again at every drawing takes longer than to draw
        figure.set_dpi(72)  # an SVG's
        figure.patch.set_alpha(0.0)
        canvas.print_svg(svg, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
        figure.set_dpi(_DPI)
        figure.patch.set_alpha(1.0)
        FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return Drawing(slug(name), label, svg.getvalue().decode(), png.getvalue())


def plain(text: str) -> str:
    """Text for a figure in which each `$` is one, and begins no formula."""
    return text.replace("$", r"\$")


def slug(name: str) -> str:
    """`layers-flip-rate-a-step`: what is safe as a file's name and as an id."""
    return re.sub(r"\W+", "-", name.lower()).strip("-")
