"""What must never be in the code: loaders that run what they read, and shells."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("fsg", "orchestration", "benchmarks", "docker", "tests")
    for path in (ROOT / folder).rglob("*.py")
)


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def unsafe(source: str) -> Iterator[str]:
    """Each call or import in a source by which a file that is read, or a text, could run."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = [module] if module else [alias.name for alias in node.names]
            pickles = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
            yield from (f"import {name}" for name in names if name.split(".")[0] in pickles)
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        given = {one.arg: one.value.value for one in node.keywords if isinstance(one.value, ast.Constant)}
        if name.endswith("torch.load") and given.get("weights_only") is not True:
            yield "torch.load without weights_only=True"
        if name.endswith(("jit.load", "hub.load", "package.PackageImporter")):
            yield name
        if name in ("np.load", "numpy.load") and given.get("allow_pickle", False) is not False:
            yield "np.load with allow_pickle"
        if name.startswith("yaml.") and "load" in name and not name.endswith(".safe_load"):
            yield name
        if name.endswith("YAML") and given.get("typ", "unsafe") != "safe":
            yield "YAML without typ='safe'"
        if name in ("eval", "exec", "os.system", "os.popen", "__import__"):
            yield name
        if given.get("shell") is True:
            yield "shell=True"


def test_nothing_that_is_read_is_run() -> None:
    assert [f"{path}: {found}" for path in SOURCES for found in unsafe((ROOT / path).read_text())] == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "import torch as t\nx.torch.load(f, map_location='cpu')",
        "import pickle",
        "from pickle import loads",
        "import cloudpickle.x",
        "np.load(f, allow_pickle=True)",
        "yaml.load(f)",
        "yaml.unsafe_load(f)",
        "YAML()",
        "YAML(typ='unsafe')",
        "eval(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "torch.hub.load('a', 'b')",
    ],
)
def test_each_unsafe_way_is_seen(source: str) -> None:
    assert list(unsafe(source))


def test_the_safe_ways_are_not() -> None:
    safe = "torch.load(f, weights_only=True)\nnp.load(f)\nYAML(typ='safe')\nyaml.safe_load(f)\nsubprocess.run(['a'])"
    assert list(unsafe(safe)) == []
    assert {"fsg/checkpoint.py", "orchestration/spec/yaml_tree.py", "tests/test_safety.py"} <= set(SOURCES)
