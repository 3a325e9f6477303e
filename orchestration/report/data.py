"""The content of a report, from the ledger alone: lines, tests, curves, costs, provenance. `write` formats it."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from orchestration.analysis.comparisons import Line, Measure, Trial, lines_of
from orchestration.analysis.preregistration import SeedPlan, seed_plan
from orchestration.analysis.units import Unit
from orchestration.analysis.verdict import Best, Contrast, Family, Verdict, best_of, contrasts_of, judge
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.outcome import Outcome
from orchestration.ledger.study_records import damage_of_searches, planned_cells
from orchestration.ledger.tables import missing_cells
from orchestration.report import convergence, layer_maps
from orchestration.report.curves import Panel
from orchestration.report.evidence import every_result
from orchestration.report.forecast import ForecastAccuracy, forecast_accuracy, unlike_pairs
from orchestration.report.marks import Of
from orchestration.report.places import Place, places_of
from orchestration.spec.cells import Cell, imported
from orchestration.spec.fields import Published, from_record
from orchestration.spec.fields import Report as Asked
from orchestration.spec.networks import NetworkOfLines
from orchestration.util import provenance

_UNFINISHED = ("missing", "diverged", "failed", "interrupted", "running", "waiting")


class Measured(NamedTuple):
    """One measure of all variants, and its tests: a family of its own."""

    measure: Measure
    lines: tuple[Line, ...]
    contrasts: tuple[Contrast, ...]

    @property
    def unit(self) -> Unit:
        return self.measure.unit

    @property
    def family(self) -> Family:
        return Family(tuple(test for test in self.contrasts if test.role == "family"))

    def test(self, variant: str) -> Contrast | None:
        return next((test for test in self.contrasts if test.variant == variant), None)


@dataclass(frozen=True)
class Report:
    """The content of a report. The first of `measured` is the metric of the spec.

    `changes` is the diff of uncommitted code, `mixed` what differs between cells that should differ in nothing else.
    """

    folder: Path
    name: str
    question: str
    asked: Asked
    plan: SeedPlan
    verdict: Verdict
    best: Best | None
    measured: tuple[Measured, ...]
    pretraining: tuple[Trial, ...]
    unfinished: tuple[Trial, ...]
    warnings: tuple[str, ...]
    mixed: tuple[str, ...]
    panels: tuple[tuple[Panel, ...], ...]
    provenance: dict[str, str]
    layers: dict[str, list[layer_maps.Map]]
    spec_text: str
    changes: str
    launches: tuple[dict[str, Any], ...]
    command: str
    forecast: tuple[ForecastAccuracy, ...] = ()
    networks: tuple[NetworkOfLines, ...] = ()
    places: tuple[Place, ...] = ()

    @property
    def lines(self) -> tuple[Line, ...]:
        return self.measured[0].lines

    @property
    def nothing_measured(self) -> str:
        """Said where not one pair of a variant and the baseline has a training that came to its end."""
        return _nothing_measured(self.lines, self.baseline)

    @property
    def metric(self) -> str:
        return self.asked.metric

    @property
    def baseline(self) -> str:
        return self.asked.baseline

    @property
    def primary(self) -> str:
        return self.asked.primary

    @property
    def trials(self) -> list[Trial]:
        return [*self.pretraining, *(trial for line in self.lines for trial in line.trials)]

    @property
    def unit(self) -> Unit:
        return self.measured[0].unit

    def published(self, line: Line) -> Published | None:
        """What a paper states of a line, if the spec says it."""
        stated = self.asked.published or {}
        return stated.get(line.label) or stated.get(line.variant)


def build(ledger: Ledger) -> Report:
    """The report of an experiment as its last launch planned it, from its ledger alone.

    Raises ValueError where nothing was ever launched, OtherVersion.
    """
    launch = ledger.last_launch()
    launches, spec = ledger.launches(), launch["spec"]
    asked = from_record(Asked, spec["report"], f"{ledger.folder}: report.")
    trials, problems = _trials(ledger, launch), ledger.launch_problems()
    planned = [trial.cell for trial in trials]
    plan = seed_plan(launches, every_result(ledger, launches, planned), problems)
    trials = [trial.marked(trial.cell.seed in plan.added) for trial in trials]
    trained = [trial for trial in trials if trial.cell.kind == "train"]
    measured = tuple(_measured(trained, asked, plan))
    lines = measured[0].lines
    mixed = _mixed(ledger, launches, trials)
    done = [trial.cell.id for trial in trained if trial.state == "done" and not trial.exploratory]
    tables = {cell_id: ledger.diagnostics_or_damage(cell_id) for cell_id in done}
    return Report(
        folder=ledger.folder,
        name=spec["name"] + (f" · {spec['profile']}" if spec["profile"] else ""),
        question=spec["question"],
        asked=asked,
        plan=plan,
        verdict=judge(measured[0].contrasts, measured[0].unit, asked, plan),
        best=best_of(lines, measured[0].unit, plan),
        measured=measured,
        pretraining=tuple(trial for trial in trials if trial.cell.kind == "pretrain"),
        unfinished=tuple(sorted((t for t in trials if t.state != "done"), key=lambda t: _UNFINISHED.index(t.state))),
        warnings=(
            *_warnings(lines, trials, asked.metric, asked.baseline),
            *_about_seeds(plan),
            *_about_late(plan),
            *_about_diagnostics(trained, tables),
            *_about_launches(launch, problems),
            *(f"Of a search, {problem}: what it said does not count." for problem in damage_of_searches(ledger)),
            *(f"Cells of different {what} stand in one table: {', '.join(of)}." for what, of in mixed.items()),
            *unlike_pairs(ledger, trained, asked.baseline),
            *_left_out(ledger.orphans(planned)),
        ),
        mixed=tuple(mixed),
        panels=tuple(convergence.panels(lines, asked.baseline, asked.primary)),
        provenance=_provenance(launches, trials),
        layers=layer_maps.maps([_diagnosed(line, tables) for line in lines]),
        spec_text=launch["spec_text"],
        changes=launch.get("git_diff") or "",
        launches=tuple(launches),
        command=launch["command"],
        forecast=tuple(forecast_accuracy(ledger, trials)),
        places=tuple(places_of(ledger, trials)),
        networks=tuple(NetworkOfLines.from_dict(one) for one in launch.get("networks", [])),
    )


def _trials(ledger: Ledger, launch: dict[str, Any]) -> list[Trial]:
    """The cells of a launch's table in its order; one whose record is lost stands in it as missing."""
    order = {cell_id: place for place, cell_id in enumerate(launch["cells"])}
    found = [
        Trial(cell, ledger.outcome(cell.id), tuple(ledger.rows(cell.id))) for cell in planned_cells(ledger, launch)
    ]
    for cell in missing_cells(ledger, launch):
        lost = f"trials/{cell.id}/cell.json is missing or damaged; to launch again enters it anew"
        found.append(Trial(cell, Outcome("missing", lost), ()))
    return sorted(found, key=lambda trial: order.get(trial.cell.id, len(order)))


def _diagnosed(line: Line, tables: Mapping[str, Sequence[dict[str, Any] | None]]) -> layer_maps.Diagnosed:
    done = [trial for trial in line.planned if trial.state == "done"]
    of = Of.trials(line, done, convergence.steps_an_epoch(done[0]) if done else None)
    whole = [[table for table in tables[trial.cell.id] if table is not None] for trial in done]
    return layer_maps.Diagnosed(line.short_label, of, whole)


def _about_diagnostics(trials: Sequence[Trial], tables: Mapping[str, Sequence[dict[str, Any] | None]]) -> Iterable[str]:
    damaged = [trial.cell.label for trial in trials if None in tables.get(trial.cell.id, ())]
    if damaged:
        yield f"Diagnostics of some epochs are damaged, and in no map of the layers: {', '.join(damaged)}."


def _measured(trials: Sequence[Trial], asked: Asked, plan: SeedPlan) -> Iterable[Measured]:
    metric = Measure.metric(asked.metric)
    late = {measure.unit.name for measure in convergence.times_to_reach(plan.late_reach)}
    for measure in (metric, *convergence.measures(asked.reach)):
        lines = lines_of(trials, measure, asked.baseline)
        if measure is metric or any(line.values for line in lines):
            primary = asked.primary if measure is metric else None
            tests = contrasts_of(lines, asked, plan, primary, tested=measure.unit.name not in late)
            yield Measured(measure, tuple(lines), tuple(tests))


# What must be known beside it


def _nothing_measured(lines: Sequence[Line], baseline: str) -> str:
    compared = [line for line in lines if line.variant != baseline]
    if any(line.comparison is not None and line.comparison.n for line in compared):
        return ""
    if not compared and any(line.done for line in lines):
        return ""
    pair = "planned pair" if any(line.added for line in lines) else "pair"
    return f"Nothing is measured: no {pair} of a variant and {baseline} has a training that came to its end"


def _warnings(lines: Sequence[Line], trials: Sequence[Trial], metric: str, baseline: str) -> Iterable[str]:
    unfinished = sum(trial.state not in ("done", "diverged") for trial in trials)
    if unfinished:
        yield f"{unfinished} of {len(trials)} cells are not done: this is what there is so far; they are named below."
    missing = [trial.cell.label for trial in trials if trial.state == "missing"]
    if missing:
        yield f"Missing, as the record of the cell is lost or damaged, and in no number: {', '.join(missing)}."
    if nothing := _nothing_measured(lines, baseline):
        yield f"{nothing}."
    diverged = [trial.cell.label for trial in trials if trial.state == "diverged"]
    if diverged:
        lost = "an accuracy of 0 %" if metric.endswith("accuracy") else "an infinite loss"
        yield f"Diverged, and counted with {lost}: {', '.join(diverged)}."
    contaminated = [line.label for line in lines if line.contaminated]
    if contaminated:
        whose = "all variants" if len(contaminated) == len(lines) else ", ".join(contaminated)
        yield (
            "Validation figures are contaminated: the starting weights may have been trained on the validation images "
            f"({whose})."
        )


def _about_seeds(plan: SeedPlan) -> Iterable[str]:
    if plan.added:
        yield (
            f"Exploratory: {_were(plan.added)} added when results could be seen. They are shown apart, as hollow "
            "points and in rows of their own; no mean, interval or test of the planned seeds has them."
        )
    if plan.dropped:
        yield (
            f"Of the plan, {_were(plan.dropped)} left out when results could be seen: it is not complete without, and "
            "no difference is claimed."
        )
    if plan.late_rule:
        held = "that of the plan is applied" if plan.rule else "it is not applied"
        yield f"The rule for looks was declared, or changed, when results could be seen: {held}."


def _about_late(plan: SeedPlan) -> Iterable[str]:
    if plan.late:
        yield f"Exploratory: compared without a test, as added when results could be seen: {plan.late}."


def _about_launches(launch: Mapping[str, Any], problems: Sequence[str]) -> Iterable[str]:
    for problem in problems:
        yield f"The record {problem}: it is passed over. The table is that of launch {launch['number']}."


def _were(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))} {'were' if len(seeds) > 1 else 'was'}"


def _left_out(orphaned: Sequence[Cell]) -> Iterable[str]:
    if orphaned:
        of = "of the same names, but of other settings, code or data"
        yield f"Earlier cells {of}, are left out (orphans): {len(orphaned)}."


_COMPARED = {
    "git_commit": "commits",
    "git_diff_sha256": "uncommitted changes",
    "fsg_source_sha256": "training code",
    "device": "devices",
    "versions": "versions",
    **provenance.DETERMINANTS,
}


def _mixed(ledger: Ledger, launches: Sequence[dict[str, Any]], trials: Sequence[Trial]) -> Mapping[str, Sequence[str]]:
    """What differs between the cells of the table; where an attempt says nothing of itself, its launch does."""
    seen: dict[str, set[str]] = {"threads": {str(trial.cell.train.threads) for trial in trials}}
    by_number = {launch["number"]: launch for launch in launches}
    for trial in trials:
        for attempt in ledger.attempts(trial.cell.id):
            launch = by_number.get(attempt.get("launch", 0), {})
            record = launch | {"cpu": launch.get("hardware", {}).get("cpu")} | attempt
            for key, what in _COMPARED.items():
                if record.get(key):
                    seen.setdefault(what, set()).add(_text(record[key]))
            for name, version in record.get("libraries", {}).items():
                seen.setdefault(f"versions of {name}", set()).add(version)
    return {what: sorted(found) for what, found in seen.items() if len(found) > 1}


def _provenance(launches: Sequence[dict[str, Any]], trials: Sequence[Trial]) -> dict[str, str]:
    launch = launches[-1]
    changed = ", with changes that are not committed (below)" if launch["git_diff_sha256"] else ""
    return {
        "Launched": _when(launch["started"]) + (f" (launch {launch['number']})" if launch["number"] > 1 else ""),
        "Commit": (launch["git_commit"] or "none: not run from a git checkout") + changed,
        "Training code": f"SHA-256 {launch['fsg_source_sha256']}",
        **_own_code(trials),
        "Spec": f"{Path(launch['spec_source']).name}, resolved SHA-256 {launch['spec_sha256']}",
        "Images": _text(launch.get("data", {})) or "not recorded",
        "Versions": _text(launch["versions"]),
        "Hardware": _text(launch.get("hardware", {})) or "not recorded",
    }


def _own_code(trials: Sequence[Trial]) -> dict[str, str]:
    """The components of the user's own, each with the digests of the files that it consists of."""
    found = {own.path: own for trial in trials for own in imported(trial.cell.train)}
    told = [f"{path} SHA-256 {own.source_sha256}" for path, own in found.items()]
    others = {name: digest for own in found.values() for name, digest in (own.files_sha256 or {}).items()}
    told += [f"{name} SHA-256 {digest}" for name, digest in others.items()]
    return {"Own code": ", ".join(told)} if told else {}


def _when(milliseconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(milliseconds / 1000))


def _text(value: Any) -> str:
    """Plain text of a recorded value: a mapping as `name value, …`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {_text(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    return str(value)
