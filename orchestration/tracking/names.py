"""Names of parameters and metrics as MLflow takes them, and back.

MLflow takes letters, digits and `_ - . : / ` and space, and what is no other path when it is made shorter. Every other
character, and `:` itself, is written as its number between colons: `layer1.*` is `layer1.:2a:`.
"""

import hashlib
import posixpath
import re

LONGEST = 250
_PLAIN = re.compile(r"[/\w\-. ]")


def mlflow_name(name: str) -> str:
    """A name as MLflow takes it. Of one that is too long then, the end is a digest; any other leads back."""
    written = "".join(c if _PLAIN.fullmatch(c) and not "\ud800" <= c <= "\udfff" else _number(c) for c in name) or "::"
    if posixpath.normpath(written) != written or written.startswith(("/", "..")) or written == ".":
        written = written.replace("/", _number("/")).replace(".", _number("."))
    if len(written) <= LONGEST:
        return written
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{written[: LONGEST - 20].rpartition(':')[0] or written[: LONGEST - 20]}:::{digest}"


def original_name(written: str) -> str:
    """The name that was written so."""
    return "" if written == "::" else re.sub(r":([0-9a-f]+):", lambda match: chr(int(match[1], 16)), written)


def _number(character: str) -> str:
    return f":{ord(character):x}:"
