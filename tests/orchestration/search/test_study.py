"""Searches, driven without Ray: what Optuna is asked and told, what the ledger keeps, and what survives."""

import json
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from simulated_search import (
    CHUNK,
    EPOCHS,
    HALVING,
    LR,
    NET,
    SAMPLERS,
    STATES,
    STEPS,
    TRAIN,
    WEIGHT,
    Killed,
    Work,
    accuracy,
    assert_told,
    megabytes,
    spec_of,
    study,
)

from fsg.estimators import FSG, STE
from fsg.optimizers import Adam
from fsg.starting_points import Pretrain
from orchestration.ledger import names
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.study_records import StudyRecords, damage_of_searches
from orchestration.report.search import pareto_front
from orchestration.scheduler.queue import Queue
from orchestration.search.compatibility import differences
from orchestration.search.forecast import expected_cells
from orchestration.search.optuna.errors import SearchError
from orchestration.search.optuna.storage import to_frozen_trial
from orchestration.search.source import ErrorCapturingSource
from orchestration.search.values import at_bounds
from orchestration.spec import search_config as settings
from orchestration.spec.cells import Cell, WorkItem, cell_id, cells_of
from orchestration.spec.resolver import Point
from orchestration.spec.study import Dimension, StudySpec, with_settings


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drivers die here, machines do not: what was written is there."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[StudySpec], Work]:
    """A study in one go, made once: only to be looked at."""
    made: dict[str, Work] = {}

    def go(one: StudySpec) -> Work:
        key = repr(one)
        made[key] = made.get(key) or Work(tmp_path_factory.mktemp("undisturbed"), one).go()
        return made[key]

    return go


# suggestions


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda one: one.name)
def test_same_seed_gives_the_same_suggestions_wherever_the_driver_dies(
    tmp_path: Path, sampler: settings.SamplerConfig, undisturbed: Callable[[StudySpec], Work]
) -> None:
    one = study(sampler=sampler, pruner=HALVING)
    expected = undisturbed(one)
    disturbed = Work(tmp_path / "disturbed", one)
    for legs in (1, 3, 6, 11):
        disturbed.go(until=legs)
    disturbed.go()
    assert disturbed.params == expected.params
    assert disturbed.states == expected.states
    assert len(disturbed.params) == 8
    assert_told(disturbed)
    other = Work(tmp_path / "other", replace(one, seed=1, trials=3)).go()
    assert other.params[0] == expected.params[0], "the first trial is the variant as it stands"
    assert other.params[1:] != expected.params[1:3]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda one: one.name)
def test_suggestions_stay_in_the_space_and_its_conditions(tmp_path: Path, sampler: settings.SamplerConfig) -> None:
    one = study(sampler=sampler, dimensions=(LR, WEIGHT, NET, STATES, CHUNK), trials=16, seeds=(1000,))
    found = Work(tmp_path, one).go().params
    for params in found:
        assert 1e-4 <= params["optimizer.lr"] <= 1e-1
        assert ("estimator.slow_net.d_state" in params) == (params["estimator.slow_net"] == "mamba")
        assert ("estimator.chunk_size" in params) == (params["estimator.slow_weight"] > 0.5)
        train = with_settings(TRAIN, params)
        assert train.optimizer.lr == params["optimizer.lr"]
        assert train.estimator.slow_net.name == params["estimator.slow_net"]
    assert {params["estimator.slow_net"] for params in found} == {"mamba", "ema"}
    assert 0 < sum("estimator.chunk_size" in params for params in found) < 16


def test_variant_as_it_stands_is_tried_first(tmp_path: Path) -> None:
    work = Work(tmp_path, study(trials=1, dimensions=(LR, WEIGHT, NET, STATES, CHUNK))).go()
    assert work.params == [
        {
            "optimizer.lr": 1e-3,
            "estimator.slow_weight": 0.9,
            "estimator.slow_net": "mamba",
            "estimator.slow_net.d_state": 16,
            "estimator.chunk_size": 64,
        }
    ]


def test_what_lies_outside_the_space_is_moved_into_it(tmp_path: Path) -> None:
    decay = Dimension("optimizer.weight_decay", "float", low=1e-6, high=1e-2, log=True)
    assert Work(tmp_path, study(trials=1, dimensions=(decay,))).go().params == [{"optimizer.weight_decay": 1e-6}]


def test_learning_sampler_finds_what_is_good(tmp_path: Path) -> None:
    one = study(trials=25, seeds=(1000,), dimensions=(LR,))
    tried = [params["optimizer.lr"] for params in Work(tmp_path, one).go().params]
    assert abs(math.log10(tried[-1]) + 2.5) < 0.5
    assert abs(math.log10(max(tried[-10:])) + 2.5) < 1


def test_grid_tries_every_combination_once_and_no_more(tmp_path: Path) -> None:
    lr = replace(LR, kind="choice", choices=(0.1, 0.01, 0.001))
    weight = replace(WEIGHT, step=0.5)
    work = Work(tmp_path, study(sampler=settings.Grid(), dimensions=(lr, weight), trials=100)).go(until=5).go()
    tried = Counter((params["optimizer.lr"], params["estimator.slow_weight"]) for params in work.params)
    assert tried == Counter({(a, b): 1 for a in (0.1, 0.01, 0.001) for b in (0.0, 0.5, 1.0)})


def test_settings_that_exclude_each_other_fail_the_trial_and_nothing_else(tmp_path: Path) -> None:
    train = replace(TRAIN, estimator=FSG.Config(semantics="released"))
    weight = replace(WEIGHT, kind="choice", choices=(0.9, 1.0))
    work = Work(tmp_path, study(train=train, dimensions=(weight,), trials=6, sampler=settings.Random())).go()
    for params, state in zip(work.params, work.states, strict=True):
        assert state == ("FAIL" if params["estimator.slow_weight"] == 1.0 else "COMPLETE")
    assert set(work.states) == {"FAIL", "COMPLETE"}


# what is told


def test_a_trial_is_the_mean_of_its_seeds(tmp_path: Path) -> None:
    work = Work(tmp_path, study(trials=3)).go()
    for trial in work.records.trials():
        cells = [work.ledger.cell(cell_id) for cell_id in trial.cells.values()]
        assert [cell.seed for cell in cells] == [1000, 1001]
        assert trial.end is not None
        assert trial.end["values"] == [pytest.approx(sum(accuracy(cell, EPOCHS) for cell in cells) / 2)]
    assert_told(work)


def test_trials_never_open_the_test_images(tmp_path: Path) -> None:
    work = Work(tmp_path, study(trials=3, pruner=HALVING)).go()
    for cell in work.ledger.cells():
        assert (cell.kind, cell.train.test) == ("trial", "never")
        assert cell.id == cell_id(cell.train, cell.seed) != cell_id(replace(cell.train, test="end"), cell.seed)


@pytest.mark.parametrize(
    "pruner",
    [HALVING, settings.Hyperband(first_epoch=1, reduction=3), settings.Median(startup=2)],
    ids=lambda p: p.name,
)
def test_pruned_trials_stop_at_the_rung_with_all_their_seeds(tmp_path: Path, pruner: settings.PrunerConfig) -> None:
    one = study(trials=12, pruner=pruner, sampler=settings.Random())
    work = Work(tmp_path, one).go()
    assert_told(work)
    assert {"PRUNED", "COMPLETE"} == set(work.states)
    for trial in work.records.trials():
        outcomes = [work.ledger.outcome(cell_id) for cell_id in trial.cells.values()]
        if trial.state == "PRUNED":
            last = max(trial.rungs)
            assert last in one.rungs
            assert trial.rungs[last]["pruned"]
            assert {(outcome.state, outcome.step) for outcome in outcomes} == {("pruned", last * STEPS)}
        else:
            assert {outcome.state for outcome in outcomes} == {"done"}
            assert not any(rung["pruned"] for rung in trial.rungs.values())
        for epoch, value in trial.intermediate.items():
            cells = [work.ledger.cell(cell_id) for cell_id in trial.cells.values()]
            assert value == pytest.approx(sum(accuracy(cell, epoch) for cell in cells) / 2)


@pytest.mark.parametrize("dies", [False, True])
def test_cells_of_a_stopped_trial_are_pruned_though_a_worker_is_heard_of_after_the_decision(
    tmp_path: Path, dies: bool
) -> None:
    """What two workers have kept is in the ledger; the driver hears of the one, decides, and then of the other."""
    one = study(trials=12, pruner=HALVING, sampler=settings.Random())
    work = Work(tmp_path, one)
    while not work.searches.finished:
        legs = work.searches.more()
        told = [(leg.cell, *work.train(leg)) for leg in legs]
        for number, news in enumerate(told):
            if dies and number and work.records.trials()[-1].state == "PRUNED":
                work.searches = work.opened()
                break
            work.searches.ended(*news)
    pruned = [trial for trial in work.records.trials() if trial.state == "PRUNED"]
    assert len(pruned) > 3
    for trial in pruned:
        outcomes = [work.ledger.outcome(cell_id) for cell_id in trial.cells.values()]
        assert {(outcome.state, outcome.step) for outcome in outcomes} == {("pruned", max(trial.rungs) * STEPS)}


class NobodyHears:
    """What happens in the queue is of no interest."""

    waits = dict

    def started(self, cell: Cell) -> None: ...
    def progressed(self, cell: Cell, step: int, of_steps: int, metrics: dict[str, float]) -> None: ...
    def retried(self, cell: Cell, reason: str) -> None: ...
    def noted(self, cell: Cell, note: str) -> None: ...
    def ended(self, cell: Cell, state: str, reason: str, log: str) -> None: ...


@pytest.mark.parametrize("order", range(3))
@pytest.mark.parametrize(("studies", "workers"), [(1, 2), (3, 1), (3, 2), (3, 4)])
def test_every_leg_goes_further_and_none_is_left_of_a_stopped_trial(
    tmp_path: Path, studies: int, workers: int, order: int
) -> None:
    """Workers end in any order, and the studies of a tuning share what is out."""
    one = study(trials=10, pruner=HALVING, sampler=settings.Random())
    trains = [replace(TRAIN, estimator=FSG.Config(hidden=2 + number)) for number in range(studies)]
    searched = [replace(one, name=f"study{number}", train=train) for number, train in enumerate(trains)]
    work = Work(tmp_path, *searched)
    queue, busy, draw = Queue([], NobodyHears(), source=work.searches), list[Cell](), random.Random(order)
    while not queue.finished:
        while len(busy) < workers and (cell := queue.take()) is not None:
            busy.append(cell)
        if not busy:  # it was asked, and decided
            continue
        cell = busy.pop(draw.randrange(len(busy)))
        before = work.ledger.outcome(cell.id)
        assert before.state in ("waiting", "interrupted"), cell.label
        state, reason = work.train(WorkItem(cell, queue.until(cell.id)))
        assert work.ledger.outcome(cell.id).step > before.step, cell.label
        queue.ended(cell.id, state, reason)
    ends = [work.ledger.outcome(cell.id).state for cell in work.ledger.cells()]
    assert set(ends) == {"done", "pruned"}
    trials = [trial for one in searched for trial in StudyRecords(work.ledger, one.name).trials()]
    assert [len(trial.cells) for trial in trials] == [2] * 10 * studies
    assert sum(trial.state == "PRUNED" for trial in trials) * 2 == ends.count("pruned")


def test_nothing_is_decided_at_a_rung_before_every_seed_has_come_there(tmp_path: Path) -> None:
    work = Work(tmp_path, study(trials=2, pruner=HALVING))
    first, second = work.searches.more()
    assert (first.until, second.until) == (STEPS, STEPS)
    work.searches.ended(first.cell, *work.train(first))
    assert work.records.trials()[0].rungs == {}
    work.searches.ended(second.cell, *work.train(second))
    assert list(work.records.trials()[0].rungs) == [1]
    assert [(leg.cell.id, leg.until) for leg in work.searches.more()] == [
        (first.cell.id, 3 * STEPS),
        (second.cell.id, 3 * STEPS),
    ]


def test_failed_seed_fails_its_trial_and_no_other(tmp_path: Path) -> None:
    def fate(cell: Cell) -> str:
        return "failed" if cell.grid == {"trial": 1} and cell.seed == 1001 else "done"

    work = Work(tmp_path, study(trials=3), fate=fate).go()
    assert work.states == ["COMPLETE", "FAIL", "COMPLETE"]
    assert work.records.trials()[1].end["reason"] == "seed 1001: no luck"  # type: ignore[index]
    assert_told(work)


def test_diverged_seed_counts_as_accuracy_zero(tmp_path: Path) -> None:
    def fate(cell: Cell) -> str:
        return "diverged" if cell.seed == 1001 else "done"

    work = Work(tmp_path, study(trials=1, train=replace(TRAIN, evaluate_every=20)), fate=fate)
    (first, second) = work.searches.more()
    for leg in (first, second):
        work.ledger.claim(leg.cell.id, {}).finish("diverged", "the loss is nan", step=3)
        work.searches.ended(leg.cell, "diverged", "")
    assert work.records.trials()[0].end["values"] == [0.0]  # type: ignore[index]


def test_several_objectives_are_told_together(tmp_path: Path) -> None:
    one = study(objectives=("validation/accuracy", "time/step"), sampler=settings.NSGA2(population=4))
    work = Work(tmp_path, one).go()
    for trial in work.records.trials():
        assert trial.end is not None
        assert trial.end["values"][1] == pytest.approx(0.1)
    assert_told(work)


@pytest.mark.parametrize("sampler", [settings.TPE(startup=3), settings.NSGA2(population=4)], ids=lambda s: s.name)
def test_accuracy_and_peak_of_memory_are_sought_together(tmp_path: Path, sampler: settings.SamplerConfig) -> None:
    one = study(objectives=("validation/accuracy", "memory/peak"), sampler=sampler, trials=12)
    work = Work(tmp_path, one).go()
    cells = {cell.id: cell for cell in work.ledger.cells()}
    for trial in work.records.trials():
        assert trial.end is not None
        peaks = [megabytes(cells[cell]) for cell in trial.cells.values()]
        assert trial.end["values"][1] == pytest.approx(sum(peaks) / len(peaks))
    assert_told(work)
    study_there = work.searches.studies[0].optuna.study
    assert [one.name for one in study_there.directions] == ["MAXIMIZE", "MINIMIZE"]
    front = pareto_front(work.records.trials(), one.objectives)
    assert {trial.number for trial in front} == {trial.number for trial in study_there.best_trials}


@pytest.mark.parametrize("pruner", [settings.NoPruning(), HALVING], ids=lambda p: p.name)
def test_trial_whose_cells_know_no_peak_of_memory_fails_and_says_so(
    tmp_path: Path, pruner: settings.PrunerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Work, "counts_memory", False)
    work = Work(tmp_path, study(objectives=("memory/peak",), pruner=pruner, trials=1))
    for _, cell in work.searches.studies[0]._dispatcher.cells(replace(TRAIN, test="never"), "trial", 0, (1000, 1001)):
        work.ledger.add(cell)
        work.train_whole(cell)
    work.go()
    assert work.states == ["FAIL"]
    assert work.records.trials()[0].end["reason"] == "memory/peak was not recorded of its cells"  # type: ignore[index]


def test_search_that_breaks_is_kept_from_tune_and_has_no_more_to_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(tmp_path, study(seeds=(1000,)))
    guarded = ErrorCapturingSource(work.searches)
    (leg,) = guarded.more()
    work.train_whole(leg.cell)

    def gone(*arguments: object) -> None:
        raise Killed("gone")

    monkeypatch.setattr("orchestration.search.optuna.storage.OptunaStudy.tell", gone)
    assert not guarded.finished
    guarded.ended(leg.cell, "done", "")
    guarded.ended(leg.cell, "done", "")
    assert str(guarded.broken) == "gone"
    assert guarded.more() == []
    assert guarded.finished
    assert not work.searches.finished


# what survives


def test_study_may_be_lost_at_any_moment(tmp_path: Path, undisturbed: Callable[[StudySpec], Work]) -> None:
    one = study(pruner=HALVING, trials=4, seeds=(1000,))
    expected = undisturbed(one)
    for legs in range(1, len(expected.legs)):
        work = Work(tmp_path / str(legs), one).go(until=legs)
        work.records.journal.unlink()
        work.searches = work.opened()
        work.go()
        assert (work.params, work.states) == (expected.params, expected.states), legs
        attributes = [frozen.system_attrs for frozen in expected.stored()]
        assert [frozen.system_attrs for frozen in work.stored()] == attributes, legs


@pytest.mark.parametrize(
    ("damage", "pruner"),
    [
        ("lost", HALVING),
        ("cut short", settings.Median(startup=2)),
        ("nonsense", HALVING),
        ("another's", settings.NoPruning()),
    ],
)
def test_lost_study_is_made_anew_from_the_ledger(
    tmp_path: Path, damage: str, pruner: settings.PrunerConfig, undisturbed: Callable[[StudySpec], Work]
) -> None:
    one = study(pruner=pruner)
    work = Work(tmp_path / "lost", one).go(until=9)
    journal = work.records.journal
    content = journal.read_bytes()
    if damage == "another's":
        other = Work(tmp_path / "other", replace(one, seed=5)).go(until=9).records.journal
        journal.write_bytes(other.read_bytes())
    elif damage == "lost":
        journal.unlink()
    else:
        journal.write_bytes(content[: len(content) // 2] if damage == "cut short" else b"nonsense\n" + content)
    work.searches = work.opened()
    work.go()
    assert work.params == undisturbed(one).params
    assert work.states == undisturbed(one).states
    assert_told(work)


RECORDS = (
    "study.json",
    "trials/000000.json",
    "trials/000002.json",
    "trials/000002-rung-0001.json",
    "trials/000002-end.json",
    "choice-0001.json",
)


def spoil(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if how == "a folder":
        path.mkdir()
    else:
        path.write_bytes({"cut short": content[:-9], "empty": b"", "another's": b'{"values": [1]}\n'}[how])


@pytest.mark.parametrize("how", ["cut short", "empty", "another's", "a folder"])
@pytest.mark.parametrize("name", RECORDS)
def test_damaged_record_of_a_search_is_named_and_costs_nothing_else(tmp_path: Path, name: str, how: str) -> None:
    one = study(trials=6, best=2, pruner=HALVING, sampler=settings.Random())
    work = Work(tmp_path / "damaged", one).go()
    before = work.records.trials()
    assert before[2].state == "COMPLETE"
    spoil(work.records.folder / name, how)
    assert damage_of_searches(work.ledger) == [f"studies/tuned/{name} is damaged"]

    grown = Work(tmp_path / "damaged", replace(one, trials=9)).go()
    after = grown.records.trials()
    assert len(after) == 9
    assert all(trial.end for trial in after)
    if "rung" not in name:  # Optuna still knows it
        assert_told(grown)
    lost = name.startswith("trials") and int(name[7:13])
    for then, now in zip(before, after, strict=False):
        if then.number != lost or lost is False:
            assert now == then
    if lost is not False and name.endswith(f"{lost:06d}.json"):
        assert (after[lost].state, after[lost].params) == ("FAIL", {})
        assert (after[lost].end or {})["reason"] == "the record of its settings is damaged"
    elif lost is not False:
        assert (after[lost].state, after[lost].params) == (before[lost].state, before[lost].params)
        assert (after[lost].end or {})["values"] == (before[lost].end or {})["values"]
    healed = name in ("study.json", "trials/000002-end.json")  # wanted again, and written beside it
    assert damage_of_searches(grown.ledger) == ([] if healed else [f"studies/tuned/{name} is damaged"])
    assert grown.records.choices()[-1]["trials"] == 9
    assert Work(tmp_path / "damaged", replace(one, trials=9)).go().legs == []
    assert names.strays(grown.ledger.folder) == []


@pytest.mark.parametrize("name", [one for one in RECORDS if not one.startswith("choice")])
def test_search_whose_record_is_damaged_on_the_way_goes_on(tmp_path: Path, name: str) -> None:
    one = study(trials=6, best=2, pruner=HALVING, sampler=settings.Random())
    legs = len(Work(tmp_path / "whole", one).go().legs)
    for until in range(8, legs, 5):
        work = Work(tmp_path / str(until), one).go(until=until)
        if not (work.records.folder / name).exists():
            continue
        spoil(work.records.folder / name, "cut short")
        work.searches = work.opened()
        work.go()
        assert len(work.records.trials()) == 6, until
        assert work.records.choices()[-1]["trials"] == 6, until


def test_study_is_extended_without_repeating_a_trial(tmp_path: Path) -> None:
    few, many = study(trials=4), study(trials=9)
    work = Work(tmp_path / "grown", few).go()
    trained = len(work.legs)
    grown = Work(tmp_path / "grown", many).go()
    at_once = Work(tmp_path / "at once", many).go()
    assert grown.params == at_once.params
    assert len(grown.legs) == len(at_once.legs) - trained
    assert Work(tmp_path / "grown", many).go().legs == []


def test_driver_that_dies_between_ledger_and_optuna_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Callable[[StudySpec], Work]
) -> None:
    expected = undisturbed(study(pruner=HALVING))
    for where in ("ask", "tell", "enqueue_trial"):
        work = Work(tmp_path / where, study(pruner=HALVING))
        for calls in (1, 3):
            with monkeypatch.context() as patch:
                patch.setattr(optuna.Study, where, _dies_after(getattr(optuna.Study, where), calls))
                try:
                    work.go()
                except Killed:
                    work.searches = work.opened()
        work.go()
        assert work.params == expected.params, where
        assert work.states == expected.states, where
        assert_told(work)


def test_study_made_anew_keeps_the_times_of_what_had_ended(tmp_path: Path) -> None:
    """A driver that dies with a trial under way makes Optuna's study anew."""

    def ended(work: Work) -> list[tuple[object, object]]:
        return [(one.datetime_start, one.datetime_complete) for one in work.stored() if one.state.is_finished()]

    work = Work(tmp_path, study(pruner=HALVING)).go(until=9)
    before = work.stored()
    assert [one.state.is_finished() for one in before] == [True] * (len(before) - 1) + [False]
    work.go(until=9)
    assert ended(work)[: len(before) - 1] == [(one.datetime_start, one.datetime_complete) for one in before[:-1]]
    work.go()
    assert_told(work)


def test_driver_may_die_while_it_makes_a_study_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Callable[[StudySpec], Work]
) -> None:
    one = study(pruner=HALVING)
    for calls in (1, 2, 3):
        work = Work(tmp_path / str(calls), one).go(until=9)
        work.records.journal.unlink()
        with monkeypatch.context() as patch:
            patch.setattr(optuna.Study, "add_trial", _dies_after(optuna.Study.add_trial, calls))
            with pytest.raises(SearchError, match=r"the study cannot be kept in .*study\.journal: Killed"):
                work.opened()
        work.searches = work.opened()
        work.go()
        assert (work.params, work.states) == (undisturbed(one).params, undisturbed(one).states)
        assert_told(work)


def _dies_after(function: Callable[..., Any], calls: int) -> Callable[..., Any]:
    made = [0]

    def dies(*arguments: Any, **keywords: Any) -> Any:
        result = function(*arguments, **keywords)
        made[0] += 1
        if made[0] == calls:
            raise Killed
        return result

    return dies


def test_storage_that_cannot_be_had_is_refused_in_one_line(tmp_path: Path) -> None:
    work = Work(tmp_path, study())
    with pytest.raises(
        SearchError, match=r"the study cannot be kept in postgresql://me:\*\*\*@localhost:1/none: .+"
    ) as e:
        work.opened(storage="postgresql://me:secret@localhost:1/none")
    assert "\n" not in str(e.value)
    assert "secret" not in str(e.value)


def test_study_in_a_database_is_shared_with_others_of_the_same_name(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    for name in ("one", "two"):
        work = Work(tmp_path / name, study(trials=2, pruner=HALVING, seeds=(1000,)))
        work.searches = work.opened(storage=url)
        work.go()
    summaries = optuna.get_all_study_summaries(url)
    assert [summary.n_trials for summary in summaries] == [2, 2]


# earlier studies


def test_earlier_trials_are_taken_over_where_they_are_comparable(tmp_path: Path) -> None:
    earlier = Work(tmp_path / "earlier", study(trials=5)).go()
    wider = study(trials=3, dimensions=(LR, WEIGHT, NET), warm_start=str(tmp_path / "earlier"))
    work = Work(tmp_path / "later", wider).go()
    assert work.params[:5] == earlier.params
    assert [trial.origin is None for trial in work.records.trials()] == [False] * 5 + [True] * 3
    assert len({leg.cell.grid["trial"] for leg in work.legs}) == 3
    assert_told(work)


def test_earlier_settings_are_tried_anew_where_they_are_not_comparable(tmp_path: Path) -> None:
    earlier = Work(tmp_path / "earlier", study(trials=4, train=replace(TRAIN, epochs=3))).go()
    best = max(earlier.records.trials(), key=lambda trial: trial.end["values"][0])  # type: ignore[index]
    work = Work(tmp_path / "later", study(trials=3, warm_start=str(tmp_path / "earlier"))).go()
    assert [trial.origin for trial in work.records.trials()] == [None] * 3
    assert work.params[1] == best.params


def test_warm_start_from_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="has no search"):
        Work(tmp_path, study(warm_start=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"dimensions": (replace(LR, high=1.0), WEIGHT)}, "search.space.optimizer.lr"),
        ({"dimensions": (LR,)}, "search.space.estimator.slow_weight"),
        ({"seeds": (1000,)}, "search.seeds"),
        ({"pruner": HALVING}, "search.pruner"),
        ({"objectives": ("validation/loss",)}, "search.objectives"),
        ({"train": replace(TRAIN, epochs=3)}, "train"),
    ],
)
def test_study_that_was_begun_otherwise_is_told_apart(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    work = Work(tmp_path, study(trials=1)).go()
    ((where, what),) = differences(spec_of(study(**change)), work.ledger, "search")
    assert where == field
    assert f"the study in {tmp_path}" in what
    other_start = replace(TRAIN, optimizer=Adam(lr=0.01))
    assert list(differences(spec_of(study(trials=9, train=other_start)), work.ledger, "search")) == []


# confirmation


def test_best_are_trained_on_fresh_seeds_and_one_opens_the_test_images(tmp_path: Path) -> None:
    work = Work(tmp_path, study(best=3)).go()
    kinds = Counter(leg.cell.kind for leg in work.legs)
    assert kinds == {"trial": 16, "candidate": 9, "train": 3}
    (choice,) = work.records.choices()
    complete = sorted(work.records.trials(), key=lambda t: -t.end["values"][0])  # type: ignore[index]
    assert set(choice["candidates"]) == {str(trial.number) for trial in complete[:3]}
    means = {number: sum(by_seed.values()) / 3 for number, by_seed in choice["candidates"].items()}
    assert str(choice["chosen"]) == max(means, key=lambda number: means[number])
    tested = [leg.cell for leg in work.legs if leg.cell.train.test == "end"]
    assert [cell.label for cell in tested] == ["tuned · seed 0", "tuned · seed 1", "tuned · seed 2"]
    train = with_settings(TRAIN, choice["params"])
    assert [cell.id for cell in tested] == choice["cells"] == [cell_id(train, seed) for seed in (0, 1, 2)]
    continued = [work.ledger.cell(str(cell.continues)) for cell in tested]
    assert {(cell.kind, cell.grid["trial"]) for cell in continued} == {("candidate", choice["chosen"])}
    assert work.legs[-3:] == [WorkItem(cell) for cell in tested], "nothing else is trained after"


def test_every_variant_gets_the_same_budget_and_its_own_choice(tmp_path: Path) -> None:
    ste = study(name="ste", train=replace(TRAIN, estimator=STE.Config()), dimensions=(LR,), trials=4, best=1)
    fsg = study(name="fsg", trials=4, best=1)
    work = Work(tmp_path, ste, fsg).go()
    trials = [leg.cell.variant for leg in work.legs if leg.cell.kind == "trial"]
    assert Counter(trials) == {"ste": 8, "fsg": 8}
    assert trials == ["ste", "ste", "fsg", "fsg"] * 4, "breadth first"
    for name in ("ste", "fsg"):
        assert len(StudyRecords(work.ledger, name).choices()) == 1


def test_candidate_that_fails_leaves_no_choice(tmp_path: Path) -> None:
    def fate(cell: Cell) -> str:
        return "failed" if cell.kind == "candidate" and cell.seed == 2 else "done"

    work = Work(tmp_path, study(trials=2, best=2), fate=fate).go()
    assert work.searches.unsettled == ["tuned"]
    assert work.records.choices() == []
    again = Work(tmp_path, study(trials=2, best=2)).go()
    assert not again.searches.unsettled
    assert [leg.cell.kind for leg in again.legs] == ["candidate"] * 2 + ["train"] * 3


@pytest.mark.parametrize("kind", ["trial", "candidate"])
@pytest.mark.parametrize("objective", ["validation/accuracy", "train/loss"])
def test_search_without_a_valid_trial_chooses_nothing_and_says_so(tmp_path: Path, kind: str, objective: str) -> None:
    said: list[str] = []
    one = study(trials=2, best=2, objectives=(objective,), train=replace(TRAIN, evaluate_every=20))
    work = Work(tmp_path, one, fate=lambda cell: "done")
    work.searches = work.opened(say=said.append)
    while not work.searches.finished:
        for leg in work.searches.more():
            if leg.cell.kind == kind:
                work.ledger.claim(leg.cell.id, {}).finish("diverged", "the loss is nan", step=3)
                work.searches.ended(leg.cell, "diverged", "")
            else:
                work.searches.ended(leg.cell, *work.train(leg))
    assert work.records.choices() == []
    assert work.searches.unsettled == ["tuned"]
    assert said == [f"tuned: no {kind} is valid, as all diverged or failed: nothing is chosen"]


def test_candidate_that_diverged_is_not_chosen(tmp_path: Path) -> None:
    def fate(cell: Cell) -> str:
        return "diverged" if cell.kind == "candidate" and cell.grid == {"trial": first.number} else "done"

    undisturbed = Work(tmp_path / "undisturbed", study(trials=2, best=2)).go()
    first = undisturbed.records.trials()[undisturbed.records.choices()[0]["chosen"]]
    work = Work(tmp_path / "other", study(trials=2, best=2), fate=fate).go()
    assert work.records.choices()[0]["chosen"] == 1 - first.number
    assert not work.searches.unsettled


def test_optimum_at_a_bound_is_flagged_unless_the_field_ends_there() -> None:
    assert at_bounds([LR, WEIGHT], {"optimizer.lr": 0.1, "estimator.slow_weight": 1.0}) == {"optimizer.lr": "high"}
    assert at_bounds([LR], {"optimizer.lr": 1e-4}) == {"optimizer.lr": "low"}
    assert at_bounds([LR], {"optimizer.lr": 1e-2}) == {}


# the plan


def test_plan_counts_what_is_there_and_what_is_to_come(tmp_path: Path) -> None:
    one = study(trials=4, best=2)
    work = Work(tmp_path, one)

    def counted() -> tuple[Counter[str], int]:
        cells = expected_cells(spec_of(one), work.ledger)
        return Counter(cell.kind for cell in cells), sum(not cell.id for cell in cells)

    all_kinds = Counter({"trial": 8, "candidate": 6, "train": 3})
    assert counted() == (all_kinds, 17)
    work.go(until=3)
    assert counted() == (all_kinds, 17 - 4)
    work.go()
    assert counted() == (all_kinds, 0)


def test_plan_counts_a_pretraining_once_whoever_begins_with_it(tmp_path: Path) -> None:
    train = replace(TRAIN, init=Pretrain(epochs=1, batch_size=128))
    studies = [study(name=name, train=train, trials=2, best=1, table_seeds=(0, 1)) for name in ("a", "b")]
    other = replace(studies[1], train=replace(train, init=Pretrain(epochs=2, batch_size=128)))

    def counted(*wanted: StudySpec, **spec: Any) -> list[int]:
        cells = expected_cells(replace(spec_of(*wanted), **spec), Ledger(tmp_path))
        return sorted(cell.seed for cell in cells if cell.kind == "pretrain")

    assert counted(studies[0]) == counted(*studies) == [0, 1, 1000, 1001]
    assert counted(studies[0], other) == [0, 0, 1, 1, 1000, 1000, 1001, 1001]
    of_the_table = Point(variant="default", grid={}, train=train)
    assert counted(*studies, points=(of_the_table,)) == [1000, 1001]
    for cell in cells_of(replace(train, test="never"), "trial", "a", {}, 1000)[:1]:
        assert cell is not None
        Ledger(tmp_path).add(cell)
    assert counted(*studies) == [0, 1, 1001]


def test_records_are_plain_and_complete_enough_for_optuna(tmp_path: Path) -> None:
    work = Work(tmp_path, study(pruner=HALVING, dimensions=(LR, NET, STATES))).go()
    for record, frozen in zip(work.records.trials(), work.stored(), strict=True):
        remade = to_frozen_trial(record)
        assert remade.distributions == frozen.distributions
        assert remade.system_attrs == frozen.system_attrs
        assert remade.values == frozen.values
        assert json.dumps(record.params)


def test_work_is_handed_out_once(tmp_path: Path) -> None:
    def once(legs: Sequence[WorkItem]) -> bool:
        return len({(leg.cell.id, leg.until) for leg in legs}) == len(legs)

    lr = replace(LR, kind="choice", choices=(0.01, 0.001))
    work = Work(tmp_path, study(dimensions=(lr,), trials=6, sampler=settings.Random(), pruner=HALVING)).go()
    assert once(work.legs), "equal settings are equal cells"
    assert len(work.states) == 6
