"""Which files a user's component consists of: told by what is written here, and never by running it."""

import itertools
import re
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from fsg.import_closure import import_closure
from fsg.imported import Imported, edited, source_sha256

_COUNT = itertools.count()
COMPONENT = """
from dataclasses import dataclass
from fsg import STE
from fsg.config import setting

class Mine(STE):
    @dataclass(frozen=True, kw_only=True)
    class Config(STE.Config):
        table: str = setting("", "A file.")
        def build(self, model):
            return Mine(model, self)
"""
Write = Callable[..., str]


def named(text: str, prefix: str) -> str:
    """With the prefix in place of the N that words begin with."""
    return re.sub(r"\bN", prefix, text)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes files, with N for a prefix that no other test has, and returns the prefix."""
    known, prefix = set(sys.modules), f"closure{next(_COUNT)}_"
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    def written(files: dict[str, str]) -> str:
        for name, text in files.items():
            path = tmp_path / named(name, prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(named(text, prefix))
        return prefix

    yield written
    for name in set(sys.modules) - known:
        if name.startswith("closure"):
            del sys.modules[name]


RAISES = "raise RuntimeError('was run')\n"
CLOSURES: dict[str, tuple[dict[str, str], str, list[str]]] = {
    "one file": ({"Na.py": "import os, numpy\n"}, "Na", ["Na.py"]),
    "a helper, and its own": (
        {"Na.py": "import Nb\n", "Nb.py": "from Nc import x\n", "Nc.py": "x = 1\n", "Nd.py": "x = 1\n"},
        "Na",
        ["Na.py", "Nb.py", "Nc.py"],
    ),
    "a circle": ({"Na.py": "import Nb\n", "Nb.py": "import Na\n"}, "Na", ["Na.py", "Nb.py"]),
    "inside a function, and for type checkers": (
        {
            "Na.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import Nc\ndef f():\n    import Nb\n",
            "Nb.py": RAISES,
            "Nc.py": RAISES,
        },
        "Na",
        ["Na.py", "Nb.py", "Nc.py"],
    ),
    "by name": (
        {
            "Na.py": "from importlib import import_module\ndef f():\n    import_module('Nb'); __import__('Nc')\n",
            "Nb.py": RAISES,
            "Nc.py": RAISES,
        },
        "Na",
        ["Na.py", "Nb.py", "Nc.py"],
    ),
    "a package, whose __init__ imports": (
        {"Na.py": "import Np.sub.b\n", "Np/__init__.py": "from . import c\n", "Np/c.py": "x = 1\n",
         "Np/sub/__init__.py": "y = 1\n", "Np/sub/b.py": "z = 1\n", "Np/d.py": "x = 1\n"},
        "Na",
        ["Na.py", "Np/__init__.py", "Np/c.py", "Np/sub/__init__.py", "Np/sub/b.py"],
    ),
    "within a package, relative": (
        {"Np/__init__.py": "", "Np/a.py": "from .b import x\nfrom . import c\ndef f():\n    from ... import d\n",
         "Np/b.py": "from .sub import e\nx = 1\n", "Np/c.py": "x = 1\n", "Np/sub/e.py": "from ..f import x\n",
         "Np/f.py": "x = 1\n"},
        "Np.a",
        ["Np/a.py", "Np/b.py", "Np/c.py", "Np/f.py", "Np/sub/e.py"],
    ),
    "a package as the component": (
        {"Np/__init__.py": "from .a import x\n", "Np/a.py": "x = 1\n"}, "Np", ["Np/__init__.py", "Np/a.py"],
    ),
    "everything of a package": (
        {"Na.py": "from Np import *\n", "Np/__init__.py": "__all__ = ['b']\n", "Np/b.py": "x = 1\n"},
        "Na",
        ["Na.py", "Np/__init__.py", "Np/b.py"],
    ),
    "a folder without __init__": ({"Na.py": "import Np.b\n", "Np/b.py": "x = 1\n"}, "Na", ["Na.py", "Np/b.py"]),
    "a helper that cannot be parsed": (
        {"Na.py": "def f():\n    import Nb\n", "Nb.py": "def (\n"}, "Na", ["Na.py", "Nb.py"],
    ),
    "what is not there": ({"Na.py": "try:\n    import Nb\nexcept ImportError:\n    pass\n"}, "Na", ["Na.py"]),
}  # fmt: skip


def _is(name: str, module: str) -> bool:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") == module


@pytest.mark.parametrize(("files", "module", "expected"), CLOSURES.values(), ids=CLOSURES.keys())
def test_closure_is_every_file_that_may_be_imported_and_no_other(
    write: Write, tmp_path: Path, files: dict[str, str], module: str, expected: list[str]
) -> None:
    prefix = write(files)
    found = import_closure(named(module, prefix))
    assert sorted(found.files) == [named(name, prefix) for name in expected]
    assert next(iter(found.files)) == named(next(name for name in expected if _is(name, module)), prefix)
    assert all(path == tmp_path / name for name, path in found.files.items())
    assert found.root == tmp_path


def test_libraries_are_named_and_a_file_that_only_bears_a_library_s_name_is_none_of_the_closure(
    write: Write, tmp_path: Path
) -> None:
    """What is loaded under that name already, is what the component gets."""
    shadows = {f"{name}.py": RAISES for name in ("queue", "numpy", "types")}
    prefix = write({"Na.py": "import queue, types, numpy.linalg\nfrom scipy import stats\nimport fsg\n", **shadows})
    found = import_closure(f"{prefix}a")
    assert list(found.files) == [f"{prefix}a.py"]
    assert found.libraries == {"numpy", "scipy"}


def test_a_file_whose_name_only_the_library_has_not_loaded_is_the_users_where_it_comes_first(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module of the standard library that nothing has imported: on this path, the user's is the one."""
    monkeypatch.delitem(sys.modules, "this", raising=False)
    prefix = write({"Na.py": "def f():\n    import this\n", "this.py": "x = 1\n"})
    assert sorted(import_closure(f"{prefix}a").files) == [f"{prefix}a.py", "this.py"]


def component(write: Write, **files: str) -> str:
    prefix = write({"Na.py": COMPONENT + "import Nb\n", "Nb.py": "FACTOR = 1.0\n"} | files)
    return f"{prefix}a:Mine"


def test_identity_of_one_file_is_what_it_was_before_other_files_counted(write: Write, tmp_path: Path) -> None:
    prefix = write({"Na.py": COMPONENT})
    path = f"{prefix}a:Mine"
    digest = sha256((tmp_path / f"{prefix}a.py").read_bytes()).hexdigest()
    own = Imported.of(path, {})
    assert own.files_sha256 == {}
    assert own.identity() == {
        "name": "import",
        "path": path,
        "settings": own.resolve().identity(),
        "source_sha256": digest,
    }
    assert own.identity() == Imported(path=path, source_sha256=source_sha256(path)).identity()


def test_another_file_is_part_of_the_identity_and_an_edit_of_it_is_named(write: Write, tmp_path: Path) -> None:
    path = component(write)
    helper = f"{path.partition('a:')[0]}b.py"
    before = Imported.of(path, {})
    assert before.files_sha256 == {helper: sha256(b"FACTOR = 1.0\n").hexdigest()}
    assert edited(before) == []
    (tmp_path / helper).write_text("FACTOR = -1.\n")
    assert edited(before) == [helper]
    after = Imported.of(path, {})
    assert after.identity() != before.identity()
    assert after.source_sha256 == before.source_sha256
    (tmp_path / helper).unlink()
    del sys.modules[helper.removesuffix(".py")]
    assert edited(before) == [helper], "one that is gone"


def test_a_file_that_appears_is_an_edit(write: Write, tmp_path: Path) -> None:
    prefix = write({"Na.py": COMPONENT + "try:\n    import Nfast\nexcept ImportError:\n    pass\n"})
    before = Imported.of(f"{prefix}a:Mine", {})
    assert before.files_sha256 == {}
    write({"Nfast.py": "x = 1\n"})
    assert edited(before) == [f"{prefix}fast.py"]


def test_what_was_not_recorded_is_not_held_against_a_component(write: Write) -> None:
    path = component(write)
    old = Imported(path=path, source_sha256=source_sha256(path))
    assert edited(old) == []
    assert edited(Imported(path=path, source_sha256="0" * 64)) == [f"{path.partition(':')[0]}.py"]


def test_class_and_config_in_other_files_are_covered(write: Write, tmp_path: Path) -> None:
    prefix = write(
        {"Na.py": "from Nclass import Mine\n", "Nclass.py": "from Nconf import Conf\nclass Mine:\n    Config = Conf\n",
         "Nconf.py": COMPONENT.replace("class Mine", "class Other") + "Conf = Other.Config\n"}
    )  # fmt: skip
    before = Imported.of(f"{prefix}a:Mine", {})
    for name in ("class", "conf"):
        file = tmp_path / f"{prefix}{name}.py"
        text = file.read_text()
        file.write_text(text + "# edited\n")
        assert edited(before) == [f"{prefix}{name}.py"]
        file.write_text(text)


def test_a_data_file_that_a_setting_names_counts_by_its_contents(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the module, whatever the working directory; a word that is a file's name by chance is none."""
    prefix = write({"Na.py": COMPONENT, "tables/one.txt": "1", "word": "x"})
    path = f"{prefix}a:Mine"
    own = Imported.of(path, {"table": "tables/one.txt"})
    assert own.files_sha256 == {"tables/one.txt": sha256(b"1").hexdigest()}
    assert own.resolve().table == str(tmp_path / "tables/one.txt")
    assert own.identity()["settings"]["table"] == "tables/one.txt"
    (tmp_path / "tables/one.txt").write_text("2")
    assert edited(own) == ["tables/one.txt"]
    assert Imported.of(path, {"table": "word"}).files_sha256 == {}
    assert Imported.of(path, {"table": "absent.txt"}).resolve().table == "absent.txt"


def test_numbers_among_the_settings_are_known_without_the_component() -> None:
    own = Imported(path="nowhere_to_be_found:Mine", settings={"validation": 60, "flip": False, "file": "x.npz"})
    assert (own.validation, own.flip) == (60, False)
    with pytest.raises(ValueError, match="cannot import"):
        own.file  # noqa: B018
