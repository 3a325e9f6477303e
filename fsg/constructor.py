"""Settings for a class that states none: the keyword arguments of its constructor."""

import functools
import inspect
from dataclasses import Field, dataclass, fields, make_dataclass
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import nn

from fsg.config import Settings, choice, setting

_SCALARS = (bool, int, float, str)
_PLAIN = (*_SCALARS, list, tuple, dict, NoneType)


@dataclass(frozen=True, kw_only=True)
class Arguments(Settings):
    """What a constructor is called with, but for what the training gives it."""

    owner: ClassVar[Any] = None
    given: ClassVar[tuple[str, ...]] = ()
    """What the training gives, a model's `shape` and `classes` or another's `model`: "" where it is not asked for."""

    def build(self, *arguments: Any) -> Any:
        given = {name: value for name, value in zip(self.given, arguments, strict=False) if name}
        return self.owner(**given, **{field.name: self._stated(field) for field in fields(self)})

    def _stated(self, field: "Field[Any]") -> Any:
        value = getattr(self, field.name)
        return tuple(value) if tuple in (field.type, get_origin(field.type)) else value


class OfParameters(Arguments):
    """What an optimizer of torch's is called with, beside the parameters of a model that need a gradient."""

    def build(self, *arguments: Any) -> Any:
        (model,) = arguments
        stated = {field.name: self._stated(field) for field in fields(self)}
        return self.owner([parameter for parameter in model.parameters() if parameter.requires_grad], **stated)


@functools.cache
def arguments_of(owner: Any) -> type[Arguments]:
    """The arguments of a class as settings, checked by their annotations, or else by the type of their defaults.

    Raises ValueError, saying what to do, for an argument that no file of settings can state.
    """
    given = ("shape", "classes") if issubclass(owner, nn.Module) else ("model",)
    hints, stated, parameters = get_type_hints(owner.__init__), [], inspect.signature(owner).parameters
    of_parameters = issubclass(owner, torch.optim.Optimizer) and next(iter(parameters), "") == "params"
    passed = (*given, "params") if of_parameters else given
    for parameter in parameters.values():
        if parameter.name not in passed and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            stated.append(_field(owner.__qualname__, parameter, hints.get(parameter.name)))
    base = OfParameters if of_parameters else Arguments
    made: Any = make_dataclass(owner.__qualname__, stated, bases=(base,), frozen=True, kw_only=True)
    made.owner, made.__module__ = owner, owner.__module__
    made.given = given if of_parameters else tuple(name if name in parameters else "" for name in given)
    config: type[Arguments] = made
    return config


def _field(owner: str, parameter: inspect.Parameter, hint: Any) -> tuple[str, Any, Any]:
    name, default = parameter.name, parameter.default
    missing = default is parameter.empty
    if hasattr(Arguments, name):
        raise ValueError(f"{owner}: its argument {name} is called like a part of all settings (expected another name)")
    if hint is None:
        hint = Any if missing or default is None else type(default)
    hint = _stateable_part(hint)
    if parameter.kind is parameter.POSITIONAL_ONLY or (missing and hint is Any) or not _stateable(hint):
        what = "has neither an annotation nor a default" if hint is Any else "is nothing that settings can state"
        raise ValueError(f"{owner}: its argument {name} {what} (expected numbers, text, lists; or a nested Config)")
    if missing:
        return name, hint, setting() if _is_scalar(hint) else choice()
    if hint is float and isinstance(default, int):
        default = float(default)
    if isinstance(default, list | dict | Settings):
        return name, hint, choice(lambda: default)
    return name, hint, setting(default) if _is_scalar(hint) else choice(default)


def _is_scalar(hint: Any) -> bool:
    if hint is NoneType or get_origin(hint) is tuple:  # which is written as a list
        return False
    return all(kind in (*_SCALARS, NoneType) for kind in get_args(hint) or (hint,))


def _stateable_part(hint: Any) -> Any:
    """`float` of `float | Tensor`, also within a tuple; any other hint as it is."""
    parts = get_args(hint)
    if get_origin(hint) is tuple:
        of_parts: Any = tuple
        return of_parts[tuple(_stateable_part(part) for part in parts)]
    if get_origin(hint) in (Union, UnionType) and any(map(_stateable, parts)):
        return Union[tuple(part for part in parts if _stateable(part))]  # noqa: UP007  # of parts that are computed
    return hint


def _stateable(hint: Any) -> bool:
    if hint is Any or hint is Ellipsis or get_origin(hint) is Literal:
        return True
    if get_args(hint):
        return all(_stateable(part) for part in get_args(hint))
    return isinstance(hint, type) and (hint in _PLAIN or issubclass(hint, Settings))
