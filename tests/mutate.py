"""Runs the mutations of `tests/mutations.md`: each plants one mistake in a copy of the code, and a test must fail.

    python tests/mutate.py [NAME …]     all of them, or those whose name contains one of the words

Prints a line a mutation, and `N passed, N failed`. Exit status: 0 all were found, 1 some were not, 2 one no longer
applies.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_name("mutations.md")
_BLOCK = re.compile(
    r"^### (?P<name>[^\n]+)\n+`(?P<file>[^`\n]+)` · (?P<tests>[^\n]+)\n+```diff\n(?P<diff>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
TESTS_FAILED = 1  # pytest's exit status


class Mutation(NamedTuple):
    """One planted mistake: `old` text of a file becomes `new`, and one of the test selections must notice it."""

    name: str
    file: str
    tests: tuple[str, ...]
    old: str
    new: str


def read(text: str) -> list[Mutation]:
    """The mutations of a list. Raises ValueError where a heading has no complete block."""
    found = []
    for match in _BLOCK.finditer(text):
        lines = match["diff"].splitlines()
        old, new = ("\n".join(line[1:] for line in lines if line.startswith(sign)) for sign in "-+")
        tests = tuple(re.findall(r"`([^`]+)`", match["tests"]))
        found.append(Mutation(match["name"].strip(), match["file"], tests, old, new))
    if len(found) != len(re.findall("^### ", text, re.MULTILINE)):
        raise ValueError(
            f"{len(found)} blocks are complete, of {len(re.findall('^### ', text, re.MULTILINE))} headings"
        )
    return found


def mutated(source: str, mutation: Mutation) -> str:
    """A file's text with the mistake in it. Raises ValueError unless the old text is there exactly once."""
    count = source.count(mutation.old)
    if count != 1:
        raise ValueError(f"{mutation.name}: its old text is {count} times in {mutation.file} (expected once)")
    return source.replace(mutation.old, mutation.new)


def is_found(mutation: Mutation, folder: Path) -> bool:
    """Whether a test fails with the mistake planted in a copy of the project; the copy is left as it was."""
    path = folder / mutation.file
    before = path.read_text()
    path.write_text(mutated(before, mutation))
    environment = os.environ | {"PYTHONPATH": str(folder), "TRITON_INTERPRET": "1"}  # as `make test-accelerator` does
    try:
        return any(
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pytest",
                    "-q",
                    "-x",
                    "-p",
                    "no:xdist",
                    "-p",
                    "no:cacheprovider",
                    *_words(tests),
                ],
                cwd=folder,
                env=environment,
                capture_output=True,
                check=False,
            ).returncode
            == TESTS_FAILED
            for tests in mutation.tests
        )
    finally:
        path.write_text(before)


def _words(tests: str) -> list[str]:
    """`tests/x.py -m slow -k "a or b"` as arguments."""
    return [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', tests)]


def copy(folder: Path) -> Path:
    """The project's files in a folder."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, target)
    return folder


def main(words: Sequence[str]) -> int:
    mutations = read(LIST.read_text())
    chosen = [one for one in mutations if not words or any(word in one.name for word in words)]
    missed = 0
    with tempfile.TemporaryDirectory(prefix="fsg-mutations-") as made:
        folder = copy(Path(made) / "project")
        for mutation in chosen:
            try:
                found = is_found(mutation, folder)
            except (OSError, ValueError) as error:
                print(error)
                return 2
            missed += not found
            print(f"{'found' if found else 'MISSED':<7} {mutation.file}: {mutation.name}", flush=True)
    print(f"{len(chosen) - missed} passed, {missed} failed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
