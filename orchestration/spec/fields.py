"""What a spec may say: the fields of the core's dataclasses, and of the spec's own."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import Field as Constraint
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from fsg.config import Settings, as_written, choice, setting, to_dict
from fsg.imported import Imported
from fsg.train_config import TrainConfig
from orchestration.spec.search_config import Search, Seeds, Tuning
from orchestration.util.nearest import meant

IMPORT = "import: module:Class"
_T = TypeVar("_T")
Recorded = TypeVar("Recorded", bound=Settings)

Name = Annotated[
    str,
    Constraint(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        strict=True,
        description="1 to 64 letters, digits, '_', '.' and '-', the first a letter or a digit",
    ),
]
Look = Annotated[int, Constraint(ge=2, strict=True, description="a whole number ≥ 2")]
GPUs = (
    Annotated[float, Constraint(ge=0, strict=True, description="a number ≥ 0")]
    | Annotated[Literal["auto"], Constraint(description="auto")]
)
Values = Annotated[list[Any], Constraint(min_length=1, description="a list of one or more values")]
Overrides = Annotated[dict[str, Any] | None, Constraint(description="a mapping of paths to values")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resources(Settings):
    """What one training may use."""

    cpus: int | None = setting(None, "CPUs a training; train.threads unless said otherwise.", ge=1)
    gpus: GPUs = choice(
        0.0,
        "GPUs a training, ≤ 1; a fraction shares one; auto measures how many trainings a GPU, or these CPUs, do best.",
    )
    max_concurrent: int | None = setting(None, "Trainings at a time; as many as there is room for unless said.", ge=1)
    max_retries: int = setting(3, "How often a training that died is taken up again.", ge=0)
    checkpoint_every: float = setting(60.0, "Seconds between two checkpoints of a training.", gt=0)

    @property
    def gpu_share(self) -> float:
        """GPUs a training as a number: none as long as `auto` is not measured."""
        return 0.0 if self.gpus == "auto" else self.gpus


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published(Settings):
    """What a paper states, in the paper's units: of an accuracy, per cent."""

    mean: float = setting(description="The mean over its runs; per cent for an accuracy.")
    variance: float | None = setting(None, "The variance over its runs, where it gives that.", ge=0)
    sd: float | None = setting(None, "The standard deviation over its runs, where it gives that.", ge=0)
    runs: int | None = setting(None, "How many runs.", ge=1)
    source: str = setting(description="Where it stands: paper, table, conditions.")
    protocol: Overrides = choice(
        None, "Paths below `train` and what they are in the paper; a run that has something else there is refused."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variance is not None and self.sd is not None:
            raise ValueError("variance and sd are one number said twice (expected one of them)")

    @property
    def deviation(self) -> float | None:
        """The standard deviation, however it was given."""
        return self.sd if self.variance is None else self.variance**0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sequential(Settings):
    """A group-sequential rule, declared before the first result: after how many seeds the question is looked at."""

    looks: Annotated[list[Look], Constraint(min_length=2, description="a list of two or more whole numbers")] = choice(
        description="Seeds at each look, ascending, in the order of `seeds`, whose number is one of them.",
    )
    boundary: Literal["obrien_fleming", "pocock"] = choice(
        "obrien_fleming", "How the 5 % are spent: hardly any early on, or evenly."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.looks != sorted(set(self.looks)):
            raise ValueError(f"looks are {self.looks} (expected numbers of seeds, ascending)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Settings):
    """What the table compares."""

    baseline: str = setting(description="The variant that all others are compared to.")
    primary: str = setting(description="The variant whose comparison to the baseline is the question.")
    metric: Literal[
        "test/accuracy",
        "test/loss",
        "validation/accuracy",
        "validation/loss",
        "train/loss",
        "papers_protocol/test_accuracy",
    ] = choice("test/accuracy", "What is compared.")
    family: Annotated[list[str] | None, Constraint(description="a list of variants")] = choice(
        None, "The other variants that are tested, and corrected together (Holm); all of them unless said."
    )
    reach: list[Annotated[float, Constraint(gt=0, lt=1, strict=True, description="a number between 0 and 1")]] = choice(
        list, "Accuracies, from 0 to 1; epochs and seconds until each is reached are measured, and tested."
    )
    smallest_effect: float | None = setting(
        None, "The smallest difference of the metric that would matter: seeds are counted for it.", gt=0
    )
    equivalence_margin: float | None = setting(
        None,
        "Variant and baseline count as equivalent where a difference of the metric as large as this is ruled out.",
        gt=0,
    )
    sequential: Sequential | None = choice(None, "Looks before the last seed that keep the error at 5 %.")
    published: dict[str, Published] | None = choice(
        dict, "By variant, or by line of the table (`ste · optimizer.lr=0.01`), what a paper states."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecFile(Settings):
    """An experiment: variants of one training, compared over seeds."""

    name: Name = choice(description="Names the experiment and its folder.")
    question: str = setting("", "What the experiment is to answer.")
    train: TrainConfig = choice(TrainConfig, "What all variants share.")
    variants: Annotated[
        dict[Name, Overrides], Constraint(min_length=1, description="a mapping of one or more names")
    ] = choice(
        description="By name, what each does differently: paths below `train` and their values.",
    )
    grid: dict[str, Values] | None = choice(
        dict, "Paths below `train`, each with the values to run every variant with."
    )
    seeds: Seeds = choice(description="Each variant is trained once with each; the comparison is paired by them.")
    search: Search | None = choice(None, "Which settings of `train` are looked for; in place of variants and report.")
    tuning: Tuning | None = choice(None, "Every variant gets a search of its own, all of the same size, beforehand.")
    resources: Resources = choice(Resources, "What one training may use.")
    report: Report = choice(description="What the table compares.")
    profiles: dict[Name, Overrides] | None = choice(
        dict, "By name, another size of the same experiment: paths of this file and their values."
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Field:
    """A field of a config. `options` are the components that it may be, by name; "" where there is no choice."""

    name: str
    hint: Any
    metadata: Mapping[str, Any]
    options: Mapping[str, type[Settings]]
    imports: bool
    default: Any
    identity: bool

    @property
    def chosen(self) -> bool:
        """Whether it is a component that goes by a name."""
        return bool(self.options) and "" not in self.options

    def names(self) -> str:
        """The components to choose from, in words."""
        return ", ".join(self.options) + (f", or {IMPORT}" if self.imports else "")

    def default_value(self) -> dict[str, Any] | None:
        """The component's default as plain data; None where it has none."""
        return to_dict(self.default) if isinstance(self.default, Settings) else None


def once_a_class(function: Callable[[type[Settings]], _T]) -> Callable[[type[Settings]], _T]:
    """`functools.cache` for functions of a class, whose type says (to mypy) that it cannot be hashed."""
    return cast(Callable[[type[Settings]], _T], cache(function))


@once_a_class
def fields(cls: type[Settings]) -> dict[str, Field]:
    """The fields of a config class by name. Raises whatever its annotations raise when they are evaluated."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: _field(field, hints[field.name]) for field in dataclasses.fields(cls)}


def _field(field: "dataclasses.Field[Any]", hint: Any) -> Field:
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    configs = [member for member in members if isinstance(member, type) and issubclass(member, Settings)]
    options = {component_name(config): config for config in configs if config is not Imported}
    default = field.default_factory() if callable(field.default_factory) else field.default
    identity = field.metadata.get("identity", True)
    return Field(field.name, hint, field.metadata, options, Imported in configs, default, identity)


@once_a_class
def component_name(cls: type[Settings]) -> str:
    """What a component is called in a spec; "" for a config that is not one of several."""
    default = next((field.default for field in dataclasses.fields(cls) if field.name == "name"), "")
    return default if isinstance(default, str) else ""


@once_a_class
def adapter(cls: type[Settings]) -> TypeAdapter[Settings]:
    """Pydantic's validator of a config class."""
    return TypeAdapter(cls)


def paths(cls: type[Settings]) -> Iterator[tuple[str, type[Settings], Field]]:
    """Every dotted path below a config, whose field it is, and the field, whichever components are chosen.

    A path that several components have comes several times.
    """
    for field in fields(cls).values():
        if field.name == "name":
            continue
        yield field.name, cls, field
        for option in field.options.values():
            yield from ((f"{field.name}.{path}", owner, inner) for path, owner, inner in paths(option))


def nearest(wrong: str, candidates: Iterable[str]) -> str:
    """`; did you mean …?`, or nothing where no candidate is near."""
    found = meant(wrong, candidates)
    return f"; did you mean {found[0]}?" if found else ""


def expected(hint: Any, metadata: Mapping[str, Any] = {}) -> str:
    """A type and its bounds in words: `a number from 0 to 1`."""
    arguments = get_args(hint)
    if get_origin(hint) is Annotated:
        said = [info.description for info in arguments[1:] if isinstance(info, FieldInfo) and info.description]
        return said[0] if said else expected(arguments[0], metadata)
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(as_written, arguments)) if len(arguments) > 1 else as_written(arguments[0])
    if get_origin(hint) in (Union, UnionType):
        kinds = [expected(member, metadata) for member in arguments if member is not NoneType]
        return " or ".join(kinds + ["null"] * (NoneType in arguments))
    return _KINDS.get(get_origin(hint) or hint, "another value") + _bounds(metadata)


_KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}


def _bounds(metadata: Mapping[str, Any]) -> str:
    if "ge" in metadata and "le" in metadata:
        return f" from {metadata['ge']} to {metadata['le']}"
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [f"{sign} {metadata[bound]}" for bound, sign in signs.items() if bound in metadata]
    return " " + " and ".join(bounds) if bounds else ""


def item_hint(hint: Any) -> Any:
    """The type of what a list or a mapping holds; of anything else, the type itself."""
    arguments = get_args(hint)
    if get_origin(hint) is Annotated:
        return item_hint(arguments[0])
    if get_origin(hint) in (Union, UnionType):
        return item_hint(arguments[0])
    return arguments[-1] if get_origin(hint) in (list, dict) else arguments[0] if get_origin(hint) is tuple else hint


class OtherVersion(ValueError):
    """A record has what this version does not know: a newer one wrote it, or one before something was renamed."""


def from_record(cls: type[Recorded], values: Mapping[str, Any], of: str = "") -> Recorded:
    """Settings from their record, those that have come since at their defaults; `of` names it. Raises OtherVersion."""
    try:
        found = adapter(cls).validate_python(values)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        path = ".".join(map(str, wrong["loc"]))
        why = "not known" if wrong["type"] in _UNKNOWN else " ".join(wrong["msg"].split())
        said = f"{wrong['ctx']['tag']} " if wrong["type"] == "union_tag_invalid" else ""
        raise OtherVersion(f"{of}{path}: {said}{why} (expected the version of fsg that wrote it)") from None
    assert isinstance(found, cls)
    return found


_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden", "union_tag_invalid", "literal_error")


def train_from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """The inverse of `fsg.config.to_dict`. Raises OtherVersion."""
    return from_record(TrainConfig, values, "train.")
