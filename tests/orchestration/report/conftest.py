import os
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def drawn() -> None:
    """For a test that looks at figures."""


@pytest.fixture(autouse=True)
def figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """To render figures takes most of the time of a report: elsewhere they stay empty. Ledgers are not flushed."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    if "drawn" not in request.fixturenames:

        def empty(figure: Figure, target: Any, **options: Any) -> None:
            target.write("<svg></svg>") if hasattr(target, "write") else Path(target).write_bytes(b"")

        monkeypatch.setattr(Figure, "savefig", empty)
        monkeypatch.setattr(Figure, "draw_without_rendering", lambda figure: None)
