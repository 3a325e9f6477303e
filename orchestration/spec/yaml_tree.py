"""YAML as a tree in which every value knows where it was written."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

MAX_BYTES = 2**20
MAX_NODES = 20_000
MAX_DEPTH = 30

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + kind for kind in ("null", "bool", "int", "float", "str")}


class Mark(NamedTuple):
    """Where something was written: file, line and column from 1; line 0 where the source has no lines."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


class Problem(NamedTuple):
    """One mistake. It is `certain` where no override of something else could mend it."""

    mark: Mark
    field: str
    what: str
    certain: bool = True

    def __str__(self) -> str:
        return printable(f"{self.mark}: {self.field}: {self.what}" if self.field else f"{self.mark}: {self.what}", 2000)


class ProblemError(Exception):
    """One problem that ends the reading of its part."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """A scalar, or a `dict[str, Node]`, or a `list[Node]`; equal to itself alone, and never changed."""

    value: Any
    mark: Mark
    key_mark: Mark
    label: str
    before: "Node | None" = None
    changed_by: "Node | None" = None

    def plain(self) -> Any:
        """The value without its positions."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def items(self) -> Mapping[str, "Node"]:
        """The entries of a mapping; none of anything else."""
        return self.value if isinstance(self.value, dict) else {}

    def child(self, part: str | int) -> "Node | None":
        """What a mapping has under a key, or a list at a place."""
        if isinstance(self.value, list):
            return self.value[part] if isinstance(part, int) else None
        return self.items().get(str(part))

    def put(self, key: str, child: "Node") -> "Node":
        """A copy of this mapping with one entry set, that remembers what it was before and what changed it."""
        return replace(self, value={**self.items(), key: child}, before=self, changed_by=child.changed_by or child)

    def one(self, key: str) -> "Node":
        """A copy of this mapping with that entry alone."""
        return replace(self, value={key: self.items()[key]})

    def below(self, key: str, value: Any) -> "Node":
        """Plain data as an entry that this mapping does not have, and so stands where the mapping stands."""
        entry = Node(value, self.mark, self.key_mark, f"{self.label}.{key}")
        if not isinstance(value, dict):
            return entry
        return replace(entry, value={name: entry.below(name, child) for name, child in value.items()})


def printable(text: str, limit: int = 80) -> str:
    """Text on one line: control characters escaped, and no longer than `limit`."""
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "…"


def read_text(path: Path) -> str:
    """The text of a file. Raises ProblemError where it cannot be had, is too large or is not UTF-8."""
    start = Mark(printable(str(path), 1000), 1, 1)
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ProblemError(Problem(start, "", f"cannot be read: {reason} (expected a YAML file)")) from error
    if len(content) > MAX_BYTES:
        raise ProblemError(Problem(start, "", "the file is larger than 1 MiB (expected a spec, written by hand)"))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        mark = start._replace(line=before.count(b"\n") + 1, column=error.start - before.rfind(b"\n"))
        what = f"byte 0x{content[error.start]:02x} is not UTF-8 (expected UTF-8)"
        raise ProblemError(Problem(mark, "", what)) from error


def parse(text: str, source: Mark, label: str = "") -> tuple[Node, list[Problem]]:
    """The tree of one YAML document, and the mistakes that do not end the reading (duplicate keys, tags, nan).

    No object is constructed but null, truth values, numbers and text. Raises ProblemError where the text is no
    YAML, or unfolds to more than `MAX_NODES` values or `MAX_DEPTH` levels.
    """
    yaml = YAML(typ="safe", pure=True)
    try:
        _measure(text, source)
        root = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = _at(source, error.problem_mark or error.context_mark)
        reason = printable(" ".join(str(error.problem or error.context).split()))
        raise ProblemError(Problem(mark, label, f"not valid YAML: {reason}")) from error
    except ReaderError as error:
        before = text[: error.position]
        mark = source._replace(line=before.count("\n") + 1, column=len(before) - before.rfind("\n"))
        what = f"not valid YAML: character U+{ord(text[error.position]):04X} (expected printable text)"
        raise ProblemError(Problem(mark if source.line else source, label, what)) from error
    if root is None:
        return Node(None, _first(source), _first(source), label), []
    builder = _Builder(yaml, source)
    return builder.node(root, None, label, 0), builder.problems


def _first(source: Mark) -> Mark:
    return source._replace(line=1, column=1) if source.line else source


def _at(source: Mark, mark: Any) -> Mark:
    return source._replace(line=mark.line + 1, column=mark.column + 1) if source.line and mark else source


def _too_much(mark: Mark) -> ProblemError:
    limits = f"at most {MAX_NODES} values, {MAX_DEPTH} levels deep"
    return ProblemError(Problem(mark, "", f"the file unfolds to too much (expected {limits})"))


def _measure(text: str, source: Mark) -> None:
    """Refuse, while reading it, what would be slow to build."""
    depth = 0
    for count, event in enumerate(YAML(typ="safe", pure=True).parse(text)):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if count > 2 * MAX_NODES or depth > MAX_DEPTH:
            raise _too_much(_at(source, event.start_mark))


class _Builder:
    """Makes nodes of ruamel's, counting what aliases unfold to."""

    def __init__(self, yaml: YAML, source: Mark) -> None:
        self.constructor = yaml.constructor
        self.source = source
        self.count = 0
        self.problems: list[Problem] = []

    def node(self, raw: Any, key_mark: Mark | None, label: str, depth: int) -> Node:
        mark = _at(self.source, raw.start_mark)
        self.count += 1
        if self.count > MAX_NODES or depth > MAX_DEPTH:
            raise _too_much(mark)
        value: Any
        if isinstance(raw, MappingNode) and raw.tag == _TAG + "map":
            value = self.mapping(raw, label, depth)
        elif isinstance(raw, SequenceNode) and raw.tag == _TAG + "seq":
            value = [self.node(item, None, f"{label}[{i}]", depth + 1) for i, item in enumerate(raw.value)]
        else:
            empty = isinstance(raw, ScalarNode) and raw.value == "" and raw.tag == _TAG + "null"
            mark = key_mark if empty and key_mark else mark
            value = self.scalar(raw, mark, label)
        return Node(value, mark, key_mark or mark, label)

    def mapping(self, raw: MappingNode, label: str, depth: int) -> dict[str, Node]:
        children: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for raw_key, raw_value in raw.value:
            key_mark = _at(self.source, raw_key.start_mark)
            if raw_key.tag == _TAG + "merge":
                merged = {**self.merged(raw_value, label, depth), **merged}
                continue
            if not isinstance(raw_key, ScalarNode):
                self.problems.append(Problem(key_mark, label, "a key is a list or a mapping (expected text)"))
                continue
            key = raw_key.value
            key_label = f"{label}.{printable(key)}" if label else printable(key)
            if key in children:
                first = children[key].key_mark
                at = f"first at line {first.line}, column {first.column}" if first.line else "already given"
                self.problems.append(Problem(key_mark, key_label, f"duplicate key, {at} (expected each key once)"))
                continue
            children[key] = self.node(raw_value, key_mark, key_label, depth + 1)
        return {**merged, **children}

    def merged(self, raw: Any, label: str, depth: int) -> dict[str, Node]:
        """What `<<` brings into a mapping: another's entries, or those of several, of which the first wins."""
        found: dict[str, Node] = {}
        for one in raw.value if isinstance(raw, SequenceNode) else [raw]:
            mark = _at(self.source, one.start_mark)
            self.count += 1
            if self.count > MAX_NODES or depth > MAX_DEPTH:
                raise _too_much(mark)
            if not isinstance(one, MappingNode):
                self.problems.append(Problem(mark, label, "<< is no mapping (expected one, or a list of some)"))
                continue
            found = {**self.mapping(one, label, depth + 1), **found}
        return found

    def scalar(self, raw: Any, mark: Mark, label: str) -> Any:
        if raw.tag == _TAG + "timestamp":
            return raw.value
        if not isinstance(raw, ScalarNode) or raw.tag not in _SCALARS:
            tag = printable(raw.tag.replace(_TAG, "!!"))
            self.problems.append(Problem(mark, label, f"tag {tag} (expected a value without a tag)"))
            return None
        try:
            value = self.constructor.construct_object(raw, deep=True)
        except (ValueError, OverflowError, YAMLError):
            value = math.nan
        if isinstance(value, float) and not math.isfinite(value):
            self.problems.append(Problem(mark, label, f"got {printable(raw.value, 40)} (expected a finite number)"))
            return None
        if isinstance(value, str) and _CONTROL.search(value):
            what = f"got '{printable(value, 60)}' (expected text without control characters)"
            self.problems.append(Problem(mark, label, what))
            return None
        return value
