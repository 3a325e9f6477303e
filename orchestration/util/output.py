"""What a program prints, wherever that goes: a terminal of any encoding, a pipe that closes, nowhere at all.

No output ends or fails anything: what cannot be shown is replaced, and what nobody reads any more is dropped. Control
characters of what is printed are escaped, so that a file's text cannot speak to the terminal.
"""

import io
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


def escaped(text: str) -> str:
    """Text with its control characters as escapes, but for line breaks and tabs."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _SPEAKING else _escape(c) for c in text)


_SPEAKING = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, direction marks, halves of characters, other line breaks


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode()


class Unfailing(io.TextIOBase):
    """A stream that takes everything; once it cannot be written to, that goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
        except UnicodeError:
            encoding = self.encoding or "ascii"
            self.write(text.encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError):  # gone, full or closed
            self._lead_nowhere()
        return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError):
            self._lead_nowhere()

    def isatty(self) -> bool:
        try:
            return self.stream.isatty()
        except (OSError, ValueError):
            return False

    def fileno(self) -> int:
        return self.stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.stream.errors

    @property
    def buffer(self) -> Any:
        return self.stream.buffer

    def _lead_nowhere(self) -> None:
        """What is still in the stream's buffer must not fail either, when Python ends."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
            self.stream.flush()


class Escaping(Unfailing):
    """An unfailing stream for plain text, whose control characters are escaped; `plain` is the one behind it."""

    def __init__(self, plain: Unfailing) -> None:
        super().__init__(plain.stream)
        self.plain = plain

    def write(self, text: str | bytes) -> int:
        """Bytes as well: what completes the words of a shell writes them."""
        self.plain.write(escaped(text if isinstance(text, str) else text.decode(errors="replace")))
        return len(text)


@contextmanager
def unfailing_output() -> Iterator[None]:
    """Within, the standard output and the standard error are unfailing and escaping."""
    before = sys.stdout, sys.stderr
    nowhere = open(os.devnull, "w", encoding="utf-8") if None in before else None  # noqa: SIM115  # a closed descriptor
    sys.stdout, sys.stderr = (Escaping(Unfailing(stream or nowhere)) for stream in before)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
