"""The state of a view has no documented form: that MLflow's UI still reads it is seen in the UI's own code."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from synthetic_experiment import spec_of

from orchestration.tracking import pages, saved_view


@pytest.fixture(scope="module")
def ui() -> str:
    """The JavaScript of MLflow's UI."""
    scripts = (Path(mlflow.__file__).parent / "server" / "js" / "build").rglob("*.js")
    return "\n".join(path.read_text() for path in scripts)


def words(state: Any) -> Iterator[str]:
    """Every name in a state; those below `groupsExpanded` are of the experiment."""
    if isinstance(state, dict):
        yield from state
        for name, value in state.items():
            yield from words(value) if name != "groupsExpanded" else ()
    elif isinstance(state, list):
        for one in state:
            yield from words(one)


def test_ui_knows_every_word_of_the_view_and_of_its_address(ui: str) -> None:
    view = json.loads(saved_view.saved_view(spec_of(("fsg", "ste"), (0,)), 0))
    state = json.loads(view["state"])
    assert {"groupByKeys", "compareRunCharts", "metricKey", "runsHiddenMode"} <= set(words(state))
    in_address = re.findall(r"[?&](\w+)=(machine_learning|CHART)?", pages.comparison("1"))
    assert [name for name, _ in in_address] == ["workflowType", "compareRunsMode", "viewStateShareKey"]
    values = ["SHOW_ALL", "CHART", "machine_learning", "average", "tag", "BAR", "LINE"]
    wanted = {
        *view,
        *words(state),
        *(name for name, _ in in_address),
        *values,
        saved_view.TAG.removesuffix(pages.VIEW),
    }
    assert {word for word in wanted if word not in ui} == set()


def test_runs_are_grouped_so_that_only_seeds_differ_within_a_group(ui: str) -> None:
    grid = spec_of(("fsg", "ste"), (0, 1), {"estimator.slow_weight": [0.5, 0.9]})
    view = json.loads(saved_view.saved_view(grid, 0))
    state = json.loads(view["state"])
    assert view["name"] == "Comparison by variant and grid point"
    assert state["groupBy"]["groupByKeys"] == [
        {"mode": "tag", "groupByData": "variant"},
        {"mode": "tag", "groupByData": "grid"},
    ]
    assert set(state["groupsExpanded"]) == {
        f'tag.variant.{variant},tag.grid.{{"estimator.slow_weight": {value}}}'
        for variant in ("fsg", "ste")
        for value in (0.5, 0.9)
    }
    assert {"tags.`variant`", "tags.`grid`", "tags.`seed`"} <= set(state["selectedColumns"])
    plain = json.loads(json.loads(saved_view.saved_view(spec_of(("fsg", "ste"), (0,)), 0))["state"])
    assert plain["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "variant"}]
    assert set(plain["groupsExpanded"]) == {"tag.variant.fsg", "tag.variant.ste"}
