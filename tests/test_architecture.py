"""The house in one table: which folder may import which, who alone may import a library, and what must not be circular.

Names are those of the folders below `orchestration/`; a folder's subfolder is a folder of its own. Arrows point down.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
BASE = {"ledger", "ledger/stores", "spec", "util"}
# Each folder, from the top to the bottom of the house, and the folders that it may import.
FOLDERS: dict[str, set[str]] = {
    "": {"commands", "scheduler", *BASE},  # cli, launch, restarted, submitted
    "commands": {"report", "scheduler", "search", "search/optuna", "tracking", "runtime", "analysis", *BASE},
    "report": {"search", "search/optuna", "analysis", *BASE},
    "scheduler": {"runtime", *BASE},
    "search": {"search/optuna", "analysis", *BASE},
    "search/optuna": {"analysis", *BASE},
    "tracking": BASE,
    "runtime": BASE,
    "analysis": BASE,
    "ledger": {"ledger/stores", "spec", "util"},
    "ledger/stores": {"util"},
    "spec": {"util"},
    "util": set(),
}
# Libraries that one folder alone may import, by folder or file; the core may import none of them.
LIBRARIES: dict[str, str] = {
    "ray": "scheduler",
    "mlflow": "tracking",
    "optuna": "search/optuna",
    "sqlalchemy": "search/optuna tracking util",
    "jinja2": "report",
    "typer": "cli.py",
    "s3fs": "ledger",
    "upath": "ledger",
    "botocore": "ledger",
    "pydantic": "spec",
    "onnxruntime": "commands/export.py",
}
NOT_IN_THE_CORE = {*LIBRARIES, "ruamel", "yaml", "rich", "matplotlib", "scipy", "orchestration"}


class Import(NamedTuple):
    """A module that a file imports; `inside` a function, and what a comment on that line says."""

    module: str
    line: int
    inside: bool
    comment: str


def imports(source: str) -> Iterator[Import]:
    """Every import of a file, wherever it stands."""
    lines = source.splitlines()
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            comment = " ".join(line.partition("#")[2] for line in lines[node.lineno - 1 : node.end_lineno])
            yield Import(name, node.lineno, id(node) in inside, comment)


SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for package in ("fsg", "orchestration")
    for path in sorted((ROOT / package).rglob("*.py"))
}


@cache
def imports_of() -> dict[str, list[Import]]:
    return {path: list(imports(source)) for path, source in SOURCES.items()}


def file_of(module: str) -> str | None:
    """The file of ours that a module, or a name in one, is in."""
    while module:
        for path in (f"{module.replace('.', '/')}.py", f"{module.replace('.', '/')}/__init__.py"):
            if path in SOURCES:
                return path
        module = module.rpartition(".")[0]
    return None


def folder_of(path: str) -> str:
    """`search/optuna` of `orchestration/search/optuna/storage.py`."""
    return "/".join(path.split("/")[1:-1])


def arrows() -> Iterator[tuple[str, str]]:
    """From each file of the orchestration to each that it imports, those for type checkers alone included."""
    for path, found in imports_of().items():
        for one in found:
            target = file_of(one.module)
            if target is not None and path.startswith("orchestration/") and target.startswith("orchestration/"):
                yield path, target


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The nodes of the circles of a graph; nothing where there is none."""
    left = {node: set(targets) - {node} for node, targets in graph.items()}
    while True:
        pointed_at = set().union(*left.values())
        ends = [node for node, targets in left.items() if not targets & left.keys() or node not in pointed_at]
        if not ends:
            return sorted(left)
        for node in ends:
            del left[node]


def test_arrows_between_folders_point_down() -> None:
    wrong = [
        f"{path} imports {target}"
        for path, target in arrows()
        if folder_of(path) != folder_of(target) and folder_of(target) not in FOLDERS[folder_of(path)]
    ]
    assert wrong == []


def test_every_folder_is_in_the_table_and_the_table_itself_points_down() -> None:
    assert {folder_of(path) for path in SOURCES if path.startswith("orchestration/")} == set(FOLDERS)
    order = list(FOLDERS)
    assert all(order.index(target) > order.index(folder) for folder, targets in FOLDERS.items() for target in targets)


def test_there_is_no_circle_among_the_files() -> None:
    graph: dict[str, set[str]] = {path: set() for path in SOURCES}
    for path, target in arrows():
        graph[path].add(target)
    assert circle(graph) == []


def test_a_library_is_known_to_its_folder_alone() -> None:
    wrong = [
        f"{path}:{one.line} imports {one.module}"
        for path, found in imports_of().items()
        for one in found
        if path.startswith("orchestration/") and (homes := LIBRARIES.get(one.module.split(".")[0])) is not None
        if not any(f"{path.removeprefix('orchestration/')}/".startswith(f"{home}/") for home in homes.split())
    ]
    assert wrong == []


def test_the_core_knows_torch_and_nothing_of_the_orchestration() -> None:
    wrong = [
        f"{path}:{one.line} imports {one.module}"
        for path, found in imports_of().items()
        for one in found
        if path.startswith("fsg/") and one.module.split(".")[0] in NOT_IN_THE_CORE
    ]
    assert wrong == []


def test_no_import_hides_in_a_function_unless_it_says_that_it_saves_start_up_time() -> None:
    """In the core, what is optional may be imported where it is used."""
    wrong = [
        f"{path}:{one.line} imports {one.module}"
        for path, found in imports_of().items()
        for one in found
        if path.startswith("orchestration/") and one.inside and "start-up time" not in one.comment
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ["tests/orchestration", "tests/fsg"])
def test_tests_mirror_the_folders(package: str) -> None:
    folders = {path.parent.relative_to(ROOT / "tests").as_posix() for path in (ROOT / package).rglob("test_*.py")}
    ours = {path.rpartition("/")[0] for path in SOURCES}
    assert folders <= ours


def test_the_walk_sees_what_it_is_to_see() -> None:
    found = list(imports("def f():\n    import ray.tune  # start-up time\n    from a.b import c, d\nimport e"))
    assert {(one.module, one.inside, "start-up time" in one.comment) for one in found} == {
        ("ray.tune", True, True),
        ("a.b.c", True, False),
        ("a.b.d", True, False),
        ("e", False, False),
    }
    assert file_of("orchestration.ledger.store.of") == "orchestration/ledger/store.py"
    assert file_of("orchestration.ledger.store") == "orchestration/ledger/store.py"
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert ("orchestration/ledger/ledger.py", "orchestration/ledger/store.py") in set(arrows())


def needed_by(*names: str) -> set[str]:
    """The distributions that these need, themselves included."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if canonicalize_name(name) in found:
            continue
        with suppress(PackageNotFoundError):  # those of another platform
            wanted = map(Requirement, distribution(name).requires or [])
            left += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
            found.add(canonicalize_name(name))
    return found


def test_the_core_and_what_measures_it_on_a_gpu_want_torch_and_numpy_alone() -> None:
    """Imported whole, and training, in a process that refuses all else that is installed here."""
    kept = needed_by("torch", "numpy")
    assert {"torch", "numpy"} <= kept
    absent = {
        module
        for module, owners in packages_distributions().items()
        if module not in ("fsg", "benchmarks") and not kept & {canonicalize_name(owner) for owner in owners}
    }
    assert {"ray", "scipy", "rich", "psutil", "pydantic", "packaging", "torchvision", "orchestration"} <= absent
    program = f"""
import importlib, pkgutil, sys
for name in {sorted(absent)}:
    sys.modules[name] = None
import fsg, benchmarks.gpu.__main__, benchmarks.gpu.parts
for module in pkgutil.walk_packages(fsg.__path__, "fsg."):
    if "triton" not in module.name and "make_" not in module.name:
        importlib.import_module(module.name)
from fsg.data import FashionMNISTSubset
from fsg.models import ResNet
config = fsg.TrainConfig(data=FashionMNISTSubset(train_limit=64), model=ResNet.Config(depth=8, width=2),
                         estimator=fsg.FSG.Config(history_length=1), batch_size=32, epochs=1, test="never")
assert [row.step for row in fsg.train(config)] == [2, 2]
"""
    ran = subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("orchestration.cli", {"torch", "ray", "mlflow", "optuna", "pydantic", "matplotlib"}),
        ("orchestration.commands.jobs", {"torch", "mlflow", "optuna", "matplotlib"}),
    ],
)
def test_a_command_that_trains_nothing_does_not_wait_for_what_trains(module: str, absent: set[str]) -> None:
    """`fsg --help`, and `fsg status`, which asks a cluster."""
    look = f"import sys, {module}\nprint(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", look], check=True, cwd=ROOT, capture_output=True, text=True)
    loaded = set(said.stdout.split())
    assert module in loaded
    assert not absent & loaded
