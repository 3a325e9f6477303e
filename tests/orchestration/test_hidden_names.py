"""Files beside a spec that are named like libraries: none is imported in a library's place, and none by mistake."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from launches import LAUNCH, SPEC, images, ledger_of

from fsg.import_closure import refuse_hidden
from orchestration.spec.experiment import SpecErrors, load_spec
from orchestration.util import user_code
from orchestration.util.user_code import import_from, take_off_users_folders

# Python itself and its start-up hooks import some of these before any line of ours: they are for `fsg` and `launch.py`.
OF_PYTHON = ["queue", "html", "statistics", "types", "random", "secrets", "email", "json", "socket", "signal"]
INSTALLED = [
    "mlflow", "jinja2", "requests", "matplotlib", "optuna", "sqlalchemy", "numpy", "torch", "rich", "typer", "click",
    "pydantic", "psutil", "pandas", "alembic", "flask", "uvicorn", "cloudpickle", "scipy",
]  # fmt: skip
POISON = 'raise RuntimeError("an analysis script of the user\'s")\n'
OWN = """
import fsg
from my_helper import FACTOR

class Mine(fsg.STE):
    def __init__(self, model):
        super().__init__(model, fsg.STE.Config())
"""
IMPORTING = SPEC.replace("ste: {}", 'ste: {}, mine: {estimator: {import: "my_estimator:Mine"}}').replace(
    "primary: fsg", "primary: mine"
)


@pytest.fixture(autouse=True)
def path_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(user_code, "_set_aside", [])
    monkeypatch.setattr(user_code, "_given", {})
    yield
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's, and the working directory."""
    (tmp_path / "my_estimator.py").write_text(OWN)
    (tmp_path / "my_helper.py").write_text("FACTOR = 1\n")
    (tmp_path / "tiny.yaml").write_text(SPEC)
    images(tmp_path / "tiny.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def poisoned(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / f"{name}.py").write_text(POISON)
    (folder / "ray").mkdir()
    (folder / "ray" / "__init__.py").write_text(POISON)


def test_folders_are_behind_what_is_installed(tmp_path: Path) -> None:
    first = list(sys.path)
    import_from(str(tmp_path), "/elsewhere")
    assert sys.path == [*first, str(tmp_path), "/elsewhere"]
    sys.path.insert(0, str(tmp_path))
    import_from(str(tmp_path))
    assert sys.path == [*first, "/elsewhere", str(tmp_path)], "also one that PYTHONPATH had put first"


def test_a_spec_that_imports_nothing_leaves_the_path_alone(user: Path) -> None:
    before = list(sys.path)
    load_spec(user / "tiny.yaml")
    assert sys.path == before
    (user / "tiny.yaml").write_text(IMPORTING)
    load_spec(user / "tiny.yaml")
    assert sys.path == [*before, str(user)]


def test_a_program_takes_the_users_folders_off(
    user: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of `python -m` and of PYTHONPATH; what else is on the path stays where it is."""
    elsewhere, other = tmp_path_factory.mktemp("elsewhere"), tmp_path_factory.mktemp("other")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(user), str(other), ""]))
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    rest = list(sys.path)
    sys.path[:] = ["", str(user), str(other), *rest]
    take_off_users_folders(["launch", str(user / "tiny.yaml")])
    assert sys.path == [str(other), *rest]
    assert os.environ["PYTHONPATH"] == str(other)
    assert os.environ["PYTHONSAFEPATH"] == "1"
    again = user_code.environment_as_given()
    assert again["PYTHONPATH"] == os.pathsep.join([str(user), str(other), ""])
    assert "PYTHONSAFEPATH" not in again
    import_from(str(user))
    assert sys.path == [str(other), *rest, str(user), str(elsewhere)], "back again, behind"


@pytest.mark.parametrize(
    ("source", "files", "hidden"),
    [
        ("import statistics", ["statistics.py"], "statistics.py"),
        ("import numpy as np", ["numpy.py"], "numpy.py"),
        ("from scipy import stats", ["scipy/__init__.py"], "scipy"),
        ("from rich.mine import x", ["rich/mine.py"], "mine.py"),
        ("def later():\n    import yaml", ["yaml.py"], "yaml.py"),
        ("import time", ["time.py"], "time.py"),
        ("import fsg", ["fsg.py"], "fsg.py"),
        ("import my_helper", ["my_helper.py: import psutil", "psutil.py"], "psutil.py"),
        ("from importlib import import_module\nimport_module('pandas')", ["pandas.py"], "pandas.py"),
        ("import my_helper", ["my_helper.py", "numpy.py", "statistics.py"], None),
        ("import fsg.estimators.protocol, numpy.linalg, json.decoder", ["checkpoints/numpy/a.py"], None),
        ("import numpy", ["numpy/weights.npz"], None),
        ("import not_there_at_all", ["numpy.py"], None),
    ],
)
def test_an_own_file_that_a_library_hides_is_refused_by_name(
    tmp_path: Path, source: str, files: list[str], hidden: str | None
) -> None:
    for one in files:
        name, _, text = one.partition(": ")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text or POISON)
    (tmp_path / "my_component.py").write_text(source + "\n")
    import_from(str(tmp_path))
    if hidden is None:
        refuse_hidden("my_component")
        return
    with pytest.raises(ValueError, match=rf"\(expected another name: rename {hidden}\)$"):
        refuse_hidden("my_component")


@pytest.mark.parametrize("path", ["utils:Mine", "statistics:Mine"])
def test_a_component_in_a_file_that_a_library_hides_is_refused(
    user: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    installed = tmp_path_factory.mktemp("lib") / "site-packages" / "utils"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(installed.parent))
    name = path.partition(":")[0]
    (user / "my_estimator.py").rename(user / f"{name}.py")
    (user / "tiny.yaml").write_text(IMPORTING.replace("my_estimator:Mine", path))
    with pytest.raises(SpecErrors) as refused:
        load_spec(user / "tiny.yaml")
    (line,) = refused.value.lines
    assert line.startswith(f"{user}/tiny.yaml:11:")
    assert f"{name}.py in {user} is hidden by the module {name}" in line
    assert line.endswith(f"(expected another name: rename {name}.py)")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["launch.py with PYTHONPATH", "-m"])
def test_nothing_is_imported_in_a_librarys_place(user: Path, tmp_path: Path, way: str) -> None:
    """From the folder that has them all, driver, workers, pretraining, report, MLflow and its server."""
    on_path = way != "-m"
    poisoned(user, INSTALLED + ([] if on_path else OF_PYTHON[:3]))
    program = [str(LAUNCH)] if on_path else ["-m", "orchestration.cli", "launch"]
    short = IMPORTING.replace("epochs: 20", "epochs: 1") + (
        "tuning: {space: {optimizer.lr: {low: 1.0e-3, high: 0.1}}, budget: 1, seeds: [9]}\n"
    )
    (user / "tiny.yaml").write_text(short)
    environment = os.environ | ({"PYTHONPATH": str(user)} if on_path else {})
    ended = subprocess.run([sys.executable, *program, "tiny.yaml"], cwd=user, env=environment, capture_output=True,
                           text=True, check=False)  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "MLflow is incomplete" not in ended.stdout
    assert "analysis script" not in ended.stdout + ended.stderr
    ledger = ledger_of(user)
    assert {ledger.outcome(cell.id).state for cell in ledger.cells()} == {"done"}
    assert numpy.__file__


@pytest.mark.slow
def test_programs_that_are_no_launch_begin_beside_such_files(user: Path) -> None:
    poisoned(user, INSTALLED + OF_PYTHON)
    fsg = Path(sys.executable).with_name("fsg")
    for words in (["plan", "tiny.yaml"], ["schema"]):
        ended = subprocess.run([fsg, *words], cwd=user, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
