"""The spec as it was resolved, defaults and all: what one training is, and how each other one differs."""

import io
from collections.abc import Iterable, Mapping
from typing import Any

from ruamel.yaml import YAML

from orchestration.spec.resolver import line_name


def resolved_text(spec: Mapping[str, Any], variant: str) -> str:
    """A recorded spec as YAML: `train` is the variant's, and `differences` are those of each line of the table."""
    points = spec["points"]
    first = next((point for point in points if point["variant"] == variant), points[0] if points else None)
    shown = {
        name: value for name, value in spec.items() if name not in ("points", "studies") and value not in (None, {})
    }
    if first is not None:
        shown["train"] = first["train"]
        others = [point for point in points if point is not first]
        shown["differences"] = {
            line_name(point["variant"], point["grid"]): dict(_differences(first["train"], point["train"]))
            for point in others
        }
    shown |= {"studies": spec["studies"]} if spec.get("studies") else {}
    yaml, text = YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style = None  # what holds no mapping stands on one line
    yaml.width = 10_000
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(shown, text)
    return text.getvalue()


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], way: str = "") -> Iterable[tuple[str, Any]]:
    """Paths of settings that differ, with the other's values; a component of another name as a whole."""
    for name, value in theirs.items():
        own = ours.get(name)
        if value == own:
            continue
        if isinstance(value, Mapping) and isinstance(own, Mapping) and value.get("name") == own.get("name"):
            yield from _differences(own, value, f"{way}{name}.")
        else:
            yield f"{way}{name}", value
