"""The attempts at one cell, read from the disk and merged: which rows count, and where to resume."""

import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from orchestration.ledger import store
from orchestration.ledger.names import ATTEMPT, COMMIT, DIAGNOSTICS, SEGMENT, among, matches
from orchestration.ledger.sealed import holds, read_sealed, seal_of
from orchestration.ledger.stores.errors import Unreachable


class LedgerRow(NamedTuple):
    """Values of some metrics at a step, and when they were recorded (UTC, milliseconds)."""

    step: int
    time_ms: int
    values: dict[str, float]


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint whose seal holds; `seconds` is the time that went into it, over all attempts."""

    attempt: int
    step: int
    path: Path
    seconds: float = 0.0


@dataclass(frozen=True)
class AttemptView:
    """An attempt as it lies on the disk; `segments` counts the leading ones whose seals hold."""

    folder: Path
    number: int
    record: dict[str, Any]
    segments: int
    commits: list[dict[str, Any]]
    end: dict[str, Any] | None
    covered: int
    reached: int

    @classmethod
    def of(cls, folder: Path, before: "AttemptView | None") -> "AttemptView | None":
        """None without a record that holds. What was seen `before` is not looked at again: no file ever changes."""
        if before is not None and before.end is not None:
            return before
        record = attempt_record(folder) if before is None else before.record
        if record is None:
            return None
        end = attempt_end(folder)
        names = store.of(folder).names(folder)  # after the end is read: what it counts is there by then
        commits = [read_sealed(folder / match[0], "step", "segments", "seconds") for match in among(names, COMMIT)]
        paths = segment_paths(folder, names)
        held = 0 if before is None else before.segments
        while held < len(paths) and segment_holds(paths[held]):
            held += 1
        covers = [commit for commit in [*commits, end] if commit is not None]
        covered = min(held, max((cover["segments"] for cover in covers), default=0))
        steps = [cover["step"] for cover in covers if cover["segments"] <= held]
        steps += [last_step(paths[covered - 1])] if covered else []
        kept = [commit for commit in commits if commit is not None]
        return cls(folder, int(folder.name), record, held, kept, end, covered, max(steps, default=-1))

    @property
    def intact(self) -> bool:
        return self.end is None or self.end["segments"] <= self.segments

    @property
    def seconds(self) -> float:
        before = (self.record["resumed_from"] or {}).get("seconds", 0.0)
        covers = [*self.commits, *([] if self.end is None else [self.end])]
        return float(max([cover["seconds"] for cover in covers if cover["segments"] <= self.segments], default=before))

    def has_weights(self, name: str) -> bool:
        seal, path = self._seal(name), self.folder / name
        return bool(seal and store.of(path).size(path) == seal["size"])

    def weights(self, name: str) -> Path | None:
        seal, path = self._seal(name), self.folder / name
        return path if seal and holds(path, seal) else None

    def _seal(self, name: str) -> dict[str, Any] | None:
        return self.end["weights"].get(name) if self.end is not None else None


@dataclass(frozen=True)
class Piece:
    """The rows of an attempt that count: those after step `after`, up to `until`."""

    view: AttemptView
    after: int
    until: int | None

    def rows(self, durable_only: bool, after: int) -> Iterator[LedgerRow]:
        count = self.view.covered if durable_only or self.until is not None else self.view.segments
        after = max(after, self.after)
        for path in segment_paths(self.view.folder, store.of(self.view.folder).names(self.view.folder))[:count]:
            if last_step(path) <= after:
                continue
            for line in store.of(path).read(path).splitlines()[1:]:
                row = LedgerRow(*json.loads(line))
                if after < row.step and (self.until is None or row.step <= self.until):
                    yield row

    def diagnostics(self) -> Iterator[dict[str, Any] | None]:
        """The tables of its epochs; None for one that is damaged."""
        last = self.view.reached if self.until is None else self.until
        for match in matches(self.view.folder, DIAGNOSTICS):
            if self.after < int(match[1]) <= last:
                yield read_sealed(self.view.folder / match[0])


@dataclass
class History:
    """The attempts at a cell that have a record, oldest first, and what of them counts."""

    views: list[AttemptView]
    being_claimed: bool
    pieces: list[Piece] = field(init=False)
    reached: int = field(init=False, default=-1)
    complete: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        by_number = {view.number: view for view in self.views}
        chain: list[Piece] = []
        view, until = self.newest, None
        while view is not None:
            link = view.record["rows_from"]
            chain.append(Piece(view, link["step"] if link else -1, until))
            if link is None:
                break
            view, until = by_number.get(link["attempt"]), link["step"]
            self.complete = self.complete and view is not None
        self.pieces = []
        if not self.complete:
            return
        for piece in reversed(chain):
            self.pieces.append(piece)
            got = max(piece.view.reached, piece.after)
            if piece.until is not None and got < piece.until:
                self.pieces[-1] = Piece(piece.view, piece.after, got)
                self.reached, self.complete = got, False
                return
            self.reached = got if piece.until is None else piece.until
        self.complete = self.newest is None or self.newest.intact

    @property
    def newest(self) -> AttemptView | None:
        return self.views[-1] if self.views else None

    def resume_point(self, unreadable: Collection[Path] = ()) -> tuple[ResumePoint | None, list[str]]:
        """The newest checkpoint that can be gone on from, and the names of newer ones that are damaged.

        Those that are whole and `unreadable` are passed over like damaged ones.
        """
        damaged: list[str] = []
        for piece in reversed(self.pieces):
            for commit in sorted(piece.view.commits, key=lambda commit: -int(commit["step"])):
                step = commit["step"]
                path = piece.view.folder / f"checkpoint-{step:08d}.pt"
                if step > self.reached:
                    continue
                if path not in unreadable and commit["segments"] <= piece.view.segments and holds(path, commit):
                    return ResumePoint(piece.view.number, step, path, commit["seconds"]), damaged
                damaged.append(f"{path.parent.name}/{path.name}")
        return None, damaged


def attempt_record(folder: Path) -> dict[str, Any] | None:
    """The record of an attempt, if it holds and is one at the cell whose folder it lies in."""
    record = read_sealed(folder / "attempt.json", "started_at", "rows_from", "resumed_from")
    return record if record is not None and record.get("cell", folder.parent.name) == folder.parent.name else None


def attempt_end(folder: Path) -> dict[str, Any] | None:
    """How an attempt ended, if that is recorded and holds."""
    return read_sealed(folder / "end.json", "state", "digest", "step", "segments", "seconds", "weights")


def segment_paths(folder: Path, names: Sequence[str]) -> list[Path]:
    """The segments of rows, as far as none is missing."""
    found = {int(match[1]): folder / match[0] for match in among(names, SEGMENT)}
    return [found[index] for index in itertools.takewhile(found.__contains__, itertools.count())]


def last_step(segment: Path) -> int:
    return int(segment.stem.split("-")[3])


def attempt_numbers(folder: Path) -> list[int]:
    return sorted(int(match[1]) for match in matches(folder, ATTEMPT))


def segment_holds(path: Path) -> bool:
    try:
        head, _, body = store.of(path).read(path).partition(b"\n")
        seal = json.loads(head)
        return isinstance(seal, dict) and {key: seal.get(key) for key in ("size", "sha256")} == seal_of(body)
    except Unreachable:
        raise
    except (OSError, ValueError):
        return False
