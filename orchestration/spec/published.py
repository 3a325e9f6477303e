"""A published figure stands beside runs of its own protocol alone: what is stated of that is held against each run."""

from collections.abc import Iterable, Iterator, Mapping

from fsg.config import to_dict
from fsg.train_config import TrainConfig
from orchestration.spec.study import StudySpec
from orchestration.spec.yaml_tree import Node, Problem, printable
from orchestration.util.nested import flatten

NONE = "nothing"


def wrong_protocol(
    protocol: Mapping[str, Node], stated: TrainConfig, runs: Mapping[str, TrainConfig], studies: Iterable[StudySpec]
) -> Iterator[Problem]:
    """A mistake for each path of a protocol at which a run has something else, or which a search may change.

    `stated` is the training of the figure's variant with the protocol put into it, `runs` are those of its line of the
    table, by name, `studies` the searches of its settings.
    """
    ours, theirs = flatten(to_dict(stated)), {name: flatten(to_dict(run)) for name, run in runs.items()}
    searched = [dimension.path for study in studies for dimension in study.dimensions]
    for path, node in protocol.items():
        differences = (f"{name} has {said}" for name, run in theirs.items() if (said := _difference(path, ours, run)))
        found = f"{path} is searched" if any(_overlap(path, one) for one in searched) else next(differences, "")
        if found:
            what = f"{found} (expected runs of the figure's protocol, or no figure beside them)"
            yield Problem(node.key_mark, node.label, what)


def _difference(path: str, stated: Mapping[str, str], run: Mapping[str, str]) -> str:
    """The first setting at or below a path that is not the same, as a message says it; "" for none."""
    for where in dict.fromkeys([*stated, *run]):
        if f"{where}.".startswith(f"{path}.") and stated.get(where, NONE) != run.get(where, NONE):
            one, other = (printable(of.get(where, NONE), 60) for of in (run, stated))
            return f"{where} {one}, the figure {other}"
    return ""


def _overlap(path: str, other: str) -> bool:
    return f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}.")
