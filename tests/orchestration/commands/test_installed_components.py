"""Relative paths in the settings of a component whose module is installed, or lies anywhere but beside the spec."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_experiment
from tiny_experiment import planned
from undrawn import leave_figures_empty

from fsg import imported
from fsg.imported import Imported, config_class
from orchestration.commands.bundle import check, pack, unpack
from orchestration.commands.launch import launch as launch_here
from orchestration.commands.reproduce import reproduce_cell
from orchestration.commands.request import LaunchRequest
from orchestration.commands.verify import verify
from orchestration.ledger.ledger import Ledger
from orchestration.runtime.own_code import import_own_code
from orchestration.spec.cells import own_folders
from orchestration.spec.experiment import load_spec

MODULE = """
from dataclasses import dataclass
from pathlib import Path

from fsg import STE
from fsg.config import setting

class Scaled(STE):
    @dataclass(frozen=True, kw_only=True)
    class Config(STE.Config):
        table: str = setting("", "Where the factor is.")
        note: str = setting("", "A file that changes no number.", identity=False)
        def build(self, model):
            return Scaled(model, self)

    def __init__(self, model, config):
        super().__init__(model, config)
        self.factor = float(Path(config.table).read_text())
        if config.note:
            Path(config.note).read_text()

    def update(self, model):
        wrote = super().update(model)
        for layer in self.layers.values():
            layer.weight.grad.mul_(self.factor)
        return wrote
"""
SPEC = """
name: tiny
train:
  data: {name: arrays, file: /tiny.npz, validation: 16, crop_padding: 1}
  model: {name: resnet, depth: 8, width: 2}
  epochs: 1
  batch_size: 16
variants: {ste: {}, own: {estimator: {import: "far_package.scaled:Scaled", table: tables/factor.txt}}}
seeds: [0]
report: {baseline: ste, primary: own}
"""


@pytest.fixture(params=["site-packages", "src"])
def far(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that the package is imported from: where pip puts it, or one on PYTHONPATH."""
    folder = tmp_path / "elsewhere" / request.param
    package = folder / "far_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "scaled.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(folder))
    leave_figures_empty(monkeypatch)
    forget()
    yield folder
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.startswith("far_package")]:
        del sys.modules[name]
    imported.look_first_in()


@pytest.fixture
def project(far: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spec with its files beside it; the process is in another folder, which has others of the same names."""
    folder = tmp_path / "project"
    for place, factor in ((folder, "0.5"), (tmp_path / "here", "-3"), (far, "-7")):
        (place / "tables").mkdir(parents=True)
        (place / "tables" / "factor.txt").write_text(factor)
    tiny_experiment.images(tmp_path / "tiny.npz")
    (folder / "tiny.yaml").write_text(SPEC.replace("/tiny.npz", str(tmp_path / "tiny.npz")))
    monkeypatch.chdir(tmp_path / "here")
    return folder


@pytest.mark.slow
def test_every_command_finds_what_is_beside_the_spec(
    project: Path, far: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = planned(project / "tiny.yaml")[1]
    assert isinstance(own.train.estimator, Imported)
    assert own.train.estimator.resolve() == config_class(own.train.estimator.path)(
        table=str(project / "tables" / "factor.txt")
    )
    results = tiny_experiment.trained(project / "tiny.yaml", project / "results" / "tiny").folder
    forget()
    assert reproduce_cell(results, "own · seed 0").bit_for_bit
    assert verify(results) == 0
    packed = pack(results, tmp_path / "tiny.fsg.zip")
    shutil.move(project, tmp_path / "away")
    monkeypatch.chdir(tmp_path)
    unpack(check(packed), tmp_path / "opened")
    for folder in (tmp_path / "opened", tmp_path / "away"):
        forget()
        assert reproduce_cell(folder / "results" / "tiny", "own · seed 0").bit_for_bit
        assert verify(folder / "results" / "tiny") == 0


def test_an_edit_beside_the_spec_makes_another_cell(project: Path) -> None:
    before = {cell.variant: cell.id for cell in planned(project / "tiny.yaml")}
    (project / "tables" / "factor.txt").write_text("0.25")
    after = {cell.variant: cell.id for cell in planned(project / "tiny.yaml")}
    assert before["own"] != after["own"]
    assert before["ste"] == after["ste"]


def test_paths_that_change_no_number_are_found_and_bundled_too(project: Path, tmp_path: Path) -> None:
    (project / "notes").mkdir()
    (project / "notes" / "mine.txt").write_text("a note")
    (tmp_path / "here" / "notes").mkdir()
    (tmp_path / "here" / "notes" / "mine.txt").write_text("another")
    text = (project / "tiny.yaml").read_text().replace("factor.txt}", "factor.txt, note: notes/mine.txt}")
    (project / "tiny.yaml").write_text(text)
    results = tiny_experiment.trained(project / "tiny.yaml", project / "results" / "tiny").folder
    unpack(check(pack(results, tmp_path / "tiny.fsg.zip")), tmp_path / "opened")
    before = {cell.id for cell in planned(project / "tiny.yaml")}
    forget()
    assert {cell.id for cell in planned(tmp_path / "opened" / "spec.yaml")} == before


def test_a_folder_of_libraries_is_not_put_behind_the_users(project: Path, far: Path) -> None:
    """Nothing of the user's may come before what is installed."""
    spec = load_spec(project / "tiny.yaml")
    assert own_folders(spec) == [str(far)] * (far.name == "src")
    results = tiny_experiment.trained(project / "tiny.yaml", project / "results" / "tiny").folder
    tiny_experiment.tamper(results / "launches" / "0001.json", own_folders=[str(far)])
    import_own_code(Ledger(results))
    if far.name == "site-packages":
        assert sys.path.index(str(far)) < sys.path.index(str(project))


def test_a_missing_file_is_told_with_every_place(
    project: Path, far: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (project, far, tmp_path / "here"):
        shutil.rmtree(place / "tables")
    assert launch_here(LaunchRequest(project / "tiny.yaml")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    begins = f"{project}, beside the spec, and then at {far}, beside the module, and then at {tmp_path / 'here'}"
    assert line.endswith(f"tables/factor.txt: there is no such file (relative paths begin at {begins})")
