"""The JSON Schema of spec files, from which an editor completes and checks them."""

import inspect
import re
from collections.abc import Iterator
from types import NoneType
from typing import Any, get_args

from fsg.config import Settings
from fsg.train_config import TrainConfig
from orchestration.spec.fields import Field, SpecFile, adapter, component_name, fields, once_a_class, paths
from orchestration.spec.search_config import Entry

Schema = dict[str, Any]

_OWN: Schema = {"description": "A setting of a component of your own."}
_IMPORT: Schema = {
    "description": "A component of your own: a module beside the spec, and its class; its settings beside them.",
    "type": "object",
    "properties": {"import": {"type": "string", "pattern": r"^[\w.]+:\w+$"}},
    "required": ["import"],
}


def json_schema() -> Schema:
    """A draft-07 schema of `configs/*.yaml`. It is no stricter than `load_spec`."""
    train = _by_path(TrainConfig)
    definitions = {_title(cls): _config(cls) for cls in _configs(SpecFile)}
    spec = definitions.pop(_title(SpecFile))
    name = spec["properties"]["name"]["pattern"]
    of_train = {path: _ref(f"train.{path}") for path in train}
    of_spec = {
        path: schema for path, schema in _by_path(SpecFile).items() if not path.startswith(("train", "profiles"))
    }

    definitions |= {f"train.{path}": schema for path, schema in train.items()}
    definitions["import"] = _IMPORT
    definitions["variant"] = _overrides(of_train, {_imports(): _OWN})
    definitions["variants"] = _named(name, _ref("variant")) | {"minProperties": 1}
    definitions[_title(Entry)] = _config(Entry)
    space = {path: _entry_of_a_space(one) for path, one in of_train.items()}
    definitions["space"] = _overrides(space, {_imports(): _entry_of_a_space(_OWN)}) | {"minProperties": 1}
    for section in ("Search", "Tuning"):
        definitions[section]["properties"]["space"] = _ref("space")
    lists = {path: {"type": "array", "items": one, "minItems": 1} for path, one in of_train.items()}
    definitions["grid"] = _overrides(lists, {_imports(): _OWN | {"type": "array", "minItems": 1}})
    definitions["profile"] = _overrides(
        of_spec
        | {"train": _ref(_title(TrainConfig)), "variants": _ref("variants"), "grid": _ref("grid")}
        | {f"train.{path}": one for path, one in of_train.items()},
        {
            _imports("train."): _OWN,
            r"^variants\.": {},
            r"^grid\.": {"type": "array", "minItems": 1},
            r"^(search|tuning)\.space\.": {},
        },
    )
    spec["properties"] |= {
        "variants": _ref("variants"),
        "grid": _ref("grid"),
        "profiles": _named(name, _ref("profile")),
    }
    without_search = ["variants", "report"]
    spec["required"] = [name for name in spec["required"] if name not in without_search]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "fsg spec",
        **spec,
        "anyOf": [{"required": ["search"]}, {"required": without_search}],
        "definitions": definitions,
    }


def _entry_of_a_space(one: Schema) -> Schema:
    """Choices of what may stand at a path, or a range."""
    return {"anyOf": [{"type": "array", "items": one, "minItems": 1}, _ref(_title(Entry))]}


def _ref(definition: str) -> Schema:
    return {"$ref": f"#/definitions/{definition}"}


def _named(pattern: str, values: Schema) -> Schema:
    return {"type": ["object", "null"], "propertyNames": {"pattern": pattern}, "additionalProperties": values}


def _configs(cls: type[Settings]) -> Iterator[type[Settings]]:
    yield cls
    for field in fields(cls).values():
        for option in field.options.values():
            yield from _configs(option)


def _title(cls: type[Settings]) -> str:
    return cls.__qualname__.removesuffix(".Config")


def _config(cls: type[Settings]) -> Schema:
    """A config in full: its fields, and the name that tells it from others."""
    name = component_name(cls)
    own = {field.name: _field(cls, field) for field in fields(cls).values() if field.name != "name" or not name}
    return {
        "description": inspect.cleandoc(cls.__doc__ or "").split("\n")[0],
        "type": "object",
        "properties": ({"name": {"const": name}} if name else {}) | own,
        "required": (["name"] if name else []) + _required(cls),
        "additionalProperties": False,
    }


@once_a_class
def _pydantic(cls: type[Settings]) -> Schema:
    return adapter(cls).json_schema()


def _required(cls: type[Settings]) -> list[str]:
    return list(_pydantic(cls).get("required", ()))


def _field(cls: type[Settings], field: Field) -> Schema:
    description = {"description": field.metadata.get("description", "")}
    if field.chosen:
        alone = [name for name, option in field.options.items() if not _required(option)]
        configs = [_ref(_title(option)) for option in field.options.values()]
        own = [_ref("import")] if field.imports else []
        default = {"default": component_name(type(field.default))} if isinstance(field.default, Settings) else {}
        return description | default | {"anyOf": [{"enum": alone}, *configs, *own]}
    if field.options:
        config = _ref(_title(field.options[""]))
        return {"anyOf": [config, {"type": "null"}]} if NoneType in get_args(field.hint) else config
    leaf: Schema = _inlined(_pydantic(cls)["properties"][field.name], _pydantic(cls).get("$defs", {}))
    return description | {key: value for key, value in leaf.items() if key not in ("title", "discriminator")}


def _inlined(schema: Any, definitions: Schema) -> Any:
    """A schema with what it refers to in the references' place."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rsplit("/", 1)[-1]]
    return {key: _inlined(value, definitions) for key, value in schema.items() if key not in ("title", "discriminator")}


def _by_path(cls: type[Settings]) -> dict[str, Schema]:
    """What may stand at each dotted path, whichever components are chosen on the way."""
    found: dict[str, list[Schema]] = {}
    for path, owner, field in paths(cls):
        schemas = [(path, _field(owner, field))]
        if field.chosen:
            schemas.append((f"{path}.name", {"enum": list(field.options)}))
        for at, schema in schemas:
            if schema not in found.setdefault(at, []):
                found[at].append(schema)
    return {path: schemas[0] if len(schemas) == 1 else {"anyOf": schemas} for path, schemas in found.items()}


def _imports(prefix: str = "") -> str:
    """A pattern of the paths below components that may be of the user's own."""
    names = sorted({path for path, _, field in paths(TrainConfig) if field.imports})
    return rf"^{re.escape(prefix)}({'|'.join(map(re.escape, names))})\."


def _overrides(properties: dict[str, Schema], patterns: dict[str, Schema]) -> Schema:
    return {
        "type": ["object", "null"],
        "properties": properties,
        "patternProperties": patterns,
        "additionalProperties": False,
    }
