"""How MLflow's page of an experiment opens: its runs by variant, the curves that matter, the columns to compare.

MLflow's UI keeps a saved view as a tag of the experiment, and an address can name it. This is the state of such a view,
in the UI's own words, made from a spec. MLflow's Python and REST APIs have nothing for it: only a person who shares a
view makes one. Where a version of the UI does not know a word it falls back to its default.
"""

import json
from collections.abc import Sequence
from typing import Any

from orchestration.spec.experiment import ExperimentSpec
from orchestration.spec.resolver import Point
from orchestration.tracking.pages import VIEW

TAG = f"mlflow.sharedViewState.{VIEW}"


def saved_view(spec: ExperimentSpec, created_ms: int) -> str:
    """The tag's value: a named view that groups the trainings by variant and grid point, every run of them shown."""
    charts, sections = _charts(spec)
    tags = ["variant", *_grid(spec)]
    groups = [{"mode": "tag", "groupByData": tag} for tag in tags]
    state = {
        "searchFilter": "tags.kind = 'train'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        "groupBy": {"aggregateFunction": "average", "groupByKeys": groups},
        "groupsExpanded": {_group(point, tags): True for point in spec.points},
        "useGroupedValuesInCharts": True,
        "runsHiddenMode": "SHOW_ALL",
        "selectedColumns": [*_tags(spec), *(f"metrics.`{name}`" for name in _columns(spec))],
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "autoRefreshEnabled": True,
    }
    name = "Comparison by " + " and ".join(["variant", *(["grid point"] if _grid(spec) else [])])
    return json.dumps({"name": name, "createdAt": created_ms, "state": json.dumps(state)})


def _tags(spec: ExperimentSpec) -> list[str]:
    return [f"tags.`{name}`" for name in ("variant", *_grid(spec), "seed", "outcome")]


def _grid(spec: ExperimentSpec) -> list[str]:
    """The tag that has the place in the grid, where there is one: other seeds alone are what a mean may be taken of."""
    return ["grid"] if any(point.grid for point in spec.points) else []


def _group(point: Point, tags: Sequence[str]) -> str:
    """What the UI calls the group of a point's runs."""
    values = {"variant": point.variant, "grid": json.dumps(point.grid)}
    return ",".join(f"tag.{tag}.{values[tag]}" for tag in tags)


def _columns(spec: ExperimentSpec) -> list[str]:
    return list(dict.fromkeys([spec.report.metric, "test/accuracy", "validation/accuracy", "train/loss"]))


def _charts(spec: ExperimentSpec) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Cards and their sections: what is decided by, how it got there, how the gradients behave, what it cost."""
    curve = "papers_protocol/test_accuracy" if _papers_protocol(spec) else "validation/accuracy"
    wanted: dict[str, list[dict[str, Any]]] = {
        "Comparison": [_bar(spec.report.metric), _line(curve), _line("train/loss", log=True), _line("validation/loss")],
        "Binary weights": [
            _line("weights/flip_rate", log=True),
            _line("weights/saturated"),
            _line("weights/never_flipped"),
        ],
        "Machine": [_line(f"system/{name}", x="time") for name in ("cpu_percent", "memory_megabytes", "gpu_percent")],
    }
    sections = [
        {"uuid": name, "name": name, "display": name != "Machine", "isReordered": True, "isGenerated": False}
        for name in wanted
    ]
    cards = [
        card | {"uuid": f"{name} {place}", "metricSectionId": name, "deleted": False, "isGenerated": False}
        for name, its in wanted.items()
        for place, card in enumerate(its)
    ]
    return cards, sections


def _papers_protocol(spec: ExperimentSpec) -> bool:
    return all(train.data.validation == 0 for train in spec.trains)


def _bar(metric: str) -> dict[str, Any]:
    return {"type": "BAR", "metricKey": metric, "runsCountToCompare": 100}


def _line(metric: str, log: bool = False, x: str = "step") -> dict[str, Any]:
    return {
        "type": "LINE",
        "metricKey": metric,
        "runsCountToCompare": 100,
        "scaleType": "log" if log else "linear",
        "xAxisScaleType": "linear",
        "xAxisKey": x,
        "useGlobalXaxisKey": False,
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": False,
        "yAxisKey": "metric",
        "range": {},
    }
