"""torch's compiler over what a step is made of beside the network: one graph without a break, and the same training."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_estimators import ESTIMATORS, built, steps

from fsg.checkpoint import digest
from fsg.optimizers import SGD, Adam, AdamW, Bop, NAdam


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
        yield


QUICK = ("ste", "fsg_released")


@pytest.mark.parametrize(
    "config",
    [pytest.param(one, marks=() if name in QUICK else pytest.mark.slow, id=name) for name, one in ESTIMATORS.items()],
)
def test_propose_is_one_graph_and_trains_the_same(config: Any) -> None:
    """From the step on in which a history of two is full, as shapes change before."""
    plain, compiled = built(config), built(config)
    losses = steps(*plain, 0, 8)
    before = steps(*compiled, 0, 6)
    estimator = compiled[1]

    def propose(model: Any, lr: float, progress: float) -> Any:
        return type(estimator).propose(estimator, model, lr=lr, progress=progress)

    graph = torch.compile(propose, backend="eager", fullgraph=True)
    estimator.propose = lambda model, *, lr, progress: graph(model, lr, progress)
    assert before + steps(*compiled, 6, 8) == losses
    assert digest(compiled[0].state_dict()) == digest(plain[0].state_dict())


RULES = {
    "sgd": SGD(momentum=0.9, nesterov=True),
    "adam": Adam(clip_latent=1.0),
    "adamw": AdamW(),
    "nadam": NAdam(),
    "bop": Bop(),
}


@pytest.mark.parametrize(
    "rule",
    [pytest.param(one, marks=() if name == "adam" else pytest.mark.slow, id=name) for name, one in RULES.items()],
)
def test_an_optimizers_step_is_one_graph_and_trains_the_same(rule: Any) -> None:
    plain, compiled = built(ESTIMATORS["ste"]), built(ESTIMATORS["ste"])
    trained = []
    for model, estimator, _ in (plain, compiled):
        optimizer = rule.build(model)
        losses = steps(model, estimator, optimizer, 0, 2)
        if model is compiled[0]:
            graph = torch.compile(lambda lr, its=optimizer: type(its).step(its, lr), backend="eager", fullgraph=True)
            optimizer.step = graph
        losses += steps(model, estimator, optimizer, 2, 4)
        trained.append((losses, digest({"model": model.state_dict(), "optimizer": optimizer.state_dict()})))
    assert trained[0] == trained[1]
