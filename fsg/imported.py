"""A user's own component, named by import path: an idea is tried without a fork of this package."""

import dataclasses
import hashlib
import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fsg.config import Settings, choice, from_dict, kind_of, setting, with_article
from fsg.constructor import Arguments, arguments_of
from fsg.import_closure import Closure, import_closure, source_file

_folders: list[Path] = []  # in which the files that settings name are looked for first


@dataclass(frozen=True, kw_only=True)
class Imported(Settings):
    """`module:Class`, where Class is a `Settings` of the user's, or has one nested under the name `Config`, or neither.

    `settings` are the fields of that config, or else the arguments of the constructor. `source_sha256` is the digest of
    the module's file, `files_sha256` those of every other file of the user's that it consists of, so that an edit makes
    another cell: what it imports, and the data files that its settings name. None: not recorded, as before these
    counted. Attributes that are not its own are those of the user's component.
    """

    name: Literal["import"] = "import"
    path: str = setting(description="Where the component is: module:Class.")
    settings: dict[str, Any] = choice(dict, "The component's own settings.")
    source_sha256: str = setting("", "SHA-256 of the module's source.")
    files_sha256: dict[str, str] | None = choice(None, "SHA-256 of its other files, by name.", identity=False)

    @classmethod
    def of(cls, path: str, settings: dict[str, Any]) -> "Imported":
        """The component as its files are now."""
        own, *others = digests(path, settings).items()
        return cls(path=path, settings=settings, source_sha256=own[1], files_sha256=dict(others))

    def resolve(self) -> Any:
        """The user's config, constructed from `settings`; the relative path of a file is that of one of `places`."""
        return from_dict(config_class(self.path), _located(self.settings, places(self.path)))

    def identity(self) -> dict[str, Any]:
        """With the component's own `identity=False` fields left out of its settings; other files, where there are."""
        others = {"files_sha256": self.files_sha256} if self.files_sha256 else {}
        return super().identity() | {"settings": from_dict(config_class(self.path), self.settings).identity()} | others

    def build(self, *arguments: Any) -> Any:
        """The component. Raises ValueError where its config builds something else than the class that is named."""
        owner, config = named(self.path), self.resolve()
        built = config.build(*arguments)
        if not issubclass(owner, Settings) and not isinstance(built, owner):
            what = f"{type(config).__qualname__} builds {kind_of(built)}, not {with_article(owner.__name__)}"
            raise ValueError(f"{what} (expected a Config nested in {owner.__name__} whose build returns one)")
        return built

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        known = self.settings.get(attribute)  # a report is read where the component cannot be imported
        if isinstance(known, bool | int | float):
            return known
        config = self.resolve()
        return getattr(config if hasattr(config, attribute) else _used(config), attribute)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return _used(self.resolve())(*arguments, **keywords)


def _used(config: Settings) -> Any:
    """What is asked for a quantizer's or a schedule's functions: the settings themselves, unless they have a class."""
    return config.build() if isinstance(config, Arguments) and not any(config.given) else config


def named(path: str) -> type:
    """The class behind `module:Class`. Raises ValueError where the path is malformed or leads to no class."""
    module_name, _, class_name = path.partition(":")
    if not module_name or not class_name:
        raise ValueError(f"import path {path!r}, expected module:Class")
    try:
        owner = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import {path!r}: {error}") from error
    if not isinstance(owner, type):
        raise ValueError(f"{path!r} is {kind_of(owner)}, expected a class")
    return owner


def config_class(path: str) -> type[Settings]:
    """The config class behind `module:Class`: itself, its `Config`, or the arguments of its constructor.

    A `Config` that it inherits counts unless it has a constructor of its own, for which that was not made.
    Raises ValueError, saying what was looked for, where the path is malformed or leads to no settings.
    """
    owner: Any = named(path)
    if issubclass(owner, Settings):
        return _declared(owner)
    classes = owner.mro()
    of_config = next((i for i, one in enumerate(classes) if "Config" in vars(one)), None)
    of_constructor = next(i for i, one in enumerate(classes) if "__init__" in vars(one))
    if of_config is None or of_constructor < of_config:
        return arguments_of(owner)
    found = owner.Config
    if not (isinstance(found, type) and issubclass(found, Settings)):
        raise ValueError(f"{path!r} has a Config that is no fsg.config.Settings (expected one, or none)")
    return _declared(found)


def _declared(config: type[Settings]) -> type[Settings]:
    """Raises ValueError where the decorator is missing that makes annotations fields."""
    known = {field.name for field in dataclasses.fields(config)}
    for name, hint in inspect.get_annotations(config).items():
        if name not in known and "ClassVar" not in str(hint):
            what = f"{config.__qualname__} is no dataclass, so {name} is none of its settings"
            raise ValueError(f"{what} (expected @dataclass(frozen=True, kw_only=True) above it)")
    return config


def closure(path: str) -> Closure:
    """The files of the module that holds `module:Class`, and what they import."""
    config_class(path)
    return import_closure(_module(path))


def _module(path: str) -> str:
    return path.partition(":")[0]


def look_first_in(*folders: str) -> None:
    """Say where, from here on, the relative paths in settings begin: for an experiment, beside its spec."""
    _folders[:] = map(Path, folders)


def places(path: str) -> list[Path]:
    """The folders that a component's relative paths are looked for in, in order; the last is the working directory."""
    return list(dict.fromkeys([*_folders, source_file(_module(path)).root, Path.cwd()]))


def files(path: str, settings: Mapping[str, Any]) -> dict[str, Path]:
    """Every file of the user's that a component consists of, by name, the module's own first.

    A data file is called by its path from the folder of the spec or of the module, or as it is written, from the
    working directory; one that lies elsewhere by its last part. Images have a fingerprint of their own.
    """
    found = closure(path)
    names = dict(found.files)
    if hasattr(config_class(path), "fingerprint"):
        return names
    for value in _leaves(settings):
        if file := _file(value, places(path)):
            name = _name(value, file, [found.root, *_folders])
            names.setdefault(value if names.get(name, file) != file else name, file)
    return names


def _name(value: str, file: Path, folders: Sequence[Path]) -> str:
    for folder in folders:
        if file.is_relative_to(folder):
            return file.relative_to(folder).as_posix()
    elsewhere = Path(value).is_absolute() or value.startswith("~") or ".." in Path(value).parts
    return file.name if elsewhere else Path(value).as_posix()


def digests(path: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of each of `files`."""
    found = {}
    for name, file in files(path, settings).items():
        with file.open("rb") as stream:
            found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def source_sha256(path: str) -> str:
    """SHA-256 of the source file of the module that holds `module:Class`."""
    config_class(path)
    return hashlib.sha256(source_file(_module(path)).file.read_bytes()).hexdigest()


def edited(own: Imported) -> list[str]:
    """The names of a component's files that are not as they were recorded."""
    now = digests(own.path, own.settings)
    first = next(iter(now))
    if own.files_sha256 is None:  # nothing was recorded but the file of the class that has the settings
        return [] if own.source_sha256 in now.values() else [first]
    then = {first: own.source_sha256} | own.files_sha256
    return sorted(name for name in {*then, *now} if then.get(name) != now.get(name))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _leaves(inner)
    else:
        yield value


def _file(value: Any, folders: Sequence[Path]) -> Path | None:
    """The file that a setting names, in the first folder that has it. A mere word names none."""
    if not isinstance(value, str) or not Path(value).suffix:
        return None
    try:
        files = [folder / Path(value).expanduser() for folder in folders]
        return next((file.resolve() for file in files if file.is_file()), None)
    except (OSError, RuntimeError, ValueError):  # too long for a name, nobody's home, or with a zero byte
        return None


def _located(value: Any, folders: Sequence[Path]) -> Any:
    """Settings with each relative path of a file made absolute."""
    if isinstance(value, Mapping):
        return {name: _located(inner, folders) for name, inner in value.items()}
    if isinstance(value, list):
        return [_located(inner, folders) for inner in value]
    file = _file(value, folders)
    return value if file is None else str(file)
