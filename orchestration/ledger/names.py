"""What the files of a ledger are called. What is called otherwise is not the ledger's: it is named, and passed over.

A name counts to the letter: a copy that a file manager made (`… copy.jsonl`), notes and digits of other scripts do not.
Hidden files are not looked at.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestration.ledger import store

CELL = re.compile(r"[0-9a-f]{16}")
CELL_RECORD = re.compile(r"cell(?:-([0-9]{4,}))?\.json")
ATTEMPT = re.compile(r"([0-9]{4,})")
SEGMENT = re.compile(r"rows-([0-9]{4,})-([0-9]{8,})-([0-9]{8,})\.jsonl")
COMMIT = re.compile(r"checkpoint-([0-9]{8,})\.json")
DIAGNOSTICS = re.compile(r"diagnostics-([0-9]{8,})\.json")
LAUNCH = re.compile(r"([0-9]{1,6})\.json")
OF_LAUNCH = re.compile(r"([0-9]{1,6})(\.json|-end\.json|-stop|-log\.txt)")
PLAN = re.compile(r"([0-9]{4,})\.json")
AGAIN = r"(?:-again-[0-9]{4,})?"  # written once more, as the record of that name was damaged
TRIAL = re.compile(rf"([0-9]{{6,}})(?:-(end|rung-[0-9]{{4,}}))?{AGAIN}\.json")
CHOICE = re.compile(r"choice-([0-9]{4,})\.json")

_OF_CELL = re.compile(rf"{CELL_RECORD.pattern}|accepted\.json|{ATTEMPT.pattern}")
_OF_ATTEMPT = re.compile(
    rf"(?:attempt|end)\.json|log\.txt|.*\.pt|{SEGMENT.pattern}|{COMMIT.pattern}|{DIAGNOSTICS.pattern}"
)


def matches(folder: Path, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    """The names in a folder that a pattern matches as a whole, in their order."""
    return among(store.of(folder).names(folder), pattern)


def among(names: Sequence[str], pattern: re.Pattern[str]) -> list[re.Match[str]]:
    """Those of some names that a pattern matches as a whole, in their order."""
    found = (pattern.fullmatch(name) for name in names)
    return [match for match in found if match is not None]


def next_number(folder: Path, pattern: re.Pattern[str]) -> int:
    """One more than the highest number that a name has; 1 where there is none."""
    return max((int(match[1]) for match in matches(folder, pattern)), default=0) + 1


def strays(folder: Path) -> list[str]:
    """What lies among the records of an experiment's folder and is not its own, relative to that folder."""
    found = [*_others(folder / "launches", OF_LAUNCH), *_others(folder / "plans", PLAN)]
    for study in _within(folder / "studies"):
        found += _others(study / "trials", TRIAL)
        found += [path for path in _others(study, CHOICE) if path.name.startswith("choice")]
    trials = folder / "trials"
    found += _others(trials, CELL)
    for cell in (trials / match[0] for match in matches(trials, CELL)):
        found += _others(cell, _OF_CELL)
        for attempt in (cell / match[0] for match in matches(cell, ATTEMPT)):
            found += [attempt] if attempt.is_file() else _others(attempt, _OF_ATTEMPT)
    return [path.relative_to(folder).as_posix() for path in found]


def _within(folder: Path) -> list[Path]:
    return [folder / name for name in store.of(folder).names(folder) if not name.startswith(".")]


def _others(folder: Path, pattern: re.Pattern[str]) -> Iterator[Path]:
    return (path for path in _within(folder) if not pattern.fullmatch(path.name))
