import os

import pytest
from undrawn import leave_figures_empty


@pytest.fixture
def drawn() -> None:
    """For a test that looks at figures."""


@pytest.fixture(autouse=True)
def figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """To draw figures takes most of the time of a report: elsewhere they stay empty. Ledgers are not flushed."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    if "drawn" not in request.fixturenames:
        leave_figures_empty(monkeypatch)
