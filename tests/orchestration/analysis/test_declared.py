"""What a spec cannot show is known before anything has run."""

from itertools import product
from pathlib import Path

import pytest

from orchestration.analysis.declared import weaknesses
from orchestration.spec.experiment import load_spec

CONFIGS = Path(__file__).parents[3] / "configs"
HEAD = """
name: declared
train: {data: fashion_mnist_subset, model: {name: resnet, depth: 8, width: 2}, optimizer: {name: sgd, lr: 0.1}}
report: {baseline: ste, primary: fsg%s}
"""
PLAIN = "variants: {fsg: {estimator: fsg}, ste: {estimator: ste}}"


def said(folder: Path, more: str, report: str = "") -> list[str]:
    path = folder / "declared.yaml"
    path.write_text(HEAD % report + more)
    return weaknesses(load_spec(path))


def can_reject(seeds: int, level: float) -> bool:
    """Whether differences of one sign, the clearest that there can be, are at a level by every flip of signs."""
    sums = [abs(sum(signs)) for signs in product((1, -1), repeat=seeds)]
    return sum(total >= seeds for total in sums) / len(sums) <= level


@pytest.mark.parametrize("others", [0, 1, 3, 4])
@pytest.mark.parametrize("seeds", [1, 5, 6, 7, 8, 9])
def test_seeds_too_few_for_a_test_are_said(tmp_path: Path, seeds: int, others: int) -> None:
    own = {f"v{i}": f"estimator: fsg, estimator.slow_weight: 0.{i + 1}" for i in range(others)}
    variants = {"ste": "estimator: ste", "fsg": "estimator: fsg"} | own
    written = ", ".join(f"{name}: {{{settings}}}" for name, settings in variants.items())
    found = said(tmp_path, f"variants: {{{written}}}\nseeds: {list(range(seeds))}\n")
    primary = [line for line in found if " of fsg to ste, " in line]
    family = [line for line in found if line not in primary]
    assert bool(primary) == (not can_reject(seeds, 0.05))
    assert bool(family) == (others > 0 and not can_reject(seeds, 0.05 / max(1, others)))
    few = f"{seeds} seed{'s' * (seeds != 1)} cannot show a difference of"
    if primary:
        assert primary == [f"{few} fsg to ste, whatever comes out: the test takes 6 at 5\u00a0%"]
    if family and others == 3:
        step = "the test takes 7 at 5\u00a0%/3 = 1.67\u00a0%"
        assert family == [f"{few} v0, v1 and v2 to ste, whatever comes out: {step}"]


def test_only_the_declared_family_is_counted(tmp_path: Path) -> None:
    more = "{fsg: {estimator: fsg}, a: {estimator: ede}, b: {estimator: reste}, c: {estimator: multifc}, ste: {}}"
    spec = f"variants: {more}\nseeds: [0, 1, 2, 3, 4, 5]\n".replace("ste: {}", "ste: {estimator: ste}")
    assert len(said(tmp_path, spec)) == 1
    assert said(tmp_path, spec, ", family: [b]") == []


def test_a_look_that_can_show_nothing_is_said(tmp_path: Path) -> None:
    """O'Brien and Fleming's levels of looks at 5 and 10 seeds are 0.5 and 4.8 % (Jennison and Turnbull, table 2.3)."""
    rule = ", sequential: {looks: [5, 10]}"
    assert said(tmp_path, PLAIN + "\nseeds: [0, 1, 2, 3, 4]\n", rule) == [
        "a look at 5 seeds cannot show a difference of fsg to ste, whatever comes out: the test takes 9 at 0.517\u00a0%"
    ]
    assert (
        said(
            tmp_path, PLAIN + "\nseeds: [0, 1, 2, 3, 4, 5, 6, 7]\n", ", sequential: {looks: [8, 16], boundary: pocock}"
        )
        == []
    )


SEEDS = "\nseeds: [0, 1, 2, 3, 4, 5, 6]\n"
TUNED = (
    "optimizer.lr: fsg has its own, ste the shared one: where a search found it, tuned stands beside untuned "
    "(expected a value in each variant, or tuning)"
)


@pytest.mark.parametrize(
    ("fsg", "ste", "expected"),
    [
        ("optimizer.lr: 0.3", "", [TUNED]),
        ("optimizer: {name: sgd, lr: 0.3}", "", [TUNED]),
        ("optimizer.lr: 0.1", "", [TUNED]),
        ("optimizer.lr: 0.3", "optimizer.lr: 0.1", []),
        ("optimizer.lr: 0.3", "optimizer: {name: adam, lr: 0.1}", []),
        ("optimizer.momentum: 0.9", "", []),
        (
            "optimizer.lr: 0.3, optimizer.weight_decay: 1e-3",
            "",
            [TUNED.replace("optimizer.lr", "optimizer.lr and optimizer.weight_decay")],
        ),
        (
            "optimizer.lr: 0.3, optimizer.weight_decay: 1e-3",
            "optimizer.lr: 0.1",
            [TUNED.replace("optimizer.lr", "optimizer.weight_decay")],
        ),
    ],
)
def test_a_tuned_variant_beside_an_untuned_one_is_said(tmp_path: Path, fsg: str, ste: str, expected: list[str]) -> None:
    variants = f"variants: {{fsg: {{estimator: fsg, {fsg}}}, ste: {{estimator: ste{', ' * bool(ste)}{ste}}}}}"
    assert said(tmp_path, variants + SEEDS) == expected
    profile = f"profiles: {{small: {{train.epochs: 1}}}}\n{variants}{SEEDS}"
    assert said(tmp_path, profile) == expected


def test_what_a_tuning_or_a_grid_gives_every_variant_is_not_said(tmp_path: Path) -> None:
    own = PLAIN.replace("{estimator: fsg}", "{estimator: fsg, optimizer.lr: 0.3}")
    assert said(tmp_path, f"tuning: {{budget: 4}}\n{own}{SEEDS}") == []
    assert said(tmp_path, f"grid: {{optimizer.lr: [0.1, 0.3]}}\n{PLAIN}{SEEDS}") == []
    assert said(tmp_path, f"grid: {{optimizer.lr: [0.1, 0.3]}}\n{own}{SEEDS}") == []


def test_the_ablation_that_newcomers_see_has_no_weakness() -> None:
    for profile in (None, "replication", "paper"):
        assert weaknesses(load_spec(CONFIGS / "ablation_hgs.yaml", profile)) == []
