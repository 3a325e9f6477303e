"""What a command imports: nobody waits for a library that the command has no use for."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from synthetic_experiment import finish

from orchestration.commands.launch import imported_meanwhile
from orchestration.ledger.ledger import Ledger
from orchestration.spec.cells import cells
from orchestration.spec.experiment import load_spec

SPEC = """
name: started
train:
  data: {name: fashion_mnist_subset, train_limit: 200, validation: 64}
  model: {name: resnet, depth: 8, width: 4}
  epochs: 1
variants: {fsg: {estimator: fsg}, ste: {}}
seeds: [0]
report: {baseline: ste, primary: fsg}
"""
NOT_TO_TRAIN = {"ray", "mlflow", "optuna", "sqlalchemy", "scipy.stats", "torch._dynamo", "triton", "pandas", "sklearn"}


def loaded(*words: str) -> tuple[set[str], str]:
    """The modules that a command has imported at its end, and what it printed."""
    look = """
import atexit, os, sys
said = sys.argv.pop(1)
atexit.register(lambda: open(said, "w").write("\\n".join(sys.modules)))
os._exit = sys.exit
from orchestration import cli
cli.main(sys.argv[1:])
"""
    ran = subprocess.run(
        [sys.executable, "-c", look, "modules.txt", *words], check=False, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return set(Path("modules.txt").read_text().split()), ran.stdout


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "started.yaml").write_text(SPEC)
    return Path("started.yaml")


def test_a_plan_imports_torch_and_no_more(spec: Path) -> None:
    modules, said = loaded("plan", str(spec), "--no-pilot")
    assert "2 cells, 2 to run" in said
    assert "torch" in modules
    assert not modules & {*NOT_TO_TRAIN, "matplotlib"}


@pytest.mark.slow
def test_a_launch_with_nothing_to_do_imports_neither_ray_nor_mlflow(spec: Path) -> None:
    """The first one brings MLflow level, and makes the report."""
    ledger = Ledger(Path("results/started"))
    for cell in cells(load_spec(spec)):
        ledger.add(cell)
        finish(ledger, cell)
    first, _ = loaded("launch", str(spec))
    assert {"mlflow", "matplotlib"} <= first
    loaded("sync", "results/started")  # which waits for MLflow as long as it takes
    modules, said = loaded("launch", str(spec))
    assert "2 cells, all done" in said
    assert "/#/experiments/1/runs?" in said
    assert not modules & {*NOT_TO_TRAIN, "matplotlib"}
    modules, _ = loaded("report", "results/started")
    assert not modules & {*NOT_TO_TRAIN, "matplotlib", "torch"}
    Path("results/started/report.json").unlink()
    modules, _ = loaded("report", "results/started")
    assert not modules & NOT_TO_TRAIN


def test_what_the_end_needs_is_imported_while_trainings_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wanted_soon", "wanted_later"):
        (tmp_path / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with imported_meanwhile("wanted_soon", 0.0):
        until = time.monotonic() + 30
        while "wanted_soon" not in sys.modules and time.monotonic() < until:
            time.sleep(0.01)
    with imported_meanwhile("wanted_later", 0.2):
        pass
    time.sleep(0.4)
    assert "wanted_soon" in sys.modules
    assert "wanted_later" not in sys.modules
