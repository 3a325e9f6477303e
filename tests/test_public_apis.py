"""Of its libraries the project uses what they document: no name with an underscore, and no method overridden unasked.

Where a library has no public way, one small file says why: those files are the table of exceptions.
"""

import ast
import importlib.util
import pydoc
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from orchestration.scheduler import environment

ROOT = Path(__file__).resolve().parents[1]
EXCEPTIONS = {
    "fsg/foreach.py": "torch 2.14 has operations over lists of tensors under private names alone",
    "tests/accelerator/simulated_accelerator.py": "torch offers a device in Python under private names alone",
    "fsg/recording.py": "torch documents TorchDispatchMode in a module with a private name",
    "tests/fsg/simulated_graph.py": "torch documents TorchDispatchMode in a module with a private name",
    "orchestration/runtime/peak_memory.py": "torch documents TorchDispatchMode in a module with a private name",
    "tests/fsg/test_starting_points.py": "torch.save writes its format of before 1.6 by a private argument",
}
# Methods that a library's documentation asks to override, by class.
OFFERED = {
    "ray.tune.Trainable": {  # Ray Tune API, "Tune Trainable class API: Implement"
        "setup", "step", "save_checkpoint", "load_checkpoint", "cleanup", "reset_config", "default_resource_request",
    },
    "ray.tune.Callback": {  # Ray Tune API, "Tune Callbacks"
        "setup", "on_step_begin", "on_step_end", "on_trial_start", "on_trial_restore", "on_trial_save",
        "on_trial_result", "on_trial_complete", "on_trial_recover", "on_trial_error", "on_checkpoint",
        "on_experiment_end", "get_state", "set_state",
    },
    "ray.tune.search.Searcher": {  # Ray Tune API, "Custom Search Algorithms"
        "suggest", "on_trial_result", "on_trial_complete", "save", "restore", "set_search_properties",
    },
    "ray.tune.schedulers.TrialScheduler": {  # Ray Tune API, "TrialScheduler Interface"
        "choose_trial_to_run", "on_trial_add", "on_trial_complete", "on_trial_error", "on_trial_remove",
        "on_trial_result",
    },
    "ray.tune.Stopper": {"__call__", "stop_all"},  # Ray Tune API, "Stopper Interface"
    "ray.tune.ProgressReporter": {"should_report", "report", "setup"},  # Ray Tune API, "Console Output"
    "optuna.samplers.BaseSampler": {  # Optuna, "User-Defined Sampler"
        "infer_relative_search_space", "sample_relative", "sample_independent", "before_trial", "after_trial",
        "reseed_rng",
    },
    "optuna.pruners.BasePruner": {"prune"},  # Optuna, "User-Defined Pruner"
}  # fmt: skip
NOT_FOR_USERS = ("ray.air.execution", "TuneController")  # without an underscore, and in no documentation
LIBRARIES = {"ray", "optuna", "mlflow"}  # whose methods are overridden only as offered
DOCUMENTED = {"_replace", "_fields", "_asdict", "_make", "_exit"}  # of named tuples, and of `os`
BY_NAME = {"getattr", "setattr", "hasattr", "delattr", "setitem", "patch", "object", "import_module", "find_spec"}


@cache
def sources() -> dict[str, ast.AST]:
    return {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
        for folder in ("fsg", "orchestration", "benchmarks", "docker", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


def private(name: str) -> bool:
    """Whether a part of a dotted name begins with an underscore; `__init__` and the like do not count."""
    return any(part[:1] == "_" and part.strip("_") and not part.endswith("__") for part in name.split("."))


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Call) and dotted(node.func) == "super":
        return "super()"
    return node.id if isinstance(node, ast.Name) else "?"


def defined(tree: ast.AST) -> set[str]:
    """Every name that a source gives to something of its own."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add(node.asname or "")
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and dotted(node.value) == "self":
            found.add(node.attr)
    return found


@cache
def ours() -> set[str]:
    return {"fsg", "orchestration", "benchmarks", *(Path(path).stem for path in sources() if path.startswith("tests/"))}


@cache
def defined_in(path: str) -> set[str]:
    return (defined(sources()[path]) if path in sources() else set()) | DOCUMENTED


@cache
def everywhere() -> set[str]:
    return set().union(*map(defined_in, sources()))


def private_uses(path: str, tree: ast.AST) -> Iterator[str]:
    """Each private name of a library that a source uses.

    An attribute of something else than `self` is a library's unless the same file defines that name, or, in a test or
    a benchmark, any file of ours.
    """
    mine = defined_in(path) if path.startswith(("fsg/", "orchestration/")) else everywhere()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names = [module + alias.name for alias in node.names]
            yield from (name for name in names if name.split(".")[0] not in ours() and private(name))
            yield from (name for name in names if any(one in name for one in NOT_FOR_USERS))
        elif isinstance(node, ast.Attribute):
            known = everywhere() if dotted(node.value) in ("self", "cls", "super()") else mine
            if (private(node.attr) and node.attr not in known) or node.attr in NOT_FOR_USERS:
                yield f"{ast.unparse(node.value)}.{node.attr}"
        elif isinstance(node, ast.Call):
            yield from (f"{one.arg}=" for one in node.keywords if one.arg is not None and private(one.arg))
            if dotted(node.func).split(".")[-1] in BY_NAME:
                texts = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
                yield from (text for text in texts if private(text) and text.split(".")[-1] not in mine)
                yield from (text for text in texts if any(one in text for one in NOT_FOR_USERS))
        elif isinstance(node, ast.Dict):
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
            yield from (key for key in keys if key.isidentifier() and private(key))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in mine:
            yield from [node.value] if node.value.isupper() and private(node.value) else []  # of the environment


def imported(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname is not None}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


class Class(NamedTuple):
    """A class of ours: its bases with their full names, and what its body defines."""

    name: str
    bases: list[str]
    own: set[str]


def classes(tree: ast.AST) -> list[Class]:
    names, found = imported(tree), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            parts = [dotted(one.value if isinstance(one, ast.Subscript) else one).split(".") for one in node.bases]
            own = {one.name for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}
            for statement in node.body:
                targets = statement.targets if isinstance(statement, ast.Assign) else []
                targets += [statement.target] if isinstance(statement, ast.AnnAssign) else []
                own |= {one.id for one in targets if isinstance(one, ast.Name)}
            found.append(Class(node.name, [".".join([names.get(one[0], one[0]), *one[1:]]) for one in parts], own))
    return found


def above(one: Class, known: Sequence[Class]) -> Iterator[type]:
    """The classes of libraries that a class of ours derives from, also by way of others of ours."""
    for name in one.bases:
        if name.split(".")[0] in LIBRARIES:
            found = pydoc.locate(name)
            assert isinstance(found, type), f"{name} is no class"
            yield from (base for base in found.__mro__ if base.__module__.split(".")[0] in LIBRARIES)
        else:
            for other in known:
                if other.name == name.split(".")[-1] and other != one:
                    yield from above(other, known)


def overrides(found: Sequence[Class], known: Sequence[Class]) -> Iterator[str]:
    """Each method or attribute of a library's class that a class of ours replaces unasked."""
    offered = {pydoc.locate(name): methods for name, methods in OFFERED.items()}
    for one in found:
        bases = list(above(one, known))
        asked = {"__init__"}.union(*(offered.get(base, set()) for base in bases))
        yield from (f"{one.name}.{name}" for name in sorted(one.own - asked) if any(name in vars(b) for b in bases))


@pytest.fixture(autouse=True, scope="module")
def _before_ray_is_imported() -> None:
    environment.prepare(None)


def test_no_private_name_of_a_library_is_used() -> None:
    used = {path: list(private_uses(path, tree)) for path, tree in sources().items()}
    wrong = {path: found for path, found in used.items() if found and path not in EXCEPTIONS}
    assert wrong == {}
    assert all(used[path] for path in EXCEPTIONS), "an exception that is none any more"


def test_no_method_is_overridden_that_its_library_does_not_offer() -> None:
    every = {path: classes(tree) for path, tree in sources().items()}
    known = [one for found in every.values() for one in found]
    assert {path: wrong for path, found in every.items() if (wrong := list(overrides(found, known)))} == {}


def test_every_offered_method_is_there() -> None:
    for name, methods in OFFERED.items():
        found = pydoc.locate(name)
        assert isinstance(found, type), name
        assert {method for method in methods if not hasattr(found, method)} == set(), name


def test_torch_has_no_public_operations_over_lists_yet() -> None:
    """Where it has them, they replace `fsg/foreach.py`."""
    assert importlib.util.find_spec("torch.foreach") is None


@pytest.mark.parametrize(
    "source",
    [
        "from ray._private import services",
        "import ray._private.services",
        "import ray._private.services as services",
        "from optuna.trial import _trial",
        "from torch.utils._pytree import tree_iter",
        "import pydantic._internal",
        "from mlflow.store import _unity_catalog as catalog",
        "def f():\n    from rich import _log_render",
        "from ray.air.execution import PlacementGroupResourceManager",
        "import ray.air.execution.resources",
        "from ray.tune.execution.tune_controller import TuneController",
        "tune_controller.TuneController()",
        "study._storage.get_trial(0)",
        "study.trials[0]._trial_id",
        "storage = study._storage\nself._storage = storage",
        "del trial._cached_frozen_trial",
        "class A(nn.Conv2d):\n    def forward(self, x):\n        return self._conv_forward(x, self.weight, None)",
        "super()._restore_from_nowhere()",
        "torch._foreach_add_(a, b)",
        "ray.init(_temp_dir=folder)",
        "ray.init(**{'_temp_dir': folder})",
        "options = {'_system_config': {}}",
        "monkeypatch.setattr('ray._private.node.Node', None)",
        "monkeypatch.setattr(optuna.Study, '_pop_waiting_trial_id', None)",
        "monkeypatch.setattr('ray.tune.execution.tune_controller.TuneController.step', None)",
        "getattr(study, '_study_id')",
        "importlib.import_module('torch._dynamo')",
        "os.environ['_RAY_INTERNAL'] = '1'",
    ],
)
def test_each_private_use_is_seen(source: str) -> None:
    assert list(private_uses("orchestration/somewhere.py", ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "from ray import tune\nclass A(tune.Callback):\n    _SAVED_FILE_TEMPLATES: str = ''",
        "from ray.tune.search import Searcher\nclass A(Searcher):\n    def set_max_concurrency(self): ...",
        "import ray.tune\nclass A(ray.tune.Trainable):\n    def train_buffered(self): ...",
        "from ray.tune import Trainable as T\nclass A(T): ...\nclass B(A):\n    def stop(self): ...",
        "from ray import tune\nclass A(tune.Trainable):\n    _closing = True\n    def save(self): ...",
        "def f():\n    from ray import tune\n    class A(tune.schedulers.FIFOScheduler):\n        debug_string = None",
        "import optuna\nclass A(optuna.Study):\n    def _pop_waiting_trial_id(self): ...",
        "from optuna.samplers import TPESampler\nclass A(TPESampler):\n    def _sample(self): ...",
        "import optuna\nclass A(optuna.storages.RDBStorage):\n    def get_trial(self): ...",
        "from mlflow import MlflowClient\nclass A(MlflowClient):\n    def log_batch(self): ...",
    ],
)
def test_each_override_unasked_is_seen(source: str) -> None:
    found = classes(ast.parse(source))
    assert list(overrides(found, found))


def test_what_is_public_and_what_is_ours_is_let_pass() -> None:
    source = """
from __future__ import annotations
import torch.nn.functional as F
from optuna.samplers import BaseSampler
from ray import tune
class A(BaseSampler):
    def __init__(self): self._point = {}
    def sample_relative(self, study, trial, space): return self._point
    def of_ours(self): ...
class B(tune.Trainable):
    def step(self): ...
    def setup(self, config): ...
    def _of_ours(self): ...
point._replace(x=1)
getattr(trial, "params")
{"__init__": 1, "_": 2, "a_b": 3}
"""
    assert list(private_uses("orchestration/somewhere.py", ast.parse(source))) == []
    found = classes(ast.parse(source))
    assert [{base.__name__ for base in above(one, found)} for one in found] == [{"BaseSampler"}, {"Trainable"}]
    assert list(overrides(found, found)) == []
    assert {"fsg/layers.py", "orchestration/search/optuna/storage.py", "tests/test_public_apis.py"} <= set(sources())
