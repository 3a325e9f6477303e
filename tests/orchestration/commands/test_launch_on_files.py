"""A launch on images that are files."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launches import LAUNCH, NO_MLFLOW, Launched, assert_exact, ledger_of
from typer.testing import CliRunner

from benchmarks.image_files import write_images
from orchestration.cli import app

SPEC = """
name: tiny
question: does it hold?
train:
  data: {name: image_folder, folder: set, size: 12, validation: 8, mean: [0.5, 0.5, 0.5], hue: 0.1, prefetch: 1}
  model: {name: resnet, depth: 8, width: 2}
  epochs: 2
  batch_size: 4
variants:
  ste: {}
  several: {accumulate: 2, batch_size: 2}
  cached: {data.cached_side: 20, data.cache_folder: decoded}
seeds: [0]
report: {baseline: ste, primary: several}
"""


@pytest.fixture
def experiment(folder: Path) -> Path:
    write_images(folder / "set", train=8, val=3)
    (folder / "tiny.yaml").write_text(SPEC)
    return folder


def planned(*words: str) -> tuple[int, str]:
    ran = CliRunner().invoke(app, ["plan", "tiny.yaml", "--no-pilot", *words])
    return ran.exit_code, ran.output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("folder=nowhere", "nowhere: cannot be read (No such file or directory), expected a folder with train and val"),
        ("test_folder=test", "test_folder is test, and there is none (expected val)"),
        ("validation=32", "validation is 32, expected ≤ 31"),
        ("evaluation_side=8", "evaluation_side is 8, expected ≥ 12, which is size"),
        ("mean=[1, 2]", "mean is [1.0, 2.0], expected three finite numbers"),
        ("unreadables=3", "data image_folder has no such field"),
        ("workers=0", "expected a whole number from 1 to 256"),
    ],
)
def test_a_setting_that_does_not_fit_is_one_line_and_nothing_starts(experiment: Path, words: str, says: str) -> None:
    status, output = planned("--set", f"train.data.{words}")
    assert status == 2
    (line,) = [one for one in output.splitlines() if says in one]
    assert "train.data" in line
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_launch_trains_what_one_process_trains_keeps_the_classes_and_sees_what_changes(experiment: Path) -> None:
    assert Launched(experiment, *NO_MLFLOW).wait() == 0
    ledger = ledger_of(experiment)
    assert_exact(ledger, ledger.cells())
    record = ledger.last_launch()
    assert record["classes"] == {str(experiment / "set"): [f"class {number}" for number in range(4)]}
    assert record["versions"]["pillow"]
    verify = [sys.executable, "-m", "orchestration.cli", "verify", "results/tiny", "--cells", "1"]
    said = subprocess.run(verify, cwd=experiment, capture_output=True, text=True, check=False, env=_environment())
    assert "1 of 3 finished cells verified" in said.stdout, said.stdout + said.stderr
    shutil.copy(experiment / "set" / "val" / "class 0" / "1.png", experiment / "set" / "val" / "class 0" / "new.png")
    _, output = planned()
    assert "3 to run" in output


def _environment() -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": str(LAUNCH.parents[1])}
