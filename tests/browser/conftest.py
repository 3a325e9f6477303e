"""What the browser looks at: a real ablation, tracked by a real launch, on the server that `fsg ui` starts."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tiny_ablation import SPEC

from benchmarks.tracking import CHROMIUM
from orchestration.spec.fields import Report
from orchestration.tracking.sync import Tracker

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "orchestration"))
from synthetic_experiment import cells_of, spec_of, trained

expect.set_options(timeout=90_000)
ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / ".ci" / "out" / "browser"
FSG = [sys.executable, "-c", "from orchestration.cli import main; main()"]


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results, after the launch of an ablation of six cells."""
    folder = tmp_path_factory.mktemp("browser")
    draw = np.random.default_rng(0)
    labels = np.arange(240) % 4
    pixels = draw.integers(0, 120, (240, 8, 8), dtype=np.uint8)
    for label in range(4):
        pixels[labels == label, 2 * label : 2 * label + 2] += np.uint8(90)  # a bright stripe, where the class says
    images = {"train_images": pixels[:200], "train_labels": labels[:200]}
    np.savez(folder / "images.npz", **images, test_images=pixels[200:], test_labels=labels[200:])
    (folder / "tiny.yaml").write_text(SPEC)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [*FSG, "launch", "tiny.yaml"]
    launched = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert launched.returncode == 0, launched.stdout + launched.stderr
    (folder / "said.txt").write_text(launched.stdout)
    return folder / "results"


@pytest.fixture(scope="session")
def two_hundred_runs(results: Path) -> list[str]:
    """The labels of the runs of an experiment of that many, made up and sent to the same database."""
    spec = spec_of([f"variant_{number}" for number in range(1, 8)] + ["ste"], range(25), name="two_hundred")
    spec = replace(spec, report=Report(baseline="ste", primary="variant_1"))
    Tracker(trained(results / "two_hundred", spec), spec).sync()
    return [cell.label for cell in cells_of(spec)]


@pytest.fixture(scope="session")
def address(results: Path) -> Iterator[str]:
    """Where `fsg ui`, as the launch said to type it, shows the ablation's comparison."""
    said = (results.parent / "said.txt").read_text()
    typed = re.search(r"^MLflow +\S+ (ui \S+) ", said, flags=re.MULTILINE)
    assert typed, said
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = subprocess.Popen(
        [*FSG, *typed[1].split(), "--no-browser", "--port", "45000"],
        cwd=results.parent,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert command.stdout is not None
    yield command.stdout.readline().split()[1]
    command.send_signal(signal.SIGTERM)
    command.wait(30)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium here: make test-browser installs it")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page in a profile of its own; what it showed at the end of the test is kept as a picture."""
    context = chromium.new_context(viewport={"width": 1600, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(90_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{request.node.name}.png")
    context.close()
    assert not errors
