from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import pytest

from fsg.data import FashionMNISTSubset
from fsg.estimators import FSG
from fsg.imported import Imported
from fsg.models import ResNet
from fsg.optimizers import SGD, Adam
from fsg.starting_points import Pretrain
from fsg.train_config import TrainConfig
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.outcome import Outcome
from orchestration.ledger.status import CellStatus, cell_statuses
from orchestration.runtime.pilot import Cost, Pilots, kind_of, predict, run_pilot, wall_clock
from orchestration.spec.cells import Cell

TRAIN = TrainConfig(data=FashionMNISTSubset(train_limit=640), model=ResNet.Config(depth=8, width=2), epochs=2)


def cell(name: str, train: TrainConfig = TRAIN, depends_on: str | None = None) -> Cell:
    return Cell(name, "train", name, {}, 0, train, depends_on)


def expected(name: str, seconds: float, depends_on: str | None = None, step: int = 0) -> CellStatus:
    return CellStatus(cell(name, depends_on=depends_on), Outcome("waiting", step=step), 100, seconds)


def test_learning_rates_and_weights_cost_no_time() -> None:
    fsg = replace(TRAIN, estimator=FSG.Config(slow_weight=0.9), optimizer=Adam(lr=0.1))
    assert kind_of(fsg) == kind_of(
        replace(fsg, estimator=FSG.Config(slow_weight=0.5), optimizer=Adam(lr=0.2), epochs=9)
    )


@pytest.mark.parametrize(
    "other",
    [
        replace(TRAIN, estimator=FSG.Config()),
        replace(TRAIN, batch_size=64),
        replace(TRAIN, accumulate=2),
        replace(TRAIN, optimizer=SGD()),
        replace(TRAIN, threads=2),
        replace(TRAIN, model=ResNet.Config(depth=14, width=2)),
    ],
)
def test_what_costs_time_makes_another_kind(other: TrainConfig) -> None:
    assert kind_of(other) != kind_of(TRAIN)


def test_part_that_is_switched_off_makes_another_kind() -> None:
    some, none = (replace(TRAIN, estimator=FSG.Config(slow_weight=weight)) for weight in (0.5, 0.0))
    assert kind_of(some) != kind_of(none)


def test_cost_counts_steps_and_every_evaluated_image() -> None:
    train = replace(TRAIN, epochs=4, evaluate_every=2, recalibrate_batchnorm=100)
    steps, images = 4 * 5, 2 * 1000 + 2000 + 3 * 100
    dataset = train.data.load()
    assert Cost(1.0, 0.0).seconds(cell("a", train), dataset) == steps
    assert Cost(0.0, 1.0).seconds(cell("a", train), dataset) == images


def test_pilot_measures_a_step_and_an_image() -> None:
    cost = run_pilot(cell("a", replace(TRAIN, init=Pretrain())), seconds=0.05)
    assert cost.step > 0
    assert cost.image > 0


def test_pilots_run_beside_each_other_and_one_that_kills_its_process_takes_no_other_with_it() -> None:
    dies = replace(TRAIN, estimator=Imported(path="unlucky:Unlucky", settings={"what": "dies", "at": 2}))
    with Pilots("cpu", 2) as pilots:
        with pytest.raises(ValueError, match="train_limit"):
            pilots.measure(cell("a", replace(TRAIN, data=FashionMNISTSubset(train_limit=10**6))))
        assert pilots.measure(cell("a")).step > 0
        with pytest.raises(BrokenProcessPool):
            pilots.measure(cell("a", dies))
        assert pilots.measure(cell("a")).step > 0


def test_kinds_are_piloted_once_and_what_is_over_not_at_all(tmp_path: Path) -> None:
    ledger, piloted = Ledger(tmp_path), list[str]()

    def count(one: Cell) -> Cost:
        piloted.append(one.id)
        return Cost(0.1, 0.0)

    done = cell("done", replace(TRAIN, batch_size=32))
    ledger.add(done)
    attempt = ledger.claim(done.id, {})
    attempt.weights("final.pt", b"")
    attempt.finish("done", seconds=7.0)
    same = cell("same", replace(TRAIN, batch_size=32, optimizer=Adam(lr=0.1)))
    planned = [
        cell("a"),
        cell("b", replace(TRAIN, optimizer=Adam(lr=0.1))),
        cell("c", replace(TRAIN, epochs=4)),
        done,
        same,
    ]
    found = predict(cell_statuses(planned, ledger), count)
    assert piloted == ["a"]
    assert [one.seconds for one in found] == pytest.approx([1.0, 1.0, 2.0, 7.0, 7.0])
    assert [one.left for one in found] == pytest.approx([1.0, 1.0, 2.0, 0.0, 7.0])


def test_kind_whose_pilot_fails_is_left_without_an_expectation(tmp_path: Path) -> None:
    def fail(one: Cell) -> Cost:
        raise ValueError("an idea that does not work")

    (found,) = predict(cell_statuses([cell("a")], Ledger(tmp_path)), fail)
    assert found.seconds is None
    assert found.left is None


def test_clock_runs_over_places_in_order_and_after_pretrainings() -> None:
    assert wall_clock([expected("a", 4), expected("b", 2), expected("c", 2)], 2) == 4
    assert wall_clock([expected("pre", 3), expected("a", 2, depends_on="pre"), expected("b", 2)], 2) == 5
    assert wall_clock([expected("a", 4, step=50), expected("b", 1)], 1) == 3
    assert wall_clock([], 2) == 0
