"""A plan that somebody tries to game: each case is planted in a ledger that claims a difference, and is named.

No case changes the content of a record; to do that is to forge the ledger.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from synthetic_experiment import cells_of, diverge, finish, launched, spec_of

from orchestration.commands import bundle
from orchestration.commands.diff import differences, render
from orchestration.commands.verify import verify
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.sealed import digest_of_record
from orchestration.report.data import Report, build
from orchestration.report.tables import terminal_table
from orchestration.report.write import write
from orchestration.spec.cells import Cell
from orchestration.spec.experiment import ExperimentSpec

SIX = range(6)
EXPLORATORY = "Exploratory: nothing is claimed"
DROPPED = "Results that could be seen were dropped, as seeds, variants, settings, code or data changed: "
UNKNOWN = "What was declared cannot be known, as "


def launch(ledger: Ledger, spec: ExperimentSpec, cells: Sequence[Cell] = (), **record: Any) -> None:
    """Launch once more: what is left is trained, and fsg is better by one per cent."""
    cells = cells or cells_of(spec)
    ledger = launched(ledger.folder, spec, cells, **record)
    for cell in cells:
        if ledger.outcome(cell.id).state not in ("done", "diverged"):
            finish(ledger, cell, 0.7 + 0.01 * (cell.variant == "fsg") + 0.001 * (cell.seed % 2) * (cell.variant == "a"))


@pytest.fixture(scope="module")
def claimed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seeds, launched once, which show a difference."""
    folder, spec = tmp_path_factory.mktemp("planted") / "ablation", spec_of(("fsg", "a", "ste"), SIX)
    ledger = launched(folder, spec, cells_of(spec))
    for cell in cells_of(spec):
        finish(ledger, cell, 0.7 + (0.01 + 0.001 * (cell.seed % 2)) * (cell.variant == "fsg"))
    return folder


@pytest.fixture
def ledger(claimed: Path, tmp_path: Path) -> Ledger:
    shutil.copytree(claimed, tmp_path / "ablation")
    return Ledger(tmp_path / "ablation")


def spec(seeds: Sequence[int] = SIX, variants: Sequence[str] = ("fsg", "a", "ste"), **report: Any) -> ExperimentSpec:
    made = spec_of(variants, seeds)
    return replace(made, report=replace(made.report, **report))


def folder_of(ledger: Ledger, variant: str, seed: int) -> Path:
    (one,) = [cell for cell in cells_of(spec(range(12))) if (cell.variant, cell.seed) == (variant, seed)]
    return ledger.folder / "trials" / one.id


def without_launch(path: Path) -> None:
    """As an earlier version has written it: an end that says nothing of its launch, sealed."""
    record = json.loads(path.read_text())
    record.pop("launch")
    record.pop("sha256_of_record")
    path.write_text(json.dumps(record | {"sha256_of_record": digest_of_record(record)}))


# What is planted; each returns what the report must say of it


def other_seeds_in_place_of_those_seen(ledger: Ledger) -> str:
    launch(ledger, spec(range(6, 12)))
    return f"{DROPPED}a · seeds 0, 1, 2, 3, 4, 5; fsg · seeds 0, 1, 2, 3, 4, 5; ste · seeds 0, 1, 2, 3, 4, 5."


def a_bad_seed_is_left_out(ledger: Ledger) -> str:
    launch(ledger, spec((0, 1, 2, 4, 5, 6)))
    return f"{DROPPED}a · seed 3; fsg · seed 3; ste · seed 3."


def the_clock_is_set_back(ledger: Ledger) -> str:
    launch(ledger, spec((0, 1, 2, 3, 4)), started=1)
    return f"{DROPPED}a · seed 5; fsg · seed 5; ste · seed 5."


def the_newest_launch_is_deleted(ledger: Ledger) -> str:
    launch(ledger, spec(range(8)))
    (ledger.folder / "launches" / "0002.json").unlink()
    return f"{UNKNOWN}launches/0002.json is missing."


def a_launch_is_deleted_and_made_again(ledger: Ledger) -> str:
    shutil.rmtree(ledger.folder / "launches")
    ledger = Ledger(ledger.folder)
    one = launched(ledger.folder, spec(range(8)), cells_of(spec(range(8))))
    assert one.launch == 2, "no number is given twice"
    return f"{UNKNOWN}launches/0001.json is missing."


def a_launch_is_cut_short(ledger: Ledger) -> str:
    launch(ledger, spec(range(8)))
    path = ledger.folder / "launches" / "0001.json"
    path.write_bytes(path.read_bytes()[:100])
    return f"{UNKNOWN}launches/0001.json is damaged."


def a_launch_is_there_twice(ledger: Ledger) -> str:
    launch(ledger, spec(range(8)))
    shutil.copy(ledger.folder / "launches" / "0001.json", ledger.folder / "launches" / "0003.json")
    return f"{UNKNOWN}launches/0003.json is a copy of the record of launch 1."


def launches_change_places(ledger: Ledger) -> str:
    launch(ledger, spec(range(8)))
    launches = ledger.folder / "launches"
    for before, now in (("0001", "x"), ("0002", "0001"), ("x", "0002")):
        (launches / f"{before}.json").rename(launches / f"{now}.json")
    launch(ledger, spec(range(8)))
    first, second = (f"launches/000{n}.json is a copy of the record of launch {3 - n}" for n in (1, 2))
    return f"{UNKNOWN}{first}, {second}."


def another_primary_is_chosen(ledger: Ledger) -> str:
    launch(ledger, spec(primary="a"))
    return "What is compared was changed when results could be seen: primary was fsg, is a."


def a_margin_is_declared_late(ledger: Ledger) -> str:
    launch(ledger, spec(equivalence_margin=0.02))
    return "What is compared was changed when results could be seen: equivalence_margin was not said, is 0.02."


def another_baseline_is_chosen_that_nobody_has_seen(ledger: Ledger) -> str:
    launch(ledger, spec(SIX, ("fsg", "a", "ste", "worse"), baseline="worse"))
    return "What is compared was changed when results could be seen: baseline was ste, is worse."


def a_grid_point_is_added(ledger: Ledger) -> str:
    """Each variant's comparison is the mean over its grid points."""
    wider = spec()
    more = [replace(point, grid={"optimizer.lr": 0.3}) for point in wider.points]
    launch(ledger, replace(wider, points=(*wider.points, *more)))
    grown = "; ".join(f"grid points of {name} added: optimizer.lr=0.3" for name in ("fsg", "a", "ste"))
    return f"What is compared was changed when results could be seen: {grown}."


def names_change_places(ledger: Ledger) -> str:
    """The same cells: what was called fsg is called a, and the other way round."""
    other = {"fsg": "a", "a": "fsg", "ste": "ste"}
    renamed = [replace(cell, variant=other[cell.variant]) for cell in cells_of(spec())]
    order = [(p.variant, seed) for seed in SIX for p in spec().points]
    launch(ledger, spec(), sorted(renamed, key=lambda cell: order.index((cell.variant, cell.seed))))
    return f"{DROPPED}a · seeds 0, 1, 2, 3, 4, 5; fsg · seeds 0, 1, 2, 3, 4, 5."


def a_variant_is_tuned(ledger: Ledger) -> str:
    tuned = [replace(c, id=c.id[::-1]) if c.variant == "fsg" else c for c in cells_of(spec())]
    launch(ledger, spec(), tuned)
    return f"{DROPPED}fsg · seeds 0, 1, 2, 3, 4, 5."


def a_diverged_cell_is_tried_again(ledger: Ledger) -> str:
    first = folder_of(ledger, "fsg", 2)
    shutil.rmtree(first / "0001")
    diverge(ledger, ledger.cell(first.name))
    finish(ledger, ledger.cell(first.name), 0.72)
    return "Trainings that had ended were trained again, and ended otherwise: fsg · seed 2 (attempt 1: diverged)."


def a_result_of_one_variant_alone_is_dropped_at_once(ledger: Ledger) -> str:
    """Nothing was there to compare it with, and still it is a result."""
    folder = ledger.folder.with_name("early")
    one = launched(folder, spec(), cells_of(spec()))
    diverge(one, cells_of(spec())[0])
    launch(one, spec(range(1, 7)))
    ledger.folder.rename(ledger.folder.with_name("aside"))
    folder.rename(ledger.folder)
    return f"{DROPPED}fsg · seed 0 (diverged)."


def the_trial_of_a_dropped_seed_is_deleted(ledger: Ledger) -> str:
    launch(ledger, spec((0, 1, 2, 3, 4)))
    shutil.rmtree(folder_of(ledger, "fsg", 5))
    return f"{DROPPED}a · seed 5; fsg · seed 5 (missing); ste · seed 5."


PLANTED: list[Callable[[Ledger], str]] = [
    other_seeds_in_place_of_those_seen,
    a_bad_seed_is_left_out,
    the_clock_is_set_back,
    the_newest_launch_is_deleted,
    a_launch_is_deleted_and_made_again,
    a_launch_is_cut_short,
    a_launch_is_there_twice,
    launches_change_places,
    another_primary_is_chosen,
    a_margin_is_declared_late,
    another_baseline_is_chosen_that_nobody_has_seen,
    a_grid_point_is_added,
    names_change_places,
    a_variant_is_tuned,
    a_diverged_cell_is_tried_again,
    a_result_of_one_variant_alone_is_dropped_at_once,
    the_trial_of_a_dropped_seed_is_deleted,
]


def printed(report: Report) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(terminal_table(report))
    return " ".join(capture.get().split())


def claims(report: Report) -> list[str]:
    return [test.variant for measured in report.measured for test in measured.contrasts if test.shown]


def test_before_anything_is_planted_a_difference_is_claimed(ledger: Ledger) -> None:
    report = build(ledger)
    assert (report.verdict.shown, report.plan.breaches, report.warnings) == (True, (), ())
    assert "fsg" in claims(report)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.__name__)
def test_a_plan_that_is_gamed_is_named_and_claims_nothing(ledger: Ledger, planted: Callable[[Ledger], str]) -> None:
    told = planted(ledger)
    report = build(Ledger(ledger.folder))
    assert report.verdict.headline == EXPLORATORY
    assert told in report.verdict.consequence
    assert report.plan.breaches == (told, *report.plan.breaches[1:])
    assert (report.verdict.shown, claims(report), report.best) == (False, [], None)
    assert f"exploratory, nothing is claimed: {told}" in printed(report)


def test_all_commands_say_of_a_gamed_plan_what_the_report_says(
    ledger: Ledger, claimed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_launch_is_cut_short(ledger)
    report = build(Ledger(ledger.folder))
    (breach,) = report.plan.breaches
    write(report)
    line = "The record launches/0001.json is damaged: it is passed over. The table is that of launch 2."
    for name in ("report.md", "report.html"):
        text = (ledger.folder / name).read_text()
        assert [text.count(one) for one in (EXPLORATORY, breach, line)] == [1, 1, 1], name
    console = Console(width=200)
    with console.capture() as capture:
        console.print(render(differences(Ledger(claimed), ledger)))
    assert f"B: {EXPLORATORY}. {breach}" in capture.get()
    opened = bundle.check(bundle.pack(ledger.folder, tmp_path / "one.zip"))
    assert f"verdict     {report.verdict.text}" in bundle.describe(opened, tmp_path, tmp_path)
    bundle.unpack(opened, tmp_path / "opened")
    assert build(Ledger(tmp_path / "opened" / "results" / "ablation")).verdict == report.verdict
    shutil.rmtree(ledger.folder / "trials")
    assert verify(ledger.folder) == 2
    assert "launches/0001.json is damaged" in capsys.readouterr().err


# Seeds that were added


def test_seeds_added_until_they_please_are_in_no_number_of_the_plan(ledger: Ledger) -> None:
    before = build(ledger).verdict
    for more in (8, 10):
        launch(ledger, spec(range(more)), started=1)  # the clock says that it came first
    plan, verdict = (report := build(ledger)).plan, report.verdict
    assert (plan.seeds, plan.added, plan.breaches) == (tuple(SIX), (6, 7, 8, 9), ())
    assert verdict == before


def test_the_earliest_of_all_attempts_counts_and_not_the_newest(ledger: Ledger) -> None:
    """All are trained again once more is planned: what was seen stays seen."""
    launch(ledger, spec(range(8)))
    for cell in cells_of(spec()):
        finish(ledger, cell, 0.7 + 0.01 * (cell.variant == "fsg"), launch=2)
    assert build(ledger).plan.added == (6, 7)
    for cell in cells_of(spec()):
        (ledger.folder / "trials" / cell.id / "0001" / "attempt.json").unlink()
    assert build(Ledger(ledger.folder)).plan.added == (6, 7), "an end counts also where its attempt has no record"


def test_an_end_of_an_earlier_version_counts_as_one_of_the_first_launch(tmp_path: Path) -> None:
    """Its attempt may say the second: an end that says nothing never promotes, and nothing is rewritten."""
    ledger = launched(tmp_path / "x", spec(), cells_of(spec()))
    launch(ledger, spec(range(8)))
    assert build(ledger).plan.added == ()
    for path in ledger.folder.glob("trials/*/*/end.json"):
        without_launch(path)
    before = {path: path.read_bytes() for path in ledger.folder.rglob("*.json")}
    report = build(Ledger(ledger.folder))
    assert (report.plan.added, report.plan.breaches) == ((6, 7), ())
    assert {path: path.read_bytes() for path in ledger.folder.rglob("*.json")} == before


def test_an_end_that_is_damaged_may_have_been_a_result_of_the_first_launch(tmp_path: Path) -> None:
    ledger = launched(tmp_path / "x", spec(), cells_of(spec()))
    for cell in cells_of(spec())[:3]:
        ledger.claim(cell.id, {}).finish("failed", "no luck")
    launch(ledger, spec(range(8)))
    assert build(ledger).plan.added == ()
    for path in ledger.folder.glob("trials/*/0001/end.json"):
        path.write_text("{")
    assert build(Ledger(ledger.folder)).plan.added == (6, 7)


def test_trials_that_are_deleted_and_trained_again_were_seen_by_a_launch_that_was_done(ledger: Ledger) -> None:
    ledger.record_launch_end(1, {"finished": 1, "exit_status": 0})
    shutil.rmtree(ledger.folder / "trials")
    launch(ledger, spec(range(8)))
    assert build(ledger).plan.added == (6, 7)


def test_without_the_record_of_the_plan_what_came_later_is_no_part_of_it(ledger: Ledger) -> None:
    a_launch_is_cut_short(ledger)
    assert (build(ledger).plan.seeds, build(ledger).plan.added) == (tuple(SIX), (6, 7))


# Variants and measures that were added


def test_a_variant_added_when_results_could_be_seen_is_compared_without_a_test(ledger: Ledger) -> None:
    before, wider = build(ledger), spec(SIX, ("fsg", "a", "b", "ste"), reach=(0.5,))
    again = launched(ledger.folder, wider, cells_of(wider))
    for cell in cells_of(wider):
        if cell.variant == "b":
            finish(again, cell, 0.9)
    report = build(ledger)
    assert (report.plan.late_variants, report.plan.late_reach, report.plan.breaches) == (("b",), (0.5,), ())
    assert report.verdict == before.verdict
    assert report.measured[0].family == before.measured[0].family, "the family is the declared one"
    assert [(test.variant, test.role, test.p) for test in report.measured[0].contrasts if test.variant == "b"] == [
        ("b", "untested", None)
    ]
    assert report.best is not None
    assert before.best is not None
    assert (report.best.line.label, report.best.marked) == (before.best.line.label, before.best.marked) == ("fsg", True)
    added = "Exploratory: compared without a test, as added when results could be seen: b, reach 50\u00a0%."
    assert added in report.warnings
    assert "exploratory, added when results could be seen and not tested: b, reach 50" in printed(report)


def test_a_time_to_reach_added_when_results_could_be_seen_is_not_tested(ledger: Ledger) -> None:
    for tested, late in (("family", (0.3,)), ("untested", (0.3, 0.5))):
        folder = ledger.folder.with_name(tested)
        first = spec(reach=(0.3,))
        one = launched(folder, first, cells_of(first))
        for cell in cells_of(first):
            finish(one, cell, 0.7)
        launch(one, spec(reach=late))
        measured = [m for m in build(Ledger(folder)).measured if m.unit.name == f"epochs to {100 * late[-1]:g}\u00a0%"]
        assert [test.role for one in measured for test in one.contrasts] == [tested] * 2


def test_a_variant_added_before_any_result_is_in_the_family(tmp_path: Path) -> None:
    launched(tmp_path / "x", spec(), cells_of(spec()))
    ledger = Ledger(tmp_path / "x")
    launch(ledger, spec(SIX, ("fsg", "a", "b", "ste"), reach=(0.5,)))
    report = build(Ledger(ledger.folder))
    assert (report.plan.late_variants, report.plan.late_reach, report.measured[0].family.size) == ((), (), 2)


# Cells that are lost


@pytest.mark.parametrize("loss", [Path.unlink, partial(Path.write_text, data="{")], ids=["deleted", "torn"])
def test_a_diverged_cell_without_its_record_is_missed_by_name(tmp_path: Path, loss: Callable[[Path], Any]) -> None:
    ledger = launched(tmp_path / "x", spec(), cells_of(spec()))
    diverge(ledger, next(cell for cell in cells_of(spec()) if (cell.variant, cell.seed) == ("fsg", 0)))
    launch(ledger, spec())
    loss(folder_of(ledger, "fsg", 0) / "cell.json")
    report = build(Ledger(ledger.folder))
    assert "Missing, as the record of the cell is lost or damaged, and in no number: fsg · seed 0." in report.warnings
    assert "missing, as the record of the cell is lost or damaged: fsg · seed 0" in printed(report)
    assert [line.label for line in report.lines] == ["fsg", "a", "ste"], "it keeps its place"
    assert [trial.state for trial in report.lines[0].trials] == ["missing", *["done"] * 5]
    assert (report.verdict.headline, claims(report), report.best) == ("No verdict yet", [], None)
    assert "5 of 6 planned pairs" in report.verdict.consequence
    write(report)
    assert "| fsg · seed 0 | `" in (ledger.folder / "report.md").read_text()


def test_results_that_change_places_belong_to_nobody(ledger: Ledger) -> None:
    """The folders of two cells, and of two attempts: each says in a record whose it is."""
    one, other = folder_of(ledger, "fsg", 0), folder_of(ledger, "ste", 0)
    for deeper, state, reason in (("0001", "waiting", "the record of attempt 1 is damaged or another's"),
                                  ("", "missing", "cell.json is missing or damaged")):  # fmt: skip
        shutil.copytree(ledger.folder, copy := ledger.folder.with_name(f"swapped{deeper}"))
        (copy / "trials" / one.name / deeper).rename(copy / "x")
        (copy / "trials" / other.name / deeper).rename(copy / "trials" / one.name / deeper)
        (copy / "x").rename(copy / "trials" / other.name / deeper)
        report = build(Ledger(copy))
        lost = {trial.cell.label: (trial.state, reason in trial.outcome.reason) for trial in report.unfinished}
        assert lost == {"fsg · seed 0": (state, True), "ste · seed 0": (state, True)}
        assert (report.verdict.shown, claims(report)) == (False, [])


def test_to_launch_again_enters_a_lost_cell_anew_with_its_result(ledger: Ledger) -> None:
    (folder_of(ledger, "fsg", 3) / "cell.json").unlink()
    assert not build(Ledger(ledger.folder)).verdict.shown
    launch(ledger, spec())
    assert build(Ledger(ledger.folder)).verdict.shown


def test_a_variant_of_which_all_records_are_lost_stays_in_the_table_and_in_the_family(ledger: Ledger) -> None:
    for seed in SIX:
        shutil.rmtree(folder_of(ledger, "a", seed))
    report = build(Ledger(ledger.folder))
    assert [line.label for line in report.lines] == ["fsg", "a", "ste"]
    assert report.measured[0].family.size == 1
    assert report.best is None


def test_where_no_launch_can_be_read_a_line_says_so(ledger: Ledger) -> None:
    path = ledger.folder / "launches" / "0001.json"
    path.write_bytes(path.read_bytes()[:-10])
    told = f"^{ledger.folder}: no launch can be read: launches/0001.json is damaged$"
    with pytest.raises(ValueError, match=told):
        build(Ledger(ledger.folder))
