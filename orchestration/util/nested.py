"""Nested settings by their dotted paths."""

import json
from typing import Any


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings by their dotted paths, as text: text as it is, the rest as JSON."""
    named: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            named |= flatten(value, f"{prefix}{key}.")
        else:
            named[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return named
