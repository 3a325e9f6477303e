"""Settings: frozen dataclasses that check themselves, and that a validator can read without this package importing it.

Every component states its settings as a frozen dataclass derived from `Settings`. The bounds live in the
field's metadata, in pydantic's vocabulary (`ge`, `gt`, `le`, `lt`, `strict`, `discriminator`, `description`), so
that a YAML file and a notebook are held to the same ones.
"""

import dataclasses
import functools
import numbers
import operator
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

_BOUNDS = {"ge": (operator.ge, "≥"), "gt": (operator.gt, ">"), "le": (operator.le, "≤"), "lt": (operator.lt, "<")}


Identity = bool | Literal["unless_default"]


def setting(
    default: Any = dataclasses.MISSING, description: str = "", *, identity: Identity = True, **constraints: Any
) -> Any:
    """A number, text or truth value among the fields of a `Settings`: its type is held strictly (no `true` for 1).

    `identity` says whether the field is part of a training's id. False: it changes no number (a folder, say).
    "unless_default": for new fields whose default reproduces old behaviour; defaults do not enter the id.
    """
    return choice(default, description, identity=identity, strict=True, **constraints)


def choice(
    default: Any = dataclasses.MISSING, description: str = "", *, identity: Identity = True, **constraints: Any
) -> Any:
    """A field that is one of several: a `Literal`, or a union of configs with `discriminator="name"`."""
    metadata = {"description": description, "identity": identity, **constraints}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings: unknown names are refused; numbers, choices and bounds are checked on construction.

    Raises ValueError with the field, its value and the valid range.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        kind: Any = type(self)
        hints = _hints(kind)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if expected := _unfit(value, hints.get(field.name)):
                raise ValueError(f"{type(self).__qualname__}: {field.name} is {value!r}, expected {expected}")
            for bound, (holds, sign) in _BOUNDS.items():
                limit = field.metadata.get(bound)
                if limit is not None and isinstance(value, int | float) and not holds(value, limit):
                    raise ValueError(f"{type(self).__qualname__}: {field.name} is {value!r}, expected {sign} {limit}")

    def identity(self) -> dict[str, Any]:
        """The settings that determine numbers: `to_dict` without the fields whose `identity` says that they do not."""
        named: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value, counts = getattr(self, field.name), field.metadata.get("identity", True)
            if counts is True or (counts == "unless_default" and value != _default(field)):
                named[field.name] = value.identity() if isinstance(value, Settings) else value
        return named


def _default(field: "dataclasses.Field[Any]") -> Any:
    return field.default_factory() if callable(field.default_factory) else field.default


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except NameError:  # a class of a user's, in a function say: its own names cannot be found from here
        return {}


def _unfit(value: Any, hint: Any) -> str | None:
    """What was expected of a number or a choice, `Literal[…]`, that is none; None for what is well."""
    if get_origin(hint) is Literal:
        fits = any(value == option and type(value) is type(option) for option in get_args(hint))
        return None if fits else f"one of {', '.join(map(as_written, get_args(hint)))}"
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [kind for kind in options if kind is not type(None)]
    if kinds not in ([int], [float]) or (value is None and len(kinds) < len(options)):
        return None
    whole = kinds == [int]
    fits = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
    return None if fits else "a whole number" if whole else "a number"


def as_written(option: Any) -> str:
    """An option as a YAML file has it."""
    return str(option).lower() if isinstance(option, bool) else str(option)


def to_dict(config: Settings) -> dict[str, Any]:
    """The settings as plain mappings, lists and scalars, in the order of the fields."""
    return {name: _plain(value) for name, value in dataclasses.asdict(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def from_dict(cls: type[Settings], values: dict[str, Any]) -> Settings:
    """The inverse of `to_dict`: a nested mapping becomes the settings of that `name` among the field's types.

    Raises TypeError for an unknown field, KeyError for an unknown name, ValueError for a value out of range.
    """
    hints = get_type_hints(cls)

    def restored(field: str, value: Any) -> Any:
        types = get_args(hints.get(field)) or (hints.get(field),)
        options = {t.name: t for t in types if isinstance(t, type) and issubclass(t, Settings) and hasattr(t, "name")}
        return from_dict(options[value["name"]], value) if options and isinstance(value, dict) else value

    return cls(**{field: restored(field, value) for field, value in values.items()})


def with_article(name: str) -> str:
    """A class's name in a sentence: a Mine, an Optimizer."""
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def kind_of(value: Any) -> str:
    """What a value is, in a sentence: a list, nothing."""
    return "nothing" if value is None else with_article(type(value).__name__)
