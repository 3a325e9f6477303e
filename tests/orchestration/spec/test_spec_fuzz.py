"""Specs that something has happened to: they are read, or every mistake gets its line, and nothing starts."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestration.spec.experiment import ExperimentSpec, SpecErrors, load_spec

SPEC = """\
name: probe
question: Does it hold?
train:
  data: {name: fashion_mnist_subset, validation: 1000}
  model: {name: resnet, depth: 8, width: 8}
  estimator: {name: fsg, slow_net: {name: mamba, expand: 3}, slow_weight: 0.9}
  optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
  init: {name: pretrain, epochs: 1}
  epochs: 2
variants:
  one: {}
  two: {estimator.history_length: 1, "optimizer": adam}
  ste: {estimator: ste}
grid: {estimator.slow_net: [ema, {name: mamba, expand: 3}], batch_size: [16, 32]}
seeds: [0, 1]
resources: {gpus: 0, max_retries: 3, checkpoint_every: 60}
report: {baseline: one, primary: two, metric: test/accuracy}
profiles:
  quick: {train.epochs: 1, variants.two: {estimator.history_length: 3}, seeds: [0]}
"""
PIECES = [match.span() for match in re.finditer(r"[\w.]+|[^\w\s]|\s+", SPEC)]
WORDS = sorted(set(re.findall(r"[\w./]+", SPEC)))
ODD = [
    "{}",
    "[]",
    "null",
    "-1",
    "1e999",
    ".nan",
    "true",
    "*a",
    "?",
    "-",
    "{",
    "]",
    "#",
    "|",
    ">",
    "..",
    "%",
    "é",
    "---",
    "@",
    "`",
]
ODD += [
    "\x00",
    "\n",
    "\t",
    "\r",
    "\u2028",
    "\ufeff",
    ": ",
    "&a ",
    "<<: *a",
    "!!set ",
    "!!python/name:os.system ",
    "name: ",
    "",
]
ODD += [
    "import: ",
    "import: os:system",
    "9" * 5000,
    "0x" + "f" * 300,
    "../../etc/passwd",
    "a" * 300,
    "2026-01-01",
    "0o17",
]
KINDS = ["put", "replace", "remove", "double"]
LINE = re.compile(r"(spec\.yaml:\d+:\d+|--set .*|--profile .*): .+")

text = st.one_of(st.sampled_from(ODD), st.sampled_from(WORDS), st.text(max_size=6))
edit = st.tuples(st.sampled_from(KINDS), st.integers(0, len(PIECES) - 1), text)
sets = st.lists(st.builds("{}={}".format, st.one_of(st.sampled_from(WORDS), text), text), max_size=1)


def mutated(edits: list[tuple[str, int, str]]) -> str:
    """The spec with some of its pieces replaced, removed or doubled, or something put before them."""
    pieces = [SPEC[start:end] for start, end in PIECES]
    for kind, place, new in edits:
        was = pieces[place]
        pieces[place] = {"put": new + was, "replace": new, "remove": "", "double": was + was}[kind]
    return "".join(pieces)


def told(written: str, profile: str | None, overrides: list[str]) -> ExperimentSpec | tuple[str, ...]:
    path = Path("spec.yaml")
    path.write_bytes(written.encode(errors="surrogatepass"))
    try:
        return load_spec(path, profile, overrides)
    except SpecErrors as errors:
        return errors.lines


def holds(edits: list[tuple[str, int, str]], profile: str | None, overrides: list[str]) -> None:
    began = time.monotonic()
    outcome = told(mutated(edits), profile, overrides)
    assert time.monotonic() - began < 60, "it hangs"
    if not isinstance(outcome, ExperimentSpec):
        assert outcome
        for line in outcome:
            assert LINE.fullmatch(line), line
            assert line.isprintable()
            assert len(line) <= 2000
    assert sorted(path.name for path in Path().iterdir()) == ["spec.yaml"], "something was started, or left behind"


given_mutations = given(st.lists(edit, min_size=1, max_size=4), st.sampled_from([None, "quick", "none"]), sets)
quietly: Any = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True, "database": None}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_spec_itself_is_valid() -> None:
    assert isinstance(told(SPEC, "quick", []), ExperimentSpec)
    assert mutated([]) == SPEC


@given_mutations
@settings(max_examples=50, **quietly)
def test_no_mutation_of_a_spec_ends_in_a_traceback(
    edits: list[tuple[str, int, str]], profile: str | None, overrides: list[str]
) -> None:
    holds(edits, profile, overrides)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_piece_of_a_spec_that_something_happens_to_ends_in_a_traceback(kind: str) -> None:
    """Every piece, one at a time; what is put there goes in turn through all that is odd or a word of the spec."""
    texts = [*ODD, *WORDS]
    for place in range(len(PIECES)):
        holds([(kind, place, texts[(7 * place + len(kind)) % len(texts)])], [None, "quick", "none"][place % 3], [])


@pytest.mark.slow
@given_mutations
@settings(max_examples=1_000, **quietly)
def test_a_thousand_mutations_of_a_spec_end_in_no_traceback(
    edits: list[tuple[str, int, str]], profile: str | None, overrides: list[str]
) -> None:
    holds(edits, profile, overrides)


def test_grid_that_unfolds_to_too_much_is_refused_quickly() -> None:
    many = ", ".join(str(value + 1) for value in range(1000))
    grid = f"grid: {{batch_size: [{many}], epochs: [{many}], log_every: [{many}]}}"
    began = time.monotonic()
    outcome = told(re.sub(r"grid: .*", grid, SPEC), None, [])
    assert time.monotonic() - began < 60
    assert isinstance(outcome, tuple)
    assert all(re.fullmatch(r"spec.yaml:14:1: grid: \d+ trainings \(expected at most \d+\)", line) for line in outcome)
