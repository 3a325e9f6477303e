"""The import closure of a user's module: the user's own files that it consists of, found without running them.

What lies in the standard library or in `site-packages` is not the user's own; of the latter the names are kept.
"""

import ast
import functools
import importlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from pathlib import Path
from typing import NamedTuple

_THIS_PROJECT = {"fsg", "orchestration"}  # whose sources a launch records as a whole
_DYNAMIC = {"import_module", "__import__"}


class Closure(NamedTuple):
    """Files by their names relative to the folder that they are imported from, the module's own first.

    `root` is the folder that the module itself is imported from; `libraries` are what is installed, by top-level name.
    """

    files: dict[str, Path]
    root: Path
    libraries: frozenset[str]


class Source(NamedTuple):
    """A module's file, and the folder that it is imported from."""

    file: Path
    root: Path


class _Module(NamedTuple):
    """Where a module of the user's is: its file, if it has one, the folders of its submodules, and its root."""

    file: Path | None
    folders: tuple[Path, ...]
    root: Path


def import_closure(module: str) -> Closure:
    """The closure of a module that can be imported. Empty files are left out; a module that is installed is alone.

    Raises ImportError where it has no file.
    """
    importlib.invalidate_caches()
    own, root = source_file(module)
    files, libraries = {own.relative_to(root).as_posix(): own}, set[str]()
    if is_installed(own):
        return Closure(files, root, frozenset({module.partition(".")[0]}))
    for _, found in _modules(module, libraries):
        if found is not None and found.file is not None and found.file.read_bytes().strip():
            files.setdefault(found.file.relative_to(found.root).as_posix(), found.file)
    return Closure(files, root, frozenset(libraries))


def refuse_hidden(module: str) -> None:
    """Raises ValueError where a module, or one that it imports, is not the user's file of that name, but a library."""
    importlib.invalidate_caches()
    folders = _users_folders()
    for name, found in _modules(module, set()):
        if found is None and (own := _hidden(name.removesuffix(".*"), folders)):
            head = name.partition(".")[0]
            what = f"{own.name} in {own.parent} is hidden by the module {head} of Python or of a package"
            raise ValueError(f"{what} (expected another name: rename {own.name})")


def _modules(module: str, libraries: set[str]) -> Iterator[tuple[str, _Module | None]]:
    """A module and all that it may import, each once; None for what is not the user's."""
    waiting, seen = [module], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        found = _located(name, libraries)
        yield name, None if name.endswith(".*") and found else found
        if found is None:
            continue
        if name.endswith(".*"):
            waiting += _submodules(name[:-2], found)
        elif found.file is not None:
            package = name if found.folders else name.rpartition(".")[0]
            waiting += [above for one in _imports(found.file.read_bytes(), package) for above in _with_parents(one)]
        waiting += _with_parents(name)


def _users_folders() -> dict[Path, set[str]]:
    """The folders on `sys.path` that hold no libraries, and the names in each, up to their first dot."""
    found: dict[Path, set[str]] = {}
    for folder in (Path(path).resolve() for path in sys.path):
        if not _is_library(folder):
            with suppress(OSError):  # what is not there, or no folder
                found[folder] = {name.partition(".")[0] for name in os.listdir(folder)}
    return found


def _hidden(name: str, folders: dict[Path, set[str]]) -> Path | None:
    """A file of the user's by the name of a module, where that is another: of Python's own, or installed."""
    spec = _spec(name.partition(".")[0])
    if spec is None or not (_is_library(_place(spec)) or spec.name in _THIS_PROJECT):
        return None
    used = [Path(folder).resolve() for folder in spec.submodule_search_locations or ()]
    if place := _place(spec):
        used.append(place.resolve())
    for folder in (folder for folder, names in folders.items() if spec.name in names):
        for below in (folder / spec.name, folder.joinpath(*name.split("."))):
            ends = ("/__init__.py", *EXTENSION_SUFFIXES, ".py")
            own = next((file for end in ends if (file := Path(f"{below}{end}")).is_file()), None)
            if own and not _is_library(own) and not any(own.is_relative_to(one) for one in used):
                return own.parent if own.name == "__init__.py" else own
    return None


def source_file(module: str) -> Source:
    """Where a module that can be imported lies. Raises ImportError where it has no file."""
    file = Path(importlib.import_module(module).__file__ or "")
    if not file.is_file():
        raise ImportError(f"module {module!r} has no file")
    return Source(file, file.parents[len(module.split(".")) - (file.stem != "__init__")])


def _with_parents(name: str) -> list[str]:
    """`a`, `a.b` and `a.b.c` of `a.b.c`: to import one runs the packages above it."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _located(name: str, libraries: set[str]) -> _Module | None:
    """Where a module of the user's lies; None for any other, whose name joins `libraries` where it is installed."""
    head, *rest = name.removesuffix(".*").split(".")
    if head in _THIS_PROJECT:
        return None
    spec = _spec(head)
    if spec is None:
        return None
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    folders = tuple(map(Path, spec.submodule_search_locations or ()))
    place = _place(spec)
    if place is None or _is_library(place):
        if place is not None and is_installed(place):
            libraries.add(head)
        return None
    found: _Module | None = _Module(file, folders, folders[0].parent if folders else place.parent)
    for part in rest:
        found = found and _below(found, part)
    return found


def _spec(head: str) -> ModuleSpec | None:
    """Of a top-level module; what is imported already counts: that is what is used. None: what is not there."""
    try:
        return importlib.util.find_spec(head)
    except (ImportError, ValueError):
        return None


def _place(spec: ModuleSpec) -> Path | None:
    """A module's file, or else its first folder; None of what is built into Python."""
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    return Path(spec.origin) if spec.has_location and spec.origin else next(iter(folders), None)


def _is_library(place: Path | None) -> bool:
    """Whether a module there is Python's own, or installed."""
    return place is None or place.is_relative_to(sysconfig.get_path("stdlib")) or is_installed(place)


def is_installed(path: Path) -> bool:
    """Whether a file was installed, as packages are."""
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts)


def _below(package: _Module, part: str) -> _Module | None:
    for folder in package.folders:
        inner = folder / part
        if (inner / "__init__.py").is_file():
            return _Module(inner / "__init__.py", (inner,), package.root)
        for suffix in (*EXTENSION_SUFFIXES, ".py"):
            if (file := folder / f"{part}{suffix}").is_file():
                return _Module(file, (), package.root)
        if inner.is_dir():
            return _Module(None, (inner,), package.root)
    return None


def _submodules(name: str, package: _Module) -> list[str]:
    """What `from name import *` may import."""
    return [f"{name}.{path.stem}" for folder in package.folders for path in sorted(folder.glob("*.py"))]


@functools.cache
def _imports(source: bytes, package: str) -> tuple[str, ...]:
    """Every module that a source may import, wherever that stands: what follows `from … import` may be one as well."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a compiled extension, or a file that nothing can import
        return ()
    return tuple(dict.fromkeys(name for node in ast.walk(tree) for name in _imported_by(node, package)))


def _imported_by(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        with suppress(ImportError):  # beyond the top-level package
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and node.args:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        name = node.args[0]
        if called in _DYNAMIC and isinstance(name, ast.Constant) and isinstance(name.value, str):
            with suppress(ImportError):
                yield importlib.util.resolve_name(name.value, package)
