"""Each spec that `fsg new` writes is valid as it stands, quick as well as whole, and is not written over another."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fsg.starting_points import Scratch
from fsg.trainer import Training
from orchestration.cli import app
from orchestration.commands.new import KINDS, new
from orchestration.commands.plan import plan
from orchestration.commands.request import LaunchRequest
from orchestration.spec.experiment import load_spec


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("kind", "name"),
    [*((kind, "mine") for kind in KINDS), *((min(KINDS), name) for name in ("2nd-try_of-NAME", "a" * 64))],
)
def test_what_is_written_is_planned_as_it_stands(
    kind: str, name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert new(name, kind, Path()) == 0
    assert f"fsg plan {name}.yaml" in capsys.readouterr().out
    for profile in (None, "quick"):
        spec = load_spec(Path(f"{name}.yaml"), profile)
        assert spec.name == name
        assert spec.question
        request = LaunchRequest(Path(f"{name}.yaml"), profile, results=tmp_path / "results")
        assert plan(request, with_pilot=False) == 0
        out = capsys.readouterr().out
        assert re.search(rf"^\d+ cells, \d+ to run, .*results/{name}", out, flags=re.MULTILINE), out
        assert ("note: " in out) == (profile == "quick"), out
    assert not re.search(
        "NAME|MODULE", Path(f"{name}.yaml").read_text().replace(name, "").replace("2nd_try_of_NAME", "")
    )


def test_the_estimator_that_is_written_trains() -> None:
    assert new("mine", "estimator", Path()) == 0
    (train,) = (point.train for point in load_spec(Path("mine.yaml"), "quick").points if point.variant == "mine")
    training = Training(replace(train, init=Scratch()), 0)
    before = training.model.conv1.weight.detach().clone()
    training.advance()
    assert not bool((training.model.conv1.weight == before).all())
    assert type(training.estimator).__name__ == "Mine"


@pytest.mark.parametrize("there", ["mine.yaml", "mine_estimator.py"])
def test_nothing_is_written_over(there: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(there).write_text("mine")
    assert new("mine", "estimator", Path()) == 2
    assert capsys.readouterr().err == f"{there}: is there already (expected a name that is new)\n"
    assert [path.name for path in Path().iterdir()] == [there]
    assert Path(there).read_text() == "mine"


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a b", "é", "-x", "x.yaml", "a" * 65])
def test_a_name_that_is_none_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert new(name, "ablation", Path()) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_a_kind_that_is_none_names_those_there_are() -> None:
    ran = CliRunner().invoke(app, ["new", "mine", "--kind", "ablatoin"])
    assert ran.exit_code == 2
    assert ran.stderr == "--kind: 'ablatoin' is not one (expected ablation, methods, search, estimator)\n"


@pytest.mark.parametrize(("words", "expected"), [("fsg la", "launch"), ("fsg new x --k", "--kind")])
def test_a_shell_completes_commands_and_options(words: str, expected: str) -> None:
    click = "_".join(["", "FSG", "COMPLETE"])  # as Click documents it
    asked = {click: "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    program = Path(sys.executable).with_name("fsg")
    ran = subprocess.run([program], env=os.environ | asked, capture_output=True, text=True, check=False)
    assert ran.stdout.split() == [expected], ran.stderr
