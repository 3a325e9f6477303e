"""What lies in a ledger and is not its own: it is named, passed over, and changes nothing that is read."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic_experiment import cells_of, launched, rows_of, spec_of

from orchestration.ledger.ledger import Ledger
from orchestration.ledger.sealed import write_sealed
from orchestration.ledger.study_records import StudyRecords, TrialRecord


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """One attempt that died after a checkpoint, one that went on and ended; a plan, a study."""
    spec = spec_of(seeds=(0,))
    cells = cells_of(spec)
    made = launched(tmp_path / "ablation", spec, cells)
    rows = rows_of(cells[0])
    first = made.claim(cells[0].id, {})
    first.record(rows[:2])
    first.diagnostics({"step": 20, "layers": []})
    first.checkpoint(b"a state", 20)
    second = made.claim(cells[0].id, {})
    second.record(rows[2:])
    second.weights("final.pt", b"weights")
    second.finish("done", digest="d" * 64, step=rows[-1].step)
    made.record_plan({"made": 1, "cells": {}})
    study = StudyRecords(made, "search")
    study.add(TrialRecord(0, {}, {}, {0: cells[0].id}, {}, None))
    study.add_rung(0, 1, 0.5, False, {})
    study.choose({"cells": [cells[0].id]})
    return made


def seen(folder: Path) -> dict[str, Any]:
    """Everything that a fresh reader sees."""
    ledger = Ledger(folder)
    cells, study = ledger.cells(), StudyRecords(ledger, "search")
    return {
        "cells": cells,
        "outcomes": [ledger.outcome(cell.id) for cell in cells],
        "rows": [ledger.rows(cell.id, durable) for cell in cells for durable in (True, False)],
        "diagnostics": [ledger.diagnostics(cell.id) for cell in cells],
        "resume": [ledger.resume_point(cell.id) for cell in cells],
        "endings": ledger.endings(),
        "launches": ledger.launches(),
        "problems": ledger.launch_problems(),
        "plans": ledger.plans(),
        "trials": study.trials(),
        "choices": study.choices(),
    }


def copies(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Each record with what file managers and editors leave beside it."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in (".json", ".jsonl")):
        for name in (f"{path.stem} copy{path.suffix}", f"{path.stem} (1){path.suffix}", f"{path.name}~"):
            yield path, path.with_name(name)


def test_a_ledger_of_its_own_files_alone_has_no_strays(ledger: Ledger) -> None:
    assert ledger.strays() == []


def test_copies_beside_the_records_change_nothing_and_are_named(ledger: Ledger) -> None:
    before, made = seen(ledger.folder), list(copies(ledger.folder))
    for path, copy in made:
        shutil.copy(path, copy)
    assert seen(ledger.folder) == before
    assert len(made) > 30
    unnamed = {copy.relative_to(ledger.folder).as_posix() for _, copy in made} - set(ledger.strays())
    assert all(name.startswith("studies/search/study") for name in unnamed)


STRAYS = ("rows-notes.txt", "rows-0000-a-b.jsonl", "checkpoint-best.json", "diagnostics-notes.json", "²", "٣٣٣٣", "7",
          "cell-notes.json", "0001-rung-notes.json", "choice-best.json", "plan.json", "notes.txt", "0009x")  # fmt: skip


@pytest.mark.parametrize("as_folder", [False, True], ids=["files", "folders"])
def test_strays_of_any_name_in_any_folder_change_nothing_and_are_named(ledger: Ledger, as_folder: bool) -> None:
    before = seen(ledger.folder)
    places = [path for path in ledger.folder.rglob("*") if path.is_dir() and path.name not in ("studies", "search")]
    for place in places:
        for name in STRAYS:
            if as_folder:
                (place / name).mkdir()
            else:
                write_sealed(place / name, {"note": 1})  # whole, and no record of the ledger's
    assert seen(ledger.folder) == before
    assert len(ledger.strays()) >= len(places) * (len(STRAYS) - 1)


def test_a_file_in_an_attempts_place_hides_nothing_and_the_next_attempt_passes_it(ledger: Ledger) -> None:
    before, cell = seen(ledger.folder), ledger.endings()[0].cell
    (ledger.folder / "trials" / cell / "0003").write_text("a note")
    assert seen(ledger.folder) == before
    assert ledger.strays() == [f"trials/{cell}/0003"]
    assert ledger.claim(cell, {}).number == 4


@pytest.mark.parametrize("name", ["attempt.json", "end.json", "checkpoint-00000020.json"])
def test_a_whole_record_of_another_kind_counts_as_damaged(ledger: Ledger, name: str) -> None:
    for path in ledger.folder.glob(f"trials/*/*/{name}"):
        path.unlink()
        write_sealed(path, {"note": 1})
    found = seen(ledger.folder)
    assert all(outcome.state != "done" for outcome in found["outcomes"]) or name.startswith("checkpoint")


def test_a_launch_that_is_no_record_of_one_is_named(ledger: Ledger) -> None:
    ledger.record_launch_end(1, {"exit_status": 0})
    before = ledger.launches()
    shutil.copy(ledger.folder / "launches" / "0001-end.json", ledger.folder / "launches" / "0002.json")
    assert ledger.launches() == before
    assert ledger.launch_problems() == ["launches/0002.json is not the record of a launch"]
    assert ledger.record_launch({}) == 3


def test_what_is_numbered_gets_the_next_number_whatever_is_missing(ledger: Ledger) -> None:
    study = StudyRecords(ledger, "search")
    for made in (2, 3):
        ledger.record_plan({"made": made, "cells": {}})
        study.choose({"cells": [str(made)]})
    (ledger.folder / "plans" / "0001.json").unlink()
    (ledger.folder / "studies" / "search" / "choice-0001.json").write_text(json.dumps({"torn": True}))
    ledger.record_plan({"made": 4, "cells": {}})
    study.choose({"cells": ["4"]})
    assert [plan["made"] for plan in ledger.plans()] == [2, 3, 4]
    assert [choice["cells"] for choice in study.choices()] == [["2"], ["3"], ["4"]]
