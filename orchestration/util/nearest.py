"""What was meant by a name that is not known."""

import difflib
from collections.abc import Iterable


def meant(wrong: str, candidates: Iterable[str]) -> list[str]:
    """The nearest candidate, or none."""
    return difflib.get_close_matches(wrong[:200], list(dict.fromkeys(candidates)), n=1)
