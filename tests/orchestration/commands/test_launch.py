"""What a launch says of failures, and what it refuses; test_deaths.py and test_outages.py have the worse."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import own_state
import pytest
import torch
from launches import NO_MLFLOW, SPEC, Launched, bring_own_code, ledger_of

from orchestration.commands.launch import launch as launch_here
from orchestration.commands.plan import ExperimentPlan, plan
from orchestration.commands.preflight import find_problems, unmet_resources
from orchestration.commands.request import LaunchRequest
from orchestration.runtime.pilot import Cost, Pilots
from orchestration.spec.cells import Cell, cells
from orchestration.spec.experiment import load_spec
from orchestration.util.provenance import gpu_names


@pytest.mark.slow
@pytest.mark.usefixtures("mlflow_gives_up")
def test_failures_are_named_and_take_nothing_else_with_them(folder: Path, launch: Callable[..., Launched]) -> None:
    bring_own_code(folder)
    unlucky = "{estimator: {import: 'own:Unlucky', what: %s}}"
    names = ["raises", "diverges", "dies_once", "out_of_memory"]
    variants = ", ".join(f"{name}: {unlucky % name}" for name in names)
    text = SPEC.replace("fsg: {estimator: {name: fsg, chunk_size: 8}}, ste: {}", f"{variants}, ste: {{}}")
    text = text.replace("primary: fsg", "primary: dies_once").replace("seeds: [0, 1]", "seeds: [0]")
    text = text.replace("epochs: 20", "epochs: 1").replace("checkpoint_every: 0.3", "max_retries: 1, max_concurrent: 1")
    (folder / "tiny.yaml").write_text(text)
    one = launch(*NO_MLFLOW)
    assert one.wait() == 1, one.text

    planned, ledger = cells(load_spec(Path("tiny.yaml"))), ledger_of(folder)
    outcomes = {cell.variant: ledger.outcome(cell.id) for cell in planned}
    attempts = {cell.variant: len(ledger.attempts(cell.id)) for cell in planned}
    states = {"pretrain": "done", "ste": "done", "dies_once": "done", "diverges": "diverged"}
    assert {name: outcome.state for name, outcome in outcomes.items()} == {
        **dict.fromkeys(names, "failed"),
        **states,
    }, one.text
    assert attempts["raises"] == attempts["diverges"] == 1, "the same code would end the same way"
    assert attempts["dies_once"] == 2
    ends = [attempt["end"] for cell in planned for attempt in ledger.attempts(cell.id) if attempt["end"]]
    assert {end["launch"] for end in ends} == {1}, "those of workers and those of the driver"
    assert outcomes["raises"].reason == "ValueError: an idea that does not work"
    log = outcomes["raises"].log
    assert log is not None
    assert "Traceback" in log.read_text()
    assert "dies_once · seed 0 is retried: the worker's process died" in one.text
    few = "note: 1 seed cannot show a difference of dies_once to ste, whatever comes out"
    assert few in " ".join(one.text.replace("\u00a0", " ").split("done ")[0].split())
    assert outcomes["out_of_memory"].reason.startswith("out of memory: no room")
    lines = one.text.splitlines()
    failed = {line.split()[1]: line for line in lines if line.startswith("failed: ")}
    assert set(failed) == {"raises", "out_of_memory"}
    assert failed["raises"].endswith(f"ValueError: an idea that does not work (log: {log.resolve()})")
    assert failed["out_of_memory"].endswith("out of memory: no room (2 times)")
    assert any(line.startswith("diverged: diverges · seed 0: the loss is nan at step") for line in lines)
    assert "Traceback" not in one.text


@pytest.mark.usefixtures("mlflow_gives_up")
def test_launch_that_ends_with_something_undone_says_what(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(request: LaunchRequest, plan: ExperimentPlan, *rest: Any) -> tuple[list[Cell], list[str]]:
        left, ledger = plan.pending, plan.ledger
        ledger.claim(left[1].id, {}).finish("interrupted", "stopped")
        ledger.claim(left[2].id, {}).finish("failed", "no luck")
        return left, ["tuned"]

    monkeypatch.setattr("orchestration.commands.train.train_on_ray", train)
    monkeypatch.setattr("orchestration.commands.launch._conclude", lambda *rest: None)
    assert launch_here(LaunchRequest(Path("tiny.yaml"), tracking_uri=NO_MLFLOW[1])) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "incomplete" in line)
    left = "pretrain · seed 0 is waiting, pretrain · seed 1 is interrupted, ste · seed 0 is waiting, fsg · seed 1 is"
    assert line == (
        f"The launch is incomplete: {left} waiting, 1 more, the search of tuned came to no choice. "
        f"To resume: fsg launch tiny.yaml {shlex.join(NO_MLFLOW)}"
    )


@pytest.mark.usefixtures("mlflow_gives_up")
@pytest.mark.parametrize(
    ("ended", "status"), [({}, 1), ({"ste": "done"}, 0), ({"fsg": "done"}, 0), ({"pretrain": "done"}, 1)]
)
def test_launch_that_measures_no_pair_has_failed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ended: dict[str, str], status: int
) -> None:
    def train(request: LaunchRequest, plan: ExperimentPlan, *rest: Any) -> tuple[list[Cell], list[str]]:
        for cell in plan.cells:
            attempt = plan.ledger.claim(cell.id, {})
            attempt.weights("final.pt", b"")
            attempt.finish(ended.get(cell.variant, "diverged"))  # type: ignore[arg-type]
        return plan.cells, []

    monkeypatch.setattr("orchestration.commands.train.train_on_ray", train)
    monkeypatch.setattr("orchestration.commands.launch._conclude", lambda *rest: None)
    request = LaunchRequest(Path("tiny.yaml"), tracking_uri=NO_MLFLOW[1])
    assert launch_here(request) == status
    (record,) = ledger_of(folder).folder.glob("launches/0001-end.json")
    assert f'"exit_status": {status}' in record.read_text()
    assert launch_here(request) == status, "again, with all of it done"
    assert {one.launch for one in ledger_of(folder).endings()} == {1}


@pytest.mark.usefixtures("mlflow_gives_up")
def test_a_launch_whose_record_is_damaged_or_missing_is_told_by_plan_and_launch(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestration.commands.launch.train", lambda *rest: 1)
    monkeypatch.setattr("orchestration.commands.launch._conclude", lambda *rest: None)
    request = LaunchRequest(Path("tiny.yaml"), tracking_uri=NO_MLFLOW[1])
    for _ in range(3):
        assert launch_here(request) == 1
    assert "launches/" not in capsys.readouterr().out
    launches = ledger_of(folder).folder / "launches"
    (launches / "0002.json").write_text("{")
    (launches / "0003.json").unlink()
    for run in (lambda: plan(request, with_pilot=False), lambda: launch_here(request)):
        run()
        told = " ".join(capsys.readouterr().out.split())
        for problem in ("0002.json is damaged", "0003.json is missing"):
            assert told.count(f"launches/{problem}: the verdict of the report claims nothing") == 1
    assert (launches / "0004.json").exists(), "0003-end.json speaks of a third launch"


def test_results_that_cannot_be_written_to_are_refused_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "results").write_text("a file")
    assert launch_here(LaunchRequest(Path("tiny.yaml"))) == 2
    assert capsys.readouterr().err == "results/tiny: cannot be written to (Not a directory)\n"


def refused(capsys: pytest.CaptureFixture[str], *sets: str, **options: Any) -> list[str]:
    """The lines that a launch of the tiny spec is refused with, before anything starts."""
    assert launch_here(LaunchRequest(Path("tiny.yaml"), sets=sets, **options)) == 2
    assert not Path("results").exists()
    return capsys.readouterr().err.splitlines()


def test_start_that_is_no_number_is_refused_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = load_spec(Path("tiny.yaml")).trains[0]
    data = train.data.load()
    weights = {
        name: tensor.numpy() for name, tensor in train.model.build(data.shape, data.classes).state_dict().items()
    }
    weights["layer1.0.conv1.weight"] = weights["layer1.0.conv1.weight"] * np.float32("nan")
    np.savez("start.npz", **weights)
    (line,) = refused(capsys, "train.init={name: file, path: start.npz}")
    told = "train.init.path: the weights hold NaN or infinity: layer1.0.conv1.weight (expected finite numbers)"
    assert line.endswith(told)
    (line,) = refused(capsys, "train.model={import: 'own_state:Masked', divisor: 0}", "train.init=scratch")
    assert line.endswith(
        "train.model: the network starts with NaN or infinity in embed.weight (expected finite numbers)"
    )


def test_what_own_data_raise_is_refused_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(capsys, "train.data={import: 'own_state:Broken'}")
    assert line.endswith("train.data: KeyError: 'train_images' (expected images that can be loaded)")
    (line,) = refused(capsys, "train.data={import: 'own_state:Broken', file: mine.npz}")
    places = f"{folder}, beside the spec, and then at {Path(own_state.__file__).parent}, beside the module"
    what = f"there is no such file (relative paths begin at {places})"
    assert line.endswith(f"train.data: mine.npz: {what}")


def test_missing_data_are_refused_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tiny.npz").unlink()
    (line,) = refused(capsys)
    assert line.startswith("tiny.yaml:5:3: train.data: ")
    assert "tiny.npz" in line


@pytest.mark.parametrize(
    "missing", ["train.init={name: file, path: lost.npz}", "train.data={import: 'own_state:Broken', file: lost.npz}"]
)
def test_missing_file_is_told_with_the_places_where_it_was_looked_for(
    folder: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    (folder / "specs").mkdir()
    shutil.copy(folder / "tiny.yaml", folder / "specs")
    assert launch_here(LaunchRequest(Path("specs/tiny.yaml"), sets=[missing])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    module = f", and then at {Path(own_state.__file__).parent}, beside the module" if "own_state" in missing else ""
    places = f"{folder / 'specs'}, beside the spec{module}, and then at {folder}"
    assert line.endswith(f"lost.npz: there is no such file (relative paths begin at {places})")


def test_more_validation_images_than_images_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(capsys, "train.data.validation=1000")
    assert "validation is 1000, expected ≤ 319" in line


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_more_gpus_than_there_are_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(capsys, "resources.gpus=0.5")
    what = "a training asks for 0.5 (expected ≤ 0, the CUDA GPUs of this machine; torch can use none: "
    assert line.startswith(f"--set resources.gpus=0.5: resources.gpus: {what}")


@pytest.mark.parametrize(("asked", "told"), [
    ("1", "a training asks for 1 (expected ≤ 0, the CUDA GPUs of this machine; torch can use none: {why})"),
    ("auto", "auto, and torch cannot use the GPU that is here: {why} (expected 0)"),
])  # fmt: skip
def test_a_gpu_that_torch_cannot_use_is_refused_with_the_reason(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, asked: str, told: str
) -> None:
    """The driver lists one, and CUDA does not start: that is what torch makes of an old driver."""

    def init() -> None:
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by "
            "downloading and installing a new\nversion."
        )

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    (line,) = refused(capsys, f"resources.gpus={asked}")
    why = "The NVIDIA driver on your system is too old (found version 11040)"
    assert line == f"--set resources.gpus={asked}: resources.gpus: {told.format(why=why)}"
    assert gpu_names() == [], "what trains on CPUs can be launched there"


def test_a_plan_says_whose_first_steps_lack_memory(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line a kind, without torch's advice; what else a pilot raises, the launch will tell."""
    errors = {
        "ste": torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 9.50 GiB of which 1.19 MiB "
            "is free. Including non-PyTorch memory, this process has 9.40 GiB memory in use."
        ),
        "fsg": ValueError("an idea that does not work"),
    }

    def measure(pilots: Pilots, cell: Cell) -> Cost:
        if cell.variant in errors:
            raise errors[cell.variant]
        return Cost(0.1, 0.1)

    monkeypatch.setattr(Pilots, "measure", measure)
    plan(LaunchRequest(Path("tiny.yaml")))
    lines = " ".join(capsys.readouterr().out.split())
    assert lines.count("runs out of memory") == 1
    told = "Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 9.50 GiB of which 1.19 MiB is free. "
    assert f"ste · seed 0 runs out of memory in its first steps: CUDA out of memory. {told}" in lines
    assert "Including" not in lines
    assert "an idea" not in lines


def test_more_threads_than_cores_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(capsys, "train.threads=4096")
    assert "train.threads: a training asks for 4096 CPUs (expected ≤ " in line


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (["resources.cpus=9"], "--set resources.cpus=9: resources.cpus: a training asks for 9 CPUs (expected ≤ 8, the"),
        (["resources.gpus=1", "train.threads=5"], "train.threads: a training asks for 5 CPUs (expected ≤ 4, the most"),
        (["train.threads=9"], "--set train.threads=9: train.threads: a training asks for 9 CPUs (expected ≤ 8, the "),
        (["resources.gpus=1", "train.threads=4"], ""),
        (["train.threads=8"], ""),
    ],
)
def test_more_than_any_node_of_a_cluster_has_is_refused(folder: Path, sets: list[str], told: str) -> None:
    """All of them together may have as much."""
    nodes = [{"CPU": 0.0, "GPU": 0.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 0.0}]
    lines = unmet_resources(load_spec(Path("tiny.yaml"), sets=sets), Path("tiny.yaml"), sets, nodes)
    assert len(lines) == bool(told)
    assert told in "".join(lines)


def test_a_gpu_that_no_node_of_a_cluster_has_is_refused(folder: Path) -> None:
    sets = ["resources.gpus=1"]
    (line,) = unmet_resources(
        load_spec(Path("tiny.yaml"), sets=sets), Path("tiny.yaml"), sets, [{"CPU": 4.0, "GPU": 0}]
    )
    assert line.startswith("--set resources.gpus=1: resources.gpus: a training asks for 1 (expected ≤ 0, the most that")


def test_cluster_that_has_no_processors_yet_is_waited_for(folder: Path) -> None:
    assert unmet_resources(load_spec(Path("tiny.yaml")), Path("tiny.yaml"), [], [{"CPU": 0.0, "GPU": 0.0}]) == []


def test_arithmetic_that_this_machine_lacks_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = refused(capsys, "train.precision=tf32")
    assert "train.precision: tf32 needs a GPU (expected fp32, or resources.gpus above 0)" in line
    has: dict[str, bool] = {"avx512_f": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    (line,) = refused(capsys, "train.precision=bf16")
    assert "train.precision: bf16 needs a GPU or a processor with AMX or AVX512-BF16, which this one has not" in line
    for able in ("amx_bf16", "avx512_bf16"):
        has[able] = True
        sets = ["train.precision=bf16"]
        assert find_problems(load_spec(Path("tiny.yaml"), sets=sets), Path("tiny.yaml"), sets) == []
        has[able] = False


def test_weights_that_do_not_fit_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(folder / "other.npz", weight=np.zeros(3))
    text = SPEC.replace("init: {name: pretrain, epochs: 1}", "init: {name: file, path: other.npz}")
    (folder / "tiny.yaml").write_text(text)
    (line,) = refused(capsys)
    assert line.startswith("tiny.yaml:10:22: ")
    assert "train.init.path: the weights do not fit the network: missing" in line


def test_client_mode_of_ray_is_refused_with_a_hint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(capsys, address="ray://head:10001")
    assert (
        "--address: ray://head:10001: Ray's client mode is not supported (expected http://HOST:8265, or on a node"
        in line
    )


def test_mistakes_of_the_spec_are_all_told_and_nothing_starts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = refused(capsys, "train.epochs=-1", "train.optimizer.lr=fast")
    assert len(lines) == 2


def test_plan_shows_every_variant_and_starts_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(LaunchRequest(Path("tiny.yaml")), with_pilot=False) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("pretrain", "fsg", "ste"))
    assert "6 cells, 6 to run" in shown
    assert not Path("results").exists()


def test_plan_names_orphans(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = ledger_of(folder)
    for cell in cells(load_spec(Path("tiny.yaml"), sets=["train.epochs=3"])):
        ledger.add(cell)
    assert plan(LaunchRequest(Path("tiny.yaml")), with_pilot=False) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "orphan: fsg · seed 0" in shown
    assert "orphan: pretrain" not in shown, "the pretraining is the same"


def test_a_password_in_the_tracking_uri_is_neither_kept_nor_printed() -> None:
    command = LaunchRequest(Path("a.yaml"), tracking_uri="https://ada:hunter2@host/mlflow").command
    assert "hunter2" not in command
    assert "host/mlflow" in command
