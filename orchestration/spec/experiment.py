"""An experiment from a YAML file: every training that it asks for, or every mistake in it."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fsg.config import to_dict
from fsg.train_config import TrainConfig
from orchestration.spec.fields import Report, Resources, from_record, nearest, train_from_dict
from orchestration.spec.reader import show
from orchestration.spec.resolver import Point, Resolved, Resolver
from orchestration.spec.study import StudySpec
from orchestration.spec.yaml_tree import Mark, Node, Problem, ProblemError, parse, printable, read_text

logger = logging.getLogger(__name__)


class SpecErrors(Exception):
    """Every mistake, a line each: `file:line:column: field: what is wrong (expected …; did you mean …?)`."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


@dataclass(frozen=True, kw_only=True)
class ExperimentSpec:
    """An experiment, resolved: no two of its points are alike."""

    name: str
    question: str
    profile: str | None
    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    resources: Resources
    report: Report
    points: tuple[Point, ...]
    studies: tuple[StudySpec, ...] = ()
    study_storage: str | None = None
    source: Path
    text: str
    sets: tuple[str, ...] = field(default=(), compare=False)  # what changed fields of the file
    tree: Node | None = field(default=None, compare=False, repr=False)  # of the file, where this was read from one

    @property
    def trains(self) -> list[TrainConfig]:
        """Every training that is known before anything has run, the searched ones as they stand."""
        return [point.train for point in self.points] + [study.train for study in self.studies]

    @property
    def folder_name(self) -> str:
        """What its folder of results is called."""
        return folder_name(self.name, self.profile)

    def resolved(self) -> dict[str, Any]:
        """Everything that the file means, as plain data: what JSON can hold, and `sha256` is taken of."""
        return {
            "name": self.name,
            "question": self.question,
            "profile": self.profile,
            "variants": list(self.variants),
            "seeds": list(self.seeds),
            "resources": to_dict(self.resources),
            "report": to_dict(self.report),
            "points": [{"variant": p.variant, "grid": p.grid, "train": to_dict(p.train)} for p in self.points],
            **({"studies": [study.resolved() for study in self.studies]} if self.studies else {}),
        }

    def sha256(self) -> str:
        """Of the canonical JSON of `resolved`."""
        canonical = json.dumps(self.resolved(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def folder_name(name: str | None, profile: str | None) -> str:
    """What an experiment's folder of results is called."""
    return f"{name}-{profile}" if profile else f"{name}"


@dataclass(frozen=True, kw_only=True)
class RecordedSpec(ExperimentSpec):
    """An experiment as a launch recorded it: `resolved` is what it was then; its searches are read only on request."""

    record: dict[str, Any]

    def resolved(self) -> dict[str, Any]:
        return self.record


def recorded_spec(launch: dict[str, Any]) -> RecordedSpec:
    """The spec of a launch from its record. Raises KeyError, OtherVersion."""
    spec = launch["spec"]
    return RecordedSpec(
        record=spec,
        name=spec["name"],
        question=spec["question"],
        profile=spec["profile"],
        variants=tuple(spec["variants"]),
        seeds=tuple(spec["seeds"]),
        resources=from_record(Resources, spec["resources"], f"{spec['name']}: resources."),
        report=from_record(Report, spec["report"], f"{spec['name']}: report."),
        points=tuple(
            Point(variant=point["variant"], grid=point["grid"], train=train_from_dict(point["train"]))
            for point in spec["points"]
        ),
        source=Path(launch["spec_source"]),
        text=launch["spec_text"],
    )


def recorded_spec_with_searches(launch: dict[str, Any]) -> RecordedSpec:
    """The same with its searches, as the recorded text has them. Raises SpecErrors, too."""
    recorded = recorded_spec(launch)
    if "studies" not in launch["spec"]:
        return recorded
    read = _spec_of(launch["spec_text"], recorded.source, recorded.profile, launch["sets"])
    return replace(recorded, studies=read.studies, study_storage=read.study_storage)


def load_spec(path: Path | str, profile: str | None = None, sets: Sequence[str] = ()) -> ExperimentSpec:
    """The experiment in a YAML file, as a profile sizes it and `path=value` settings change it.

    Where it names components of the user's own, the folder of the file goes last on `sys.path`. The whole file is
    checked, other profiles included. Raises SpecErrors with every mistake.
    """
    path = Path(path)
    if isinstance(sets, str):
        raise SpecErrors([f"sets: got {show(sets)} (expected a list of PATH=VALUE)"])
    try:
        text = read_text(path)
    except ProblemError as refused:
        raise SpecErrors([str(refused.problem)]) from None
    return _spec_of(text, path, profile, sets)


def _spec_of(text: str, path: Path, profile: str | None, sets: Sequence[str]) -> ExperimentSpec:
    """The experiment in the text of a file at a path, whatever is in that file now. Raises SpecErrors."""
    root, unreadable = _tree(text, path)
    resolved, problems = _resolve(root, Resolver(path.resolve().parent), profile, sets)
    unread = {problem.mark for problem in unreadable}
    problems = unreadable + [problem for problem in problems if problem.mark not in unread]
    if problems:
        raise SpecErrors(_lines(problems))
    assert resolved is not None
    file, points, studies = resolved
    searching = file.search or file.tuning
    spec = ExperimentSpec(
        name=file.name,
        question=file.question,
        profile=profile,
        variants=tuple(file.variants),
        seeds=tuple(file.seeds),
        resources=file.resources,
        report=file.report,
        points=points,
        studies=studies,
        study_storage=searching.storage if searching else None,
        source=path.resolve(),
        text=text,
        sets=tuple(sets),
        tree=root,
    )
    logger.info("%s loaded: %d points, %d searches, %d seeds", path, len(points), len(studies), len(spec.seeds))
    return spec


def _tree(text: str, path: Path) -> tuple[Node, list[Problem]]:
    """The tree of a text, and the mistakes that did not end the reading. Raises SpecErrors."""
    start = Mark(printable(str(path), 1000), 1, 1)
    try:
        root, unreadable = parse(text, start)
    except ProblemError as refused:
        raise SpecErrors([str(refused.problem)]) from None
    if not isinstance(root.value, dict):
        empty = "the file is empty" if root.value is None else f"got {show(root.value)}"
        raise SpecErrors([str(Problem(start, "", f"{empty} (expected a mapping: name, train, variants, …)"))])
    return root, unreadable


def _resolve(
    root: Node, resolver: Resolver, profile: str | None, sets: Sequence[str]
) -> tuple[Resolved | None, list[Problem]]:
    """What the file means with a profile and settings applied, and every mistake, those of other profiles too."""
    profiles = root.items()["profiles"].items() if "profiles" in root.items() else {}
    resolved, problems = resolver.resolve(root)
    chosen = root
    for name, overrides in profiles.items():
        changed, wrong_paths = resolver.apply(root, overrides)
        outcome, found = resolver.resolve(changed)
        problems += wrong_paths + found
        if name == profile:
            chosen, resolved = changed, outcome
    if profile is not None and profile not in profiles:
        what = f"no such profile (expected one of {', '.join(profiles)}{nearest(profile, profiles)})"
        problems.append(Problem(Mark(printable(f"--profile {profile}")), "profiles", what))
    for setting in sets:
        chosen, found = resolver.set(chosen, setting)
        problems += found
    if sets:
        resolved, found = resolver.resolve(chosen)
        problems += found
    return resolved, problems


def _lines(problems: Sequence[Problem]) -> list[str]:
    """In the order of the file, each once."""
    return list(dict.fromkeys(str(p) for p in sorted(problems, key=lambda p: (p.mark.line, p.mark.column))))
