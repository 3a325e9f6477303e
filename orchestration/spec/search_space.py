"""From the `search:` or `tuning:` of a spec file to its studies, every value of a space held to its field's bounds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from fsg.train_config import TrainConfig
from orchestration.spec.fields import Field, SpecFile, nearest
from orchestration.spec.reader import Located, NoSuchPathError, Reader, show
from orchestration.spec.search_config import ALWAYS_TUNED, Entry, Grid, NoPruning, Search, Tuning
from orchestration.spec.study import Condition, Dimension, StudySpec
from orchestration.spec.yaml_tree import Node, Problem, ProblemError
from orchestration.util.nearest import meant
from orchestration.util.passwords import has_password

SECTIONS = ("search", "tuning")
_WORLDS = 64
# Between trials that differ in these, no figure could be compared.
_NOT_SEARCHED = ("epochs", "test", "data")


class _Place(NamedTuple):
    """A field, and a training that has it."""

    field: Field
    at: Located


def section_of(root: Node) -> str:
    """`search`, `tuning` or nothing."""
    return next((name for name in SECTIONS if _is_there(root, name)), "")


def as_ablation(root: Node) -> Node:
    """The file with the variants and the report that a search stands for, if it is one."""
    if not _is_there(root, "search"):
        return root
    node = root.items()["search"]
    implied = {"variants": {"default": None, "tuned": None}, "report": {"baseline": "default", "primary": "tuned"}}
    for name, value in implied.items():
        if name not in root.items():
            root = root.put(name, replace(node.below(name, value), label=name))
    return root


def misplaced(root: Node) -> Iterator[Problem]:
    """What cannot stand beside a search or a tuning."""
    section = section_of(root)
    if section and all(_is_there(root, name) for name in SECTIONS):
        yield Problem(root.items()["tuning"].key_mark, "tuning", "there is a search already (expected one of the two)")
    not_beside = {"search": ("variants", "grid", "report"), "tuning": ("grid",)}
    for name in not_beside.get(section, ()):
        if _is_there(root, name):
            hint = "expected tuning, which searches every variant" if name == "variants" else f"expected no {name}"
            yield Problem(root.items()[name].key_mark, name, f"cannot stand beside {section} ({hint})")


def _is_there(root: Node, name: str) -> bool:
    return name in root.items() and root.items()[name].value is not None


def studies(
    reader: Reader, root: Node, file: SpecFile | None, variants: Mapping[str, Located]
) -> tuple[tuple[StudySpec, ...], list[Problem]]:
    """The studies of a file, one for each of the variants given, and every mistake in its space."""
    name = section_of(root)
    if not name:
        return (), []
    section = root.items()[name]
    space = _Space(reader, variants)
    written = section.items().get("space")
    for path, node in written.items().items() if written else ():
        space.read(path, node)
    problems = [*space.problems, *_repeated(section, root)]
    settings = getattr(file, name, None)
    if not isinstance(settings, Search | Tuning):
        return (), problems
    problems += _unable(section, settings, space)
    found = []
    for variant, at in variants.items():
        train, _ = reader.read(at)
        if not isinstance(train, TrainConfig):
            continue
        dimensions = space.of[variant]
        if isinstance(settings, Tuning):
            dimensions = [*_always(reader, at, dimensions), *dimensions]
        assert file is not None
        found.append(_study(variant, train, tuple(dimensions), settings, tuple(file.seeds)))
        problems += _unseen(section, found[-1])
    return tuple(found), list(dict.fromkeys(problems))


def _study(
    variant: str,
    train: TrainConfig,
    dimensions: tuple[Dimension, ...],
    settings: Search | Tuning,
    seeds: tuple[int, ...],
) -> StudySpec:
    return StudySpec(
        name=variant,
        train=train,
        dimensions=dimensions,
        trials=settings.trials if isinstance(settings, Search) else settings.budget,
        seeds=tuple(settings.seeds),
        objectives=settings.objectives if isinstance(settings, Search) else (settings.objective,),
        sampler=settings.sampler,
        pruner=settings.pruner,
        seed=settings.seed,
        best=settings.best,
        table_seeds=seeds,
        warm_start=settings.warm_start if isinstance(settings, Search) else None,
    )


def _always(reader: Reader, at: Located, dimensions: Sequence[Dimension]) -> list[Dimension]:
    """Learning rate and weight decay, where the spec does not say how they are searched."""
    there = {one.path for one in dimensions}
    return [
        Dimension(path, "float", **values)
        for path, values in ALWAYS_TUNED.items()
        if path not in there and reader.find(at, path.split(".")) is not None
    ]


class _Space:
    """Reads the entries of a space in their order; `of` has the dimensions of each variant."""

    def __init__(self, reader: Reader, variants: Mapping[str, Located]) -> None:
        self.reader = reader
        self.of: dict[str, list[Dimension]] = {name: [] for name in variants}
        self.problems: list[Problem] = []
        # What a variant may become by the components that were chosen so far.
        self._worlds = {name: [at] for name, at in variants.items()}
        self._seen: dict[str, Dimension] = {}
        self._broken: list[str] = []

    def read(self, path: str, node: Node) -> None:
        self._read(path, node)
        if path not in self._seen:
            self._broken.append(path)

    def _read(self, path: str, node: Node) -> None:
        places = {name: place for name in self.of if (place := self._place(name, path)) is not None}
        if path.split(".")[0] in _NOT_SEARCHED:
            what = "trials that differ in it cannot be compared (expected another path)"
            self.problems.append(Problem(node.key_mark, node.label, what))
            return
        if not places:
            known = {known for worlds in self._worlds.values() for at in worlds for known in self.reader.paths(at)}
            what = f"no variant has this field (expected one that some variant has{nearest(path, known)})"
            self.problems.append(Problem(node.key_mark, node.label, what))
            return
        dimension: Dimension | None = None
        for name, place in places.items():
            dimension, found = self._dimension(path, node, place)
            self.problems += [problem for problem in found if problem not in self.problems]
            if dimension is None:
                return
            self.of[name].append(dimension)
            if place.field.chosen:
                self._worlds[name] = self._chosen(self._worlds[name], path, node)
        if dimension is not None:
            self._seen[path] = dimension

    def is_conditional(self, path: str) -> bool:
        """Whether some choice of components leaves an entry out."""
        parts = path.removesuffix(".name").split(".")
        return any(
            self.reader.find(at, parts) is None
            for name, worlds in self._worlds.items()
            if any(one.path == path for one in self.of[name])
            for at in worlds
        )

    def _place(self, variant: str, path: str) -> _Place | None:
        for at in self._worlds[variant]:
            field = self.reader.find(at, path.removesuffix(".name").split("."))
            if field is not None:
                return _Place(field, at)
        return None

    def _chosen(self, worlds: list[Located], path: str, node: Node) -> list[Located]:
        found = list(worlds)
        for at, value in product(worlds, _choices(node)):
            try:
                found.append(at._replace(node=self.reader.override(at, path.split("."), value)))
            except (NoSuchPathError, ProblemError):
                continue
        return found[:_WORLDS]

    def _dimension(self, path: str, node: Node, place: _Place) -> tuple[Dimension | None, list[Problem]]:
        mapping = replace(node, value={"choices": node}) if isinstance(node.value, list) else node
        if not isinstance(mapping.value, dict):
            what = f"got {show(node.value)} (expected a range, {{low: …, high: …}}, or a list of choices)"
            return None, [Problem(node.mark, node.label, what)]
        entry, problems = self.reader.read(Located(Entry, mapping, "an entry of a space"))
        if not isinstance(entry, Entry):
            return None, list(problems)
        if entry.choices is None:
            dimension, found = self._range(path, mapping, entry, place)
        else:
            dimension, found = self._of_choices(path, mapping, entry, place)
        conditions, wrong = self._conditions(mapping)
        found += wrong
        return (None, found) if found or dimension is None else (replace(dimension, when=conditions), [])

    def _of_choices(self, path: str, node: Node, entry: Entry, place: _Place) -> tuple[Dimension | None, list[Problem]]:
        given = [name for name in ("low", "high", "step", "log") if name in node.items()]
        if given:
            what = f"cannot stand beside choices (expected choices, or {{low: …, high: …}}; got {', '.join(given)} too)"
            return None, [Problem(node.items()[given[0]].key_mark, node.items()[given[0]].label, what)]
        choices = _choices(node)
        problems = [
            Problem(one.mark, one.label, f"got {show(one.value)} (expected a number, a text or a truth value)")
            for one in choices
            if isinstance(one.value, dict | list)
        ]
        if not choices:
            problems.append(Problem(node.items()["choices"].mark, node.label, "no choices (expected one or more)"))
        for one in choices:
            problems += [] if problems else self._wrong(path, one, place)
        values = tuple(_as(place.field, one.value) for one in choices)
        twice = next((one for at, one in enumerate(choices) if values[at] in values[:at]), None)
        if twice is not None and not problems:
            problems.append(
                Problem(twice.mark, twice.label, f"{show(twice.value)} is there already (expected it once)")
            )
        return (None, problems) if problems else (Dimension(path, "choice", choices=values), [])

    def _range(self, path: str, node: Node, entry: Entry, place: _Place) -> tuple[Dimension | None, list[Problem]]:
        entries, kind = node.items(), _kind(place.field)
        if kind == "choice":
            what = "has no range (expected choices: a list of values)"
            return None, [Problem(node.key_mark, node.label, what)]
        missing = [name for name in ("low", "high") if getattr(entry, name) is None]
        if missing:
            what = f"{missing[0]} is missing (expected low and high, or choices)"
            return None, [Problem(node.key_mark, node.label, what)]
        problems = [wrong for name in ("low", "high") for wrong in self._wrong(path, entries[name], place)]
        if problems:
            return None, problems
        low, high, step = entry.low, entry.high, entry.step
        assert low is not None
        assert high is not None
        if low >= high:
            what = f"got {show(high)} (expected more than low, {show(low)})"
            return None, [Problem(entries["high"].mark, entries["high"].label, what)]
        if entry.log and low <= 0:
            what = f"got {show(low)} (expected a number > 0, as log is true)"
            return None, [Problem(entries["low"].mark, entries["low"].label, what)]
        if step is not None:
            at = entries["step"]
            if step <= 0:
                return None, [Problem(at.mark, at.label, f"got {show(step)} (expected a number > 0)")]
            if entry.log:
                return None, [Problem(at.mark, at.label, "cannot stand beside log (expected one of the two)")]
            if kind == "int" and not isinstance(step, int):
                return None, [Problem(at.mark, at.label, f"got {show(step)} (expected a whole number ≥ 1)")]
            steps = (high - low) / step
            if abs(steps - round(steps)) > 1e-9:
                what = f"got {show(step)} (expected a part of high − low, {high - low:g})"
                return None, [Problem(at.mark, at.label, what)]
        metadata = place.field.metadata
        return (
            Dimension(
                path,
                kind,
                low=int(low) if kind == "int" else float(low),
                high=int(high) if kind == "int" else float(high),
                log=entry.log,
                step=step,
                open_low=metadata.get("ge") != low,
                open_high=metadata.get("le") != high,
            ),
            [],
        )

    def _wrong(self, path: str, value: Node, place: _Place) -> list[Problem]:
        """What is wrong with one value of a field, where it was written."""
        try:
            changed = place.at._replace(node=self.reader.override(place.at, path.split("."), value))
            found = self.reader.read(changed)[1]
        except NoSuchPathError:
            found = ()
        except ProblemError as refused:
            found = (refused.problem,)
        return [problem for problem in found if problem.mark in (value.mark, value.key_mark)]

    def _conditions(self, node: Node) -> tuple[tuple[Condition, ...], list[Problem]]:
        found: list[Condition] = []
        problems: list[Problem] = []
        when = node.items().get("when")
        for path, wanted in when.items().items() if when else ():
            earlier = self._seen.get(path)
            if path in self._broken or meant(path, self._broken):
                continue  # one mistake is told once
            if earlier is None:
                known = ", ".join(self._seen) or "none"
                what = f"no earlier entry of the space (expected one of {known}{nearest(path, self._seen)})"
                problems.append(Problem(wanted.key_mark, wanted.label, what))
            elif isinstance(wanted.value, dict):
                problems += _wrong_limits(wanted, earlier)
                limits = {key: one.value for key, one in wanted.items().items()}
                found += [] if problems else [Condition(path, **limits)]
            else:
                nodes = wanted.value if isinstance(wanted.value, list) else [wanted]
                problems += [problem for one in nodes for problem in _never(one, earlier)]
                values = tuple(float(n.value) if earlier.kind == "float" and not problems else n.value for n in nodes)
                found.append(Condition(path, values=values))
        return tuple(found), problems


def _wrong_limits(wanted: Node, earlier: Dimension) -> Iterator[Problem]:
    for key, limit in wanted.items().items():
        if key not in ("above", "below"):
            what = f"no such limit (expected above or below{nearest(key, ('above', 'below'))})"
            yield Problem(limit.key_mark, limit.label, what)
        elif isinstance(limit.value, bool) or not isinstance(limit.value, int | float):
            yield Problem(limit.mark, limit.label, f"got {show(limit.value)} (expected a number)")
        elif earlier.kind == "choice" and not all(isinstance(one, int | float) for one in earlier.choices):
            yield Problem(limit.mark, limit.label, f"{earlier.path} has choices that are no numbers (expected a list)")


def _never(one: Node, earlier: Dimension) -> Iterator[Problem]:
    """A value that the earlier entry cannot have."""
    value = one.value
    if earlier.kind == "choice":
        if not any(type(value) is type(choice) and value == choice for choice in earlier.choices):
            what = f"{earlier.path} is never {show(value)} (expected one of {', '.join(map(show, earlier.choices))})"
            yield Problem(one.mark, one.label, what)
    elif isinstance(value, bool) or not isinstance(value, int | float) or not earlier.low <= value <= earlier.high:
        what = f"{earlier.path} is never {show(value)} (expected {earlier.low} to {earlier.high}, or above or below)"
        yield Problem(one.mark, one.label, what)


def _choices(node: Node) -> list[Node]:
    value = node.value if isinstance(node.value, list) else node.items()["choices"].value if node.items() else []
    return value if isinstance(value, list) else []


def _kind(field: Field) -> Literal["float", "int", "choice"]:
    members = [hint for hint in (get_args(field.hint) or (field.hint,)) if hint is not NoneType]
    if get_origin(field.hint) is Literal or field.options or bool in members:
        return "choice"
    return "float" if float in members else "int" if int in members else "choice"


def _as(field: Field, value: Any) -> Any:
    """A value as the field's config would hold it."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_number and _kind(field) == "float" else value


def _repeated(section: Node, root: Node) -> Iterator[Problem]:
    """Seeds of trials that come twice, or that the table has too."""
    table = {node.value for node in _list(root, "seeds") if isinstance(node.value, int)}
    seen: set[Any] = set()
    nodes = _list(section, "seeds")
    for node in nodes:
        if isinstance(node.value, int):
            if node.value in table:
                what = f"{show(node.value)} is a seed of the table too (expected fresh ones there)"
                yield Problem(node.mark, node.label, what)
            if node.value in seen:
                yield Problem(node.mark, node.label, f"{show(node.value)} is there already (expected each seed once)")
            seen.add(node.value)
    if not nodes:
        for node in _list(root, "seeds"):
            if isinstance(node.value, int) and node.value == 1000:
                what = f"1000 is the seed of the trials, unless {section.label}.seeds says otherwise (expected another)"
                yield Problem(node.mark, node.label, what)


def _list(node: Node, name: str) -> list[Node]:
    found = node.items().get(name)
    return found.value if found is not None and isinstance(found.value, list) else []


def _unable(section: Node, settings: Search | Tuning, space: _Space) -> Iterator[Problem]:
    """What the sampler or the pruner cannot do, and a storage that would give its password away."""

    def at(name: str) -> tuple[Any, str]:
        node = section.items().get(name)
        return (node.mark if node else section.key_mark), f"{section.label}.{name}"

    if settings.storage and has_password(settings.storage):
        what = "has a password, and the spec is kept with the results (expected --study-storage, or a ~/.pgpass)"
        yield Problem(*at("storage"), what)
    if isinstance(settings, Search) and len(settings.objectives) > 1:
        if len(set(settings.objectives)) < len(settings.objectives):
            yield Problem(*at("objectives"), "an objective comes twice (expected each once)")
        if not isinstance(settings.pruner, NoPruning):
            what = f"{settings.pruner.name} cannot do several objectives (expected none)"
            yield Problem(*at("pruner"), what)
    if isinstance(settings.sampler, Grid):
        entries = [one for dimensions in space.of.values() for one in dimensions]
        others = "expected tpe, random, quasi_random or nsga2"
        conditional = next((one.path for one in entries if one.when), None)
        implicit = next((one.path for one in entries if space.is_conditional(one.path)), None)
        if conditional or implicit:
            what = f"grid cannot do conditions, and {conditional or implicit} has one ({others})"
            yield Problem(*at("sampler"), what)
        endless = [one.path for one in entries if not one.countable]
        if isinstance(settings, Tuning):
            endless += [path for path in ALWAYS_TUNED if path not in {one.path for one in entries}]
        if endless:
            what = f"grid wants values that can be counted, and {endless[0]} has a range without a step ({others})"
            yield Problem(*at("sampler"), what)


def _unseen(section: Node, study: StudySpec) -> Iterator[Problem]:
    """Epochs at which trials are compared, and after which nothing is validated."""
    if not any(objective.startswith("validation/") for objective in study.objectives):
        return
    every = study.train.evaluate_every
    for rung in (*study.rungs, study.train.epochs):
        if abs(rung / every - round(rung / every)) > 1e-9:
            node = section.items().get("pruner", section)
            what = f"epoch {rung} is not validated, as evaluate_every is {every:g} (expected a multiple of it)"
            yield Problem(node.key_mark, f"{section.label}.pruner" if rung in study.rungs else "train.epochs", what)
            return
