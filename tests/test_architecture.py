"""The direction of the arrows: configs → orchestration → fsg → torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Who may import what, by folder or by file; whoever is not named may not.
ALLOWED = {
    "ray": {
        "orchestration/tuner.py",
        "orchestration/ray_connection.py",
        "orchestration/cluster.py",
        "orchestration/nodes.py",
    },
    "mlflow": {"orchestration/tracking.py", "orchestration/mlflow_model.py"},
    "optuna": {"orchestration/suggesting.py", "orchestration/study_storage.py", "orchestration/study_pictures.py"},
    "sqlalchemy": {"orchestration/study_storage.py"},
    "s3fs": {"orchestration/store.py"},
    "upath": {"orchestration/store.py"},
    "botocore": {"orchestration/store.py"},
    "pydantic": {"orchestration"},
    "ruamel": {"orchestration"},
    "yaml": set(),
    "orchestration": {"orchestration"},
}
SOURCES = sorted(
    p.relative_to(ROOT).as_posix() for package in ("fsg", "orchestration") for p in (ROOT / package).rglob("*.py")
)


def imported(source: str) -> set[str]:
    """The top-level packages that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES)
def test_a_file_imports_only_what_its_place_allows(path: str) -> None:
    forbidden = {
        package
        for package in imported((ROOT / path).read_text())
        if package in ALLOWED and not {path, path.split("/")[0]} & ALLOWED[package]
    }
    assert forbidden == set()


def test_the_walk_sees_imports_wherever_they_are() -> None:
    assert imported("def f():\n    import ray.tune\n    from mlflow.x import y\nif 1:\n    import a, b.c") == {
        "ray",
        "mlflow",
        "a",
        "b",
    }
    assert {"orchestration/tracking.py", "orchestration/tuner.py", "fsg/trainer.py"} <= set(SOURCES)


def test_the_core_can_be_imported_without_the_rest() -> None:
    """In a process that refuses the rest."""
    absent = "('ray', 'mlflow', 'optuna', 'pydantic', 'ruamel', 'yaml')"
    refuse = f"import sys\nfor name in {absent}: sys.modules[name] = None\nimport fsg"
    subprocess.run([sys.executable, "-c", refuse], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("orchestration.cli", {"torch", "ray", "mlflow", "optuna", "pydantic", "matplotlib"}),
        ("orchestration.handover", {"torch", "mlflow", "optuna", "matplotlib"}),
    ],
)
def test_a_command_that_trains_nothing_does_not_wait_for_what_trains(module: str, absent: set[str]) -> None:
    """`fsg --help`, and `fsg status`, which asks a cluster."""
    look = f"import sys, {module}\nprint(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", look], check=True, cwd=ROOT, capture_output=True, text=True)
    loaded = set(said.stdout.split())
    assert module in loaded
    assert not absent & loaded
