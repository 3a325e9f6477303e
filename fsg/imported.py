"""A user's own component, named by import path: an idea is tried without a fork of this package."""

import dataclasses
import hashlib
import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fsg.config import Settings, choice, from_dict, kind_of, setting, with_article
from fsg.constructor import Arguments, arguments_of


@dataclass(frozen=True, kw_only=True)
class Imported(Settings):
    """`module:Class`, where Class is a `Settings` of the user's, or has one nested under the name `Config`, or neither.

    `settings` are the fields of that config, or else the arguments of the constructor; `source_sha256` is the digest of
    the module's file, so that an edit of it makes another cell. Attributes that are not its own are those of the user's
    component.
    """

    name: Literal["import"] = "import"
    path: str = setting(description="Where the component is: module:Class.")
    settings: dict[str, Any] = choice(dict, "The component's own settings.")
    source_sha256: str = setting("", "SHA-256 of the module's source.")

    def resolve(self) -> Any:
        """The user's config, constructed from `settings`."""
        return from_dict(config_class(self.path), self.settings)

    def identity(self) -> dict[str, Any]:
        """With the component's own `identity=False` fields left out of its settings."""
        return super().identity() | {"settings": self.resolve().identity()}

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


def source_sha256(path: str) -> str:
    """SHA-256 of the source file of the module that holds `module:Class`."""
    source = inspect.getsourcefile(config_class(path))
    assert source is not None
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()
