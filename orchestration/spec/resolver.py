"""From the tree of a spec file to the trainings that it means."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from fsg.train_config import TrainConfig
from orchestration.spec import search_space
from orchestration.spec.fields import SpecFile, fields, nearest, paths
from orchestration.spec.published import wrong_protocol
from orchestration.spec.reader import Located, NoSuchPathError, Reader, show
from orchestration.spec.study import StudySpec
from orchestration.spec.yaml_tree import Mark, Node, Problem, ProblemError, parse, printable

MAX_TRAININGS = 100_000


@dataclass(frozen=True, kw_only=True)
class Point:
    """One training of a variant, before its seed; `grid` holds the paths that the grid set, and their values.

    `own` are the paths that the variant sets itself, where the point was read from a file.
    """

    variant: str
    grid: dict[str, Any]
    train: TrainConfig
    own: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    @property
    def name(self) -> str:
        """Its line of the table."""
        return line_name(self.variant, self.grid)


def line_name(variant: str, grid: Mapping[str, Any]) -> str:
    """A line of the table, as people read it: `fsg · optimizer.lr=0.01`."""
    return " · ".join([variant, *(f"{path}={value}" for path, value in grid.items())])


Resolved = tuple[SpecFile, tuple[Point, ...], tuple[StudySpec, ...]]


class _Variant(NamedTuple):
    points: dict[str, Point]  # by the repr of the training, so that equal ones are one
    problems: list[Problem]
    used: set[str]


class Resolver:
    """Resolves the trees of one file: as it stands, and as its profiles and the command line change it."""

    def __init__(self, folder: Path) -> None:
        self.reader = Reader(folder)

    def set(self, root: Node, text: str) -> tuple[Node, list[Problem]]:
        """The file's tree with `path=value` put into it."""
        path, equals, written = text.partition("=")
        source = Mark(printable(f"--set {path}{equals}{'…' if '://' in written else written}", 200))
        if not equals or not path:
            return root, [Problem(source, "", "no path and value (expected path=value)")]
        try:
            value, problems = parse(written, source, printable(path))
        except ProblemError as refused:
            return root, [refused.problem]
        return (root, problems) if problems else self.apply(root, Node({path: value}, source, source, ""))

    def apply(self, root: Node, overrides: Node) -> tuple[Node, list[Problem]]:
        """The file's tree with a profile's overrides put into it."""
        problems: list[Problem] = []
        for path, new in _whole_before_part(overrides):
            try:
                root = self._put(root, path, new)
            except NoSuchPathError as error:
                problems.append(error.problem(new, path, self._paths(root)))
            except ProblemError as refused:
                problems.append(refused.problem)
        return root, problems

    def resolve(self, root: Node) -> tuple[Resolved | None, list[Problem]]:
        """The file's own fields, every training and every search, or None, and every mistake."""
        misplaced = list(search_space.misplaced(root))
        if misplaced:
            return None, misplaced
        root = search_space.as_ablation(root)
        entries = root.items()
        without_train = replace(root, value={key: node for key, node in entries.items() if key != "train"})
        file, found = self.reader.read(Located(SpecFile, without_train, "the spec"))
        problems = [*found, *_taken_name(entries), *_repeated_seeds(entries)]
        problems += [*_wrong_comparison(entries), *_wrong_report(entries), *_in_points(entries)]
        problems += _idle_gpus(entries)
        try:
            train = self._train(root)
        except ProblemError as refused:
            return None, [*problems, refused.problem]
        problems += [problem for problem in self.reader.read(train)[1] if problem.certain]
        if "search" in entries and entries["search"].value is not None:
            points, found_in_variants = self._points(
                train, root.put("variants", _entry(root, "variants").one("default"))
            )
            searched = {"tuned": train}
        else:
            points, found_in_variants = self._points(train, root)
            searched = self._variants(train, root)
        problems += found_in_variants
        studies, found_in_space = search_space.studies(
            self.reader, root, file if isinstance(file, SpecFile) else None, searched
        )
        problems += found_in_space
        problems += self._wrong_protocols(root, train, points, studies)
        if problems or not isinstance(file, SpecFile):
            return None, problems
        if file.tuning is not None or (file.search is not None and not file.search.best):
            points = ()  # what a search finds is trained, and nothing else
        return (file, points, studies), []

    def _wrong_protocols(
        self, root: Node, train: Located, points: tuple[Point, ...], studies: tuple[StudySpec, ...]
    ) -> Iterator[Problem]:
        """Published figures beside runs of another protocol."""
        variants = self._variants(train, root)
        for line, figure in _entry(_entry(root, "report"), "published").items().items():
            variant, protocol = line.split(" · ")[0], _entry(figure, "protocol")
            if variant not in variants or not protocol.items():
                continue
            at, found = self._changed(variants[variant], protocol)
            stated, wrong = self.reader.read(at)
            known = self.reader.read(variants[variant])[1]
            yield from [*found, *(problem for problem in wrong if problem not in known)]
            if isinstance(stated, TrainConfig) and not found:
                runs = {p.name: p.train for p in points if line in (p.variant, p.name)}
                searches = [study for study in studies if study.name == variant]
                yield from wrong_protocol(protocol.items(), stated, runs, searches)

    def _variants(self, train: Located, root: Node) -> dict[str, Located]:
        """Every variant that can be read."""
        found: dict[str, Located] = {}
        for name, overrides in _entry(root, "variants").items().items():
            if overrides.value is None or isinstance(overrides.value, dict):
                at, problems = self._changed(train, overrides)
                found |= {} if problems else {name: at}
        return found

    def _train(self, root: Node) -> Located:
        return self.reader.locate(fields(SpecFile)["train"], _entry(root, "train"))

    def _put(self, root: Node, path: str, new: Node) -> Node:
        head, _, rest = path.partition(".")
        if head == "profiles":
            raise NoSuchPathError("an override", [name for name in fields(SpecFile) if name != head])
        if head == "grid" and rest:
            return root.put(head, _entry(root, head).put(rest, new))
        if head in search_space.SECTIONS and rest.startswith("space."):
            section = _entry(root, head)
            space = _entry(section, "space")
            return root.put(head, section.put("space", space.put(rest.removeprefix("space."), new)))
        if head == "variants" and rest:
            return root.put(head, self._put_in_variants(_entry(root, head), rest, new))
        return self.reader.override(Located(SpecFile, root, "the spec"), path.split("."), new)

    def _put_in_variants(self, variants: Node, path: str, new: Node) -> Node:
        """A variant, there or new, or one override in one that is there; names may have dots in them."""
        names = variants.items()
        variant = max((name for name in names if f"{path}.".startswith(f"{name}.")), key=len, default="")
        if path == variant or (not variant and "." not in path):
            return variants.put(path, new)
        if not variant:
            raise NoSuchPathError("variants", list(names))
        return variants.put(variant, names[variant].put(path.removeprefix(f"{variant}."), new))

    def _paths(self, root: Node) -> Iterator[str]:
        yield from (path for path in self.reader.paths(Located(SpecFile, root, "the spec")) if path != "profiles")
        train = list(self.reader.paths(self._train(root)))
        yield from (f"grid.{path}" for path in train)
        for name in _entry(root, "variants").items():
            yield f"variants.{name}"
            yield from (f"variants.{name}.{path}" for path in train)

    def _points(self, train: Located, root: Node) -> tuple[tuple[Point, ...], list[Problem]]:
        grid = {path: node for path, node in _entry(root, "grid").items().items() if _is_filled_list(node)}
        overrides_of = {
            name: node
            for name, node in _entry(root, "variants").items().items()
            if node.value is None or isinstance(node.value, dict)
        }
        seeds = _entry(root, "seeds").value
        seed_count = len(seeds) if isinstance(seeds, list) else 1
        count = len(overrides_of) * prod(len(node.value) for node in grid.values()) * seed_count
        if count > MAX_TRAININGS:
            where = _entry(root, "grid")
            return (), [Problem(where.key_mark, "grid", f"{count} trainings (expected at most {MAX_TRAININGS})")]

        points: dict[str, Point] = {}
        problems: list[Problem] = []
        used: set[str] = set()
        valid = set(self.reader.paths(train))
        complete = bool(overrides_of)
        for name, overrides in overrides_of.items():
            at, found = self._changed(train, overrides)
            if found:
                problems += found
                complete = False
                continue
            variant = self._variant(name, at, grid)
            problems += [*variant.problems, *_alike(points, variant.points, overrides)]
            points |= {key: replace(point, own=_own(overrides)) for key, point in variant.points.items()}
            used |= variant.used
            valid |= set(self.reader.paths(at))
        anywhere = {path for path, _, _ in paths(TrainConfig)}
        for path, values in grid.items():
            if path not in used and (complete or path not in anywhere | valid):
                what = f"no variant has this field (expected one that some variant has{nearest(path, valid)})"
                problems.append(Problem(values.key_mark, values.label, what))
        return tuple(points.values()), problems

    def _changed(self, train: Located, overrides: Node) -> tuple[Located, list[Problem]]:
        problems: list[Problem] = []
        for path, new in _whole_before_part(overrides):
            try:
                train = train._replace(node=self.reader.override(train, path.split("."), new))
            except NoSuchPathError as error:
                problems.append(error.problem(new, path, self.reader.paths(train)))
            except ProblemError as refused:
                problems.append(refused.problem)
        return train, problems

    def _variant(self, name: str, at: Located, grid: dict[str, Node]) -> _Variant:
        """The points of a variant. A path of the grid that it does not have at a point is left out there."""
        order = sorted(grid, key=_depth)
        alone = self.reader.read(at)[1]
        variant = _Variant({}, [], set())
        found: list[Problem] = []
        for values in product(*(grid[path].value for path in order)):
            point, applied = at, {}
            try:
                for path, value in zip(order, values, strict=True):
                    try:
                        point = point._replace(node=self.reader.override(point, path.split("."), value))
                        applied[path] = value
                    except NoSuchPathError:
                        continue
            except ProblemError as refused:
                found.append(refused.problem)
                continue
            finally:
                variant.used.update(applied)
            train, wrong = self.reader.read(point)
            found += wrong
            if isinstance(train, TrainConfig):
                written = {path: applied[path].plain() for path in grid if path in applied}
                variant.points.setdefault(repr(train), Point(variant=name, grid=written, train=train))
        certain_alone = [problem for problem in alone if problem.certain]
        variant.problems.extend(dict.fromkeys([*certain_alone, *found]))
        return variant


def _own(overrides: Node) -> frozenset[str]:
    """The paths that a variant sets: `optimizer.lr`, written so or as `optimizer: {lr: …}`."""
    entries = overrides.items().items()
    return frozenset(
        [path for path, _ in entries] + [f"{path}.{name}" for path, node in entries for name in node.items()]
    )


def _depth(path: str) -> int:
    """How deep what it replaces lies: `estimator.name` replaces the estimator."""
    return path.removesuffix(".name").removesuffix(".import").count(".")


def _whole_before_part(overrides: Node) -> list[tuple[str, Node]]:
    """A component is replaced before fields of it are set, in whichever order they were written."""
    return sorted(overrides.items().items(), key=lambda item: _depth(item[0]))


def _is_filled_list(node: Node) -> bool:
    return isinstance(node.value, list) and bool(node.value)


def _entry(root: Node, name: str) -> Node:
    return root.items().get(name) or root.below(name, None)


def _alike(before: dict[str, Point], points: dict[str, Point], variant: Node) -> list[Problem]:
    others = {before[key].variant: points[key].grid for key in reversed(points) if key in before}
    return [
        Problem(
            variant.key_mark,
            variant.label,
            f"resolves to the same training as variant {other}"
            + "".join(f", {path}={show(value)}" for path, value in grid.items())
            + " (expected a difference)",
        )
        for other, grid in others.items()
    ]


def _taken_name(entries: Mapping[str, Node]) -> list[Problem]:
    """Beside the experiment's folder lie MLflow's database, what SQLite puts beside that, and the artifacts."""
    name = entries.get("name")
    if name is None or not str(name.value).lower().startswith(("mlflow.db", "mlartifacts")):
        return []
    what = f"got {show(name.value)}, which is where MLflow keeps what it knows (expected another name)"
    return [Problem(name.mark, name.label, what)]


def _repeated_seeds(entries: Mapping[str, Node]) -> list[Problem]:
    seeds = entries.get("seeds")
    nodes = seeds.value if seeds and isinstance(seeds.value, list) else []
    seen: set[Any] = set()
    problems = []
    for node in nodes:
        if isinstance(node.value, int) and node.value in seen:
            what = f"{show(node.value)} is there already (expected each seed once)"
            problems.append(Problem(node.mark, node.label, what))
        seen.add(node.value if isinstance(node.value, int) else None)
    return problems


def _wrong_comparison(entries: Mapping[str, Node]) -> list[Problem]:
    """Baseline and primary are two of the variants."""
    variants = list(entries["variants"].items()) if "variants" in entries else []
    report = entries["report"].items() if "report" in entries else {}
    chosen = [report[role] for role in ("baseline", "primary") if role in report]
    chosen = [node for node in chosen if isinstance(node.value, str)]
    problems = [
        Problem(
            node.mark,
            node.label,
            f"no variant {show(node.value)} (expected one of {', '.join(variants)}{nearest(node.value, variants)})",
        )
        for node in chosen
        if variants and node.value not in variants
    ]
    if not problems and len({node.value for node in chosen}) < len(chosen):
        what = f"{show(chosen[1].value)} is the baseline itself (expected another variant)"
        problems.append(Problem(chosen[1].mark, chosen[1].label, what))
    return problems


def _in_points(entries: Mapping[str, Node]) -> list[Problem]:
    """Differences of an accuracy that are given in points: 1 would be all of it, and rule everything out."""
    report = entries["report"].items() if "report" in entries else {}
    if "metric" in report and not str(report["metric"].value).endswith("accuracy"):
        return []
    sizes = [report[name] for name in ("smallest_effect", "equivalence_margin") if name in report]
    return [
        Problem(node.mark, node.label, f"got {show(node.value)} (expected a part of 1: 0.01 is one point of accuracy)")
        for node in sizes
        if isinstance(node.value, int | float) and not isinstance(node.value, bool) and node.value >= 1
    ]


def _idle_gpus(entries: Mapping[str, Node]) -> list[Problem]:
    """More than one for a training, which runs on one."""
    gpus = entries["resources"].items().get("gpus") if "resources" in entries else None
    if gpus is None or isinstance(gpus.value, bool) or not isinstance(gpus.value, int | float) or gpus.value <= 1:
        return []
    what = f"got {show(gpus.value)}, and a training runs on one GPU (expected ≤ 1: other trainings use the others)"
    return [Problem(gpus.mark, gpus.label, what)]


def _wrong_report(entries: Mapping[str, Node]) -> list[Problem]:
    """The family and the published figures are of variants; one of the looks is at all seeds."""
    variants = list(entries["variants"].items()) if "variants" in entries else []
    report = entries["report"].items() if "report" in entries else {}
    family, published, sequential = (report.get(name) for name in ("family", "published", "sequential"))
    listed = family.value if family is not None and isinstance(family.value, list) else []
    named = [(node, node.mark, node.value) for node in listed if isinstance(node.value, str)]
    named += [
        (node, node.key_mark, key.split(" · ")[0]) for key, node in (published.items() if published else {}).items()
    ]
    problems = [
        Problem(
            mark,
            node.label,
            f"no variant {show(name)} (expected one of {', '.join(variants)}{nearest(name, variants)})",
        )
        for node, mark, name in named
        if variants and name not in variants
    ]
    roles = [report[role].value for role in ("baseline", "primary") if role in report]
    for node in listed:
        if node.value in roles:
            what = f"{show(node.value)} is the baseline or the primary variant, which stand alone (expected another)"
            problems.append(Problem(node.mark, node.label, what))
    looks = sequential.items().get("looks") if sequential else None
    seeds = entries["seeds"].value if "seeds" in entries else None
    if looks is not None and isinstance(looks.value, list) and isinstance(seeds, list):
        at = [node.value for node in looks.value]
        if at and all(isinstance(value, int) for value in at) and len(seeds) not in at:
            numbers = ", ".join(map(show, at))
            what = f"looks at {numbers} seeds, and there are {len(seeds)} (expected the number of seeds among them)"
            problems.append(Problem(looks.mark, looks.label, what))
    return problems
