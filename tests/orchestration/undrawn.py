"""A report whose figures are files, and empty."""

from collections.abc import Callable, Iterable
from types import ModuleType

import pytest
from matplotlib.figure import Figure

from orchestration.report import search_figures, write
from orchestration.report.figures import Drawing, slug
from orchestration.report.marks import Marks


def leave_figures_empty(monkeypatch: pytest.MonkeyPatch, of: Iterable[ModuleType] = (write, search_figures)) -> None:
    def empty(figure: Figure, name: str, label: str, marks: Callable[[], Marks]) -> Drawing:
        return Drawing(slug(name), label, "<svg></svg>")

    for module in of:
        monkeypatch.setattr(module, "drawing", empty)
