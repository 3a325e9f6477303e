"""What the page's script is told of a figure: places that are those of the drawing, and values of the ledger."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_experiment import cells_of, diverge, finish, launched, rows_of, spec_of

from orchestration.report import layer_maps, marks
from orchestration.report.data import build
from orchestration.report.figures import drawing
from orchestration.report.write import write

SPEC = spec_of(("fsg", "ema", "ste"), (0, 1, 2))
CELLS = {(cell.variant, cell.seed): cell for cell in cells_of(SPEC)}


def page(folder: Path) -> tuple[str, dict[str, Any]]:
    """The page, and what its script is told. Of the trainings one diverged, and one goes on."""
    ledger = launched(folder, SPEC, cells_of(SPEC))
    for cell in CELLS.values():
        if (cell.variant, cell.seed) == ("ema", 2):
            diverge(ledger, cell)
        elif (cell.variant, cell.seed) != ("ema", 1):
            finish(ledger, cell)
    ledger.claim(CELLS["ema", 1].id, {}).record(rows_of(CELLS["ema", 1], until=40))
    write(build(ledger))
    text = (folder / "report.html").read_text()
    (told,) = re.findall(r'<script type="application/json" id="marks">(.*?)</script>', text)
    return text, json.loads(told)


def part(text: str, part_id: str) -> str:
    """The text of a group of the SVG, without groups in it."""
    (found,) = re.findall(rf'<g id="{part_id}">(.*?)</g>', text, flags=re.DOTALL)
    return str(found)


def coordinates(text: str) -> Any:
    """The points of a path, [n, 2]."""
    (path,) = re.findall(r'<path [^>]*?\bd="(.*?)"', text, flags=re.DOTALL)
    return np.array([float(number) for number in re.findall(r"-?[\d.]+", path)]).reshape(-1, 2)


def test_marks_of_curves_lie_on_them_and_say_what_the_ledger_has(tmp_path: Path, drawn: None) -> None:
    text, told = page(tmp_path / "an ablation")
    assert told["command"] == f"fsg reproduce '{tmp_path}/an ablation'"
    for name, metric, factor in (
        ("convergence-training-loss", "train/loss", 1),
        ("convergence-validation-accuracy", "validation/accuracy", 100),
    ):
        figure = told["figures"][name]
        assert figure["variants"][0] == "ste"
        by_name = {figure["of"][one["of"]]["name"]: one for one in figure["series"]}
        assert {"fsg, mean of seeds 0, 1, 2", "ste, seed 2", "ema, seed 0"} < by_name.keys()
        mean = by_name["fsg, mean of seeds 0, 1, 2"]
        at, values = np.array(figure["xs"][mean["x"]]), np.array(mean["y"])
        x, y = figure["x"], figure["y"]
        places = np.stack([x[0] + x[1] * at, y[0] + y[1] * (np.log10(values) if figure["log"] else values)], axis=1)
        variant = figure["variants"].index("fsg")
        np.testing.assert_allclose(places, coordinates(part(text, f"{name}-v{variant}-mean")), atol=0.01)
        one, cell = by_name["fsg, seed 1"], CELLS["fsg", 1]
        recorded = [row.values[metric] * factor for row in rows_of(cell) if metric in row.values]
        np.testing.assert_allclose(one["y"], recorded, rtol=1e-4)
        of = figure["of"][one["of"]]
        assert (of["variant"], of["cells"], of["epoch"]) == ("fsg", [cell.id], 20)
    lost = by_name.get("ema, seed 2, diverged")
    assert lost is not None
    assert figure["of"][lost["of"]]["cells"] == [CELLS["ema", 2].id]


def test_marks_of_differences_and_strips_lie_on_the_points(tmp_path: Path, drawn: None) -> None:
    text, told = page(tmp_path / "ablation")
    figure = told["figures"]["differences"]
    named = {figure["of"][one["of"]]["name"]: one for one in figure["series"]}
    drawn_points = re.findall(
        r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', text[text.index('id="differences-v0-planned-0"') :]
    )
    places = [(named[f"fsg − ste, seed {seed}"]["x"], named[f"fsg − ste, seed {seed}"]["y"]) for seed in (0, 1, 2)]
    np.testing.assert_allclose(places, np.array(drawn_points[:3], dtype=float), atol=0.06)
    found = {seed: rows_of(CELLS["fsg", seed])[-1].values["test/accuracy"] for seed in (0, 1, 2)}
    base = {seed: rows_of(CELLS["ste", seed])[-1].values["test/accuracy"] for seed in (0, 1, 2)}
    said = named["fsg − ste, seed 1"]["text"]
    difference = f"{100 * (found[1] - base[1]):+.2f}".replace("-", "−")
    assert said == f"{difference} points: fsg {100 * found[1]:.2f} % at step 80; ste {100 * base[1]:.2f} % at step 80"
    pair = figure["of"][named["fsg − ste, seed 1"]["of"]]["cells"]
    assert pair == [CELLS["fsg", 1].id, CELLS["ste", 1].id]
    strips = {one["variants"][0]: one for name, one in told["figures"].items() if name.startswith("seeds-")}
    assert [one["text"] for one in strips["fsg"]["series"]] == [
        f"{100 * found[seed]:.2f} %, at step 80" for seed in (0, 1, 2)
    ]
    assert strips["ema"]["series"][-1]["text"] == "diverged, at step 30"
    circles = re.findall(r'<circle cx="([\d.]+)" cy="11"', text[text.index('<svg class="seeds"') :])
    assert [float(x) for x in circles[:3]] == [one["x"] for one in strips["fsg"]["series"]]


def test_marks_of_maps_are_their_boxes_and_large_ones_are_left_to_the_file() -> None:
    values = np.array([[0.1, np.nan, 1e-6], [0.25, 1 / 3, 0.5]])
    maps = [
        layer_maps.Map(label, ("a", "b"), (1, 2, 4), values, marks.Of(label, f"{label}, seed 0", ("c",), 20.0))
        for label in ("fsg", "ema")
    ]
    figure = layer_maps.draw_maps("Flip rate a step", maps)
    drawing_ = drawing(figure, "flips", "", lambda: layer_maps.map_marks("Flip rate a step", maps, figure))
    for place, one in enumerate(drawing_.marks["maps"]):
        left, top, width, height = one["box"]
        box = part(drawing_.inline, f"flips-v{place}-box-{place}")
        ((x, y),) = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', box)
        corners = coordinates(box) + np.array([x, y], dtype=float)
        np.testing.assert_allclose([left, top], corners.min(0), atol=0.01)
        np.testing.assert_allclose([left + width, top + height], corners.max(0), atol=0.01)
        assert (one["layers"], one["x"], one["values"]) == (
            ("a", "b"),
            (1, 2, 4),
            [[0.1, None, 1e-6], [0.25, 0.333, 0.5]],
        )
    assert len(re.findall(r'<image [^>]*id="flips-v\d-map-\d"', drawing_.inline)) == 2
    ElementTree.fromstring(drawing_.inline.replace("xlink:", ""))
    numbers = tuple(range(100))
    large = [layer_maps.Map("fsg", tuple(map(str, range(200))), numbers, np.ones((200, 100)))]
    figure = layer_maps.draw_maps("Flip rate a step", large)
    assert layer_maps.map_marks("Flip rate a step", large, figure)["maps"][0]["values"] is None


def test_what_goes_on_has_no_command_and_what_is_told_cannot_end_its_element(tmp_path: Path) -> None:
    _, told = page(tmp_path / "ablation")
    ledger = build(launched(tmp_path / "begun", SPEC, cells_of(SPEC)))
    assert marks.reproducible(ledger.trials) == ()
    assert told["figures"].keys() == {"seeds-0", "seeds-1", "seeds-2"}
    text = marks.embedded("fsg reproduce '</script><script>'", {})
    assert "<" not in text
    assert json.loads(text)["command"] == "fsg reproduce '</script><script>'"
    with pytest.raises(ValueError, match="not JSON compliant"):
        marks.embedded("fsg", {"a": {"x": float("nan")}})
