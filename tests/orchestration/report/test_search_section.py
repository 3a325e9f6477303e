"""What the report says of a search."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from matplotlib.figure import Figure
from simulated_search import HALVING, LR, NET, STATES, TRAIN, WEIGHT, Work, study
from undrawn import leave_figures_empty

from fsg.optimizers import Adam
from orchestration.ledger.study_records import TrialRecord
from orchestration.report.data import build
from orchestration.report.search import rung_correlations, sections
from orchestration.report.write import write
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
    leave_figures_empty(monkeypatch)  # those of any report
    one = study(trials=14, best=2, pruner=HALVING, sampler=settings.Random(), seeds=(1000,))
    work = Work(tmp_path / "searched", one).go()
    default = Cell("d" * 16, "train", "default", {}, 0, TRAIN)
    work.ledger.add(default)
    work.train_whole(default)
    work.launched([default])
    built = build(work.ledger)
    assert [(line.variant, line.done) for line in built.lines] == [("default", 1), ("tuned", 3)]
    paths = {path.name for path in write(built)}
    pictures = {"history", "slices", "importances", "contour", "rungs"}
    assert {f"search-tuned-{name}.png" for name in pictures} <= paths
    page = (work.ledger.folder / "report.html").read_text()
    assert "Search: tuned" in page
    assert page.count("data:image/png;base64,") == 5
    assert "Spearman" in (work.ledger.folder / "report.md").read_text()


@pytest.mark.parametrize("more", [(), ("time/step",)], ids=["two", "three"])
def test_pareto_front_is_drawn_with_memory_in_its_unit(
    tmp_path: Path, drawn: None, more: tuple[settings.Objective, ...], monkeypatch: pytest.MonkeyPatch
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
    axes: list[str] = []
    plot, render = optuna.visualization.matplotlib.plot_pareto_front, Figure.savefig

    def watched(*arguments: Any, **options: Any) -> Any:
        axes.extend(options["target_names"])
        return plot(*arguments, **options)

    def only_the_front(figure: Figure, path: Path, **options: Any) -> None:
        if "pareto" in path.name:
            render(figure, path, **options)

    monkeypatch.setattr(optuna.visualization.matplotlib, "plot_pareto_front", watched)
    monkeypatch.setattr(Figure, "savefig", only_the_front)
    assert found.draw(tmp_path / "figures")["Pareto front"].exists()
    assert axes[:2] == ["validation accuracy (%)", "peak memory (MB)"]


def test_study_of_which_nothing_is_over_is_told_all_the_same(tmp_path: Path) -> None:
    work = Work(tmp_path, study())
    work.searches.more()
    found = section_of(work)
    assert found.summary.startswith("1 of 8 trials: 1 under way.")
    assert found.draw(tmp_path / "figures") == {}
