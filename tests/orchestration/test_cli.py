"""Commands across experiments, as they are typed: what is wrong is told in one line, with exit status 2."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import tiny_experiment
from launches import NO_MLFLOW
from synthetic_experiment import spec_of
from synthetic_experiment import trained as made_up
from tiny_experiment import tamper

from orchestration import cli

FSG = [sys.executable, "-m", "orchestration.cli"]


def fsg(*words: str | Path) -> tuple[int, str, str]:
    """Exit status, and what was said on the standard output and the standard error."""
    said, complained = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(complained), pytest.raises(SystemExit) as ended:
        cli.main([*map(str, words)])
    return int(ended.value.code or 0), said.getvalue(), complained.getvalue()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results with the experiment `ablation`, its bundle, and things that are neither."""
    folder = tmp_path_factory.mktemp("results")
    made_up(folder / "ablation", spec_of(seeds=(0,)))
    assert fsg("bundle", folder / "ablation") == (0, f"{folder / 'ablation.fsg.zip'}\n", "")
    whole = (folder / "ablation.fsg.zip").read_bytes()
    half = len(whole) // 2
    (folder / "flipped.zip").write_bytes(whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :])
    with zipfile.ZipFile(folder / "other.zip", "w") as archive:
        archive.writestr("notes.txt", "no bundle")
    (folder / "notes.txt").write_text("no archive")
    return folder


WRONG = {
    "diff with a folder that is not there": ("diff ablation nowhere", "nowhere: no launch is recorded there"),
    "diff with a folder of experiments": ("diff . ablation", "no launch is recorded there"),
    "diff with a file": ("diff ablation notes.txt", "notes.txt: no launch is recorded there"),
    "bundle of a folder that is not there": ("bundle nowhere", "nowhere: no launch is recorded there"),
    "bundle over another": ("bundle ablation", "ablation.fsg.zip: is there already .*--output"),
    "bundle into a folder that is not there": ("bundle ablation -o no/x.zip", "no/x.zip: there is no folder .*no"),
    "open what is not there": ("open nowhere.zip", "nowhere.zip: No such file or directory"),
    "open a folder": ("open ablation", "ablation: Is a directory"),
    "open what is no archive": ("open notes.txt", "notes.txt: is damaged, or not a bundle: "),
    "open an archive that is no bundle": ("open other.zip", "other.zip: has no manifest.json: is not a bundle"),
    "open a bundle with a flipped bit": ("open flipped.zip --into out", "flipped.zip: "),
    "open into a folder that is there": ("open ablation.fsg.zip --into ablation", "ablation: is there already"),
    "reproduce in a folder that is not there": ("reproduce nowhere x", "nowhere: no launch is recorded there"),
    "reproduce a cell with a typo": ("reproduce ablation fgs·seed·0", "no such cell .*; did you mean fsg · seed 0"),
    "reproduce no cell": ("reproduce ablation ''", "CELL: several cells begin with that"),
    "report of a folder that is not there": ("report nowhere", "nowhere: no launch is recorded there"),
}


@pytest.mark.parametrize(("typed", "told"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_told_in_one_line(
    results: Path, monkeypatch: pytest.MonkeyPatch, typed: str, told: str
) -> None:
    monkeypatch.chdir(results)
    before = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    status, said, complained = fsg(*("" if word == "''" else word for word in typed.split()))
    assert (status, said, complained.count("\n")) == (2, "", 1), complained
    assert re.search(told, complained), complained
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == before


def newer(results: Path, where: str) -> None:
    """Something that this version knows nothing of, in the records of an experiment's folder."""
    launch, one = results / "launches/0001.json", sorted((results / "trials").glob("*/cell.json"))[-1]
    spec, train = json.loads(launch.read_text())["spec"], json.loads(one.read_text())["train"]
    match where:
        case "report":
            tamper(launch, spec=spec | {"report": spec["report"] | {"tomorrow": 1}})
        case "a cell":
            tamper(one, train=train | {"tomorrow": 1})
        case "a component":
            tamper(one, train=train | {"estimator": {"name": "tomorrow"}})


KNOWN_BY = {
    "report": "report.tomorrow: not known",
    "a cell": "train.tomorrow: not known",
    "a component": "train.estimator: tomorrow not known",
}


@pytest.mark.parametrize(
    ("command", "where"),
    [
        (command, where)
        for command in ("report", "status", "sync", "verify", "diff", "reproduce", "bundle", "plan")
        for where in KNOWN_BY
        if where != "report" or command not in ("verify", "reproduce", "plan")  # they have no use for it
    ],
)
def test_records_of_another_version_are_told_in_one_line(tmp_path: Path, command: str, where: str) -> None:
    made_up(tmp_path / "ablation", spec_of(seeds=(0,)))
    shutil.copytree(tmp_path / "ablation", tmp_path / "newer")
    newer(tmp_path / "newer", where)
    folder, others = tmp_path / "newer", {"diff": [tmp_path / "ablation"], "reproduce": ["ste · seed 0"]}
    words: list[str | Path] = [command, folder, *others.get(command, [])]
    if command == "plan":
        spec = tiny_experiment.written(tmp_path)
        words = [command, spec, "--no-pilot", "--set=name=newer", "--results", tmp_path]
    status, said, complained = fsg(*words)
    assert status in (1, 2), said
    assert KNOWN_BY[where] in complained
    assert "(expected the version of fsg that wrote it)" in complained
    assert complained.count("\n") == 1, complained


def test_a_bundle_says_what_is_in_it_and_leaves_no_folder_unless_asked(results: Path, tmp_path: Path) -> None:
    status, said, _ = fsg("open", results / "ablation.fsg.zip", "--into", tmp_path / "out")
    assert status == 0
    assert "every one as the manifest says" in said
    assert (tmp_path / "out" / "results" / "ablation" / "report.html").is_file()
    assert fsg("diff", results / "ablation", tmp_path / "out" / "results" / "ablation")[1].count(": the same") == 4


@pytest.mark.slow
def test_a_bundle_is_run_again_in_another_place_and_reproduces_every_cell(tmp_path: Path) -> None:
    spec = tiny_experiment.written(tmp_path)
    tiny_experiment.trained(spec, tmp_path / "results" / "tiny")
    packed = tmp_path / "tiny.fsg.zip"
    assert fsg("bundle", tmp_path / "results" / "tiny", "--output", packed)[0] == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(tmp_path / "tiny.npz", elsewhere)  # a bundle has no images
    command = [*FSG, "open", str(packed), "--into", "opened", "--run"]
    no_mlflow = {"MLFLOW_TRACKING_URI": NO_MLFLOW[1], "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    environment = os.environ | no_mlflow | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    run = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    told = run.stdout[run.stdout.index("\nSpec\n") :]
    assert re.findall(r"^  (\S+):$", told, flags=re.MULTILINE) == ["train.data.file", "images"]  # they lie elsewhere
    assert "Code: the same" in told
    assert len(re.findall(r"\+0\.00 .*1 same cells", run.stdout)) == 2, run.stdout
    again = elsewhere / "opened" / "again" / "tiny"
    assert fsg("reproduce", again, "fsg · seed 0")[:1] == (0,)
