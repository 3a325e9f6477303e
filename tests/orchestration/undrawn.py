"""A report whose figures are files, and empty."""

import pytest
from matplotlib.figure import Figure

from orchestration.report import write
from orchestration.report.figures import Drawing, slug


def leave_figures_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(figure: Figure, name: str, label: str) -> Drawing:
        return Drawing(slug(name), label, "<svg></svg>", b"")

    monkeypatch.setattr(write, "drawing", empty)
