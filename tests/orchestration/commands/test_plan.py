import io
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from ruamel.yaml import YAML

import fsg
from benchmarks import gpu_hours
from fsg.data import Arrays, FashionMNISTSubset
from fsg.estimators import FSG, FullPrecision
from fsg.optimizers import Adam
from fsg.starting_points import File, Pretrain
from fsg.train_config import TrainConfig
from orchestration.commands.plan import compare, load_checked, plan, say_damage
from orchestration.commands.request import LaunchRequest, Refused
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.status import cell_statuses
from orchestration.spec.cells import Cell, cell_id, cells, orphans, total_steps
from orchestration.spec.experiment import ExperimentSpec, load_spec

CONFIGS = Path(__file__).parents[3] / "configs"

HEAD = """
name: tiny
question: ""
train:
  data: {name: arrays, file: DATA, validation: 8, crop_padding: 0}
  model: {name: resnet, depth: 8, width: 2}
  epochs: 2
  batch_size: 8
report: {baseline: ste, primary: fsg}
"""


def images(path: Path, shift: int = 0) -> Path:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 200, (48, 8, 8), dtype=np.uint8) + np.uint8(shift)
    labels = np.arange(48) % 4
    np.savez(path, train_images=pixels[:40], train_labels=labels[:40], test_images=pixels[40:], test_labels=labels[40:])
    return path


@pytest.fixture
def train(tmp_path: Path) -> TrainConfig:
    data = Arrays(file=str(images(tmp_path / "a.npz")), validation=8, crop_padding=0)
    return TrainConfig(data=data, epochs=2, batch_size=8)


def spec(folder: Path, more: str) -> ExperimentSpec:
    images(folder / "data.npz")
    path = folder / "tiny.yaml"
    path.write_text(HEAD.replace("DATA", str(folder / "data.npz")) + more)
    return load_spec(path)


def labels(planned: list[Cell]) -> list[str]:
    return [cell.label for cell in planned]


# order


def test_cells_go_breadth_first_over_variants(tmp_path: Path) -> None:
    planned = cells(spec(tmp_path, "variants: {ste: {}, fsg: {estimator: {name: fsg}}}\nseeds: [3, 1]\n"))
    assert labels(planned) == ["ste · seed 3", "fsg · seed 3", "ste · seed 1", "fsg · seed 1"]
    assert len({cell.id for cell in planned}) == 4


def test_pretrainings_come_first_and_variants_share_them(tmp_path: Path) -> None:
    variants = "{ste: {init: {name: pretrain}}, fsg: {init: {name: pretrain}, estimator: {name: fsg}}}"
    more = f"variants: {variants}\nseeds: [0, 1]\n"
    first, second, *rest = cells(spec(tmp_path, more))
    assert labels([first, second]) == ["pretrain · seed 0", "pretrain · seed 1"]
    assert {cell.kind for cell in (first, second)} == {"pretrain"}
    assert [cell.depends_on for cell in rest] == [first.id, first.id, second.id, second.id]
    assert isinstance(first.train.estimator, FullPrecision.Config)


def test_pretrainings_that_differ_are_named_after_what_asks_for_them(tmp_path: Path) -> None:
    more = "variants: {ste: {init: {name: pretrain}}, fsg: {init: {name: pretrain, epochs: 3}}}\nseeds: [0]\n"
    planned = cells(spec(tmp_path, more))
    assert labels(planned) == ["pretrain for ste · seed 0", "pretrain for fsg · seed 0", "ste · seed 0", "fsg · seed 0"]
    assert [cell.depends_on for cell in planned[2:]] == [cell.id for cell in planned[:2]]


def test_grid_points_are_named_in_the_label(tmp_path: Path) -> None:
    more = "variants: {ste: {}, fsg: {estimator: {name: fsg}}}\nseeds: [0]\ngrid: {optimizer.lr: [0.1, 0.01]}\n"
    assert labels(cells(spec(tmp_path, more)))[:2] == [
        "ste · optimizer.lr=0.1 · seed 0",
        "ste · optimizer.lr=0.01 · seed 0",
    ]


# identity


def test_what_determines_numbers_determines_the_id(train: TrainConfig) -> None:
    changes: list[dict[str, Any]] = [
        {"epochs": 3},
        {"threads": 2},
        {"precision": "bf16"},
        {"optimizer": Adam(lr=0.5)},
        {"estimator": FSG.Config()},
        {"batch_size": 4},
    ]
    assert len({cell_id(train, 0), *(cell_id(replace(train, **change), 0) for change in changes)}) == 7


def test_seed_start_and_numerics_determine_the_id(train: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {cell_id(train, 0), cell_id(train, 1), cell_id(train, 0, "a"), cell_id(train, 0, "b")}
    monkeypatch.setattr(fsg, "NUMERICS", fsg.NUMERICS + 1)
    ids.add(cell_id(train, 0))
    assert len(ids) == 5


def test_place_of_the_data_does_not_determine_the_id_but_its_content_does(train: TrainConfig, tmp_path: Path) -> None:
    def at(path: Path) -> TrainConfig:
        return replace(train, data=Arrays(file=str(path), validation=8, crop_padding=0))

    (tmp_path / "elsewhere.npz").write_bytes((tmp_path / "a.npz").read_bytes())
    assert cell_id(at(tmp_path / "elsewhere.npz"), 0) == cell_id(train, 0)
    assert cell_id(at(images(tmp_path / "others.npz", shift=1)), 0) != cell_id(train, 0)


def test_id_is_the_same_for_ever(train: TrainConfig) -> None:
    """Were it to change by accident, every finished cell would be an orphan."""
    again = Cell.from_dict(Cell("", "train", "ste", {}, 0, train).to_dict()).train
    assert cell_id(again, 0) == cell_id(train, 0)
    assert len(cell_id(train, 0)) == 16


def test_cell_comes_back_from_its_dict(tmp_path: Path) -> None:
    variants = "{ste: {init: {name: pretrain}}, fsg: {estimator: {name: fsg}}}"
    more = f"variants: {variants}\nseeds: [0]\ngrid: {{optimizer.lr: [0.1]}}\n"
    planned = cells(spec(tmp_path, more))
    assert [Cell.from_dict(cell.to_dict()) for cell in planned] == planned


def test_start_that_may_have_seen_the_validation_images_contaminates(tmp_path: Path) -> None:
    np.savez(tmp_path / "start.npz", weight=np.zeros(1))
    for trained_on, validation, contaminated in (
        ("undeclared", 8, True),
        ("all_training_images", 8, True),
        ("all_training_images", 0, False),
        ("train_without_validation", 8, False),
        ("other_data", 8, False),
    ):
        init = f"{{name: file, path: {tmp_path / 'start.npz'}, trained_on: {trained_on}}}"
        more = f"variants: {{ste: {{init: {init}, data.validation: {validation}}}, fsg: {{}}}}\nseeds: [0]\n"
        first, second = cells(spec(tmp_path, more))
        assert (first.contaminated, second.contaminated) == (contaminated, False), trained_on


def test_content_of_a_starting_file_determines_the_id(train: TrainConfig, tmp_path: Path) -> None:
    np.savez(tmp_path / "start.npz", weight=np.zeros(1))
    before = File(path=str(tmp_path / "start.npz")).fingerprint()
    np.savez(tmp_path / "start.npz", weight=np.ones(1))
    assert cell_id(train, 0, File(path=str(tmp_path / "start.npz")).fingerprint()) != cell_id(train, 0, before)


# where it stands


def test_steps_of_a_cell(train: TrainConfig) -> None:
    assert total_steps(Cell("", "train", "ste", {}, 0, train)) == 2 * (40 - 8) // 8


def test_orphans_have_a_planned_label_and_another_id(train: TrainConfig) -> None:
    planned = [Cell("new", "train", "ste", {}, 0, train), Cell("kept", "train", "ste", {}, 1, train)]
    entered = [
        *planned,
        Cell("old", "train", "ste", {}, 0, train),
        Cell("another", "train", "fsg", {}, 0, train),
        Cell("another seed", "train", "ste", {}, 2, train),
        Cell("another kind", "candidate", "ste", {}, 0, train),
    ]
    assert [cell.id for cell in orphans(planned, entered)] == ["old"]


def test_divergence_is_over_and_failure_is_not(train: TrainConfig, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "experiment")
    planned = [
        Cell(name, "train", name, {}, 0, train) for name in ("done", "failed", "diverged", "interrupted", "waiting")
    ]
    for cell in planned:
        ledger.add(cell)
        if cell.id != "waiting":
            attempt = ledger.claim(cell.id, {})
            attempt.weights("final.pt", b"")
            attempt.finish(cell.id)  # type: ignore[arg-type]
    assert [one.cell.id for one in cell_statuses(planned, ledger) if one.over] == ["done", "diverged"]


def test_pretraining_ids_hang_on_nothing_that_they_do_not_use(train: TrainConfig) -> None:
    from fsg.train_config import pretraining

    asks = replace(train, init=Pretrain(epochs=1))
    other = replace(asks, estimator=FSG.Config(), optimizer=Adam(lr=0.5), epochs=7)
    assert cell_id(pretraining(asks), 0) == cell_id(pretraining(other), 0)


# the configs


read = cache(load_spec)


@cache
def configs() -> list[tuple[Path, str | None]]:
    paths = sorted(CONFIGS.rglob("*.yaml"))
    return [(path, profile) for path in paths for profile in (None, *YAML(typ="safe").load(path).get("profiles", {}))]


@pytest.mark.parametrize(("path", "profile"), configs(), ids=str)
def test_every_config_is_planned(path: Path, profile: str | None) -> None:
    """On the images that come with the package: those of a config may have to be downloaded."""
    asked = read(path, profile)
    assert asked.trains
    points = []
    for point in asked.points:
        here = FashionMNISTSubset(validation=min(1000, point.train.data.validation))
        points.append(replace(point, train=replace(point.train, data=here)))
    planned = cells(replace(asked, points=tuple(points)))
    trained = [cell for cell in planned if cell.kind == "train"]
    assert len(trained) == len(asked.points) * len(asked.seeds)
    assert len({cell.id for cell in planned}) == len(planned)
    assert {cell.depends_on for cell in trained} - {None} <= {cell.id for cell in planned}


FOR_GPUS = [CONFIGS / "paper" / f"{name}.yaml" for name in ("cifar10_methods", "cifar100_methods", "ablations")]


@pytest.mark.parametrize("path", [*FOR_GPUS, *sorted((CONFIGS / "recipes").glob("*.yaml"))], ids=lambda path: path.stem)
def test_cost_that_a_config_states_is_the_estimated_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_hours, "load_spec", read)
    profiles = [profile for one, profile in configs() if one == path]
    total = sum(gpu_hours.of_spec(path, profile)[1] for profile in profiles)
    assert f"{total:.0f} for all." in path.read_text()


def test_two_experiments_cannot_share_a_folder(tmp_path: Path) -> None:
    """`a` with profile `b-c` and `a-b` with profile `c` have the same name of a folder."""
    both = "variants: {ste: {estimator: ste}, fsg: {estimator: fsg}}\nseeds: [0]\n"
    images(tmp_path / "data.npz")
    for name, profile in (("a", "b-c"), ("a-b", "c"), ("a-b-c", None)):
        text = HEAD.replace("DATA", str(tmp_path / "data.npz")).replace("name: tiny", f"name: {name}") + both
        text += f"profiles: {{{profile}: {{seeds: [1]}}}}\n" if profile else ""
        (tmp_path / f"{name}.yaml").write_text(text)
    first = LaunchRequest(tmp_path / "a.yaml", "b-c", results=tmp_path / "results")
    found, ledger = load_checked(first)
    ledger.record_launch({"spec": found.resolved()})
    load_checked(first)
    for name, profile in (("a-b", "c"), ("a-b-c", None)):
        with pytest.raises(Refused, match="a-b-c: has the results of experiment a with profile b-c"):
            load_checked(replace(first, source=tmp_path / f"{name}.yaml", profile=profile))
    load_checked(replace(first, source=tmp_path / "a-b.yaml", profile="c", results=tmp_path / "others"))


def test_folder_of_results_that_was_moved_is_gone_on_with_under_its_new_name(tmp_path: Path) -> None:
    more = "variants: {ste: {estimator: ste}, fsg: {estimator: fsg}}\nseeds: [0]\n"
    renamed = spec(tmp_path, more)
    Ledger(tmp_path / "results" / "tiny").record_launch({"spec": renamed.resolved() | {"name": "before"}})
    load_checked(LaunchRequest(renamed.source, results=tmp_path / "results"))


def test_strays_are_said_in_one_line(tmp_path: Path) -> None:
    found = spec(tmp_path, "variants: {ste: {estimator: ste}, fsg: {estimator: fsg}}\nseeds: [0]\n")
    request = LaunchRequest(found.source, results=tmp_path / "results", console=Console(file=io.StringIO(), width=200))
    ledger = Ledger(tmp_path / "results" / "tiny")
    (ledger.folder / "trials").mkdir(parents=True)
    for n in range(5):
        (ledger.folder / "trials" / f"notes-{n}.txt").touch()
    with request.console.capture() as said:
        say_damage(request, compare(found, ledger))
    (line,) = said.get().splitlines()
    assert line.endswith("own: trials/notes-0.txt, trials/notes-1.txt, trials/notes-2.txt and 2 more")


def test_what_cannot_be_shown_is_said_before_anything_runs(tmp_path: Path) -> None:
    found = spec(tmp_path, "variants: {ste: {estimator: ste}, fsg: {estimator: fsg}}\nseeds: [0]\n")
    request = LaunchRequest(found.source, results=tmp_path / "results", console=Console(file=io.StringIO(), width=200))
    with request.console.capture() as said:
        plan(request, with_pilot=False)
    note = "note: 1 seed cannot show a difference of fsg to ste, whatever comes out: the test takes 6 at 5\u00a0%"
    assert note in said.get().splitlines()
