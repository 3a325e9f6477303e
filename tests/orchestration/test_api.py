"""`orchestration.plan` and `orchestration.run`, as a notebook calls them."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_experiment
from launches import NO_MLFLOW

import orchestration
from orchestration import Refused, Results, SpecErrors, api, load_spec, open_results, plan, run
from orchestration.ledger.ledger import Ledger

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def experiment(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the finished tiny experiment."""
    shutil.copytree(tiny_experiment.finished(tmp_path_factory.getbasetemp()), tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def in_place_of_a_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has `run` start a program of the test's."""

    def put(program: str) -> None:
        (tmp_path / "program.py").write_text(program)
        monkeypatch.setattr(api, "LAUNCH", tmp_path / "program.py")

    return put


def test_nothing_is_loaded_before_it_is_used_and_the_command_stays_a_module() -> None:
    program = (
        "import sys, orchestration\n"
        "print(sorted({'torch', 'rich', 'pydantic', 'numpy', 'ray', 'orchestration.api'} & set(sys.modules)))\n"
        "print(set(orchestration.__all__) <= set(dir(orchestration)), hasattr(orchestration, 'Console'))\n"
        "import orchestration.launch\n"
        "print(orchestration.launch.__name__, callable(orchestration.run), 'ray' in sys.modules)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True, text=True)
    assert said.stdout.splitlines() == ["[]", "True False", "orchestration.launch True False"]
    assert all(getattr(orchestration, name) is getattr(api, name) for name in orchestration.__all__)


def test_a_plan_is_made_against_the_ledger_and_leaves_it_alone(experiment: Path, capfd: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in experiment.rglob("*")}
    found = plan("tiny.yaml")
    assert (found.complete, found.pending, found.orphans) == (True, [], ())
    assert repr(found) == "ExperimentPlan(3 cells, all done, in results/tiny)"
    more = plan(load_spec("tiny.yaml", sets=["seeds=[0, 1]"]), results=experiment / "results")
    assert [cell.label for cell in more.pending] == ["pretrain · seed 1", "fsg · seed 1", "ste · seed 1"]
    assert len(plan("tiny.yaml", results="elsewhere").pending) == 3
    assert {path: path.stat().st_mtime_ns for path in experiment.rglob("*")} == before
    assert capfd.readouterr() == ("", "")


REFUSED = {
    "a spec that is not there": (lambda: plan("no.yaml"), SpecErrors, "no.yaml:1:1: cannot be read: No such file"),
    "a mistake in the spec": (
        lambda: plan("tiny.yaml", sets=["train.epoch=1"]),
        SpecErrors,
        r"--set train.epoch=1: train.epoch: .*; did you mean train.epochs\?\)",
    ),
    "a profile that is not there": (
        lambda: run("tiny.yaml", profile="x"),
        SpecErrors,
        "--profile x: profiles: no",
    ),
    "settings that are no list": (
        lambda: load_spec("tiny.yaml", sets="train.epochs=1"),
        SpecErrors,
        r"sets: got 'train.epochs=1' \(expected a list of PATH=VALUE\)",
    ),
    "a resource that is not there": (
        lambda: plan("tiny.yaml", sets=["resources.cpus=4096"]),
        Refused,
        "--set resources.cpus=4096: resources.cpus: a training asks for 4096 CPUs",
    ),
    "settings for a spec that is loaded": (
        lambda: run(load_spec("tiny.yaml"), sets=["train.epochs=1"]),
        Refused,
        r"profile, sets: the spec is loaded already \(expected them in load_spec\)",
    ),
    "a place that is none": (lambda: run("tiny.yaml", results="gs://x"), ValueError, "gs://…: not known"),
    "an address that is none": (
        lambda: run("tiny.yaml", address="ray://x"),
        Refused,
        "--address: ray://x: Ray",
    ),
    "no experiment": (lambda: open_results("results"), ValueError, r"results: no .*; did you mean results/tiny\?\)"),
}


@pytest.mark.parametrize(("asked", "kind", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_wrong_is_one_line(experiment: Path, asked: Callable[[], Any], kind: type, told: str) -> None:
    with pytest.raises(Exception, match=f"^{told}") as refused:
        asked()
    assert type(refused.value) is kind
    assert len(str(refused.value).splitlines()) == 1


def test_a_spec_that_was_edited_since_it_was_loaded_is_refused(experiment: Path) -> None:
    spec = load_spec("tiny.yaml", sets=["seeds=[0, 1]"])
    (experiment / "tiny.yaml").write_text(tiny_experiment.SPEC.replace("batch_size: 16\n  log", "batch_size: 8\n  log"))
    for ask in (plan, run):
        with pytest.raises(Refused, match=r"tiny.yaml: has changed since it was loaded \(expected another load_spec"):
            ask(spec)


@pytest.mark.slow
def test_a_run_of_what_is_done_trains_nothing_and_returns_the_results(
    experiment: Path, mlflow_gives_up: None, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(load_spec("tiny.yaml"), tracking_uri=NO_MLFLOW[1])
    assert isinstance(results, Results)
    assert [(cell["label"], cell["state"], cell["attempts"]) for cell in results.cells()] == [
        (f"{name} · seed 0", "done", 1) for name in ("pretrain", "fsg", "ste")
    ]
    said = capsys.readouterr()
    assert said.out.startswith("3 cells, all done, in results/tiny\n")
    assert "report   results/tiny/report.html" in said.out
    assert said.err == ""


@pytest.mark.slow
def test_a_run_that_would_orphan_finished_cells_needs_a_yes(experiment: Path) -> None:
    with pytest.raises(Refused, match=r"3 finished cells .*\n.*train.log_every: 2 before, 3 now\nnothing was started"):
        run("tiny.yaml", sets=["train.log_every=3"])
    assert len(Ledger(experiment / "results" / "tiny").launches()) == 1


def test_a_run_starts_the_command_with_its_options(experiment: Path, in_place_of_a_launch: Any, capsys: Any) -> None:
    in_place_of_a_launch("import sys\nprint(*sys.argv[1:], sep='\\n')\nprint('a warning', file=sys.stderr)")
    more = {"tracking_uri": "http://mlflow", "address": "auto", "study_storage": "sqlite:///x", "yes": True}
    run("tiny.yaml", sets=["seeds=[0]", "train.epochs=2"], results="results", **more)
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        str(experiment / "tiny.yaml"),
        *("--results", "results", "--tracking-uri", "http://mlflow", "--address", "auto"),
        *("--study-storage", "sqlite:///x", "--set", "seeds=[0]", "--set", "train.epochs=2", "--yes"),
    ]
    assert said.err == "a warning\n"


@pytest.mark.parametrize(
    ("ending", "told"),
    [
        ("sys.exit('The launch stopped: no room')", "The launch stopped: no room"),
        ("os.kill(os.getpid(), 9)", r"the launch ended with status -9 \(expected to resume: run again\)"),
    ],
)
def test_a_launch_that_ends_with_cells_left_is_an_error(
    experiment: Path, in_place_of_a_launch: Any, ending: str, told: str
) -> None:
    in_place_of_a_launch(f"import os, sys\n{ending}")
    shutil.rmtree(next((experiment / "results" / "tiny" / "trials").iterdir()) / "0001")
    with pytest.raises(RuntimeError, match=f"^{told}$"):
        run("tiny.yaml")


def test_cells_that_a_launch_needs_no_more_are_no_error(experiment: Path, in_place_of_a_launch: Any) -> None:
    """The cells of a search's trial that was stopped, say."""
    in_place_of_a_launch("")
    shutil.rmtree(next((experiment / "results" / "tiny" / "trials").iterdir()) / "0001")
    assert sorted(cell["state"] for cell in run("tiny.yaml").cells()) == ["done", "done", "waiting"]


STOPPABLE = """
import os, signal, sys, time
told = 0
def stop(*_):
    global told
    told += 1
    print("told", told, flush=True)
    if told == TWICE:
        sys.exit(130)
signal.signal(signal.SIGINT, stop)
print("ready", os.getpgid(0) != os.getpgid(os.getppid()), flush=True)
while True:
    time.sleep(0.01)
"""


@pytest.mark.parametrize("times", [1, 2])
def test_each_interrupt_is_passed_on_once_and_the_end_is_waited_for(
    experiment: Path, in_place_of_a_launch: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, times: int
) -> None:
    in_place_of_a_launch(STOPPABLE.replace("TWICE", str(times)))
    said: list[str] = []

    def interrupted_at_each_line(line: str, end: str) -> None:
        said.append(line.strip())
        if len(said) <= times:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(api, "print", interrupted_at_each_line, raising=False)
    with pytest.raises(KeyboardInterrupt):
        run("tiny.yaml")
    assert said == ["ready True", *(f"told {n + 1}" for n in range(times))]


SMALLER = {
    '"configs/ablation_hgs.yaml", profile="quick", sets=["seeds=[0,1]"]': '"tiny.yaml"',
    '"results/ablation_hgs-quick"': '"results/tiny"',
}
AFTER = """
assert [cell["state"] for cell in results.cells()] == ["done"] * 3
assert weights["conv1.weight"].shape == (2, 1, 3, 3)
assert [(line.get_label(), len(line.get_xdata())) for line in axes.lines] == [("fsg", 2), ("ste", 2)]
assert [text.get_text() for text in axes.get_legend().get_texts()] == ["fsg", "ste"]
"""


@pytest.mark.slow
def test_the_code_for_a_notebook_runs_as_it_stands(experiment: Path) -> None:
    text = (ROOT / "docs" / "notebook.md").read_text()
    for old, new in SMALLER.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (experiment / "notebook.py").write_text("".join([*blocks, AFTER]))
    more = {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "MLFLOW_TRACKING_URI": NO_MLFLOW[1]}
    more["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    said = subprocess.run([sys.executable, "notebook.py"], env=os.environ | more, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert re.search(r"^fsg · seed 0 done 0\.\d+ \d+ s$", said.stdout, flags=re.MULTILINE)
    assert (experiment / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_cell_that_fails_stands_in_the_results_of_a_run_in_a_thread(
    experiment: Path, in_place_of_a_launch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    in_place_of_a_launch("import sys\nprint('failed: fsg · seed 0: no luck')\nsys.exit(1)")
    (end,) = (
        experiment / f"results/tiny/trials/{cell.id}/0001/end.json"
        for cell in Ledger(experiment / "results" / "tiny").cells()
        if cell.variant == "fsg"
    )
    tiny_experiment.tamper(end, state="failed", reason="no luck")
    found: list[Results] = []
    thread = threading.Thread(target=lambda: found.append(run("tiny.yaml")))
    thread.start()
    thread.join()
    states = {cell["variant"]: cell["state"] for cell in found[0].cells()}
    assert states == {"pretrain": "done", "fsg": "failed", "ste": "done"}
    assert "failed: fsg · seed 0: no luck" in capsys.readouterr().out


@pytest.mark.slow
def test_a_built_package_says_that_it_is_typed(tmp_path: Path) -> None:
    for name in ("fsg", "orchestration"):
        shutil.copytree(ROOT / name, tmp_path / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "source")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "..", "."]
    subprocess.run(build, cwd=tmp_path / "source", check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        assert {"fsg/py.typed", "orchestration/py.typed"} <= set(wheel.namelist())


SCRIPT = """
from torch import Tensor

import orchestration

spec = orchestration.load_spec("tiny.yaml", sets=["seeds=[0]"])
waiting: int = len(orchestration.plan(spec).pending)
results = orchestration.run(spec, results="results", yes=True)
best: float = max(float(cell["test/accuracy"]) for cell in results.cells())
weights: dict[str, Tensor] = results.weights("ste · seed 0")
"""


@pytest.mark.slow
def test_mypy_accepts_a_script_and_sees_a_mistake_in_one(tmp_path: Path) -> None:
    (tmp_path / "right.py").write_text(SCRIPT)
    (tmp_path / "wrong.py").write_text(SCRIPT + "orchestration.run(spec, result='x')\norchestration.laod_spec('x')\n")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", str(tmp_path / "cache")]
    mypy += ["--follow-imports=silent"]
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    files = [str(tmp_path / "right.py"), str(tmp_path / "wrong.py")]
    said = subprocess.run([*mypy, *files], capture_output=True, text=True, env=environment).stdout
    assert "right.py" not in said, said
    assert re.findall(r"\[([\w-]+)\]$", said, flags=re.MULTILINE) == ["call-arg", "attr-defined"], said
