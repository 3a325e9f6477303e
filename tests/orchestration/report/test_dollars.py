"""A `$` in a name or a value is a character, in every figure, and never the begin of a formula."""

import numpy as np
import pytest

from orchestration.ledger.study_records import TrialRecord
from orchestration.report.curves import Curve, Panel, draw_panel
from orchestration.report.figures import drawing
from orchestration.report.layer_maps import Map, draw_maps
from orchestration.report.search_figures import SearchFigures

LABELS = ("$5$", r"a $\frac b$", "$x_", r"costs \$5 or $6$", "$$")


@pytest.mark.parametrize("label", LABELS)
def test_labels_of_curves_are_drawn_as_they_are(label: str) -> None:
    x = np.arange(3.0)
    panel = Panel(label, "epoch", "loss", (Curve(label, "a", x, x, x, x),), {"a": 0})
    assert drawing(draw_panel(panel), "probe", label).svg.count(f">{label}</text>") == 2


def test_labels_of_maps_are_drawn_as_they_are() -> None:
    layers = tuple(f"layer {label}" for label in LABELS)
    maps = [Map(label, layers, (1, 2), np.array([[0.1, 0.2]] * len(layers))) for label in LABELS]
    svg = drawing(draw_maps("Flip rate", maps), "probe", LABELS[0]).svg
    for label in LABELS:
        assert f">{label}</text>" in svg
        assert f">layer {label}</text>" in svg


def test_values_of_a_search_are_drawn_whatever_they_are(drawn: None) -> None:
    trials = [
        TrialRecord(
            n, {"train.note": LABELS[n % 5], "train.$lr": 10.0 ** -(n % 4)}, {}, {0: "c"}, {}, None,
            end={"state": "COMPLETE", "values": [0.1 * n], "reason": "", "attributes": {}},
        )
        for n in range(8)
    ]  # fmt: skip
    space = {"train.note": {"choices": list(LABELS)}, "train.$lr": {"low": 1e-5, "high": 1.0, "log": True}}
    short = {"train.note": "note", "train.$lr": "$lr"}
    shares = {"train.note": 0.7, "train.$lr": 0.3}
    found = SearchFigures("$tuned$", trials, ["validation/accuracy"], space, short, shares, trials).draw()
    assert found.keys() == {"History", "Importances", "Slices"}
    for label in LABELS:
        assert f">{label}</text>" in found["Slices"].svg
    assert all(">$lr</text>" in found[title].svg for title in ("Importances", "Slices"))
