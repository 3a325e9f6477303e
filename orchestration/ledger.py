"""The truth on disk: a folder a cell, a folder an attempt, one writer an attempt, nothing rewritten.

    RESULTS/
      launches/0001.json, 0001-end.json      what was launched, and how that ended
      plans/0001.json                        what a plan expected of its cells
      studies/<name>/                        what was searched (`study_records`)
      trials/<cell id>/cell.json             what is trained; cell-0002.json … where its name or a path has changed
      trials/<cell id>/accepted.json         another cell, of older numerics, whose attempts count as this one's
      trials/<cell id>/0001/                 an attempt: claimed by exclusive creation, one writer for ever
        attempt.json                         who, where, resumed from what, and which earlier rows count
        rows-0000-00000010-00000200.jsonl    an immutable segment: index, first and last step; its first line seals it
        checkpoint-00000200.pt               a state to resume from ...
        checkpoint-00000200.json             ... which this seals and commits; it covers the segments it counts
        diagnostics-00000195.json            what was seen of an epoch that ended there, layer by layer
        best-00000190.pt, final.pt           the network's weights
        end.json                             how the attempt ended; it covers the segments it counts
        log.txt                              the traceback, where there was one

Every file appears whole and durable or not at all (`store` says how, on a disk and in an object store); nothing is
appended to or renamed over. Every file is sealed by a SHA-256: one that is torn or damaged is as good as absent, and
what came before it is used. What a checkpoint or the end covers is durable before there is a file of its name.

Splice. The newest attempt rules. It names the attempt and the last step whose rows were covered when it was claimed
(`rows_from`): those rows count, and its own after that step. It resumes from the newest checkpoint at or before that
step whose seal holds (`resumed_from`), so that rows that were already shown to others are neither lost nor given twice.
The claim of a folder precedes the look at what to resume from: whatever an attempt that was cut off writes later counts
for nothing, and it finds out itself (`Superseded`).

Retention. An attempt keeps its two newest checkpoints to resume from and removes the older ones. Nothing else is ever
deleted.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from orchestration import store
from orchestration.plan import Cell, orphans
from orchestration.store import Held, Unreachable, Unwritable, alive, this_process

__all__ = ["Attempt", "Held", "Ledger", "Superseded", "Unwritable", "read_sealed", "write_new", "write_sealed"]

State = Literal["waiting", "running", "done", "failed", "diverged", "interrupted", "pruned"]
CHECKPOINTS_KEPT = 2


class LedgerRow(NamedTuple):
    """Values of some metrics at a step, and when they were recorded (UTC, milliseconds)."""

    step: int
    time_ms: int
    values: dict[str, float]


class Row(Protocol):
    """What a training yields."""

    @property
    def step(self) -> int: ...
    @property
    def values(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint whose seal holds; `seconds` is the time that went into it, over all attempts."""

    attempt: int
    step: int
    path: Path
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """Where a cell stands.

    `seconds` is the time of training and evaluation over the attempts that count, `step` the last one covered;
    `damaged`: it was done, and a part of what it left is lost.
    """

    state: State
    reason: str = ""
    log: Path | None = None
    started_ms: int | None = None
    finished_ms: int | None = None
    seconds: float = 0.0
    digest: str | None = None
    attempts: int = 0
    step: int = 0
    damaged: bool = False


class Superseded(Exception):
    """A newer attempt at the same cell exists: this one's writer has to stop."""


class Ledger:
    """One experiment's folder, on a disk or in an object store (`store`). Constructing it touches nothing.

    What one such object has once found whole it does not check again.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = store.place(folder)
        self._seen: dict[Path, _View] = {}

    # cells

    def add(self, cell: Cell) -> None:
        """Enter a cell. One that is there under another name, or with its data elsewhere, gets a newer record."""
        record = cell.to_dict()
        known, versions = self._cell_record(cell.id)
        if known == json.loads(json.dumps(record)):
            return
        with suppress(FileExistsError):  # another process enters the same
            write_sealed(
                self._cell_folder(cell.id) / (f"cell-{versions + 1:04d}.json" if versions else "cell.json"), record
            )

    def cell(self, cell_id: str) -> Cell:
        """A cell by its id. Raises KeyError."""
        record, _ = self._cell_record(cell_id)
        if record is None:
            raise KeyError(cell_id)
        return Cell.from_dict(record)

    def settings_as_recorded(self, cell_id: str) -> dict[str, Any]:
        """The settings of a cell as they were written down, without those that there were not yet."""
        record, _ = self._cell_record(cell_id)
        return dict(record["train"]) if record is not None else {}

    def cells(self) -> list[Cell]:
        """Every cell that was ever entered, by id."""
        records = (self._cell_record(folder.name)[0] for folder in store.matching(self.folder / "trials", "*"))
        return [Cell.from_dict(record) for record in records if record is not None]

    def accept(self, cell: Cell, instead_of: str, record: dict[str, Any]) -> None:
        """Enter a cell for which the attempts of another, of older numerics, count; `record` says why they may.

        An attempt of its own would rule over that. Raises FileExistsError for a cell that has one.
        """
        if _attempt_numbers(self._cell_folder(cell.id)):
            raise FileExistsError(f"cell {cell.id} has attempts of its own")
        self.add(cell)
        said = record | {"accepted": instead_of, "accepted_at": _now_ms(), **this_process()}
        write_sealed(self._cell_folder(cell.id) / "accepted.json", said)

    def origin(self, cell_id: str) -> str:
        """The cell whose attempts count as a cell's: its own id, but where it was accepted in another's place."""
        seen = {cell_id}
        while not _attempt_numbers(self._cell_folder(cell_id)):
            record = read_sealed(self._cell_folder(cell_id) / "accepted.json")
            if record is None or record["accepted"] in seen:
                break
            cell_id = str(record["accepted"])
            seen.add(cell_id)
        return cell_id

    def orphans(self, planned: Sequence[Cell]) -> list[Cell]:
        """Cells of a planned one's label that are neither planned nor accepted as a planned one, or by it."""
        counted = {self.origin(cell.id) for cell in planned}
        return [cell for cell in orphans(planned, self.cells()) if self.origin(cell.id) not in counted]

    # attempts

    def claim(self, cell_id: str, record: dict[str, Any]) -> "Attempt":
        """A new attempt at a cell, this process its only writer; `record` joins `attempt.json`."""
        number = max(_attempt_numbers(self._cell_folder(cell_id)), default=0)
        while True:
            number += 1
            folder = self._cell_folder(cell_id) / f"{number:04d}"
            try:
                store.of(folder).claim(folder)
                break
            except FileExistsError:
                continue
        history = self._history(cell_id, before=number)
        resume, passed_over = history.resume_point()
        last = history.pieces[-1].view.number if history.pieces and history.reached >= 0 else None
        about = {
            "started_at": _now_ms(),
            **this_process(),
            "resumed_from": resume and {"attempt": resume.attempt, "step": resume.step, "seconds": resume.seconds},
            "passed_over": passed_over,
            "rows_from": last and {"attempt": last, "step": history.reached},
        }
        try:
            write_sealed(folder / "attempt.json", record | about)
        except Unwritable:
            with suppress(OSError):
                store.of(folder).release(
                    folder
                )  # no writer has it: an attempt without a record would hide the rows before it
            raise
        return Attempt(folder, number, resume, passed_over)

    def attempts(self, cell_id: str) -> list[dict[str, Any]]:
        """The records of the attempts at a cell, oldest first, each with its `number` and, if it ended, its `end`."""
        return [view.record | {"number": view.number, "end": view.end} for view in self._history(cell_id).views]

    def rows(self, cell_id: str, durable_only: bool = True, after: int = -1) -> list[LedgerRow]:
        """The rows of a cell after a step, spliced over its attempts: one value a (metric, step), as recorded.

        `durable_only` leaves out those that no checkpoint or end covers yet, which a death could take back; while an
        attempt is being claimed there are none.
        """
        history = self._history(cell_id)
        if durable_only and history.being_claimed:
            return []
        return [row for piece in history.pieces for row in piece.rows(durable_only, after)]

    def diagnostics(self, cell_id: str) -> list[dict[str, Any]]:
        """The tables of the epochs of a cell (`fsg.diagnostics`), spliced like its durable rows: each epoch once."""
        history = self._history(cell_id)
        if history.being_claimed:
            return []
        return [table for piece in history.pieces for table in piece.diagnostics()]

    def outcome(self, cell_id: str) -> Outcome:
        """Where a cell stands."""
        history = self._history(cell_id)
        newest = history.newest
        if newest is None:
            return self._never_tried(cell_id)
        log = newest.folder / "log.txt"
        common: dict[str, Any] = {
            "log": log if store.exists(log) else None,
            "started_ms": history.views[0].record["started_at"],
            "attempts": len(history.views),
            "step": max(history.reached, 0),
            "seconds": newest.seconds,
        }
        if newest.end is None:
            return Outcome("running" if alive(newest.record) else "interrupted", **common)
        if newest.end["state"] == "done" and not history.complete:
            return Outcome("interrupted", "a file of recorded rows is damaged", damaged=True, **common)
        if newest.end["state"] == "done" and not newest.has_weights("final.pt"):
            what = "the file of the final weights is missing or cut short"
            return Outcome("interrupted", what, damaged=True, **common)
        end = newest.end
        return Outcome(end["state"], end["reason"], finished_ms=end["ended_at"], digest=end["digest"], **common)

    def resume_point(self, cell_id: str) -> ResumePoint | None:
        """The newest checkpoint whose seal holds, and whose rows are all there."""
        return self._history(cell_id).resume_point()[0]

    def final_weights(self, cell_id: str) -> Path | None:
        """The file of the network's weights at the end of a cell that is done, if it is as it was written."""
        newest = self._history(cell_id).newest
        if newest is None or newest.end is None or newest.end["state"] != "done":
            return None
        return newest.weights("final.pt")

    def best_weights(self, cell_id: str) -> Path | None:
        """The file of the network's weights where validation was best, if it is as it was written."""
        newest = self._history(cell_id).newest
        if newest is None or newest.end is None:
            return None
        best = [name for name in newest.end["weights"] if name.startswith("best-")]
        return newest.weights(best[-1]) if best else self.final_weights(cell_id)

    # launches

    def record_launch(self, record: dict[str, Any]) -> int:
        """Keep what is launched; returns the launch's number."""
        return self._numbered("launches", record)

    def record_launch_end(self, number: int, record: dict[str, Any]) -> None:
        """Keep how a launch ended: it joins the launch's record."""
        write_sealed(self.folder / "launches" / f"{number:04d}-end.json", record)

    def record_plan(self, record: dict[str, Any]) -> None:
        """Keep what a plan expects of its cells, by id, and when it was `made`."""
        folder = self.folder / "plans"
        write_sealed(folder / f"{len(store.matching(folder, '*.json')) + 1:04d}.json", record)

    def plans(self) -> list[dict[str, Any]]:
        """What plans expected, oldest first."""
        records = (read_sealed(path) for path in store.matching(self.folder / "plans", "*.json"))
        return [record for record in records if record is not None]

    def stop_file(self, number: int) -> Path:
        """The file whose existence asks the workers of a launch to stop at a checkpoint."""
        return self.folder / "launches" / f"{number:04d}-stop"

    def launches(self) -> list[dict[str, Any]]:
        """The records of the launches, oldest first."""
        found = []
        for path in store.matching(self.folder / "launches", "[0-9]*.json"):
            record = read_sealed(path) if path.stem.isdigit() else None
            if record is not None:
                found.append(record | (read_sealed(path.with_name(f"{path.stem}-end.json")) or {}))
        return found

    def held(self) -> AbstractContextManager[None]:
        """Hold the experiment: one launch at a time. Raises Held, saying who holds it and since when."""
        return store.of(self.folder).held(self.folder)

    # reading

    def _numbered(self, kind: str, record: dict[str, Any]) -> int:
        folder = self.folder / kind
        found = (path.stem for path in store.matching(folder, "[0-9]*.json"))
        number = max((int(stem) for stem in found if stem.isdigit()), default=0)
        while True:
            number += 1
            try:
                write_sealed(folder / f"{number:04d}.json", record)
                return number
            except FileExistsError:
                continue

    def _cell_folder(self, cell_id: str) -> Path:
        return self.folder / "trials" / cell_id

    def _cell_record(self, cell_id: str) -> tuple[dict[str, Any] | None, int]:
        """The newest record of a cell that holds, and how many there are."""
        paths = sorted(
            store.matching(self._cell_folder(cell_id), "cell*.json"), key=lambda path: (len(path.name), path.name)
        )
        return next((record for path in reversed(paths) if (record := read_sealed(path)) is not None), None), len(paths)

    def _history(self, cell_id: str, before: int | None = None) -> "_History":
        folder = self._cell_folder(self.origin(cell_id) if before is None else cell_id)
        numbers = [number for number in _attempt_numbers(folder) if before is None or number < before]
        views = [self._view(folder / f"{number:04d}") for number in numbers]
        return _History([view for view in views if view is not None], bool(views) and views[-1] is None)

    def _view(self, folder: Path) -> "_View | None":
        view = _View.of(folder, self._seen.get(folder))
        if view is not None:
            self._seen[folder] = view
        return view

    def _never_tried(self, cell_id: str) -> Outcome:
        cell, _ = self._cell_record(cell_id)
        if cell is not None and cell["depends_on"]:
            before = self.outcome(cell["depends_on"])
            if before.state in ("failed", "diverged"):
                return Outcome("failed", f"its pretraining {before.state}: {before.reason}", log=before.log)
        return Outcome("waiting")


class Attempt:
    """The writing side of one attempt. `resume` is what it goes on from, if anything.

    `passed_over` names the newer checkpoints that it could not go on from, damaged as they are.
    """

    def __init__(self, folder: Path, number: int, resume: ResumePoint | None, passed_over: Sequence[str] = ()) -> None:
        self.folder, self.number, self.resume, self.passed_over = folder, number, resume, tuple(passed_over)
        self._buffer: list[LedgerRow] = []
        self._segments = 0
        self._step = resume.step if resume else 0
        self._weights: dict[str, dict[str, Any]] = {}
        self._checkpoints: list[int] = []
        self._seconds_before = resume.seconds if resume else 0.0
        self._claimed = time.monotonic()

    @property
    def log(self) -> Path:
        """Where a traceback goes."""
        return self.folder / "log.txt"

    def record(self, rows: Iterable[Row]) -> None:
        """Take rows, in memory until the next checkpoint or the end."""
        now = _now_ms()
        self._buffer += [LedgerRow(row.step, now, dict(row.values)) for row in rows]

    def checkpoint(self, state: bytes, step: int, seconds: float | None = None) -> None:
        """Make the rows durable, then a state to resume from at a step (from 1 on) that covers them.

        `seconds` is the time this attempt has trained and evaluated; without it, the time since the claim.
        Raises Superseded where a newer attempt exists.
        """
        if step < 1:
            raise ValueError(
                f"a checkpoint at step {step}, expected ≥ 1: before the first step there is nothing to keep"
            )
        if step in self._checkpoints:
            return
        self._refuse_if_superseded()
        self._flush_rows()
        self._step = step
        name = f"checkpoint-{step:08d}"
        write_new(self.folder / f"{name}.pt", state, covered=True)
        commit = {
            "step": step,
            "segments": self._segments,
            "seconds": self._total(seconds),
            "written_at": _now_ms(),
            **_seal_of(state),
        }
        write_sealed(self.folder / f"{name}.json", commit)
        self._checkpoints.append(step)
        while len(self._checkpoints) > CHECKPOINTS_KEPT:
            superseded = f"checkpoint-{self._checkpoints.pop(0):08d}"
            for suffix in (".json", ".pt"):
                store.of(self.folder).remove(self.folder / f"{superseded}{suffix}")

    def take_over(self, rows: Iterable[LedgerRow]) -> None:
        """Take rows that another cell recorded, with their times."""
        self._buffer += rows

    def diagnostics(self, table: dict[str, Any]) -> None:
        """Keep the table of an epoch; it counts once a checkpoint or the end covers its `step`."""
        write_sealed(self.folder / f"diagnostics-{table['step']:08d}.json", table, covered=True)

    def weights(self, name: str, data: bytes) -> None:
        """Keep a file of weights (`final.pt`, `best-00000190.pt`); the end seals it."""
        write_new(self.folder / name, data, covered=True)
        self._weights[name] = _seal_of(data)

    def finish(
        self,
        state: Literal["done", "failed", "diverged", "interrupted", "pruned"],
        reason: str = "",
        digest: str | None = None,
        step: int | None = None,
        seconds: float | None = None,
    ) -> None:
        """End the attempt; covers all of its rows. Raises Superseded where a newer attempt exists."""
        self._refuse_if_superseded()
        self._flush_rows()
        write_sealed(
            self.folder / "end.json",
            {
                "state": state,
                "reason": reason,
                "digest": digest,
                "step": self._step if step is None else max(step, self._step),
                "segments": self._segments,
                "seconds": self._total(seconds),
                "ended_at": _now_ms(),
                "weights": self._weights,
            },
        )

    def _total(self, seconds: float | None) -> float:
        return self._seconds_before + (time.monotonic() - self._claimed if seconds is None else seconds)

    def _flush_rows(self) -> None:
        if not self._buffer:
            return
        lines = "".join(json.dumps([row.step, row.time_ms, row.values]) + "\n" for row in self._buffer).encode()
        first, last = self._buffer[0].step, self._buffer[-1].step
        seal = json.dumps({"rows": len(self._buffer), **_seal_of(lines)}).encode() + b"\n"
        write_new(self.folder / f"rows-{self._segments:04d}-{first:08d}-{last:08d}.jsonl", seal + lines, covered=True)
        self._segments += 1
        self._step = max(self._step, last)
        self._buffer = []

    def _refuse_if_superseded(self) -> None:
        newest = max(_attempt_numbers(self.folder.parent), default=self.number)
        if newest > self.number:
            raise Superseded(f"attempt {self.number} was superseded by attempt {newest}")


# What is on disk, read


@dataclass(frozen=True)
class _View:
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
    def of(cls, folder: Path, before: "_View | None") -> "_View | None":
        """None without a record that holds. What was seen `before` is not looked at again: no file ever changes."""
        if before is not None and before.end is not None:
            return before
        record = read_sealed(folder / "attempt.json") if before is None else before.record
        if record is None:
            return None
        names = store.of(folder).names(folder)
        commits = [read_sealed(folder / n) for n in names if n.startswith("checkpoint-") and n.endswith(".json")]
        end = read_sealed(folder / "end.json")
        paths = _segment_paths(folder, names)
        held = 0 if before is None else before.segments
        while held < len(paths) and _segment_holds(paths[held]):
            held += 1
        covers = [commit for commit in [*commits, end] if commit is not None]
        covered = min(held, max((cover["segments"] for cover in covers), default=0))
        steps = [cover["step"] for cover in covers if cover["segments"] <= held]
        steps += [_last_step(paths[covered - 1])] if covered else []
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
        return path if seal and _holds(path, seal) else None

    def _seal(self, name: str) -> dict[str, Any] | None:
        return self.end["weights"].get(name) if self.end is not None else None


@dataclass(frozen=True)
class _Piece:
    """The rows of an attempt that count: those after step `after`, up to `until`."""

    view: _View
    after: int
    until: int | None

    def rows(self, durable_only: bool, after: int) -> Iterator[LedgerRow]:
        count = self.view.covered if durable_only or self.until is not None else self.view.segments
        after = max(after, self.after)
        for path in _segment_paths(self.view.folder, store.of(self.view.folder).names(self.view.folder))[:count]:
            if _last_step(path) <= after:
                continue
            for line in store.of(path).read(path).splitlines()[1:]:
                row = LedgerRow(*json.loads(line))
                if after < row.step and (self.until is None or row.step <= self.until):
                    yield row

    def diagnostics(self) -> Iterator[dict[str, Any]]:
        last = self.view.reached if self.until is None else self.until
        for path in store.matching(self.view.folder, "diagnostics-*.json"):
            counts = self.after < int(path.stem.split("-")[1]) <= last
            if counts and (table := read_sealed(path)) is not None:
                yield table


@dataclass
class _History:
    """The attempts at a cell that have a record, oldest first, and what of them counts."""

    views: list[_View]
    being_claimed: bool
    pieces: list[_Piece] = field(init=False)
    reached: int = field(init=False, default=-1)
    complete: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        by_number = {view.number: view for view in self.views}
        chain: list[_Piece] = []
        view, until = self.newest, None
        while view is not None:
            link = view.record["rows_from"]
            chain.append(_Piece(view, link["step"] if link else -1, until))
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
                self.pieces[-1] = _Piece(piece.view, piece.after, got)
                self.reached, self.complete = got, False
                return
            self.reached = got if piece.until is None else piece.until
        self.complete = self.newest is None or self.newest.intact

    @property
    def newest(self) -> _View | None:
        return self.views[-1] if self.views else None

    def resume_point(self) -> tuple[ResumePoint | None, list[str]]:
        """The newest checkpoint that can be gone on from, and the names of newer ones that are damaged."""
        damaged: list[str] = []
        for piece in reversed(self.pieces):
            for commit in sorted(piece.view.commits, key=lambda commit: -int(commit["step"])):
                step = commit["step"]
                path = piece.view.folder / f"checkpoint-{step:08d}.pt"
                if step > self.reached:
                    continue
                if commit["segments"] <= piece.view.segments and _holds(path, commit):
                    return ResumePoint(piece.view.number, step, path, commit["seconds"]), damaged
                damaged.append(f"{path.parent.name}/{path.name}")
        return None, damaged


def _segment_paths(folder: Path, names: Sequence[str]) -> list[Path]:
    """The segments of rows, as far as none is missing."""
    found = [name for name in names if name.startswith("rows-")]
    return [folder / name for index, name in enumerate(found) if int(name.split("-")[1]) == index]


def _last_step(segment: Path) -> int:
    return int(segment.stem.split("-")[3])


def _attempt_numbers(folder: Path) -> list[int]:
    return sorted(int(name) for name in store.of(folder).names(folder) if name.isdigit())


# Sealed files


def write_new(path: Path, data: bytes, covered: bool = False) -> None:
    """`Store.create`."""
    store.of(path).create(path, data, covered)


def _seal_of(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _holds(path: Path, seal: dict[str, Any]) -> bool:
    try:
        content = store.of(path).read(path)
    except Unreachable:
        raise
    except OSError:
        return False
    return len(content) == seal["size"] and _seal_of(content)["sha256"] == seal["sha256"]


def _segment_holds(path: Path) -> bool:
    try:
        head, _, body = store.of(path).read(path).partition(b"\n")
        seal = json.loads(head)
        return isinstance(seal, dict) and {key: seal.get(key) for key in ("size", "sha256")} == _seal_of(body)
    except Unreachable:
        raise
    except (OSError, ValueError):
        return False


def write_sealed(path: Path, record: dict[str, Any], covered: bool = False) -> None:
    """Write a record that says itself whether it is whole. Raises FileExistsError."""
    plain = json.loads(json.dumps(record))
    text = json.dumps(plain | {"sha256_of_record": _digest(plain)}, indent=1, ensure_ascii=False)
    write_new(path, text.encode() + b"\n", covered)


def read_sealed(path: Path) -> dict[str, Any] | None:
    """A record that is there and whole, or None."""
    try:
        record = json.loads(store.of(path).read(path))
    except Unreachable:
        raise
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict):
        return None
    seal = record.pop("sha256_of_record", None)
    return record if seal == _digest(record) else None


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
