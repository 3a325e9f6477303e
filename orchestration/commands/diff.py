"""`fsg diff A B`: what two experiments differ in, field by field, and how the metrics moved."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fsg.config import Settings, to_dict
from fsg.train_config import TrainConfig
from orchestration.analysis import statistics
from orchestration.analysis.comparisons import Line, Measure, lines_of
from orchestration.analysis.units import Unit
from orchestration.commands.exit_status import DONE
from orchestration.ledger.ledger import Ledger
from orchestration.report.data import Report, build
from orchestration.spec.fields import Report as Asked
from orchestration.spec.fields import from_record
from orchestration.spec.yaml_tree import printable
from orchestration.util import terminal

ABSENT = "–"
_CODE = ("git_commit", "git_diff_sha256", "fsg_source_sha256", "orchestration_source_sha256", "numerics")


class Change(NamedTuple):
    """A field, and what it is in either experiment."""

    field: str
    before: Any
    after: Any


class MetricChange(NamedTuple):
    """How a line of the table moved from A to B; `paired` seeds are in both, or else none is used as a pair."""

    line: str
    before: Line
    after: Line
    difference: float
    interval: statistics.Interval | None
    paired: int
    same_cells: int


class Differences(NamedTuple):
    """Everything that two experiments differ in, under headings, the moves of a metric, and why a plan is `broken`."""

    changes: dict[str, list[Change]]
    metric_changes: list[MetricChange]
    unit: Unit
    broken: tuple[str, ...] = ()


def differences(before: Ledger, after: Ledger) -> Differences:
    """From A to B, as their last launches were. Raises ValueError where one was never launched."""
    reports = build(before), build(after)
    a, b = before.launches()[-1], after.launches()[-1]
    changes = {
        "Spec": spec_changes(a["spec"], b["spec"]),
        "Code": [Change(name, a.get(name), b.get(name)) for name in _CODE if a.get(name) != b.get(name)],
        "Data": changed({"images": a.get("data")}, {"images": b.get("data")}),
        "Environment": changed(
            {name: a.get(name) for name in ("versions", "hardware")},
            {name: b.get(name) for name in ("versions", "hardware")},
        ),
    }
    broken = [f"{name}: {one.verdict.headline}. {why}" for name, one in zip("AB", reports, strict=True)
              for why in one.plan.breaches]  # fmt: skip
    return Differences(changes, list(metric_changes(*reports)), reports[1].unit, tuple(broken))


def changed(before: Any, after: Any, path: str = "") -> list[Change]:
    """The leaves of two nested mappings that are not equal, by dotted path; lists are leaves."""
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        return [] if before == after else [Change(path, before, after)]
    found = []
    for key in [*before, *(key for key in after if key not in before)]:
        inner = f"{path}.{key}" if path else str(key)
        found += changed(before.get(key, ABSENT), after.get(key, ABSENT), inner)
    return found


def spec_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """What holds for every variant that both have is told once, as `train.…`; the rest by variant."""
    rest_a, rest_b = ({k: v for k, v in spec.items() if k != "points"} for spec in (before, after))
    rest_a, rest_b = (rest | {"report": _with_defaults(Asked, rest["report"])} for rest in (rest_a, rest_b))
    found = changed(rest_a, rest_b)
    a, b = ({_point(p): _with_defaults(TrainConfig, p["train"]) for p in spec["points"]} for spec in (before, after))
    both = [name for name in a if name in b]
    by_point = {name: changed(a[name], b[name]) for name in both}
    common = [one for one in by_point[both[0]] if all(one in theirs for theirs in by_point.values())] if both else []
    found += [change._replace(field=f"train.{change.field}") for change in common]
    for name, own in by_point.items():
        found += [one._replace(field=f"variants.{name}: {one.field}") for one in own if one not in common]
    return found


def _with_defaults(cls: type[Settings], values: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the settings that have come since at their defaults; as it is where this version cannot read it."""
    try:
        return json.loads(json.dumps(to_dict(from_record(cls, values))))
    except Exception:  # a component of the user's own that is not here may raise anything
        return values


def _point(point: Mapping[str, Any]) -> str:
    return " · ".join([point["variant"], *(f"{path}={value}" for path, value in point["grid"].items())])


def metric_changes(before: Report, after: Report) -> Iterable[MetricChange]:
    """Of the metric of B, for the lines that both have; paired by seed where two seeds or more are in both."""
    measure = Measure.metric(after.metric)
    a, b = (
        {
            line.label: line
            for line in lines_of((t for own in report.lines for t in own.trials), measure, report.baseline)
        }
        for report in (before, after)
    )
    for label in a:
        if label in b:
            yield _moved(label, a[label], b[label])


def _moved(label: str, a: Line, b: Line) -> MetricChange:
    old, new = (line.values | line.added for line in (a, b))
    pairs = statistics.paired_differences(new, old)
    if len(pairs) >= 2:
        difference, interval, paired = statistics.mean(pairs), statistics.t_interval(pairs), len(pairs)
    else:
        difference = statistics.mean(list(new.values())) - statistics.mean(list(old.values()))
        interval, paired = statistics.welch_interval(list(new.values()), list(old.values())), 0
    ids = {trial.cell.id for trial in a.trials}
    return MetricChange(label, a, b, difference, interval, paired, sum(trial.cell.id in ids for trial in b.trials))


# In words


def render(found: Differences) -> RenderableType:
    """For a terminal: what did not change is said to be the same."""
    parts: list[RenderableType] = []
    for heading, changes in found.changes.items():
        parts.append(Text(heading if changes else f"{heading}: the same", style="bold"))
        parts += [Text(line, no_wrap=True, overflow="fold") for one in changes for line in _lines(one)]
    parts.append(Text(f"{found.unit.name} {found.unit.value}".strip(), style="bold"))
    parts.append(_table(found) if found.metric_changes else Text("  no variant is in both"))
    parts += [Text(line) for line in found.broken]
    return Group(*parts)


def _lines(change: Change) -> list[str]:
    before, after = _short(change.before), _short(change.after)
    if len(change.field) + len(before) + len(after) < 72:
        return [f"  {change.field}: {before} → {after}"]
    return [f"  {change.field}:", f"    {before}", f"  → {after}"]


def _table(found: Differences) -> Table:
    unit = found.unit
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("variant", "A", "B", f"B − A {unit.difference}\n[95 %]", "seeds"):
        table.add_column(name, justify="left" if name in ("variant", "seeds") else "right", overflow="fold")
    for move in found.metric_changes:
        moved = unit.write(move.difference, True) + (f" {unit.interval(move.interval)}" if move.interval else "")
        counts = len(move.before.values | move.before.added), len(move.after.values | move.after.added)
        how = f"{move.paired} paired" if move.paired else f"{counts[0]}, {counts[1]}: no pairs"
        how += f", {move.same_cells} same cells" if move.same_cells else ""
        spreads = [unit.spread(line.metric) for line in (move.before, move.after)]
        table.add_row(*map(Text, (move.line, *spreads, moved, how)))
    return table


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
    return printable(text, 70)


def diff(before: Path, after: Path) -> int:
    """Print what differs. Returns the exit status. Raises ValueError where one of them was never launched."""
    terminal.console().print(render(differences(Ledger(before), Ledger(after))))
    return DONE
