"""What the report says of a search."""

import html
import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from simulated_search import HALVING, LR, NET, STATES, TRAIN, WEIGHT, Work, study
from undrawn import leave_figures_empty

from fsg.optimizers import Adam
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.study_records import TrialRecord
from orchestration.report import write
from orchestration.report.data import build
from orchestration.report.figures import Drawing
from orchestration.report.search import rung_correlations, sections
from orchestration.report.search_figures import SearchFigures
from orchestration.search.forecast import expected_cells
from orchestration.spec import search_config as settings
from orchestration.spec.cells import Cell
from orchestration.spec.study import short_names


def trial(number: int, at: float, final: float | None) -> TrialRecord:
    rungs = {1: {"value": at, "pruned": final is None, "attributes": {}}}
    end = {"state": "PRUNED" if final is None else "COMPLETE", "values": None if final is None else [final]}
    return TrialRecord(number, {}, {}, {}, {}, None, rungs, end | {"reason": "", "attributes": {}})


def section_of(work: Work):  # type: ignore[no-untyped-def]
    (found,) = sections(work.ledger, work.spec.resolved())
    return found


def test_rung_correlation_is_of_the_trials_that_came_to_the_end() -> None:
    trials = [trial(0, 0.1, 0.5), trial(1, 0.2, 0.7), trial(2, 0.3, 0.6), trial(3, 0.9, None)]
    (rung,) = rung_correlations(trials)
    assert (rung.epoch, rung.rho, rung.n, rung.pruned) == (1, pytest.approx(0.5), 3, 1)
    assert rung.text == "ρ = 0.50 (n = 3; 1 stopped there)"
    (few,) = rung_correlations(trials[:2])
    assert math.isnan(few.rho)


def test_settings_are_named_by_as_much_of_their_paths_as_tells_them_apart() -> None:
    paths = ["optimizer.lr", "init.optimizer.lr", "estimator.slow_net.d_state", "estimator.slow_net"]
    assert list(short_names(paths).values()) == ["optimizer.lr", "init.optimizer.lr", "d_state", "slow_net"]


def test_section_counts_ranks_and_tells_the_choice(tmp_path: Path) -> None:
    one = study(trials=12, best=2, pruner=HALVING, sampler=settings.Random(), dimensions=(LR, WEIGHT, NET, STATES))
    found = section_of(Work(tmp_path, one).go())
    states = [trial.state for trial in found.trials]
    complete, pruned = states.count("COMPLETE"), states.count("PRUNED")
    assert found.summary.startswith(
        f"12 of 12 trials: {complete} trained to the end, {pruned} stopped early. Each is judged by the mean over seeds"
    )
    values = [float(row[1].removesuffix(" %")) for row in found.rows]
    assert values == sorted(values, reverse=True)
    (choice,) = found.choice
    assert "Trained anew with 3 fresh seeds" in choice
    assert "Chosen by that: trial " in choice
    assert [rung.epoch for rung in found.rungs] == [1, 3]


def test_optimum_at_a_bound_failures_and_a_second_opening_are_flagged(tmp_path: Path) -> None:
    def fate(cell: Cell) -> str:
        return "failed" if cell.grid == {"trial": 2} else "done"

    narrow = replace(LR, low=1e-2, high=1e-1)  # the best is 10^-2.5
    train = replace(TRAIN, optimizer=Adam(lr=1e-2))
    one = study(train=train, dimensions=(narrow,), trials=3, best=1, sampler=settings.Random(), table_seeds=(0,))
    found = section_of(Work(tmp_path, one, fate=fate).go())
    assert any("lies at the low end of its range: the best may lie beyond it" in text for text in found.warnings)
    assert any(text.startswith("1 trials failed") for text in found.warnings)

    elsewhere = study(dimensions=(LR,), trials=2, best=1, seeds=(1000,), table_seeds=(0,), sampler=settings.Random())
    work = Work(tmp_path / "extended", elsewhere).go()
    more = Work(tmp_path / "extended", replace(elsewhere, trials=30)).go()
    assert len(work.records.choices()) == 2
    assert any("The test images were looked at 2 times" in text for text in section_of(more).warnings)


def test_report_of_a_search_is_written_with_its_figures(
    tmp_path: Path, drawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_figures_empty(monkeypatch, [write])  # those of any report
    one = study(trials=14, best=2, pruner=HALVING, sampler=settings.Random(), seeds=(1000,))
    work = Work(tmp_path / "searched", one).go()
    default = Cell("d" * 16, "train", "default", {}, 0, TRAIN)
    work.ledger.add(default)
    work.train_whole(default)
    work.launched([default])
    built = build(work.ledger)
    assert [(line.variant, line.done) for line in built.lines] == [("default", 1), ("tuned", 3)]
    paths = {path.name for path in write.write(built)}
    figures = {f"search-tuned-{name}" for name in ("history", "importances", "two-settings", "rungs", "slices")}
    assert {f"{name}.svg" for name in figures} <= paths
    page, markdown = ((work.ledger.folder / name).read_text() for name in ("report.html", "report.md"))
    assert "Search: tuned" in page
    assert set(re.findall(r'<svg[^>]* id="(search-[\w-]+)"', page)) == figures
    assert set(re.findall(r"\(figures/(search-[\w-]+).svg\)", markdown)) == figures
    assert "Spearman" in markdown
    told = json.loads(html.unescape(page.split('id="marks">')[1].split("</script>")[0]))["figures"]
    assert told.keys() >= figures - {"search-tuned-importances"}


# What each figure shows


def probe(trials: Sequence[TrialRecord], space: dict[str, Any], **more: Any) -> SearchFigures:
    names = {path: path for path in space}
    return replace(SearchFigures("tuned", trials, ["validation/accuracy"], space, names, {}, []), **more)


def ended(number: int, values: list[float], **params: Any) -> TrialRecord:
    rungs = {epoch: {"value": values[0] / (4 - epoch), "pruned": False, "attributes": {}} for epoch in (1, 2)}
    end = {"state": "COMPLETE", "values": values, "reason": "", "attributes": {}}
    return TrialRecord(number, params, {}, {0: f"c{number}"}, {}, None, rungs, end)


def said(found: Drawing) -> list[str]:
    of = [found.marks["of"][one["of"]] for one in found.marks["series"]]
    return [f"{o['name']}: {one['text']}; {o['note']}" for o, one in zip(of, found.marks["series"], strict=True)]


def test_page_of_a_long_search_stays_small_and_says_what_it_leaves_out(drawn: None) -> None:
    space: dict[str, Any] = {f"setting_{place}": {"low": 0.0, "high": 1.0} for place in range(20)}

    def at(number: int) -> dict[str, float]:
        return {path: (number * place % 97) / 97 for place, path in enumerate(space)}

    trials = [ended(number, [number / 2000], **at(number)) for number in range(2000)]
    found = probe(trials, space)
    drawings = found.draw()
    assert sum(len(one.svg) + len(json.dumps(one.marks)) for one in drawings.values()) < 1.7e6
    assert [len(drawings[one].marks["series"]) for one in ("History", "Rungs", "Slices")] == [250, 500, 20 * 125]
    assert said(drawings["History"])[-1].startswith("tuned, trial 1999: validation accuracy 99.95 %; setting_0 0,")
    assert found.caption.endswith("Of more than 250 trials so many at most are drawn, evenly spread.")
    assert "evenly" not in probe(trials[:250], space).caption


RATE: dict[str, Any] = {"lr": {"low": 0.001, "high": 1.0, "log": True}}


def test_marks_of_a_search_say_trial_value_settings_and_its_cells(drawn: None) -> None:
    trials = [
        ended(0, [0.5], lr=0.1),
        replace(trial(1, 0.2, None), params={"lr": 0.3}, cells={0: "c1"}),
        ended(2, [0.625], lr=0.01),
    ]
    found = probe(trials, RATE).draw()
    assert found.keys() == {"History", "Rungs", "Slices"}
    expected = [
        "tuned, trial 0: validation accuracy 50.00 %; lr 0.1",
        "tuned, trial 2: validation accuracy 62.50 %; lr 0.01",
    ]
    assert said(found["History"]) == said(found["Slices"]) == expected
    assert said(found["Rungs"])[:3] == [
        "tuned, trial 0: epoch 1: validation accuracy 16.67 %; lr 0.1",
        "tuned, trial 0: epoch 2: validation accuracy 25.00 %; lr 0.1",
        "tuned, trial 1, stopped early: epoch 1: validation accuracy 20.00 %; lr 0.3",
    ]
    cells = {one["name"]: one["cells"] for one in found["Rungs"].marks["of"]}
    assert cells == {"tuned, trial 0": ("c0",), "tuned, trial 1, stopped early": (), "tuned, trial 2": ("c2",)}
    for title in ("History", "Slices", "Rungs"):
        assert found[title].marks["variants"] == ["tuned"]


@pytest.mark.parametrize(
    ("objective", "best"), [("validation/accuracy", [50, 62.5, 62.5]), ("train/loss", [0.5, 0.5, 0.25])]
)
def test_history_has_the_best_so_far_whichever_way_is_better(drawn: None, objective: Any, best: list[float]) -> None:
    trials = [ended(0, [0.5], lr=0.1), ended(1, [0.625], lr=0.2), ended(2, [0.25], lr=0.3)]
    figures, lines = probe(trials, RATE, objectives=[objective]), []
    step = Axes.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Axes, "step", lambda axes, x, y, **how: lines.append(list(y)) or step(axes, x, y, **how))
        figures.draw()
    assert lines == [pytest.approx(best)]


def test_axis_of_a_setting_is_what_was_searched_and_a_trial_taken_over_from_beyond(drawn: None) -> None:
    within = probe([ended(0, [0.5], lr=0.01), ended(1, [0.6], lr=0.1)], RATE).draw()["Slices"].marks["series"]
    wider = probe([ended(0, [0.5], lr=0.01), ended(1, [0.6], lr=10.0)], RATE).draw()["Slices"].marks["series"]
    # 0.001 to 1 is three decades: a decade is a third of the axis without its room; to 10 it is four
    decade = within[1]["x"] - within[0]["x"]
    assert wider[1]["x"] - wider[0]["x"] == pytest.approx(3 * decade * 3 / 4, rel=0.01)


def test_choices_that_are_equal_in_python_have_places_of_their_own(drawn: None) -> None:
    values = [True, 1, 1.0, "1", None, 2]  # the last was no choice of this search
    trials = [ended(number, [0.1 * number], of=value) for number, value in enumerate(values)]
    found = probe(trials, {"of": {"choices": values[:-1]}}).draw()["Slices"]
    places = [one["x"] for one in found.marks["series"]]
    gaps = [b - a for a, b in itertools.pairwise(places)]
    assert gaps == pytest.approx([gaps[0]] * 5, abs=0.11)
    assert gaps[0] > 5


def test_value_that_is_no_number_and_a_setting_that_some_lack_take_no_figure(drawn: None) -> None:
    trials = [ended(0, [math.nan], lr=0.1), ended(1, [0.5], lr=0.1, of=1), ended(2, [0.6], lr=0.1)]
    found = probe(trials, RATE | {"of": {"low": 1, "high": 1}, "never": {"low": 0, "high": 1}}).draw()
    assert len(said(found["History"])) == 2
    assert [text.split(":")[0] for text in said(found["Slices"])] == [
        "tuned, trial 1",
        "tuned, trial 2",
        "tuned, trial 1",
    ]
    assert probe(trials[:2], RATE).draw() == {}
    assert probe(trials, {"another": {"low": 0, "high": 1}}).draw().keys() == {"History", "Rungs"}


@pytest.mark.parametrize("name", ["trials/000000.json", "trials/000001-end.json", "choice-0001.json"])
def test_damaged_record_of_a_search_is_said_in_the_report(tmp_path: Path, name: str) -> None:
    work = Work(tmp_path, study(trials=3, best=1, sampler=settings.Random())).go()
    default = Cell("d" * 16, "train", "default", {}, 0, TRAIN)
    work.ledger.add(default)
    work.train_whole(default)
    work.launched([default])
    (work.records.folder / name).write_bytes(b"{}")
    built = build(work.ledger)
    assert f"Of a search, studies/tuned/{name} is damaged: what it said does not count." in built.warnings
    assert section_of(work).summary.startswith("3 of 3 trials: ")


def test_training_that_a_search_chose_is_missing_by_name_and_comes_back(tmp_path: Path) -> None:
    one = study(trials=3, best=1, sampler=settings.Random())
    work = Work(tmp_path, one).go()
    default = Cell("d" * 16, "train", "default", {}, 0, TRAIN)
    work.ledger.add(default)
    work.train_whole(default)
    work.launched([default])
    assert all(cell.id for cell in expected_cells(work.spec, work.ledger))
    lost = work.records.choices()[-1]["cells"][1]
    (tmp_path / "trials" / lost / "cell.json").write_bytes(b"")
    built = build(Ledger(tmp_path))
    assert any("in no number: tuned · seed 1." in one for one in built.warnings)
    assert [(line.variant, line.done, len(line.planned)) for line in built.lines] == [
        ("default", 1, 1),
        ("tuned", 2, 3),
    ]
    assert [cell.id for cell in expected_cells(work.spec, Ledger(tmp_path))].count("") == 1, "a launch is not complete"
    again = Work(tmp_path, one).go()
    assert again.ledger.find(lost) is not None
    assert [leg.cell.id for leg in again.legs] == [], "what it was trained to is there"
    assert build(Ledger(tmp_path)).lines[1].done == 3


@pytest.mark.parametrize("more", [(), ("time/step",)], ids=["two", "three"])
def test_pareto_front_is_drawn_with_memory_in_its_unit(
    tmp_path: Path, drawn: None, more: tuple[settings.Objective, ...]
) -> None:
    objectives: tuple[settings.Objective, ...] = ("validation/accuracy", "memory/peak", *more)
    one = study(objectives=objectives, sampler=settings.NSGA2(population=4), trials=12)
    found = section_of(Work(tmp_path, one).go())
    names = ("validation accuracy", "peak memory", *["time of a step"][: len(more)])
    assert found.header == ("trial", *names, "settings")
    values = [tuple(float(cell.split()[0]) for cell in row[1:3]) for row in found.rows]
    assert all(row[2].endswith(" MB") for row in found.rows)
    assert all(row[1].endswith(" %") for row in found.rows)
    assert values == sorted(values, reverse=True), "on a front, more accuracy takes more memory"
    assert 1 < len(found.rows) < 12
    assert found.about_rows.startswith(f"The Pareto front: {len(found.rows)} trials")
    front = found.draw()["Pareto front"]
    labels = ["validation accuracy (%)", "peak memory (MB)", *["time of a step (ms)"][: len(more)]]
    assert all(f">{label}</text>" in front.svg for label in labels)
    assert len(said(front)) == 12 * len(objectives[1:])


def test_study_of_which_nothing_is_over_is_told_all_the_same(tmp_path: Path) -> None:
    work = Work(tmp_path, study())
    work.searches.more()
    found = section_of(work)
    assert found.summary.startswith("1 of 8 trials: 1 under way.")
    assert found.draw() == {}
