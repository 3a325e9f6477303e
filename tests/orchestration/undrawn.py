"""A report whose figures are files, and empty."""

from collections.abc import Callable

import pytest
from matplotlib.figure import Figure

from orchestration.report import write
from orchestration.report.figures import Drawing, slug
from orchestration.report.marks import Marks


def leave_figures_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(figure: Figure, name: str, label: str, marks: Callable[[], Marks]) -> Drawing:
        return Drawing(slug(name), label, "<svg></svg>")

    monkeypatch.setattr(write, "drawing", empty)
