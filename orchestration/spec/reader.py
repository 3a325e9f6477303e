"""Trees of values into the core's dataclasses: components by name or import path, overrides by dotted path."""

import dataclasses
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import ValidationError

from fsg.config import Settings, to_dict
from fsg.import_closure import refuse_hidden
from fsg.imported import Imported, closure, config_class, named
from orchestration.spec.components import KINDS, misfit
from orchestration.spec.fields import Field, Name, adapter, expected, fields, item_hint, nearest
from orchestration.spec.yaml_tree import Node, Problem, ProblemError, printable
from orchestration.util.nearest import meant
from orchestration.util.passwords import without_password
from orchestration.util.user_code import import_from

Read = tuple[Settings | None, tuple[Problem, ...]]


class Located(NamedTuple):
    """Whose fields a mapping holds; `owner` is what to call it, `imported` its import path."""

    cls: type[Settings]
    node: Node
    owner: str
    imported: str = ""

    def entries(self) -> Mapping[str, Node]:
        """The settings written down, without the import path."""
        return {key: child for key, child in self.node.items().items() if not (self.imported and key == "import")}


class NoSuchPathError(Exception):
    """An override's path that does not exist: who has no such field, and what it has instead."""

    def __init__(self, owner: str, known: Sequence[str]) -> None:
        super().__init__(owner)
        self.owner = owner
        self.known = known

    def problem(self, override: Node, path: str, valid: Iterator[str]) -> Problem:
        """`valid` are the paths among which the nearest is looked for."""
        return _no_such_field(override, self.owner, self.known, nearest(path, valid))


class Reader:
    """Reads settings; a part that many variants share is read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._imported: dict[tuple[str, str], type[Settings]] = {}
        self._located: dict[tuple[Field, Node], Located] = {}
        self._read: dict[tuple[type[Settings], Node], Read] = {}

    def read(self, at: Located) -> Read:
        """The settings, or None and every mistake in them."""
        key = (at.cls, at.node)
        if key not in self._read:
            self._read[key] = self._validated(at)
        return self._read[key]

    def locate(self, field: Field, node: Node) -> Located:
        """Which component a value means. Raises ProblemError where it means none."""
        key = (field, node)
        if key not in self._located:
            self._located[key] = self._locate(field, node)
        return self._located[key]

    def override(self, at: Located, parts: Sequence[str], new: Node) -> Node:
        """The tree with one value put at a path: a field or a component. Raises NoSuchPathError, ProblemError."""
        head, rest = parts[0], parts[1:]
        field = fields(at.cls).get(head)
        if field is None:
            raise NoSuchPathError(at.owner, list(fields(at.cls)))
        if not rest:
            return at.node.put(head, new)
        if not field.options:
            raise NoSuchPathError(head, [])
        if field.chosen and rest in (["name"], ["import"]):
            return at.node.put(head, dataclasses.replace(new, value={rest[0]: new}))
        return at.node.put(head, self.override(self._below(at, field), rest, new))

    def find(self, at: Located, parts: Sequence[str]) -> Field | None:
        """The field at a path, given the components chosen, if there is one."""
        field = fields(at.cls).get(parts[0])
        if field is None or not parts[1:]:
            return field
        try:
            return self.find(self._below(at, field), parts[1:]) if field.options else None
        except ProblemError:
            return None

    def paths(self, at: Located) -> Iterator[str]:
        """Every path that an override could take, given the components chosen. Leaves out what cannot be read."""
        for field in fields(at.cls).values():
            yield field.name
            try:
                inner = list(self.paths(self._below(at, field))) if field.options else []
            except ProblemError:
                continue
            yield from (f"{field.name}.{path}" for path in inner)

    def _below(self, at: Located, field: Field) -> Located:
        child = at.node.items().get(field.name)
        if child is None:
            known = list(fields(at.cls))
            for key, node in at.entries().items():
                if key not in known and field.name in meant(key, known):  # one misspelt name is one mistake
                    raise ProblemError(_no_such_field(node, at.owner, known, nearest(key, known)))
        return self.locate(field, child or at.node.below(field.name, field.default_value()))

    def _locate(self, field: Field, node: Node) -> Located:
        value = {"name": node} if isinstance(node.value, str) and field.chosen else node.value
        if value is None and not field.chosen:
            value = {}
        if not isinstance(value, dict):
            raise ProblemError(_wrong(node, _expected(field)))
        mapping = dataclasses.replace(node, value=value)
        if not field.chosen:
            return Located(field.options[""], mapping, field.name)
        if field.imports and "import" in value:
            return self._locate_import(field, mapping, value["import"])
        name = value.get("name")
        if name is None:
            what = f"is missing (expected one of {field.names()})"
            raise ProblemError(Problem(node.key_mark, f"{node.label}.name", what))
        if not isinstance(name.value, str) or name.value not in field.options:
            near = nearest(str(name.plain()), field.options)
            what = f"unknown {field.name} {show(name.value)} (expected one of {field.names()}{near})"
            raise ProblemError(Problem(name.mark, name.label, what))
        return Located(field.options[name.value], mapping, f"{field.name} {name.value}")

    def _locate_import(self, field: Field, mapping: Node, path: Node) -> Located:
        if not isinstance(path.value, str) or not re.fullmatch(r"[\w.]+:\w+", path.value):
            raise ProblemError(_wrong(path, "module:Class"))
        key = (field.name, path.value)
        if key not in self._imported:
            try:
                import_from(str(self.folder))
                refuse_hidden(path.value.partition(":")[0])
                cls = config_class(path.value)
                if wrong := misfit(KINDS[field.name], named(path.value), cls):
                    raise ValueError(wrong)
                adapter(cls)
                fields(cls)
                closure(path.value)
                self._imported[key] = cls
            except (Exception, SystemExit) as error:  # a user's module may do anything when it is imported
                what = reason(error)
                if "(expected " not in what:
                    what += f" (expected {_what_to_do(path.value, self.folder, error)})"
                raise ProblemError(Problem(path.mark, path.label, what)) from error
        return Located(self._imported[key], mapping, f"{field.name} {path.value}", path.value)

    def _component(self, field: Field, node: Node) -> Read:
        try:
            at = self.locate(field, node)
        except ProblemError as refused:
            return None, (refused.problem,)
        config, problems = self.read(at)
        if config is not None and at.imported:
            config = Imported.of(at.imported, to_dict(config))
        return config, problems

    def _validated(self, at: Located) -> Read:
        known = fields(at.cls)
        problems: list[Problem] = []
        values: dict[str, Any] = {
            field.name: self._with_absolute_paths(field.default)
            for field in known.values()
            if isinstance(field.default, Settings) and field.name not in at.node.items()
        }
        broken: set[str] = set()
        for key, child in at.entries().items():
            field = known.get(key)
            if field is None:
                problems.append(_no_such_field(child, at.owner, list(known), nearest(key, known)))
                broken |= set(meant(key, known))
            elif field.options and not (child.value is None and NoneType in get_args(field.hint)):
                component, found = self._component(field, child)
                problems += found
                if component is None:
                    broken.add(key)
                else:
                    values[key] = component
            elif not _is_one_of(field.hint, child.value):
                problems.append(_wrong(child, expected(field.hint)))
                broken.add(key)
            else:
                values[key] = child.plain()
        try:
            config = adapter(at.cls).validate_python(values)
        except ValidationError as error:
            for detail in error.errors(include_url=False, include_input=False, include_context=False):
                if detail["loc"]:
                    problems += _problems(at, broken, detail["loc"], detail["type"], detail["msg"])
                elif not broken:
                    problems.append(self._broken_rule(at, detail["msg"]))
            return None, tuple(problems)
        except Exception as error:  # a user's __post_init__ may raise anything
            return None, (*problems, *([] if broken else [self._broken_rule(at, reason(error))]))
        return (None, tuple(problems)) if problems else (self._with_absolute_paths(config), ())

    def _broken_rule(self, at: Located, text: str) -> Problem:
        """A rule that several fields break together stands where it was first broken: at an override, or here."""
        what = _rule(text)
        if at.node.before is not None:
            earlier = self.read(at._replace(node=at.node.before))[1]
            known = next((problem for problem in earlier if problem.what == what), None)
            if known is not None:
                return known
        changed = at.node.changed_by or at.node
        return Problem(changed.key_mark, changed.label, what, certain=False)

    def _with_absolute_paths(self, config: Settings) -> Settings:
        """A file that is beside the spec is that one; whatever else is relative, is so to the working directory."""
        absolute: dict[str, str] = {}
        for field in fields(type(config)).values():
            value = getattr(config, field.name)
            if not field.identity and value and isinstance(value, str) and get_origin(field.hint) is not Literal:
                beside = self.folder / Path(value).expanduser()
                absolute[field.name] = str(beside if beside.is_file() else Path.cwd() / Path(value).expanduser())
        return dataclasses.replace(config, **absolute) if absolute else config


def show(value: Any) -> str:
    """A value as a message quotes it."""
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    if isinstance(value, dict | list):
        return str(value) if not value else "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a huge number"
    return f"'{printable(without_password(value), 60)}'" if isinstance(value, str) else str(value)


def reason(error: BaseException) -> str:
    """What an exception says, on one line."""
    text = printable(" ".join(str(error).split()), 300)
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _what_to_do(path: str, folder: Path, error: BaseException) -> str:
    """What was expected where a module cannot be imported, or has no such class."""
    if isinstance(error, SystemExit):
        return 'a module that does not end Python when it is imported: if __name__ == "__main__":'
    module_name, _, class_name = path.partition(":")
    if module_name.endswith(".py"):
        return f"module:Class; did you mean {module_name.removesuffix('.py')}:{class_name}?"
    name = module_name.partition(".")[0]
    beside = (folder / f"{name}.py").exists() or (folder / name / "__init__.py").exists()
    file = getattr(sys.modules.get(name), "__file__", None)
    if name in sys.modules and beside and not (file and Path(file).is_relative_to(folder)):
        return f"another name for the file beside the spec: {name} is a module of {file or 'Python itself'}"
    there = vars(sys.modules[module_name]) if module_name in sys.modules else {}
    classes = [key for key, value in there.items() if isinstance(value, type)]
    return f"module:Class, installed or beside the spec{nearest(class_name, classes)}"


_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


def _is_one_of(hint: Any, value: Any) -> bool:
    """Whether a value is among those of a `Literal`, to the type; True of any other hint."""
    return get_origin(hint) is not Literal or any(
        type(value) is type(option) and value == option for option in get_args(hint)
    )


def _expected(field: Field) -> str:
    if field.options:
        return f"a name or a mapping with one: {field.names()}" if field.chosen else "a mapping"
    return expected(field.hint, field.metadata)


def _wrong(node: Node, what: str) -> Problem:
    near = nearest(node.value, what.removeprefix("one of ").split(", ")) if isinstance(node.value, str) else ""
    if isinstance(node.value, str) and "number" in what and _NUMBER.fullmatch(node.value.strip()):
        near = f"; without the quotes, {node.value.strip()} is one"
    return Problem(node.mark, node.label, f"got {show(node.value)} (expected {what}{near})")


def _no_such_field(node: Node, owner: str, known: Sequence[str], near: str) -> Problem:
    others = ", ".join(name for name in known if name != "name")
    what = f"expected one of {others}" if others else "expected no setting"
    return Problem(node.key_mark, node.label, f"{owner} has no such field ({what}{near})")


def _rule(message: str) -> str:
    return printable(message.removeprefix("Value error, ").removeprefix("Assertion failed, "), 300)


def _problems(at: Located, broken: Collection[str], loc: Sequence[str | int], kind: str, message: str) -> list[Problem]:
    """What pydantic found, with its position. A field that is missing because it is broken is left out."""
    field = fields(at.cls)[str(loc[0])]
    if kind == "missing" and len(loc) == 1:
        label = f"{at.node.label}.{field.name}" if at.node.label else field.name
        what = f"is missing (expected {_expected(field)})"
        return [] if field.name in broken else [Problem(at.node.key_mark, label, what, certain=False)]
    node, hint = at.node.items()[field.name], field.hint
    metadata: Mapping[str, Any] = field.metadata
    for part in loc[1:]:
        if part == "[key]":
            return [Problem(node.key_mark, node.label, f"not a name (expected {expected(Name)})")]
        inner, known = node.child(part), _fields_of(hint)
        if known and part not in known and inner is not None:
            return [_no_such_field(inner, node.label.split(".")[-1], list(known), nearest(str(part), known))]
        if known and kind == "missing":
            what = f"is missing (expected {_expected(known[str(part)])})"
            return [Problem(node.key_mark, f"{node.label}.{part}", what)]
        if inner is None:  # the name of a union's member
            break
        hint, metadata = (known[str(part)].hint, known[str(part)].metadata) if known else (item_hint(hint), {})
        node = inner
    if kind == "value_error":
        return [Problem(node.key_mark, node.label, _rule(message))]
    return [_wrong(node, "a mapping" if _fields_of(hint) else expected(hint, metadata))]


def _fields_of(hint: Any) -> Mapping[str, Field]:
    """The fields of a config that a list or a mapping of the user's names holds; none of anything else."""
    return fields(hint) if isinstance(hint, type) and issubclass(hint, Settings) else {}
