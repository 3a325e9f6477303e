from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launches import SPEC, Launched, images


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a small experiment in it."""
    images(tmp_path / "tiny.npz")
    (tmp_path / "tiny.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def launch(folder: Path) -> Iterator[Callable[..., Launched]]:
    """Launches it, and sees that nothing of it outlives the test."""
    started: list[Launched] = []

    def start(*arguments: str) -> Launched:
        started.append(Launched(folder, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.kill()
