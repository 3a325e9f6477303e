"""A report that shows what its ledger has is not made again; whatever it is made from makes it anew."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from synthetic_experiment import cells_of, finish, launched, spec_of

from orchestration.ledger.ledger import Ledger
from orchestration.report import make, stamp, write
from orchestration.report.data import Report

SPEC = spec_of(("fsg", "ste"), range(2))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = launched(tmp_path / "ablation", SPEC, cells_of(SPEC))
    for cell in cells_of(SPEC):
        finish(ledger, cell, 0.7)
    return ledger


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the reports that were written."""
    names: list[str] = []
    whole = write.write

    def counted(report: Report) -> list[Path]:
        names.append(report.name)
        return whole(report)

    monkeypatch.setattr(write, "write", counted)
    return names


def made(folder: Path, width: int = 80) -> tuple[list[str], str]:
    console = Console(width=width)
    with console.capture() as shown:
        paths = make.make(folder, console)
    return [path.relative_to(folder).as_posix() for path in paths], shown.get()


def test_the_second_time_nothing_is_made_and_the_same_is_said(ledger: Ledger, written: list[str]) -> None:
    first = made(ledger.folder)
    before = {path: path.stat().st_mtime_ns for path in ledger.folder.rglob("*")}
    assert made(ledger.folder) == first
    assert "report.html" in first[0]
    assert "fsg" in first[1]
    assert {path: path.stat().st_mtime_ns for path in ledger.folder.rglob("*")} == before
    assert len(written) == 1


def test_on_a_wider_terminal_the_table_is_wider_and_nothing_is_written(ledger: Ledger, written: list[str]) -> None:
    names, narrow = made(ledger.folder, 40)
    wide = made(ledger.folder, 100)
    assert wide[0] == names
    assert wide[1] != narrow
    assert len(wide[1].splitlines()) < len(narrow.splitlines())
    assert len(written) == 1


def another_row(folder: Path) -> None:
    path = next(folder.glob("trials/*/*/rows-*.jsonl"))
    path.write_bytes(path.read_bytes() + b"\n")


def a_byte_of_an_end(folder: Path) -> None:
    path = next(folder.glob("trials/*/*/end.json"))
    path.write_bytes(path.read_bytes().replace(b"done", b"dona"))


def another_launch(folder: Path) -> None:
    launched(folder, SPEC, cells_of(SPEC))


def a_cell_is_lost(folder: Path) -> None:
    next(folder.glob("trials/*/cell.json")).unlink()


def weights_are_gone(folder: Path) -> None:
    next(folder.glob("trials/*/*/final.pt")).unlink()


def the_page_is_gone(folder: Path) -> None:
    (folder / "report.html").unlink()


def a_figure_is_cut_short(folder: Path) -> None:
    path = folder / "figures" / "differences.svg"
    path.write_bytes(path.read_bytes()[:-1])


def a_record_that_no_report_reads(folder: Path) -> None:
    (folder / "studies" / "x").mkdir(parents=True)
    (folder / "studies" / "x" / "new.json").write_text("{}")


def the_stamp_is_torn(folder: Path) -> None:
    path = folder / stamp.NAME
    path.write_text(path.read_text()[:-20])


def the_stamp_is_another_versions(folder: Path) -> None:
    path = folder / stamp.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"more": 1}))


@pytest.mark.parametrize(
    "change",
    [another_row, a_byte_of_an_end, another_launch, a_cell_is_lost, weights_are_gone, the_page_is_gone,
     a_figure_is_cut_short, a_record_that_no_report_reads, the_stamp_is_torn, the_stamp_is_another_versions],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_what_has_changed_makes_it_anew(ledger: Ledger, written: list[str], change: Callable[[Path], None]) -> None:
    made(ledger.folder)
    change(ledger.folder)
    made(ledger.folder)
    assert len(written) == 2


def test_other_code_templates_and_libraries_make_it_anew(
    ledger: Ledger, written: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made(ledger.folder)
    monkeypatch.setattr(stamp, "source_sha256", lambda folder: "other code")
    made(ledger.folder)
    monkeypatch.setattr(stamp.metadata, "version", lambda package: "99")
    made(ledger.folder)
    assert len(written) == 3
    templates = Path(shutil.copytree(stamp.TEMPLATES, tmp_path / "templates"))
    (templates / "report.js").write_text("// another script\n")
    monkeypatch.setattr(stamp, "TEMPLATES", templates)
    made(ledger.folder)
    assert len(written) == 4


def test_a_ledger_that_was_touched_or_moved_is_the_same(ledger: Ledger, written: list[str]) -> None:
    said = made(ledger.folder)
    for path in ledger.folder.rglob("*.json"):
        os.utime(path)
    (ledger.folder / "lock").write_text("1")
    moved = ledger.folder.rename(ledger.folder.with_name("elsewhere"))
    assert made(moved) == said
    assert len(written) == 1


def test_what_is_not_over_is_looked_at_each_time(tmp_path: Path, written: list[str]) -> None:
    """An attempt whose process is gone becomes interrupted while no file changes."""
    ledger = launched(tmp_path / "ablation", SPEC, cells_of(SPEC))
    finish(ledger, cells_of(SPEC)[0], 0.7)
    for _ in range(2):
        made(ledger.folder)
    assert len(written) == 2
    assert not (ledger.folder / stamp.NAME).exists()


def test_a_stamp_does_not_outlive_that_a_cell_is_trained_again(ledger: Ledger, written: list[str]) -> None:
    made(ledger.folder)
    ledger.claim(cells_of(SPEC)[0].id, {})
    made(ledger.folder)
    assert stamp.current(ledger.folder) is None
    assert len(written) == 2
