"""The ledger: the source of truth on disk. A folder a cell, a folder an attempt, one writer an attempt.

    RESULTS/
      launches/0001.json, 0001-end.json      what was launched, and how that ended
      plans/0001.json                        what a plan expected of its cells
      studies/<name>/                        what was searched (`study_records`)
      trials/<cell id>/cell.json             what is trained; cell-0002.json … where its name or a path has changed
      trials/<cell id>/accepted.json         another cell, of older numerics, whose attempts count as this one's
      trials/<cell id>/0001/                 an attempt: claimed by exclusive creation, one writer only
        attempt.json                         who, where, resumed from what, and which earlier rows count
        rows-0000-00000010-00000200.jsonl    an immutable segment: index, first and last step; its first line seals it
        checkpoint-00000200.pt               a state to resume from ...
        checkpoint-00000200.json             ... which this seals and commits; it covers the segments it counts
        diagnostics-00000195.json            the diagnostics of the epoch that ended there, layer by layer
        best-00000190.pt, final.pt           the network's weights
        end.json                             how the attempt ended, in which launch; it covers the segments it counts
        log.txt                              the traceback, if there was one

Every file appears whole and durable, or not at all (`store` explains how, on a disk and in an object store). Nothing is
appended to or renamed over. Every file carries its SHA-256: a torn or damaged file counts as absent, and what came
before it is used. What a checkpoint or the end covers is durable before the file of that name exists.

Merging attempts. The newest attempt wins. `rows_from` names the previous attempt and its last durable step; earlier
rows come from there, later rows from the new attempt. It resumes from the newest intact checkpoint at or before that
step (`resumed_from`), so rows that were shown already are neither lost nor repeated. A folder is claimed before its
writer looks for a checkpoint: what a cut-off attempt writes later does not count, and that attempt notices it
(`Superseded`).

Retention. An attempt keeps its two newest checkpoints and removes the older ones. Nothing else is ever deleted.
"""

import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestration.ledger import store
from orchestration.ledger.attempt import Attempt
from orchestration.ledger.history import AttemptView, History, LedgerRow, ResumePoint, attempt_numbers, attempt_record
from orchestration.ledger.launches import LaunchRecords
from orchestration.ledger.names import CELL_RECORD, matches
from orchestration.ledger.outcome import Outcome
from orchestration.ledger.sealed import read_sealed, write_sealed
from orchestration.ledger.stores.errors import Unwritable
from orchestration.ledger.stores.lock import alive, this_process
from orchestration.spec.cells import Cell, orphans
from orchestration.spec.fields import OtherVersion
from orchestration.util.clock import now_ms


class Ledger(LaunchRecords):
    """One experiment's folder, on a disk or in an object store (`store`). Constructing it touches nothing.

    A file that it has found whole is not checked again.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__(folder)
        self._seen: dict[Path, AttemptView] = {}

    # cells

    def add(self, cell: Cell) -> None:
        """Enter a cell. One that is there under another name, or with its data elsewhere, gets a newer record."""
        record = cell.to_dict()
        known, newest = self._cell_record(cell.id)
        if known == json.loads(json.dumps(record)):
            return
        with suppress(FileExistsError):  # another process enters the same
            write_sealed(
                self._cell_folder(cell.id) / (f"cell-{newest + 1:04d}.json" if newest else "cell.json"), record
            )

    def cell(self, cell_id: str) -> Cell:
        """A cell by its id. Raises KeyError."""
        found = self.find(cell_id)
        if found is None:
            raise KeyError(cell_id)
        return found

    def find(self, cell_id: str) -> Cell | None:
        """A cell by its id; None where there is none. Raises OtherVersion."""
        record, _ = self._cell_record(cell_id)
        return None if record is None else self._read(cell_id, record)

    def settings_as_recorded(self, cell_id: str) -> dict[str, Any]:
        """The settings of a cell as they were written down, without those that there were not yet."""
        record, _ = self._cell_record(cell_id)
        return dict(record["train"]) if record is not None else {}

    def cells(self) -> list[Cell]:
        """Every cell that was ever entered, by id. Raises OtherVersion."""
        names = [folder.name for folder in store.matching(self.folder / "trials", "*")]
        return [cell for cell in map(self.find, names) if cell is not None]

    def _read(self, cell_id: str, record: dict[str, Any]) -> Cell:
        try:
            return Cell.from_dict(record)
        except OtherVersion as error:
            raise OtherVersion(f"{self._cell_folder(cell_id)}: {error}") from None

    def accept(self, cell: Cell, instead_of: str, record: dict[str, Any]) -> None:
        """Enter a cell for which the attempts of another, of older numerics, count; `record` says why they may.

        An attempt of its own would rule over that. Raises FileExistsError for a cell that has one.
        """
        if attempt_numbers(self._cell_folder(cell.id)):
            raise FileExistsError(f"cell {cell.id} has attempts of its own")
        self.add(cell)
        said = record | {"accepted": instead_of, "accepted_at": now_ms(), **this_process()}
        write_sealed(self._cell_folder(cell.id) / "accepted.json", said)

    def origin(self, cell_id: str) -> str:
        """The cell whose attempts count as a cell's: its own id, but where it was accepted in another's place."""
        seen = {cell_id}
        while not attempt_numbers(self._cell_folder(cell_id)):
            record = read_sealed(self._cell_folder(cell_id) / "accepted.json", "accepted")
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

    def claim(self, cell_id: str, record: dict[str, Any], unreadable: Collection[Path] = ()) -> Attempt:
        """A new attempt at a cell, this process its only writer; `record` joins `attempt.json`, and names its `launch`.

        `unreadable` are checkpoints that it shall not go on from.
        """
        number = max(attempt_numbers(self._cell_folder(cell_id)), default=0)
        while True:
            number += 1
            folder = self._cell_folder(cell_id) / f"{number:04d}"
            try:
                store.of(folder).claim(folder)
                break
            except FileExistsError:
                continue
        history = self._history(cell_id, before=number)
        resume, passed_over = history.resume_point(unreadable)
        last = history.pieces[-1].view.number if history.pieces and history.reached >= 0 else None
        record = {"launch": self.launch} | record
        about = {
            "cell": cell_id,
            "started_at": now_ms(),
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
        return Attempt(folder, number, resume, passed_over, record["launch"])

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
        return [table for table in self.diagnostics_or_damage(cell_id) if table is not None]

    def diagnostics_or_damage(self, cell_id: str) -> list[dict[str, Any] | None]:
        """The same, with None for an epoch whose table is damaged."""
        history = self._history(cell_id)
        if history.being_claimed:
            return []
        return [table for piece in history.pieces for table in piece.diagnostics()]

    def outcome(self, cell_id: str) -> Outcome:
        """The state of a cell."""
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

    # reading

    def _cell_folder(self, cell_id: str) -> Path:
        return self.folder / "trials" / cell_id

    def _cell_record(self, cell_id: str) -> tuple[dict[str, Any] | None, int]:
        """The newest record of a cell that holds, and the highest number of one; 0 where there is none."""
        folder = self._cell_folder(cell_id)
        names = {int(match[1] or 1): match[0] for match in matches(folder, CELL_RECORD)}
        records = (read_sealed(folder / names[number], "id") for number in sorted(names, reverse=True))
        return next((one for one in records if one is not None and one["id"] == cell_id), None), max(names, default=0)

    def _history(self, cell_id: str, before: int | None = None) -> History:
        folder = self._cell_folder(self.origin(cell_id) if before is None else cell_id)
        numbers = [number for number in attempt_numbers(folder) if before is None or number < before]
        views = [self._view(folder / f"{number:04d}") for number in numbers]
        claimed = bool(views) and views[-1] is None and not (folder / f"{numbers[-1]:04d}").is_file()
        return History([view for view in views if view is not None], claimed)

    def _view(self, folder: Path) -> AttemptView | None:
        view = AttemptView.of(folder, self._seen.get(folder))
        if view is not None:
            self._seen[folder] = view
        return view

    def _never_tried(self, cell_id: str) -> Outcome:
        folder = self._cell_folder(self.origin(cell_id))
        for number in reversed(attempt_numbers(folder)):
            attempt = folder / f"{number:04d}"
            # in this order: it may just have been written
            if store.exists(attempt / "attempt.json") and attempt_record(attempt) is None:
                return Outcome("waiting", f"the record of attempt {number} is damaged or another's", damaged=True)
        cell, _ = self._cell_record(cell_id)
        if cell is not None and cell["depends_on"]:
            before = self.outcome(cell["depends_on"])
            if before.state in ("failed", "diverged"):
                return Outcome("failed", f"its pretraining {before.state}: {before.reason}", log=before.log)
        return Outcome("waiting")
