"""The writing side of one attempt at a cell: rows, checkpoints, weights, and how it ended."""

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from orchestration.ledger import store
from orchestration.ledger.history import LedgerRow, ResumePoint, attempt_numbers
from orchestration.ledger.sealed import seal_of, write_new, write_sealed
from orchestration.util.clock import now_ms

CHECKPOINTS_KEPT = 2


class Row(Protocol):
    """What a training yields."""

    @property
    def step(self) -> int: ...
    @property
    def values(self) -> dict[str, float]: ...


class Superseded(Exception):
    """A newer attempt at the same cell exists: this one's writer has to stop."""


class Attempt:
    """The writing side of one attempt. `resume` is what it goes on from, if anything.

    `passed_over` names the newer checkpoints that it could not go on from, damaged as they are. `launch` is the number
    of its launch, where it has one.
    """

    def __init__(
        self,
        folder: Path,
        number: int,
        resume: ResumePoint | None,
        passed_over: Sequence[str] = (),
        launch: int | None = None,
    ) -> None:
        self.folder, self.number, self.resume, self.passed_over = folder, number, resume, tuple(passed_over)
        self.launch = launch
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
        now = now_ms()
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
            "written_at": now_ms(),
            **seal_of(state),
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
        self._weights[name] = seal_of(data)

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
                "launch": self.launch,
                "digest": digest,
                "step": self._step if step is None else max(step, self._step),
                "segments": self._segments,
                "seconds": self._total(seconds),
                "ended_at": now_ms(),
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
        seal = json.dumps({"rows": len(self._buffer), **seal_of(lines)}).encode() + b"\n"
        write_new(self.folder / f"rows-{self._segments:04d}-{first:08d}-{last:08d}.jsonl", seal + lines, covered=True)
        self._segments += 1
        self._step = max(self._step, last)
        self._buffer = []

    def _refuse_if_superseded(self) -> None:
        newest = max(attempt_numbers(self.folder.parent), default=self.number)
        if newest > self.number:
            raise Superseded(f"attempt {self.number} was superseded by attempt {newest}")
