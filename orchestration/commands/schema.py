"""`fsg schema`: the JSON Schema of spec files."""

import json

from orchestration.commands.exit_status import DONE
from orchestration.spec.json_schema import json_schema


def schema() -> int:
    """Print the schema. Returns the exit status."""
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return DONE
