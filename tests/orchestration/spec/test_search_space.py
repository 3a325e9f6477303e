"""The space of a search: what it means, and the one line that each mistake in it gets."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fsg.config import to_dict
from orchestration.spec.experiment import ExperimentSpec, SpecErrors, load_spec
from orchestration.spec.study import Condition, Dimension, with_settings

SEARCH = """\
name: probe
train:
  estimator: fsg
  epochs: 9
search:
  trials: 5
  space:
    estimator.slow_weight: {low: 0, high: 1}
    estimator.history_length: {low: 1, high: 16, log: true}
    estimator.layer_embedding_dim: {low: 2, high: 32, step: 2}
    estimator.slow_net: [mamba, ema]
    estimator.slow_net.d_state: {low: 1, high: 16}
    estimator.chunk_size: {choices: [8, 64], when: {estimator.slow_weight: {above: 0.5}}}
seeds: [0, 1]
"""
TUNING = """\
name: probe
train: {estimator: fsg, epochs: 9}
variants: {fsg: {}, ste: {estimator: ste}}
tuning: {budget: 3, space: {estimator.slow_weight: {low: 0, high: 1}}}
seeds: [0, 1]
report: {baseline: ste, primary: fsg}
"""
SAMPLERS = "expected tpe, random, quasi_random or nsga2"
SEARCH_FIELDS = "sampler, pruner, seeds, seed, best, storage, space, trials, objectives, warm_start"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


def load(text: str, profile: str | None = None, sets: Sequence[str] = ()) -> ExperimentSpec:
    Path("spec.yaml").write_text(text)
    return load_spec(Path("spec.yaml"), profile, sets)


def changed(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


def search(old: str, new: str) -> str:
    return changed(SEARCH, old, new)


def trials(more: str) -> str:
    return search("  trials: 5\n", f"  trials: 5\n  {more}\n")


MISTAKES = {
    "beyond the field's bound": (
        search("low: 0, high: 1}", "low: 0, high: 1.5}"),
        "8:43: search.space.estimator.slow_weight.high: got 1.5 (expected a number from 0 to 1)",
    ),
    "below the field's bound": (
        search("low: 1, high: 16, log", "low: 0, high: 16, log"),
        "9:37: search.space.estimator.history_length.low: got 0 (expected a whole number ≥ 1)",
    ),
    "fraction of a whole number": (
        search("low: 1, high: 16, log", "low: 1.5, high: 16, log"),
        "9:37: search.space.estimator.history_length.low: got 1.5 (expected a whole number ≥ 1)",
    ),
    "logarithm of nothing": (
        search("low: 0, high: 1}", "low: 0, high: 1, log: true}"),
        "8:34: search.space.estimator.slow_weight.low: got 0 (expected a number > 0, as log is true)",
    ),
    "upside down": (
        search("low: 1, high: 16, log", "low: 16, high: 1, log"),
        "9:47: search.space.estimator.history_length.high: got 1 (expected more than low, 16)",
    ),
    "no end": (
        search("low: 0, high: 1}", "low: 0}"),
        "8:5: search.space.estimator.slow_weight: high is missing (expected low and high, or choices)",
    ),
    "misspelt path, told once though another entry hangs on it": (
        search("estimator.slow_weight: {low", "estimator.slow_wieght: {low"),
        "8:5: search.space.estimator.slow_wieght: no variant has this field (expected one that some variant has; "
        "did you mean estimator.slow_weight?)",
    ),
    "misspelt entry": (
        search("low: 0, high: 1}", "low: 0, hgih: 1}"),
        "8:37: search.space.estimator.slow_weight.hgih: an entry of a space has no such field (expected one of low, "
        "high, log, step, choices, when; did you mean high?)",
    ),
    "one value": (
        search("{low: 0, high: 1}", "0.5"),
        "8:28: search.space.estimator.slow_weight: got 0.5 (expected a range, {low: …, high: …}, or a list of choices)",
    ),
    "a choice that there is not": (
        search("[mamba, ema]", "[mamba, emu]"),
        "11:33: search.space.estimator.slow_net[1]: unknown slow_net 'emu' (expected one of mamba, lstm, ema; "
        "did you mean ema?)",
    ),
    "a choice twice": (
        search("[mamba, ema]", "[mamba, ema, mamba]"),
        "11:38: search.space.estimator.slow_net[2]: 'mamba' is there already (expected it once)",
    ),
    "no choices": (
        search("[mamba, ema]", "[]"),
        "11:25: search.space.estimator.slow_net: no choices (expected one or more)",
    ),
    "a mapping among the choices": (
        search("[mamba, ema]", "[mamba, {name: ema}]"),
        "11:33: search.space.estimator.slow_net[1]: got a mapping (expected a number, a text or a truth value)",
    ),
    "range of names": (
        search("[mamba, ema]", "{low: 1, high: 2}"),
        "11:5: search.space.estimator.slow_net: has no range (expected choices: a list of values)",
    ),
    "choices and a range": (
        search("{choices: [8, 64], when", "{choices: [8, 64], low: 1, when"),
        "13:46: search.space.estimator.chunk_size.low: cannot stand beside choices (expected choices, or "
        "{low: …, high: …}; got low too)",
    ),
    "step that does not fit": (
        search("step: 2", "step: 7"),
        "10:61: search.space.estimator.layer_embedding_dim.step: got 7 (expected a part of high − low, 30)",
    ),
    "step of nothing": (
        search("step: 2", "step: 0"),
        "10:61: search.space.estimator.layer_embedding_dim.step: got 0 (expected a number > 0)",
    ),
    "step and log": (
        search("step: 2", "step: 2, log: true"),
        "10:61: search.space.estimator.layer_embedding_dim.step: cannot stand beside log (expected one of the two)",
    ),
    "condition on what is not searched": (
        search("{estimator.slow_weight: {above: 0.5}}", "{optimizer.lr: {above: 0.5}}"),
        "13:53: search.space.estimator.chunk_size.when.optimizer.lr: no earlier entry of the space (expected one of "
        "estimator.slow_weight, estimator.history_length, estimator.layer_embedding_dim, estimator.slow_net, "
        "estimator.slow_net.d_state)",
    ),
    "condition that never holds": (
        search("{estimator.slow_weight: {above: 0.5}}", "{estimator.slow_net: lstm}"),
        "13:73: search.space.estimator.chunk_size.when.estimator.slow_net: estimator.slow_net is never 'lstm' "
        "(expected one of 'mamba', 'ema')",
    ),
    "condition with another limit": (
        search("{above: 0.5}", "{abve: 0.5}"),
        "13:77: search.space.estimator.chunk_size.when.estimator.slow_weight.abve: no such limit (expected above or "
        "below; did you mean above?)",
    ),
    "limit of a name": (
        search("{estimator.slow_weight: {above: 0.5}}", "{estimator.slow_net: {above: 0.5}}"),
        "13:81: search.space.estimator.chunk_size.when.estimator.slow_net.above: estimator.slow_net has choices that "
        "are no numbers (expected a list)",
    ),
    "trials of different lengths": (
        search("    estimator.slow_weight: {low", "    epochs: [1, 2]\n    estimator.slow_weight: {low"),
        "8:5: search.space.epochs: trials that differ in it cannot be compared (expected another path)",
    ),
    "no space": (
        "name: a\ntrain: {epochs: 1}\nsearch: {trials: 3}\nseeds: [0]\n",
        "3:1: search.space: is missing (expected a mapping of one or more paths to values)",
    ),
    "no trials": (search("trials: 5", "trials: 0"), "6:11: search.trials: got 0 (expected a whole number ≥ 1)"),
    "unknown sampler": (
        trials("sampler: bayes"),
        "7:12: search.sampler: unknown sampler 'bayes' (expected one of tpe, random, quasi_random, grid, nsga2)",
    ),
    "misspelt setting": (
        trials("prunner: median"),
        f"7:3: search.prunner: search has no such field (expected one of {SEARCH_FIELDS}; did you mean pruner?)",
    ),
    "pruning of several objectives": (
        trials("objectives: [validation/accuracy, time/step]\n  pruner: median"),
        "8:11: search.pruner: median cannot do several objectives (expected none)",
    ),
    "an objective twice": (
        trials("objectives: [time/step, time/step]"),
        "7:15: search.objectives: an objective comes twice (expected each once)",
    ),
    "an objective on the test images": (
        trials("objectives: [test/accuracy]"),
        "7:16: search.objectives[0]: got 'test/accuracy' (expected one of validation/accuracy, validation/loss, "
        "train/loss, time/step, memory/peak; did you mean validation/accuracy?)",
    ),
    "a password": (
        trials("storage: postgresql://me:secret@host/optuna"),
        "7:12: search.storage: has a password, and the spec is kept with the results (expected --study-storage, or a "
        "~/.pgpass)",
    ),
    "a password elsewhere": (
        trials('storage: "postgresql://host/optuna?user=me&password=secret"'),
        "7:12: search.storage: has a password, and the spec is kept with the results (expected --study-storage, or a "
        "~/.pgpass)",
    ),
    "a seed of the table": (
        trials("seeds: [7, 1]"),
        "7:14: search.seeds[1]: 1 is a seed of the table too (expected fresh ones there)",
    ),
    "the default seed in the table": (
        search("seeds: [0, 1]", "seeds: [0, 1000]"),
        "14:12: seeds[1]: 1000 is the seed of the trials, unless search.seeds says otherwise (expected another)",
    ),
    "a seed twice": (
        trials("seeds: [7, 7]"),
        "7:14: search.seeds[1]: 7 is there already (expected each seed once)",
    ),
    "a rung without a validation": (
        search("  epochs: 9\n", "  epochs: 9\n  evaluate_every: 3\n").replace(
            "trials: 5", "trials: 5\n  pruner: median"
        ),
        "8:3: search.pruner: epoch 1 is not validated, as evaluate_every is 3 (expected a multiple of it)",
    ),
    "variants": (
        SEARCH + "variants: {a: {}}\n",
        "15:1: variants: cannot stand beside search (expected tuning, which searches every variant)",
    ),
    "search and tuning": (
        SEARCH + "tuning: {budget: 1}\n",
        "15:1: tuning: there is a search already (expected one of the two)",
    ),
    "grid and tuning": (
        TUNING + "grid: {optimizer.lr: [0.1]}\n",
        "7:1: grid: cannot stand beside tuning (expected no grid)",
    ),
    "a field that no variant has": (
        changed(TUNING, "estimator.slow_weight", "estimator.slow_net.hidden"),
        "4:29: tuning.space.estimator.slow_net.hidden: no variant has this field (expected one that some variant has; "
        "did you mean estimator.slow_net.expand?)",
    ),
    "a grid of what cannot be counted": (
        changed(TUNING, "budget: 3", "budget: 3, sampler: grid"),
        "4:30: tuning.sampler: grid wants values that can be counted, and estimator.slow_weight has a range without a "
        f"step ({SAMPLERS})",
    ),
}


@pytest.mark.parametrize(("text", "line"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line(text: str, line: str) -> None:
    with pytest.raises(SpecErrors) as errors:
        load(text)
    assert [one.removeprefix("spec.yaml:") for one in errors.value.lines] == [line]


@pytest.mark.parametrize(
    ("space", "path"),
    [
        (
            "{estimator.slow_net: [mamba, ema], estimator.hidden: {choices: [8], when: {estimator.slow_net: ema}}}",
            "hidden",
        ),
        ("{estimator.slow_net: [mamba, ema], estimator.slow_net.d_state: [8, 16]}", "slow_net.d_state"),
    ],
)
def test_a_grid_refuses_conditions_written_or_implied(space: str, path: str) -> None:
    text = f"name: a\ntrain: {{estimator: fsg}}\nsearch: {{trials: 3, sampler: grid, space: {space}}}\nseeds: [0]\n"
    with pytest.raises(SpecErrors, match=f"grid cannot do conditions, and estimator.{path} has one"):
        load(text)


def test_a_search_compares_what_it_finds_with_the_training_as_it_stands() -> None:
    spec = load(SEARCH)
    assert [(point.variant, point.grid) for point in spec.points] == [("default", {})]
    (study,) = spec.studies
    assert (study.name, study.trials, study.seeds, study.table_seeds) == ("tuned", 5, (1000,), (0, 1))
    assert to_dict(study.train) == to_dict(spec.points[0].train)
    assert study.trial_train == replace(study.train, test="never")
    assert (spec.report.baseline, spec.report.primary, spec.report.metric) == ("default", "tuned", "test/accuracy")
    assert study.dimensions == (
        Dimension("estimator.slow_weight", "float", low=0.0, high=1.0, open_low=False, open_high=False),
        Dimension("estimator.history_length", "int", low=1, high=16, log=True, open_low=False),
        Dimension("estimator.layer_embedding_dim", "int", low=2, high=32, step=2),
        Dimension("estimator.slow_net", "choice", choices=("mamba", "ema")),
        Dimension("estimator.slow_net.d_state", "int", low=1, high=16, open_low=False),
        Dimension(
            "estimator.chunk_size", "choice", choices=(8, 64), when=(Condition("estimator.slow_weight", above=0.5),)
        ),
    )


def test_a_search_without_a_confirmation_has_no_table() -> None:
    assert load(trials("best: 0")).points == ()


def test_tuning_gives_every_variant_a_search_with_learning_rate_and_weight_decay() -> None:
    spec = load(TUNING)
    assert spec.points == (), "nothing untuned enters the table"
    spaces = {study.name: [one.path for one in study.dimensions] for study in spec.studies}
    always = ["optimizer.lr", "optimizer.weight_decay"]
    assert spaces == {"fsg": [*always, "estimator.slow_weight"], "ste": always}
    assert {(study.trials, study.seeds, study.train.epochs) for study in spec.studies} == {(3, (1000,), 9)}
    own = changed(TUNING, "space: {", "space: {optimizer.lr: {low: 0.01, high: 0.2}, ")
    for study in load(own).studies:
        (lr,) = [one for one in study.dimensions if one.path == "optimizer.lr"]
        assert (lr.low, lr.high) == (0.01, 0.2)


def test_a_budget_is_all_that_a_tuning_needs() -> None:
    text = changed(
        TUNING, "tuning: {budget: 3, space: {estimator.slow_weight: {low: 0, high: 1}}}", "tuning: {budget: 3}"
    )
    assert [study.trials for study in load(text).studies] == [3, 3]


def test_entries_of_a_space_can_be_overridden_and_added() -> None:
    text = SEARCH + "profiles: {small: {search.trials: 2, search.space.optimizer.lr: {low: 0.1, high: 0.2}}}\n"
    (study,) = load(text, "small", ["search.space.estimator.slow_net=[mamba, lstm]"]).studies
    assert study.trials == 2
    assert {one.path: one.choices for one in study.dimensions}["estimator.slow_net"] == ("mamba", "lstm")
    assert study.dimensions[-1].path == "optimizer.lr"


def test_a_files_meaning_is_as_before_where_nothing_is_searched() -> None:
    text = "name: a\nvariants: {a: {}, b: {epochs: 3}}\nseeds: [0]\nreport: {baseline: a, primary: b}\n"
    assert "studies" not in load(text).resolved()
    assert load(SEARCH).resolved()["studies"][0]["space"]["estimator.slow_weight"] == {"low": 0.0, "high": 1.0}


def test_settings_are_put_components_first_and_whole_numbers_into_real_fields() -> None:
    train = load(SEARCH).studies[0].train
    found = with_settings(train, {"estimator.slow_net.decay": 1, "estimator.slow_net": "ema", "optimizer.lr": 1})
    assert (found.estimator.slow_net.name, found.estimator.slow_net.decay) == ("ema", 1.0)  # type: ignore[union-attr]
    assert isinstance(found.optimizer.lr, float)
    assert train.estimator.slow_net.name == "mamba"  # type: ignore[union-attr]
