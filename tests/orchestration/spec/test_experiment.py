"""Specs: what a file means, and the one line that each mistake in it gets."""

import dataclasses
import json
import random
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from ruamel.yaml import YAML

from fsg.config import to_dict
from fsg.estimators import FSG, STE, EstimatorConfig
from fsg.hypernetworks import EMA, Mamba
from fsg.imported import Imported
from fsg.optimizers import SGD, Adam
from fsg.train_config import TrainConfig
from orchestration.spec.experiment import ExperimentSpec, SpecErrors, load_spec
from orchestration.spec.fields import Report, Sequential, train_from_dict
from orchestration.spec.json_schema import json_schema
from orchestration.spec.yaml_tree import MAX_BYTES, MAX_DEPTH, MAX_NODES

CONFIGS = Path(__file__).parents[3] / "configs"

BASE = """\
name: probe
train:
  estimator: fsg
variants:
  one: {}
  two: {estimator.history_length: 1}
seeds: [0, 1]
report: {baseline: one, primary: two}
"""


def _names(*configs: Any) -> str:
    return ", ".join(field.name for config in configs for field in dataclasses.fields(config) if field.name != "name")


def _rule(**settings: Any) -> str:
    with pytest.raises(ValueError, match="slow_weight") as error:
        FSG.Config(**settings)
    return str(error.value)


TRAIN = _names(TrainConfig)
FSG_FIELDS = _names(FSG.Config)
ESTIMATORS = ", ".join(c.name for c in get_args(EstimatorConfig) if c is not Imported) + ", or import: module:Class"
NAME = "1 to 64 letters, digits, '_', '.' and '-', the first a letter or a digit"
SLOW_ONLY = _rule(semantics="released", slow_weight=1.0)
SEED = "a whole number from 0 to 4294967295"
TOO_MUCH = f"the file unfolds to too much (expected at most {MAX_NODES} values, {MAX_DEPTH} levels deep)"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


def load(text: str | bytes, profile: str | None = None, sets: Sequence[str] = ()) -> ExperimentSpec:
    path = Path("spec.yaml")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_spec(path, profile, sets)


def lines(text: str | bytes, profile: str | None = None, sets: Sequence[str] = ()) -> list[str]:
    with pytest.raises(SpecErrors) as errors:
        load(text, profile, sets)
    return [line.removeprefix("spec.yaml:") for line in errors.value.lines]


def base(*changes: tuple[str, str]) -> str:
    text = BASE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def train(written: str) -> str:
    return base(("  estimator: fsg\n", f"  {written}\n"))


def estimator(written: str) -> str:
    return base(("estimator: fsg", f"estimator: {written}"))


def two(written: str) -> str:
    return base(("{estimator.history_length: 1}", written))


def report(written: str, seeds: str = "[0, 1]") -> str:
    return base(("two}\n", f"two, {written}}}\n"), ("[0, 1]", seeds))


def appended(written: str) -> str:
    return BASE + written + "\n"


# One mistake each: the file, and the line.
MISTAKES: dict[str, tuple[str | bytes, str]] = {
    # the file and its YAML
    "empty": ("", "1:1: the file is empty (expected a mapping: name, train, variants, …)"),
    "only comments": ("# name: x\n", "1:1: the file is empty (expected a mapping: name, train, variants, …)"),
    "a list": ("- name: x\n", "1:1: got a list (expected a mapping: name, train, variants, …)"),
    "a text": ("spec\n", "1:1: got 'spec' (expected a mapping: name, train, variants, …)"),
    "unclosed list": ("seeds: [0, 1\n", "2:1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
    "two colons": ("name: a: b\n", "1:8: not valid YAML: mapping values are not allowed here"),
    "a tab for indentation": (
        "train:\n\tepochs: 1\n",
        "2:1: not valid YAML: found character '\\t' that cannot start any token",
    ),
    "control character": (
        "name: x\nquestion: a\x01b\n",
        "2:12: not valid YAML: character U+0001 (expected printable text)",
    ),
    "two documents": ("name: x\n---\nname: y\n", "2:1: not valid YAML: but found another document"),
    "undefined alias": ("name: *x\n", "1:7: not valid YAML: found undefined alias 'x'"),
    "not UTF-8": (b"name: x\nquestion: caf\xe9?\n", "2:14: byte 0xe9 is not UTF-8 (expected UTF-8)"),
    "larger than 1 MiB": (
        b"#" * (MAX_BYTES + 1),
        "1:1: the file is larger than 1 MiB (expected a spec, written by hand)",
    ),
    "alias bomb": (
        "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "".join(f"{x}: &{x} [{', '.join([f'*{y}'] * 10)}]\n" for x, y in zip("bcdef", "abcde", strict=True)),
        f"1:32: {TOO_MUCH}",
    ),
    "alias of itself": ("a: &a [*a]\n", f"1:4: {TOO_MUCH}"),
    "too deep": ("a: " + "[" * 10_000, f"1:33: {TOO_MUCH}"),
    "too many values": ("a: [" + "1," * 3 * MAX_NODES + "1]", f"1:79997: {TOO_MUCH}"),
    "duplicate key": (
        base(("seeds: [0, 1]\n", "seeds: [0, 1]\nseeds: [2]\n")),
        "8:1: seeds: duplicate key, first at line 7, column 1 (expected each key once)",
    ),
    "duplicate override": (
        two("{epochs: 1, epochs: 2}"),
        "6:20: variants.two.epochs: duplicate key, first at line 6, column 9 (expected each key once)",
    ),
    "object tag": (
        train("epochs: !!python/object:os.system 1\n  estimator: fsg"),
        "3:11: train.epochs: tag !!python/object:os.system (expected a value without a tag)",
    ),
    "control character in a text": (
        appended('question: "a\\0b\\uD800"'),
        r"9:11: question: got 'a\x00b\ud800' (expected text without control characters)",
    ),
    "key that is a list": (appended("? [a, b]\n: 1"), "9:3: a key is a list or a mapping (expected text)"),
    # the spec's own fields
    "misspelt section": (
        appended("resource: {gpus: 1}"),
        "9:1: resource: the spec has no such field (expected one of question, train, variants, grid, seeds, "
        "search, tuning, resources, report, profiles; did you mean resources?)",
    ),
    "no name": (base(("name: probe\n", "")), f"1:1: name: is missing (expected {NAME})"),
    "name that climbs": (base(("probe", "../probe")), f"1:7: name: got '../probe' (expected {NAME})"),
    "name of 65 letters": (base(("probe", "x" * 65)), f"1:7: name: got '{'x' * 59}…' (expected {NAME})"),
    "name that is a number": (base(("probe", "12")), f"1:7: name: got 12 (expected {NAME})"),
    **{
        f"name: {what}": (base(("probe", written)), f"1:7: name: got {shown} (expected {NAME})")
        for what, written, shown in (
            ("of 300 letters", "x" * 300, f"'{'x' * 59}…'"),
            ("of no letter", "''", "''"),
            ("that is the folder above", "..", "'..'"),
            ("that is hidden", ".probe", "'.probe'"),
            ("that is a path from the root", "/tmp/probe", "'/tmp/probe'"),
            ("that is a path below", "probe/one", "'probe/one'"),
            ("that is a path elsewhere", "'probe\\one'", "'probe\\one'"),
            ("that is a home", "'~probe'", "'~probe'"),
            ("that looks like an option", "-probe", "'-probe'"),
            ("with a space at its end", "'probe '", "'probe '"),
            ("with a line's end at its end", '"probe\\n"', "'probe\\n'"),
            ("with another script's letters", "prоbe", "'prоbe'"),
            ("with a slash of another kind", "probe∕one", "'probe∕one'"),
        )
    },
    "name with a NUL": (
        base(("name: probe", 'name: "pro\\0be"')),
        r"1:7: name: got 'pro\x00be' (expected text without control characters)",
    ),
    "name with an escape": (
        base(("name: probe", 'name: "\\e[2Jprobe"')),
        r"1:7: name: got '\x1b[2Jprobe' (expected text without control characters)",
    ),
    **{
        f"name: {name}": (
            base(("probe", name)),
            f"1:7: name: got '{name}', which is where MLflow keeps what it knows (expected another name)",
        )
        for name in ("mlflow.db", "mlflow.db-journal", "MLartifacts")
    },
    "variant's name of 300 letters": (
        base(("  one: {}", f"  one: {{}}\n  {'x' * 300}: {{epochs: 3}}")),
        f"6:3: variants.{'x' * 79}…: not a name (expected {NAME})",
    ),
    "profile's name that looks like an option": (
        appended("profiles: {'-p': {}}"),
        f"9:12: profiles.-p: not a name (expected {NAME})",
    ),
    "variant's name": (
        base(("two: {", "a/b: {"), ("primary: two", "primary: one"), ("baseline: one", "baseline: a/b")),
        f"6:3: variants.a/b: not a name (expected {NAME})",
    ),
    "profile's name": (appended("profiles: {'..': {}}"), f"9:12: profiles...: not a name (expected {NAME})"),
    "variant that is a number": (two("3"), "6:8: variants.two: got 3 (expected a mapping of paths to values)"),
    "no variants": (
        base(("  one: {}\n  two: {estimator.history_length: 1}\n", ""), ("variants:", "variants: {}")),
        "4:11: variants: got {} (expected a mapping of one or more names)",
    ),
    "no seeds": (base(("[0, 1]", "[]")), "7:8: seeds: got [] (expected a list of one or more seeds)"),
    "seeds that are a number": (base(("[0, 1]", "3")), "7:8: seeds: got 3 (expected a list of one or more seeds)"),
    "seed below 0": (base(("[0, 1]", "[0, -1]")), f"7:12: seeds[1]: got -1 (expected {SEED})"),
    "seed that is true": (base(("[0, 1]", "[0, true]")), f"7:12: seeds[1]: got true (expected {SEED})"),
    "seed twice": (base(("[0, 1]", "[5, 1, 5]")), "7:15: seeds[2]: 5 is there already (expected each seed once)"),
    "baseline that is no variant": (
        base(("baseline: one", "baseline: tow")),
        "8:20: report.baseline: no variant 'tow' (expected one of one, two; did you mean two?)",
    ),
    "primary that is no variant": (
        base(("primary: two", "primary: xyz")),
        "8:34: report.primary: no variant 'xyz' (expected one of one, two)",
    ),
    "primary that is the baseline": (
        base(("primary: two", "primary: one")),
        "8:34: report.primary: 'one' is the baseline itself (expected another variant)",
    ),
    "misspelt field of the report": (
        base(("baseline:", "basline:")),
        f"8:10: report.basline: report has no such field (expected one of {_names(Report)}; did you mean baseline?)",
    ),
    "unknown metric": (
        base(("{baseline", "{metric: test/acuracy, baseline")),
        "8:18: report.metric: got 'test/acuracy' (expected one of test/accuracy, test/loss, validation/accuracy, "
        "validation/loss, train/loss, papers_protocol/test_accuracy; did you mean test/accuracy?)",
    ),
    "gpus below 0": (appended("resources: {gpus: -1}"), "9:19: resources.gpus: got -1 (expected a number ≥ 0 or auto)"),
    "one and a half GPUs": (
        appended("resources: {gpus: 1.5}"),
        "9:19: resources.gpus: got 1.5, and a training runs on one GPU (expected ≤ 1: other trainings use the others)",
    ),
    "two GPUs, of which one would be idle": (
        appended("resources: {gpus: 2}"),
        "9:19: resources.gpus: got 2, and a training runs on one GPU (expected ≤ 1: other trainings use the others)",
    ),
    "two GPUs in a profile": (
        appended("profiles: {big: {resources.gpus: 2.0}}"),
        "9:34: profiles.big.resources.gpus: got 2.0, and a training runs on one GPU "
        "(expected ≤ 1: other trainings use the others)",
    ),
    "cpus that are text": (
        appended("resources: {cpus: many}"),
        "9:19: resources.cpus: got 'many' (expected a whole number ≥ 1 or null)",
    ),
    # train
    "misspelt component": (
        train("estimater: fsg"),
        f"3:3: train.estimater: train has no such field (expected one of {TRAIN}; did you mean estimator?)",
    ),
    "unknown component": (
        estimator("{name: fgs}"),
        f"3:21: train.estimator.name: unknown estimator 'fgs' (expected one of {ESTIMATORS}; did you mean fsg?)",
    ),
    "unknown component, short": (
        estimator("fgs"),
        f"3:14: train.estimator: unknown estimator 'fgs' (expected one of {ESTIMATORS}; did you mean fsg?)",
    ),
    "component that is a number": (
        estimator("3"),
        f"3:14: train.estimator: got 3 (expected a name or a mapping with one: {ESTIMATORS})",
    ),
    "component without a name": (
        estimator("{history_length: 3}"),
        f"3:3: train.estimator.name: is missing (expected one of {ESTIMATORS})",
    ),
    "misspelt setting": (
        estimator("{name: fsg, histroy_length: 3}"),
        "3:26: train.estimator.histroy_length: estimator fsg has no such field "
        f"(expected one of {FSG_FIELDS}; did you mean history_length?)",
    ),
    "setting of a component that has none": (
        base(("estimator: fsg", "estimator: {name: full_precision, decay: 1}"), ("estimator.history_length", "epochs")),
        "3:37: train.estimator.decay: estimator full_precision has no such field (expected no setting)",
    ),
    "setting of a nested component": (
        estimator("{name: fsg, slow_net: {name: ema, decay: 2}}"),
        "3:55: train.estimator.slow_net.decay: got 2 (expected a number > 0 and ≤ 1)",
    ),
    "text for a number": (
        estimator("{name: fsg, slow_weight: high}"),
        "3:39: train.estimator.slow_weight: got 'high' (expected a number from 0 to 1)",
    ),
    "out of range": (
        estimator("{name: fsg, slow_weight: 1.5}"),
        "3:39: train.estimator.slow_weight: got 1.5 (expected a number from 0 to 1)",
    ),
    "true for 1": (
        estimator("{name: fsg, history_length: true}"),
        "3:42: train.estimator.history_length: got true (expected a whole number ≥ 1)",
    ),
    "1 for true": (
        estimator("{name: fsg, layer_embedding: 1}"),
        "3:43: train.estimator.layer_embedding: got 1 (expected true or false)",
    ),
    "fraction for a whole number": (
        train("batch_size: 2.5\n  estimator: fsg"),
        "3:15: train.batch_size: got 2.5 (expected a whole number ≥ 1)",
    ),
    "nothing for a number": (
        train("batch_size:\n  estimator: fsg"),
        "3:3: train.batch_size: got nothing (expected a whole number ≥ 1)",
    ),
    "not a number": (
        estimator("{name: fsg, slow_weight: .nan}"),
        "3:39: train.estimator.slow_weight: got .nan (expected a finite number)",
    ),
    "infinity": (
        estimator("{name: fsg, fast_lr: 1e999}"),
        "3:35: train.estimator.fast_lr: got 1e999 (expected a finite number)",
    ),
    "one of a few": (
        train("precision: fp23\n  estimator: fsg"),
        "3:14: train.precision: got 'fp23' (expected one of fp32, tf32, bf16; did you mean fp32?)",
    ),
    "whole number of a few": (
        train("model: {name: resnet, depth: 21}\n  estimator: fsg"),
        "3:32: train.model.depth: got 21 (expected one of 8, 14, 20, 32, 44, 56, 110)",
    ),
    "true of one": (
        train("quantizer: {name: dorefa, weight_bits: true}\n  estimator: fsg"),
        "3:42: train.quantizer.weight_bits: got true (expected one of 1, 2, 4)",
    ),
    "missing setting": (
        train("init: {name: file}\n  estimator: fsg"),
        "3:3: train.init.path: is missing (expected text)",
    ),
    "a rule of several settings": (
        estimator("{name: fsg, semantics: released, slow_weight: 1}"),
        f"3:3: train.estimator: {SLOW_ONLY}",
    ),
    # variants
    "misspelt path": (
        two("{estimator.histroy_length: 1}"),
        "6:9: variants.two.estimator.histroy_length: estimator fsg has no such field "
        f"(expected one of {FSG_FIELDS}; did you mean estimator.history_length?)",
    ),
    "path into a number": (
        two("{epochs.many: 1}"),
        "6:9: variants.two.epochs.many: epochs has no such field (expected no setting; did you mean epochs?)",
    ),
    "path of another component": (
        two("{estimator.history_length: 1, estimator: ste}"),
        "6:9: variants.two.estimator.history_length: estimator ste has no such field (expected one of derivative)",
    ),
    "override out of range": (
        two("{estimator.history_length: 0}"),
        "6:35: variants.two.estimator.history_length: got 0 (expected a whole number ≥ 1)",
    ),
    "override that breaks a rule": (
        base(
            ("estimator: fsg", "estimator: {name: fsg, semantics: released}"), ("history_length: 1", "slow_weight: 1")
        ),
        f"6:9: variants.two.estimator.slow_weight: {SLOW_ONLY}",
    ),
    "component in place of another": (
        two("{optimizer: {name: sdg, lr: 1}}"),
        "6:27: variants.two.optimizer.name: unknown optimizer 'sdg' "
        "(expected one of sgd, adam, adamw, nadam, bop, or import: module:Class; did you mean sgd?)",
    ),
    "variants alike": (
        two("{estimator.history_length: 5}"),
        "6:3: variants.two: resolves to the same training as variant one (expected a difference)",
    ),
    # grid
    "grid that makes variants alike": (
        appended("grid: {estimator.history_length: [3, 4]}"),
        "6:3: variants.two: resolves to the same training as variant one, estimator.history_length=3 "
        "(expected a difference)",
    ),
    "empty list": (
        appended("grid: {optimizer.lr: []}"),
        "9:22: grid.optimizer.lr: got [] (expected a list of one or more values)",
    ),
    "no list": (
        appended("grid: {optimizer.lr: 0.1}"),
        "9:22: grid.optimizer.lr: got 0.1 (expected a list of one or more values)",
    ),
    "grid out of range": (
        appended("grid: {optimizer.lr: [0.1, -1]}"),
        "9:28: grid.optimizer.lr[1]: got -1 (expected a number > 0)",
    ),
    "path that no variant has": (
        appended("grid: {optimizer.momentun: [0.9]}"),
        "9:8: grid.optimizer.momentun: no variant has this field "
        "(expected one that some variant has; did you mean optimizer.name?)",
    ),
    "misspelt path in the grid": (
        appended("grid: {estimator.slow_weigth: [0.9]}"),
        "9:8: grid.estimator.slow_weigth: no variant has this field "
        "(expected one that some variant has; did you mean estimator.slow_weight?)",
    ),
    "grid that breaks a rule": (
        appended("grid: {estimator.semantics: [paper, released], estimator.slow_weight: [1]}"),
        f"9:72: grid.estimator.slow_weight[0]: {SLOW_ONLY}",
    ),
    "a billion trainings": (
        appended(
            "grid: {"
            + ", ".join(
                f"{p}: [{', '.join(map(str, range(1, 100)))}]"
                for p in ("epochs", "batch_size", "log_every", "evaluate_every")
            )
            + "}"
        ),
        "9:1: grid: 384238404 trainings (expected at most 100000)",
    ),
    # report
    "family of no variant": (
        report("family: [tow]"),
        "8:48: report.family[0]: no variant 'tow' (expected one of one, two; did you mean two?)",
    ),
    "family with the baseline": (
        report("family: [one]"),
        "8:48: report.family[0]: 'one' is the baseline or the primary variant, which stand alone (expected another)",
    ),
    "accuracy in per cent": (
        report("reach: [70]"),
        "8:47: report.reach[0]: got 70 (expected a number between 0 and 1)",
    ),
    "look at one seed": (
        report("sequential: {looks: [1, 2]}"),
        "8:60: report.sequential.looks[0]: got 1 (expected a whole number ≥ 2)",
    ),
    "looks twice": (
        report("sequential: {looks: [2, 2]}", seeds="[0, 1]"),
        "8:39: report.sequential: looks are [2, 2] (expected numbers of seeds, ascending)",
    ),
    "looks at other numbers": (
        report("sequential: {looks: [2, 4]}", seeds="[0, 1, 2]"),
        "8:59: report.sequential.looks: looks at 2, 4 seeds, and there are 3 (expected the number of seeds among them)",
    ),
    "figure of no variant": (
        report("published: {tow: {mean: 90, source: them}}"),
        "8:51: report.published.tow: no variant 'tow' (expected one of one, two; did you mean two?)",
    ),
    "figure without a source": (
        report("published: {two: {mean: 90}}"),
        "8:51: report.published.two.source: is missing (expected text)",
    ),
    "misspelt figure": (
        report("published: {two: {meen: 90, mean: 90, source: them}}"),
        "8:57: report.published.two.meen: two has no such field "
        "(expected one of mean, variance, sd, runs, source, protocol; did you mean mean?)",
    ),
    "figure that is no number": (
        report("published: {two: {mean: ninety, source: them}}"),
        "8:63: report.published.two.mean: got 'ninety' (expected a number)",
    ),
    "spread said twice": (
        report("published: {two: {mean: 90, sd: 1, variance: 1, source: them}}"),
        "8:51: report.published.two: variance and sd are one number said twice (expected one of them)",
    ),
    "figure of another protocol": (
        report("published: {two: {mean: 90, source: them, protocol: {epochs: 10, quantizer: sign}}}"),
        "8:104: report.published.two.protocol.quantizer: two has quantizer.name dorefa, the figure sign "
        "(expected runs of the figure's protocol, or no figure beside them)",
    ),
    "figure of no setting": (
        report("published: {two: {mean: 90, source: them, protocol: {epohcs: 10}}}"),
        "8:92: report.published.two.protocol.epohcs: train has no such field "
        f"(expected one of {_names(TrainConfig)}; did you mean epochs?)",
    ),
    "figure with a setting out of range": (
        report("published: {two: {mean: 90, source: them, protocol: {epochs: -1}}}"),
        "8:100: report.published.two.protocol.epochs: got -1 (expected a whole number ≥ 0)",
    ),
    "figure that is no mapping": (
        report("published: {two: 90}"),
        "8:56: report.published.two: got 90 (expected a mapping)",
    ),
    # profiles
    "profile's path": (
        appended("profiles: {quick: {train.epohcs: 1}}"),
        "9:20: profiles.quick.train.epohcs: train has no such field "
        f"(expected one of {TRAIN}; did you mean train.epochs?)",
    ),
    "profile's value": (
        appended("profiles: {quick: {train.epochs: few}}"),
        "9:34: profiles.quick.train.epochs: got 'few' (expected a whole number ≥ 0)",
    ),
    "profile's seeds": (
        appended("profiles: {quick: {seeds: [0, x]}}"),
        f"9:31: profiles.quick.seeds[1]: got 'x' (expected {SEED})",
    ),
    "profile's override of a variant": (
        appended("profiles: {quick: {variants.two.estimator.history_length: 5}}"),
        "6:3: variants.two: resolves to the same training as variant one (expected a difference)",
    ),
    "profile's unknown variant": (
        appended("profiles: {quick: {variants.tow.epochs: 5}}"),
        "9:20: profiles.quick.variants.tow.epochs: variants has no such field "
        "(expected one of one, two; did you mean variants.two.epochs?)",
    ),
    "profile of profiles": (
        appended("profiles: {quick: {profiles.quick: {}}}"),
        "9:20: profiles.quick.profiles.quick: an override has no such field "
        "(expected one of question, train, variants, grid, seeds, search, tuning, resources, report)",
    ),
    # a component of the user's own
    "import path": (
        estimator("{import: nothing}"),
        "3:23: train.estimator.import: got 'nothing' (expected module:Class)",
    ),
    "no such module": (
        estimator("{import: 'no_such_module:Mine'}"),
        "3:23: train.estimator.import: cannot import 'no_such_module:Mine': No module named 'no_such_module' "
        "(expected module:Class, installed or beside the spec)",
    ),
    "import where there is none": (
        estimator("{name: fsg, slow_net: {import: 'a:B'}}"),
        "3:26: train.estimator.slow_net.name: is missing (expected one of mamba, lstm, ema)",
    ),
}


@pytest.mark.parametrize(("text", "line"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line(text: str | bytes, line: str) -> None:
    assert lines(text) == [line]


def test_every_mistake_of_a_file_is_told_at_once_in_the_order_of_the_file() -> None:
    text = """\
name: a b
train:
  estimator: {name: fsg, slow_weight: 2}
  bach_size: 3
variants:
  one: {}
  two: {estimator.histroy_length: 1}
  three: {epochs: 1}
  four: {epochs: 1}
grid: {optimizer.lr: [-1]}
seeds: [0, 0]
seeds: [1]
report: {baseline: won, primary: two}
profiles:
  quick: {train.epochs: x}
"""
    places = ["1:7: name", "3:39: train.estimator.slow_weight", "4:3: train.bach_size"]
    places += ["7:9: variants.two.estimator.histroy_length", "10:23: grid.optimizer.lr[0]", "11:12: seeds[1]"]
    places += ["12:1: seeds", "13:20: report.baseline", "15:25: profiles.quick.train.epochs"]
    assert [line[: len(place) + 1] for line, place in zip(lines(text), places, strict=True)] == [
        p + ":" for p in places
    ]


def test_a_mistake_that_many_variants_share_is_told_once() -> None:
    text = base(
        ("estimator: fsg", "estimator: {name: fsg, hidden: 0}"), ("  one: {}\n", "  one: {}\n  three: {epochs: 3}\n")
    )
    assert lines(text) == ["3:34: train.estimator.hidden: got 0 (expected a whole number ≥ 1)"]


def test_a_missing_file_is_one_line() -> None:
    with pytest.raises(SpecErrors) as errors:
        load_spec(Path("nowhere.yaml"))
    assert errors.value.lines == ("nowhere.yaml:1:1: cannot be read: No such file or directory (expected a YAML file)",)


def test_a_profile_that_is_not_there_is_one_line() -> None:
    assert lines(appended("profiles: {quick: {train.epochs: 1}}"), profile="quik") == [
        "--profile quik: profiles: no such profile (expected one of quick; did you mean quick?)"
    ]


@pytest.mark.parametrize(
    ("setting", "line"),
    {
        "train.epochs=few": "train.epochs: got 'few' (expected a whole number ≥ 0)",
        "train.epochs=[": "train.epochs: not valid YAML: expected the node content, but found '<stream end>'",
        "train.epochs": "no path and value (expected path=value)",
        "estimator.hidden=3": "estimator.hidden: the spec has no such field (expected one of question, train, "
        "variants, grid, seeds, search, tuning, resources, report, profiles; did you mean grid.estimator.hidden?)",
        "train.estimator.hiden=3": "train.estimator.hiden: estimator fsg has no such field "
        f"(expected one of {FSG_FIELDS}; did you mean train.estimator.hidden?)",
        "seeds=[1, 1]": "seeds[1]: 1 is there already (expected each seed once)",
    }.items(),
)
def test_a_mistake_on_the_command_line_points_there(setting: str, line: str) -> None:
    assert lines(BASE, sets=[setting]) == [f"--set {setting}: {line}"]


def trainings(spec: ExperimentSpec, variant: str) -> list[TrainConfig]:
    return [point.train for point in spec.points if point.variant == variant]


def test_variants_are_the_training_with_their_overrides() -> None:
    spec = load(two("{estimator.slow_net.expand: 4, estimator.history_length: 1, optimizer: sgd, epochs: 3}"))
    assert [(point.variant, point.grid) for point in spec.points] == [("one", {}), ("two", {})]
    assert trainings(spec, "one") == [TrainConfig(estimator=FSG.Config())]
    changed = FSG.Config(history_length=1, slow_net=Mamba(expand=4))
    assert trainings(spec, "two") == [TrainConfig(estimator=changed, optimizer=SGD(), epochs=3)]


def test_a_component_is_replaced_whole_before_its_settings_are_set() -> None:
    for written in (
        "{estimator: {name: fsg, slow_net: ema}, estimator.hidden: 7}",
        "{estimator.hidden: 7, estimator: {name: fsg, slow_net: {name: ema}}}",
        "{estimator.slow_net: ema, estimator.hidden: 7}",
        "{estimator.slow_net.name: ema, estimator.hidden: 7}",
        "{estimator.slow_net: {name: ema}, estimator.hidden: 7, estimator.name: fsg}",
    ):
        assert trainings(load(two(written)), "two") == [TrainConfig(estimator=FSG.Config(hidden=7, slow_net=EMA()))]


def test_a_grid_runs_every_variant_at_every_value() -> None:
    spec = load(appended("grid: {optimizer.lr: [0.1, 0.2], epochs: [1, 2]}"))
    grid = [{"optimizer.lr": lr, "epochs": epochs} for epochs in (1, 2) for lr in (0.1, 0.2)]
    at_one = [point.grid for point in spec.points if point.variant == "one"]
    assert sorted(map(str, at_one)) == sorted(map(str, grid))
    assert len(spec.points) == 8
    for point in spec.points:
        assert point.train.epochs == point.grid["epochs"]
        assert point.train.optimizer == Adam(lr=point.grid["optimizer.lr"])


def test_a_grid_leaves_out_the_variants_that_do_not_have_its_path() -> None:
    spec = load(two("{estimator: ste}") + "grid: {estimator.slow_weight: [0.1, 0.2]}\n")
    assert [(point.variant, point.grid) for point in spec.points] == [
        ("one", {"estimator.slow_weight": 0.1}),
        ("one", {"estimator.slow_weight": 0.2}),
        ("two", {}),
    ]


def test_a_grid_over_components_sets_what_each_of_them_has() -> None:
    spec = load(
        base(("{estimator.history_length: 1}", "{estimator: ste}"))
        + "grid: {optimizer.momentum: [0, 0.9], optimizer: [sgd, adam]}\n"
    )
    assert [point.train.optimizer for point in spec.points if point.variant == "one"] == [
        SGD(momentum=0.0),
        SGD(momentum=0.9),
        Adam(),
    ]


def test_equal_grid_points_run_once() -> None:
    spec = load(appended("grid: {optimizer.lr: [1, 1.0, 0.5]}"))
    assert [point.grid for point in spec.points if point.variant == "one"] == [
        {"optimizer.lr": 1},
        {"optimizer.lr": 0.5},
    ]


def test_a_setting_may_be_missing_where_every_point_brings_it() -> None:
    text = train("estimator: fsg\n  init: {name: file}") + "grid: {init.path: [a.npz, b.npz]}\n"
    assert len(load(text).points) == 4


def test_profiles_and_settings_change_any_part_of_the_file() -> None:
    profile = (
        "profiles:\n  big-1.0: {train.epochs: 7, seeds: [3], variants.two.epochs: 5, variants.three: {estimator: ste}, "
    )
    profile += "grid.optimizer.lr: [0.1], resources.gpus: 0.25, report.primary: three}\n"
    spec = load(BASE + profile, "big-1.0", ["train.estimator.hidden=9", "seeds=[3, 4]", "question=why?"])
    assert (spec.variants, spec.seeds, spec.question) == (("one", "two", "three"), (3, 4), "why?")
    assert (spec.resources.gpus, spec.report.primary, spec.folder_name) == (0.25, "three", "probe-big-1.0")
    adam = Adam(lr=0.1)
    assert trainings(spec, "one") == [TrainConfig(estimator=FSG.Config(hidden=9), optimizer=adam, epochs=7)]
    two = FSG.Config(hidden=9, history_length=1)
    assert trainings(spec, "two") == [TrainConfig(estimator=two, optimizer=adam, epochs=5)]
    assert trainings(spec, "three") == [TrainConfig(estimator=STE.Config(), optimizer=adam, epochs=7)]
    assert load(BASE + profile).folder_name == "probe"


@pytest.mark.parametrize("field", ["smallest_effect", "equivalence_margin"])
def test_a_difference_of_an_accuracy_is_no_number_of_points(field: str) -> None:
    """A margin of 1 would be 100 points, which rule out every difference."""
    told = f"report.{field}: got 1 (expected a part of 1: 0.01 is one point of accuracy)"
    with pytest.raises(SpecErrors, match=re.escape(told)):
        load(report(f"{field}: 1", seeds="[0, 1, 2]"))
    with pytest.raises(SpecErrors, match=re.escape(told)):
        load(report("reach: [0.7]", seeds="[0, 1, 2]"), sets=[f"report.{field}=1"])
    assert getattr(load(report(f"{field}: 0.99", seeds="[0, 1, 2]")).report, field) == 0.99
    assert getattr(load(report(f"{field}: 1, metric: test/loss", seeds="[0, 1, 2]")).report, field) == 1


def test_a_report_says_what_is_tested_and_what_a_paper_states() -> None:
    written = "{mean: 80.745, variance: 2.113, runs: 5, source: their table 2}"
    text = report(
        "family: [], reach: [0.7], smallest_effect: 0.005, sequential: {looks: [2, 3]}, "
        f"published: {{one: {written}}}",
        seeds="[0, 1, 2]",
    )
    spec = load(text)
    assert (spec.report.family, spec.report.reach, spec.report.smallest_effect) == ([], [0.7], 0.005)
    assert spec.report.sequential == Sequential(looks=[2, 3], boundary="obrien_fleming")
    assert spec.report.published is not None
    assert spec.report.published["one"].deviation == pytest.approx(2.113**0.5)
    assert load(text, sets=["report.sequential=null", "report.published=null"]).report.sequential is None
    assert load(text, sets=["report.sequential.boundary=pocock"]).report.sequential == Sequential(
        looks=[2, 3], boundary="pocock"
    )
    assert json.loads(json.dumps(spec.resolved()))["report"]["published"]["one"]["mean"] == 80.745
    problems = jsonschema.Draft7Validator(json_schema()).iter_errors(YAML(typ="safe").load(text))
    assert list(problems) == []


def test_a_published_figure_stands_beside_runs_of_its_protocol_alone() -> None:
    figure = "{mean: 90, source: them, protocol: {optimizer.lr: 1.0e-3, quantizer: {name: dorefa, weight_bits: 1}}}"
    grid = "grid: {optimizer.lr: [1.0e-3, 0.2]}\n"
    beside_one, beside_all = (
        report(f"published: {{{line}: {figure}}}") for line in ("'one · optimizer.lr=0.001'", "one")
    )
    assert load(beside_all).report.published is not None
    assert len(load(beside_one + grid).points) == 4
    assert [line.partition(": ")[2] for line in lines(beside_all + grid)] == [
        "report.published.one.protocol.optimizer.lr: one · optimizer.lr=0.2 has optimizer.lr 0.2, the figure 0.001 "
        "(expected runs of the figure's protocol, or no figure beside them)"
    ]
    tuned = beside_all + "tuning: {budget: 4, space: {optimizer.lr: {low: 0.01, high: 1}}}\n"
    assert [line.partition(": ")[2] for line in lines(tuned)] == [
        "report.published.one.protocol.optimizer.lr: optimizer.lr is searched "
        "(expected runs of the figure's protocol, or no figure beside them)"
    ]
    problems = jsonschema.Draft7Validator(json_schema()).iter_errors(YAML(typ="safe").load(beside_all))
    assert list(problems) == []


def test_names_with_dots_are_found_in_paths() -> None:
    text = (
        BASE.replace("two", "v1.5")
        + "profiles: {quick: {variants.v1.5.epochs: 2, variants.v1.5.estimator.hidden: 3}}\n"
    )
    changed = TrainConfig(estimator=FSG.Config(history_length=1, hidden=3), epochs=2)
    assert trainings(load(text, "quick"), "v1.5") == [changed]


def test_an_alias_stands_for_what_it_names_and_its_mistakes_are_where_that_is_written() -> None:
    text = train("estimator: fsg\n  optimizer: &o {name: adam, lr: 0.5}\n  init: {name: pretrain, optimizer: *o}")
    one = load(text).points[0].train
    assert one.optimizer == Adam(lr=0.5) == getattr(one.init, "optimizer", None)
    assert lines(text.replace("0.5", "-1")) == [
        "4:34: train.optimizer.lr: got -1 (expected a number > 0)",
        "4:34: train.init.optimizer.lr: got -1 (expected a number > 0)",
    ]


def test_resolved_is_plain_and_its_sum_follows_its_meaning() -> None:
    spec = load(BASE)
    assert json.loads(json.dumps(spec.resolved())) == spec.resolved()
    same = load("# a comment\n" + base(("estimator: fsg", "estimator: {slow_weight: 0.9, name: fsg}")))
    other = load(base(("estimator: fsg", "estimator: {slow_weight: 0.8, name: fsg}")))
    assert spec.sha256() == same.sha256() != other.sha256()
    assert spec.text == BASE
    assert spec.source == Path("spec.yaml").resolve()


def test_a_training_comes_back_from_its_dictionary() -> None:
    for profile in (None, "quick", "paper"):
        for point in load_spec(CONFIGS / "ablation_hgs.yaml", profile).points:
            assert train_from_dict(json.loads(json.dumps(to_dict(point.train)))) == point.train


def test_files_are_beside_the_spec_or_else_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "specs", tmp_path / "work"
    (folder / "data").mkdir(parents=True)
    elsewhere.mkdir()
    (folder / "here.npz").touch()
    text = train("estimator: fsg\n  data: {name: arrays, file: here.npz}\n  init: {name: file, path: there.npz}")
    (folder / "spec.yaml").write_text(text.replace("{estimator.history_length: 1}", "{data: cifar10}"))
    monkeypatch.chdir(elsewhere)
    one, two = (point.train for point in load_spec(folder / "spec.yaml").points)
    assert to_dict(one)["data"]["file"] == str(folder / "here.npz")
    assert to_dict(one)["init"]["path"] == str(elsewhere / "there.npz")
    assert to_dict(two)["data"]["folder"] == str(elsewhere / "data")


OWN = """
from dataclasses import dataclass
from fsg.config import Settings, setting
from fsg.estimators import FSG, GradientEstimator


class Mine(GradientEstimator):
    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        strength: float = setting(description="How much.", gt=0)
        steps: int = setting(3, ge=1)

        def build(self, model):
            return Mine(model)


class Derived(FSG):
    @dataclass(frozen=True, kw_only=True)
    class Config(FSG.Config):
        extra: int = setting(2, ge=1)

        def __post_init__(self):
            super().__post_init__()
            if self.extra == 13:
                raise RuntimeError("unlucky\\nnumber")


class NoConfig:
    pass
"""


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes a module of the user's beside the spec, and the spec that uses it."""
    name = f"own_{random.SystemRandom().getrandbits(64):x}"

    def spec(written: str, source: str = OWN, override: str = "{epochs: 3}") -> str:
        Path(f"{name}.py").write_text(source)
        return base(("estimator: fsg", f"estimator: {written}"), ("{estimator.history_length: 1}", override)).replace(
            "OWN", name
        )

    return spec


def test_a_component_of_the_users_own_is_checked_and_resolved(own: Callable[..., str]) -> None:
    spec = load(own("{import: 'OWN:Mine', strength: 1}", override="{estimator.steps: 4}"))
    one, two = (point.train.estimator for point in spec.points)
    assert isinstance(one, Imported)
    assert isinstance(two, Imported)
    assert (one.settings, two.settings) == ({"strength": 1.0, "steps": 3}, {"strength": 1.0, "steps": 4})
    assert two.resolve().steps == 4
    assert len(one.source_sha256) == 64
    assert train_from_dict(to_dict(spec.points[1].train)) == spec.points[1].train


def test_a_component_may_be_replaced_by_one_of_the_users_own(own: Callable[..., str]) -> None:
    text = own("fsg", override="{estimator.import: 'OWN:Derived', estimator.slow_net.expand: 4, estimator.extra: 5}")
    estimator = load(text).points[1].train.estimator
    assert isinstance(estimator, Imported)
    assert estimator.settings["slow_net"] == to_dict(Mamba(expand=4))
    assert estimator.settings["extra"] == 5


OWN_MISTAKES = {
    "misspelt setting": (
        "{import: 'OWN:Mine', strenght: 1}",
        "strenght: estimator OWN:Mine has no such field (expected one of strength, steps; did you mean strength?)",
    ),
    "missing setting": ("{import: 'OWN:Mine'}", "strength: is missing (expected a number > 0)"),
    "out of range": ("{import: 'OWN:Mine', strength: 0}", "strength: got 0 (expected a number > 0)"),
    "nested": (
        "{import: 'OWN:Derived', slow_net: {name: mamba, expand: 0}}",
        "slow_net.expand: got 0 (expected a whole number ≥ 1)",
    ),
    "rule": ("{import: 'OWN:Derived', extra: 13}", "RuntimeError: unlucky number"),
    "no such class": (
        "{import: 'OWN:Nine'}",
        "import: cannot import 'OWN:Nine': module 'OWN' has no attribute 'Nine' "
        "(expected module:Class, installed or beside the spec; did you mean Mine?)",
    ),
}


def test_a_mistake_in_a_component_of_the_users_own_is_one_line(own: Callable[..., str]) -> None:
    for written, line in OWN_MISTAKES.values():
        told = re.sub(r"own_[0-9a-f]+", "OWN", "\n".join(lines(own(written))))
        assert re.sub(r"^\d+:\d+: train\.estimator[.:] ?", "", told) == line


def test_a_module_that_cannot_be_imported_is_one_line(own: Callable[..., str]) -> None:
    for source in ("x = (", "1 / 0", "import no_such_module", "raise SystemExit(3)", "import sys; sys.exit()"):
        (told,) = lines(own("{import: 'OWN:Mine'}", source=source))
        assert told.startswith("3:23: train.estimator.import: "), source


ODD = re.split(" ", "{} [] null -1 1e999 true *a ? - { ] # | .. % estimator variants grid. a.b é ---")
ODD += ["\x00", "\n", "\t", ": ", "&a ", "!!set ", "name: ", "import: ", "9" * 5000, "0x" + "f" * 300, ""]


def mutated(text: str, rng: random.Random) -> str:
    for _ in range(rng.choice([1, 1, 2, 4])):
        start, end = rng.choice([token.span() for token in re.finditer(r"[\w.]+|[^\w\s]|\s+", text)])
        text = text[:start] + rng.choice(ODD) + text[rng.choice([start, end]) :]
    return text


def told(text: str, profile: str | None, sets: list[str]) -> tuple[str, ...]:
    try:
        load(text, profile, sets)
    except SpecErrors as errors:
        return errors.lines
    return ()


def test_no_mutation_of_a_spec_ends_in_a_traceback() -> None:
    text = appended("grid: {estimator.slow_net: [ema, {name: mamba, expand: 3}]}")
    text += "profiles: {quick: {train.epochs: 1, variants.two: {batch_size: 3}}}\n"
    assert told(text, "quick", []) == ()
    rng = random.Random(0)
    for _ in range(75):
        sets = rng.choice([[], [f"{rng.choice(ODD)}={rng.choice(ODD)}"]])
        for line in told(mutated(text, rng), rng.choice([None, "quick"]), sets):
            assert re.fullmatch(r"(spec\.yaml:\d+:\d+|--set .*|--profile .*): .+", line)


@cache
def schema() -> jsonschema.Draft7Validator:
    jsonschema.Draft7Validator.check_schema(json_schema())
    return jsonschema.Draft7Validator(json_schema())


def test_the_checked_in_schema_is_the_current_one() -> None:
    written = (CONFIGS / "spec.schema.json").read_text()
    assert json.loads(written) == json_schema(), "run: fsg schema > configs/spec.schema.json"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_config_names_the_schema_and_follows_it(path: Path) -> None:
    named = path.read_text().partition("\n")[0].removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / named).resolve() == CONFIGS / "spec.schema.json"
    assert [error.message for error in schema().iter_errors(YAML(typ="safe").load(path))] == []


def test_the_ablation_has_its_variants_and_profiles() -> None:
    spec = load_spec(CONFIGS / "ablation_hgs.yaml")
    variants = ("fsg", "no_history", "ema", "no_layer_embedding", "ste")
    assert (spec.variants, len(spec.seeds)) == (variants, 8)
    assert (spec.report.primary, spec.report.baseline, spec.report.equivalence_margin) == ("fsg", "no_history", 0.01)
    paper = load_spec(CONFIGS / "ablation_hgs.yaml", "paper")
    assert (len(paper.seeds), paper.resources.gpus, paper.points[0].train.epochs) == (10, 0.25, 100)


def test_the_schema_sees_mistakes_while_they_are_typed() -> None:
    plain = YAML(typ="safe").load(BASE)
    assert schema().is_valid(plain)
    for written in (
        "train: {estimator: fgs}",
        "train: {epohcs: 1}",
        "variants: {one: {epohcs: 1}}",
        "variants: {one: {estimator.slow_weight: 2}}",
        "variants: {one: {estimator.slow_net: mambo}}",
        "variants: {'a/b': {}}",
        "grid: {estimator.slow_weight: 0.5}",
        "grid: {estimator.slow_weight: [2]}",
        "profiles: {quick: {train.epochs: -1}}",
        "profiles: {quick: {train.epohcs: 1}}",
        "profiles: {quick: {report.metric: speed}}",
        "seeds: [-1]",
    ):
        assert not schema().is_valid(plain | YAML(typ="safe").load(written)), written


def test_the_schema_completes_paths_and_allows_components_of_the_users_own() -> None:
    definitions = json_schema()["definitions"]
    assert "estimator.slow_weight" in definitions["variant"]["properties"]
    assert "estimator.slow_weight" in definitions["grid"]["properties"]
    assert "train.estimator.slow_weight" in definitions["profile"]["properties"]
    assert (
        definitions["train.estimator.slow_weight"]["description"]
        == "α: 0 is the fast gradient alone, 1 the slow one alone."
    )
    own = base(("estimator: fsg", "estimator: {import: 'a.b:C', k: 3}"), ("history_length", "k"))
    assert schema().is_valid(
        YAML(typ="safe").load(own + "grid: {estimator.k: [1, 2]}\nprofiles: {q: {train.estimator.k: 3}}\n")
    )


def test_merges_bring_in_what_is_not_said_itself() -> None:
    common = "  two: &two {estimator.history_length: 1, epochs: 3}\n  three: {<<: *two, epochs: 4}\n"
    common += "  four: {<<: [{epochs: 7}, *two], estimator.hidden: 5}\n"
    spec = load(BASE.replace("  two: {estimator.history_length: 1}\n", common))
    trains = {point.variant: point.train for point in spec.points}
    assert [(trains[name].epochs, trains[name].estimator.history_length) for name in ("two", "three", "four")] == [
        (3, 1),
        (4, 1),
        (7, 1),
    ]


def test_merge_of_no_mapping_is_told_where_it_stands() -> None:
    assert lines(base(("  one: {}", "  one: {<<: 3}"))) == [
        "5:13: variants.one: << is no mapping (expected one, or a list of some)"
    ]


def test_merges_cannot_unfold_to_much() -> None:
    levels = ["x0: &a0 {" + ", ".join(f"k{i}: 1" for i in range(60)) + "}"]
    levels += [f"x{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 20)}]}}" for n in range(1, 8)]
    assert lines("\n".join(levels))[0].endswith(TOO_MUCH)


@pytest.mark.parametrize("number", ["1e-3", "0.5", "3"])
def test_number_in_quotes_is_told_to_lose_them(number: str) -> None:
    (line,) = lines(base(("  estimator: fsg", f"  estimator: fsg\n  optimizer: {{name: adam, lr: '{number}'}}")))
    assert f"got '{number}' (expected a number" in line
    assert line.endswith(f"; without the quotes, {number} is one)")
