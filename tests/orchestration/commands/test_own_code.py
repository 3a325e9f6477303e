"""A component of the user's own that consists of several files: every command knows them all, and finds them again."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import scipy
import tiny_experiment
from rich.console import Console
from tiny_experiment import planned
from undrawn import leave_figures_empty

import fsg
from orchestration.commands.bundle import BundleError, check, pack, unpack
from orchestration.commands.diff import differences
from orchestration.commands.orphans import confirm_orphans
from orchestration.commands.plan import compare, plan
from orchestration.commands.report import report
from orchestration.commands.reproduce import reproduce_cell
from orchestration.commands.request import LaunchRequest
from orchestration.commands.verify import verify
from orchestration.ledger.ledger import Ledger
from orchestration.report.data import build
from orchestration.runtime.cell_training import CellTraining
from orchestration.scheduler import nodes
from orchestration.spec.cells import Cell
from orchestration.spec.experiment import load_spec
from orchestration.util.user_code import import_from

OWN = """
from dataclasses import dataclass
from pathlib import Path

from fsg import STE
from fsg.config import setting
from own_helpers.factor import FACTOR
from scipy import stats

class Scaled(STE):
    @dataclass(frozen=True, kw_only=True)
    class Config(STE.Config):
        table: str = setting("", "Where the factor is.")
        def build(self, model):
            return Scaled(model, self)

    def __init__(self, model, config):
        super().__init__(model, config)
        self.factor = FACTOR * float(Path(config.table).read_text())

    def update(self, model):
        wrote = super().update(model)
        for layer in self.layers.values():
            layer.weight.grad.mul_(self.factor)
        return wrote
"""
SPEC = """
name: tiny
train:
  data: {name: arrays, file: tiny.npz, validation: 16, crop_padding: 1}
  model: {name: resnet, depth: 8, width: 2}
  epochs: 1
  batch_size: 16
variants: {ste: {}, own: {estimator: {import: "own_estimator:Scaled", table: factor.txt}}}
seeds: [0]
report: {baseline: ste, primary: own}
"""
HELPER = "own_helpers/factor.py"
ONE_FILE = """
from dataclasses import dataclass

from fsg import STE
from fsg.config import setting

class Mine(STE):
    @dataclass(frozen=True, kw_only=True)
    class Config(STE.Config):
        strength: float = setting(1.0, "Of nothing.", gt=0)
"""


def forget() -> None:
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The modules are imported anew, and the figures of reports stay empty."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    leave_figures_empty(monkeypatch)
    forget()
    yield
    forget()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = written(tmp_path_factory.mktemp("own"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        forget()
        tiny_experiment.trained(folder / "tiny.yaml", folder / "results" / "tiny")
    return folder


def written(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    tiny_experiment.images(folder / "tiny.npz")
    (folder / "own_helpers").mkdir()
    for name, text in {
        "tiny.yaml": SPEC,
        "own_estimator.py": OWN,
        HELPER: "FACTOR = 2.0\n",
        "factor.txt": "0.5",
    }.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def moved(finished: Path, tmp_path: Path) -> Path:
    """A copy of the whole folder; the images stay where they were."""
    return Path(shutil.copytree(finished, tmp_path / "moved"))


def own_cell(folder: Path) -> Cell:
    return next(cell for cell in Ledger(folder / "results" / "tiny").cells() if cell.variant == "own")


def run(*arguments: str, at: Path) -> subprocess.CompletedProcess[str]:
    """`fsg …` in a process of its own, elsewhere."""
    command = [sys.executable, "-c", "from orchestration.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=at, capture_output=True, text=True, check=False)


def test_a_component_of_one_file_has_the_id_that_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded before other files counted."""
    monkeypatch.setattr(fsg, "NUMERICS", 1)
    tiny_experiment.images(tmp_path / "tiny.npz")
    (tmp_path / "own_of_one_file.py").write_text(ONE_FILE)
    (tmp_path / "tiny.yaml").write_text(
        SPEC.replace('"own_estimator:Scaled", table: factor.txt', '"own_of_one_file:Mine", strength: 2.0')
    )
    assert [cell.id for cell in planned(tmp_path / "tiny.yaml")] == ["56b4b2d25c0dedcd", "5765a9ff18cf7194"]


def test_attempts_have_the_versions_of_what_a_component_imports(finished: Path) -> None:
    ledger = Ledger(finished / "results" / "tiny")
    found = {cell.variant: ledger.attempts(cell.id)[0]["libraries"] for cell in ledger.cells()}
    assert found == {"own": {"scipy": scipy.__version__}, "ste": {}}


def test_a_node_compares_the_files_with_the_drivers(moved: Path) -> None:
    import_from(str(moved))
    (record,) = nodes._own(Ledger(moved / "results" / "tiny").cells())
    (moved / HELPER).write_text("FACTOR = -2.0\n")
    wanted: dict[str, Any] = {"versions": {}, "record": str(moved), "results": "", "directory": "", "python_path": []}
    assert nodes._look(wanted | {"inputs": [], "bf16": False, "own": [record]}) == [
        f"own_estimator:Scaled: {HELPER} is another than the driver's"
    ]


def test_an_edit_of_any_file_makes_another_cell(finished: Path, moved: Path) -> None:
    ids = {own_cell(finished).id}
    for name, text in {HELPER: "FACTOR = -2.0\n", "factor.txt": "0.25", "own_helpers/__init__.py": "x = 1\n"}.items():
        forget()
        sys.path[:] = [path for path in sys.path if path != str(moved)]
        (moved / name).write_text(text)
        (one,) = [cell.id for cell in planned(moved / "tiny.yaml") if cell.variant == "own"]
        ids.add(one)
    assert len(ids) == 4


def test_an_edit_in_the_middle_of_a_training_is_named_at_resume(moved: Path) -> None:
    one = own_cell(moved)
    ledger = Ledger(moved / "again")
    ledger.add(one)
    import_from(str(moved))
    training = CellTraining(ledger, one, checkpoint_every=0.0)
    for _ in range(3):
        training.run_for(0.0)
    (moved / HELPER).write_text("FACTOR = -2.0\n")
    resumed = CellTraining(ledger, one)
    resumed.run_for(1000)
    assert resumed.ended == "failed"
    said = f"own_estimator:Scaled was edited since the launch ({HELPER}); another launch trains what it is now"
    assert resumed.reason == f"RuntimeError: {said}"


def test_a_launch_says_which_unfinished_cells_start_anew_and_why(
    moved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    spec = load_spec(moved / "tiny.yaml")
    for end in (moved / "results" / "tiny" / "trials" / own_cell(moved).id).glob("*/end.json"):
        end.unlink()
        ledger = Ledger(moved / "results" / "tiny")
        cut = ledger.claim(own_cell(moved).id, {})
        cut.record([])
        cut.checkpoint(b"state", 3)
        cut.finish("interrupted")
    (moved / HELPER).write_text("FACTOR = -2.0\n")
    spec = load_spec(moved / "tiny.yaml")
    ledger = Ledger(moved / "results" / "tiny")
    confirm_orphans(LaunchRequest(moved / "tiny.yaml", console=Console()), compare(spec, ledger))
    head, line = capsys.readouterr().out.splitlines()
    assert "1 unfinished cells" in head
    assert line.startswith(f"  own · seed 0: train.estimator.files_sha256.{HELPER}: ")


def test_plan_names_the_file_that_makes_an_orphan(
    moved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    (moved / "factor.txt").write_text("0.25")
    assert plan(LaunchRequest(moved / "tiny.yaml", results=moved / "results", console=Console()), with_pilot=False) == 0
    said = f"orphan: own · seed 0 ({own_cell(moved).id}, done) has other settings, code or data"
    assert f"{said}: train.estimator.files_sha256.factor.txt\n" in capsys.readouterr().out


def test_verify_and_reproduce_name_the_file_that_was_edited(
    moved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    results = moved / "results" / "tiny"
    shutil.rmtree(results / "trials" / next(c.id for c in Ledger(results).cells() if c.variant == "ste"))
    said = f"own_estimator:Scaled was edited since the launch ({HELPER})"
    tiny_experiment.tamper(results / "launches" / "0001.json", spec_source=str(moved / "tiny.yaml"))
    (moved / HELPER).write_text("FACTOR = -2.0\n")
    assert verify(results) == 1
    out = capsys.readouterr().out
    assert "DIFFERS  own · seed 0" in out
    assert f"\n         {said}\n" in out
    shutil.rmtree(out.split("kept in ")[1].split("\n")[0].strip())
    with pytest.raises(
        ValueError, match=r"own · seed 0: own_estimator:Scaled was edited since the launch \(own_helpers"
    ):
        reproduce_cell(results, "own · seed 0")


def test_a_moved_project_finds_its_own_code_from_anywhere(moved: Path, finished: Path, tmp_path: Path) -> None:
    """The folder of the launch is gone, but for the images."""
    results = moved / "results" / "tiny"
    tiny_experiment.tamper(results / "launches" / "0001.json", spec_source="/nowhere/tiny.yaml")
    done = run("reproduce", str(results), "own · seed 0", at=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "own · seed 0: agrees bit for bit" in done.stdout


def test_a_bundle_carries_every_file_and_reproduces_from_it(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack(finished / "results" / "tiny", tmp_path / "tiny.fsg.zip")
    assert {"own_estimator.py", HELPER, "factor.txt"} <= set(zipfile.ZipFile(packed).namelist())
    unpack(check(packed), tmp_path / "opened")
    results = tmp_path / "opened" / "results" / "tiny"
    tiny_experiment.tamper(results / "launches" / "0001.json", spec_source="/nowhere/tiny.yaml")
    monkeypatch.chdir(tmp_path)
    sys.path[:] = [folder for folder in sys.path if not Path(folder).is_relative_to(finished)]
    forget()
    assert reproduce_cell(results, "own · seed 0").bit_for_bit
    assert all(
        Path(str(module.__file__)).is_relative_to(tmp_path / "opened")
        for name, module in sys.modules.items()
        if name.startswith("own_") and module.__file__
    )


def test_a_bundle_is_not_made_of_other_files_than_were_trained(moved: Path, tmp_path: Path) -> None:
    tiny_experiment.tamper(moved / "results" / "tiny" / "launches" / "0001.json", spec_source=str(moved / "tiny.yaml"))
    (moved / "factor.txt").write_text("7")
    with pytest.raises(BundleError, match=r"own_estimator:Scaled was edited since the launch \(factor\.txt\)"):
        pack(moved / "results" / "tiny", tmp_path / "tiny.fsg.zip")
    assert not (tmp_path / "tiny.fsg.zip").exists()


def test_diff_and_report_name_the_files(finished: Path, moved: Path) -> None:
    before = Ledger(finished / "results" / "tiny")
    (moved / HELPER).write_text("FACTOR = -2.0\n")
    after = tiny_experiment.trained(moved / "tiny.yaml", moved / "others" / "tiny")
    fields = [change.field for change in differences(before, after).changes["Spec"]]
    assert fields == ["train.data.file", f"variants.own: estimator.files_sha256.{HELPER}"]
    own = build(after).provenance["Own code"]
    digests = [line.split(" SHA-256 ") for line in own.split(", ")]
    assert [name for name, _ in digests] == ["own_estimator:Scaled", HELPER, "factor.txt"]


DATA = """
from dataclasses import dataclass
import numpy as np
from fsg.config import setting
from fsg.data import Images, RawImages

@dataclass(frozen=True, kw_only=True)
class Mine(Images):
    file: str = setting("tiny.npz", "Where they are.")

    def read(self):
        found = np.load(self.file)
        return RawImages(*(found[name] for name in ("train_images", "train_labels", "test_images", "test_labels")))
"""


def test_where_own_code_is_gone_a_report_is_read_and_the_rest_says_so_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of the user's own, read beside the spec wherever the process is."""
    project = tmp_path / "project"
    written(project)
    (project / "own_data.py").write_text(DATA)
    text = SPEC.replace("{name: arrays, file: tiny.npz,", '{import: "own_data:Mine", file: tiny.npz,')
    (project / "tiny.yaml").write_text(text)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    results = tiny_experiment.trained(project / "tiny.yaml", tmp_path / "results" / "tiny").folder
    assert reproduce_cell(results, "ste · seed 0").bit_for_bit
    shutil.rmtree(project)
    sys.path[:] = [path for path in sys.path if path != str(project)]
    forget()
    assert report(results) == 0
    capsys.readouterr()
    assert verify(results) == 2
    assert capsys.readouterr().err == f"{results}: cannot import 'own_data:Mine': No module named 'own_data'\n"
    with pytest.raises(ValueError, match="ste · seed 0: cannot import 'own_data:Mine'"):
        reproduce_cell(results, "ste · seed 0")
    with pytest.raises(BundleError, match="cannot import 'own_estimator:Scaled'"):
        pack(results)
