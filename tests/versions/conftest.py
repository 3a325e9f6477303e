"""Both ends of the supported versions, installed once a session; what they are is said at the end."""

from pathlib import Path

import pytest
from environments import ROOT, Environment, NotToBeHad, installed

SAID: dict[str, str] = {}


def _ready(end: str, folder: Path) -> Environment:
    try:
        environment = installed(end, folder)
    except NotToBeHad as why:
        pytest.skip(f"NOT RUN: {why}")
    SAID[end] = ", ".join(f"{name} {version}" for name, version in environment.versions().items())
    out = ROOT / ".ci" / "out" / "versions"
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{end}.txt").write_text(f"{SAID[end]}\n")
    return environment


@pytest.fixture(scope="session")
def oldest(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return _ready("oldest", tmp_path_factory.mktemp("oldest"))


@pytest.fixture(scope="session")
def newest(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return _ready("newest", tmp_path_factory.mktemp("newest"))


@pytest.fixture(params=["oldest", "newest"])
def environment(request: pytest.FixtureRequest) -> Environment:
    return request.getfixturevalue(request.param)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for end, versions in SAID.items():
        terminalreporter.write_line(f"{end}: {versions}")
