"""A user's own component, named by import path: an idea is tried without a fork of this package."""

import hashlib
import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fsg.config import Settings, choice, from_dict, setting


@dataclass(frozen=True, kw_only=True)
class Imported(Settings):
    """`module:Class`, where Class is a `Settings` of the user's, or has one nested under the name `Config`.

    `settings` are the fields of that config; `source_sha256` is the digest of the module's file, so that an
    edit of it makes another cell. Attributes that are not its own are those of the user's component.
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

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(self.resolve(), attribute)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.resolve()(*arguments, **keywords)


def config_class(path: str) -> type[Settings]:
    """The config class behind `module:Class`.

    Raises ValueError, saying what was looked for, where the path is malformed or leads to no settings.
    """
    module_name, _, class_name = path.partition(":")
    if not module_name or not class_name:
        raise ValueError(f"import path {path!r}, expected module:Class")
    try:
        owner = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import {path!r}: {error}") from error
    found = getattr(owner, "Config", owner)
    if not (isinstance(found, type) and issubclass(found, Settings)):
        raise ValueError(f"{path!r} is neither a fsg.config.Settings nor a class with one nested as Config")
    return found


def source_sha256(path: str) -> str:
    """SHA-256 of the source file of the module that holds `module:Class`."""
    source = inspect.getsourcefile(config_class(path))
    assert source is not None
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()
