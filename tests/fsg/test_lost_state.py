"""What an estimator remembers and does not keep is found; what it only uses within a step is not."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from test_estimators import built, every_estimator, steps
from torch import Tensor, nn

from fsg.estimators import STE
from fsg.lost_state import LostState


class Remembering(STE):
    """STE that does something with itself in each step."""

    def __init__(
        self, model: nn.Module, does: "Callable[[Remembering], Any]", kept: tuple[str, ...], restored: tuple[str, ...]
    ) -> None:
        super().__init__(model, STE.Config())
        self.does, self.kept, self.restored = does, kept, restored
        self.count, self.mean = 0, None
        self.values, self.arrays, self.by_name = [], np.zeros(3), {}  # type: ignore[var-annotated]
        self.generator, self.net = np.random.default_rng(0), nn.Linear(2, 2)
        self.constant = {"a": [1, 2.5]}

    def update(self, model: nn.Module) -> bool:
        applies = super().update(model)
        self.does(self)
        return applies

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.restored:
            setattr(self, name, state[name])


def gradient(one: Remembering) -> Tensor:
    found = one.weights[0].grad
    assert found is not None
    return found


def found(
    does: Callable[[Remembering], Any], kept: tuple[str, ...] = (), restored: tuple[str, ...] = ()
) -> tuple[str, ...]:
    def build(model: nn.Module) -> Remembering:
        return Remembering(model, does, kept, restored)

    model, _, optimizer = built(STE.Config())
    estimator = build(model)
    steps(model, estimator, optimizer, 0, 1)
    lost = LostState(estimator, build)
    with lost.watching(model):
        steps(model, estimator, optimizer, 1, 2)
    assert type(estimator) is Remembering
    return lost.names


def averages(one: Remembering) -> None:
    one.mean = gradient(one).clone() if one.mean is None else 0.9 * one.mean + 0.1 * gradient(one)


def uses_within_the_step(one: Remembering) -> None:
    one.mean = gradient(one).clone()
    gradient(one).mul_(one.mean.sum())


LOST: dict[str, tuple[Callable[[Remembering], Any], tuple[str, ...]]] = {
    "a mean": (averages, ("mean",)),
    "a counter": (lambda one: setattr(one, "count", one.count + 1), ("count",)),
    "a list that grows": (lambda one: one.values.append(gradient(one).sum().item()), ("values",)),
    "a dict that changes": (lambda one: one.by_name.update(a=gradient(one).clone()), ("by_name",)),
    "an array in place": (lambda one: np.add(one.arrays, 1, out=one.arrays), ("arrays",)),
    "a net of its own": (lambda one: one.net.weight.data.add_(0.1), ("net",)),
    "nothing": (lambda one: None, ()),
    "what is made anew in each step": (uses_within_the_step, ()),
    "what never changes": (lambda one: gradient(one).mul_(one.constant["a"][1]), ()),
    "a generator, kept beside the state": (lambda one: one.generator.random(), ()),
}


@pytest.mark.parametrize(("does", "names"), LOST.values(), ids=LOST.keys())
def test_memory_that_is_in_no_state_is_found(does: Callable[[Remembering], Any], names: tuple[str, ...]) -> None:
    assert found(does) == tuple(sorted(names))


def test_memory_that_is_kept_is_not_lost_unless_it_is_not_given_back() -> None:
    assert found(averages, kept=("mean",), restored=("mean",)) == ()
    assert found(averages, kept=("mean",)) == ("mean",)
    assert found(averages, kept=("mean",), restored=("misspelt", "mean")) == ("mean",), "it cannot be resumed"


def test_another_generator_is_drawn_from_by_the_step_alone() -> None:
    def draws(one: Remembering) -> None:
        one.mean = np.random.rand() + torch.rand(()).item() + one.generator.random() + (one.mean or 0.0)

    def total(watched: bool) -> Any:
        np.random.seed(0)
        model, _, optimizer = built(STE.Config())
        estimator = Remembering(model, draws, (), ())
        lost = LostState(
            estimator, lambda again: Remembering(again, draws, (), (str(np.random.rand(torch.randint(9, ()))),))
        )
        steps(model, estimator, optimizer, 0, 1)
        with lost.watching(model) if watched else nullcontext():
            steps(model, estimator, optimizer, 1, 2)
        assert lost.names == (("mean",) if watched else ())
        steps(model, estimator, optimizer, 2, 3)
        return estimator.mean

    assert total(watched=True) == total(watched=False)


@every_estimator
def test_estimators_of_this_package_lose_nothing(config: Any) -> None:
    model, estimator, optimizer = built(config)
    steps(model, estimator, optimizer, 0, 1)
    for step in range(1, 4):
        lost = LostState(estimator, config.build)
        with lost.watching(model):
            steps(model, estimator, optimizer, step, step + 1)
        assert lost.names == ()
