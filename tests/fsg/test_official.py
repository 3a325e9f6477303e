"""What claims to be a paper's method against records of what its official code computes, in float64.

A record is a binary convolution: weight, input and ∂loss/∂output in, output and ∂loss/∂weight out. Here they go through
the layer, the estimator and the setting `anneal` that a user has, in the epoch that the record is of.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from fsg.estimators import EDE, STE, ReSTE
from fsg.layers import quantize
from fsg.quantizers import BWN, Libra, ReCU

FOLDER = Path(__file__).parent / "official"


class Method(NamedTuple):
    """A method's settings in this package, what its records say of a moment, and where that is found."""

    quantizer: Any
    estimator: Any
    rows: int
    moment: dict[str, Any] = {}  # noqa: RUF012


METHODS = {
    "irnet_1w32a": Method(
        Libra(), EDE.Config(), 12, {"t": lambda e, layer: e.sharpness()[0], "k": lambda e, layer: e.sharpness()[1]}
    ),
    "reste": Method(
        BWN(scale="layer", gradient="through_scale"),
        ReSTE.Config(schedule="cosine"),
        12,
        {"o": lambda e, layer: e.power()},
    ),
    "recu": Method(
        ReCU(tau_start=0.85, tau=0.99),
        STE.Config(derivative="identity"),
        9,
        {"tau": lambda e, layer: layer.quantizer.tau},
    ),
    "bireal": Method(BWN(gradient="unscaled"), STE.Config(), 3),
    "reactnet": Method(BWN(gradient="unscaled"), STE.Config(), 3),
}
ROWS = [(name, i) for name, method in METHODS.items() for i in range(method.rows)]


def record(name: str, row: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What is said of a row, and its tensors."""
    with np.load(FOLDER / f"{name}.npz") as archive:
        about = json.loads(str(archive["about"]))["rows"][row]
        tensors = ("weight", "input", "upstream", "output", "weight_grad")
        return about, {key: torch.from_numpy(archive[f"{row}/{key}"]) for key in tensors}


def computed(method: Method, about: dict[str, Any], given: dict[str, torch.Tensor]) -> tuple[Any, Any, Any]:
    """The layer, the estimator and the output, after the backward pass of one step of the epoch."""
    out, channels = given["weight"].shape[:2]
    layer = nn.Conv2d(channels, out, 3, bias=False).double()
    layer.weight.data.copy_(given["weight"])
    model = quantize(nn.Sequential(layer), method.quantizer)
    estimator = method.estimator.build(model)
    progress = about["epoch"] / about["epochs"] if "epoch" in about else 0.0
    weights = estimator.propose(model, lr=0.1, progress=progress)
    output = functional_call(model, weights, (given["input"],))
    output.backward(given["upstream"])
    assert estimator.update(model)
    return model[0], estimator, output.detach()


def test_every_row_of_every_record_is_looked_at() -> None:
    assert {path.stem for path in FOLDER.glob("*.npz")} == set(METHODS)
    for name, method in METHODS.items():
        with np.load(FOLDER / f"{name}.npz") as archive:
            assert len(json.loads(str(archive["about"]))["rows"]) == method.rows
            assert len(archive.files) == 1 + 5 * method.rows


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_output_and_weight_gradient_are_those_of_the_official_code(name: str, row: int) -> None:
    method, (about, given) = METHODS[name], record(name, row)
    layer, estimator, output = computed(method, about, given)
    for found, expected in ((output, given["output"]), (layer.weight.grad, given["weight_grad"])):
        assert float((found - expected).norm() / expected.norm()) < 1e-9
    for number, of in method.moment.items():
        assert of(estimator, layer) == pytest.approx(about[number], rel=1e-9)
    evaluated = layer(given["input"])
    assert float((evaluated - given["output"]).detach().norm() / given["output"].norm()) < 1e-9
