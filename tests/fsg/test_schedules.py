import math

import pytest

from fsg.schedules import Constant, Cosine, Step


def test_step_schedule_drops_at_its_epochs() -> None:
    schedule = Step(every=30, gamma=0.1)
    assert [schedule.factor(e, 100) for e in (0, 29.99, 30, 59.9, 60, 95)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.001]
    )


def test_cosine_schedule_goes_from_one_to_zero() -> None:
    assert [Cosine().factor(e, 8) for e in (0, 2, 4, 8)] == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, 0], abs=1e-15
    )


def test_warm_up_rises_linearly_and_multiplies_the_decay() -> None:
    assert [Constant(warmup_epochs=2).factor(e, 10) for e in (0, 0.5, 1, 2, 3)] == [0, 0.25, 0.5, 1, 1]
    assert Step(every=1, warmup_epochs=2).factor(1.5, 10) == pytest.approx(0.75 * 0.1)


@pytest.mark.parametrize("bad", [{"every": 0}, {"gamma": 0.0}, {"gamma": 1.5}, {"warmup_epochs": -1.0}])
def test_values_out_of_range_are_refused_with_the_range(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))} is .*, expected"):
        Step(**bad)  # type: ignore[arg-type]
