"""Launches as a user starts them: in a process of their own, killed for real."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launches import SPEC, Launched, assert_exact, checkpoints, ledger_of, leftovers, until

from orchestration.commands.launch import launch
from orchestration.commands.plan import ExperimentPlan, plan
from orchestration.commands.preflight import unmet_resources
from orchestration.commands.request import LaunchRequest
from orchestration.spec.cells import Cell, cells
from orchestration.spec.experiment import load_spec


@pytest.mark.slow
def test_interrupted_launch_goes_on_and_ends_bit_for_bit_like_an_undisturbed_one(
    folder: Path, launch: Callable[..., Launched], capsys: pytest.CaptureFixture[str]
) -> None:
    planned, ledger = cells(load_spec(Path("tiny.yaml"))), ledger_of(folder)
    first = launch()
    until(lambda: ledger.launches(), first)
    assert launch(LaunchRequest(Path("tiny.yaml"))) == 2
    assert f"is locked by process {first.process.pid} on " in capsys.readouterr().err

    until(lambda: checkpoints(ledger), first)
    first.ctrl_c()
    assert first.wait() == 130, first.text
    assert first.text.splitlines()[-1] == "Interrupted. To resume: fsg launch tiny.yaml"
    assert leftovers(first) == []
    states = {ledger.outcome(cell.id).state for cell in planned}
    assert "interrupted" in states
    assert "running" not in states

    second = launch()
    assert second.wait() == 0, second.text
    assert_exact(ledger, planned, folder)
    assert any(len(ledger.attempts(cell.id)) == 2 for cell in planned)
    assert "report   results/tiny/report.html" in second.text
    assert Path("results/tiny/report.html").exists()
    assert [record["exit_status"] for record in ledger.launches()] == [130, 0]

    attempts = {cell.id: len(ledger.attempts(cell.id)) for cell in planned}
    assert launch(LaunchRequest(Path("tiny.yaml"))) == 0
    assert {cell.id: len(ledger.attempts(cell.id)) for cell in planned} == attempts
    assert "6 cells, all done, in results/tiny" in capsys.readouterr().out


def test_failures_are_named_and_take_nothing_else_with_them(folder: Path, launch: Callable[..., Launched]) -> None:
    shutil.copy(Path(__file__).parents[1] / "unlucky.py", folder / "own.py")
    unlucky = "{estimator: {import: 'own:Unlucky', what: %s}}"
    names = ["raises", "diverges", "dies_once", "out_of_memory"]
    variants = ", ".join(f"{name}: {unlucky % name}" for name in names)
    text = SPEC.replace("fsg: {estimator: {name: fsg, chunk_size: 8}}, ste: {}", f"{variants}, ste: {{}}")
    text = text.replace("primary: fsg", "primary: dies_once").replace("seeds: [0, 1]", "seeds: [0]")
    text = text.replace("epochs: 20", "epochs: 1").replace("checkpoint_every: 0.3", "max_retries: 1, max_concurrent: 1")
    (folder / "tiny.yaml").write_text(text)
    one = launch()
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
    assert outcomes["raises"].reason == "ValueError: an idea that does not work"
    log = outcomes["raises"].log
    assert log is not None
    assert "Traceback" in log.read_text()
    assert "dies_once · seed 0 is retried: the worker's process died" in one.text
    assert outcomes["out_of_memory"].reason.startswith("out of memory: no room")
    lines = one.text.splitlines()
    failed = {line.split()[1]: line for line in lines if line.startswith("failed: ")}
    assert set(failed) == {"raises", "out_of_memory"}
    assert failed["raises"].endswith(f"ValueError: an idea that does not work (log: {log.resolve()})")
    assert failed["out_of_memory"].endswith("out of memory: no room (2 times)")
    assert any(line.startswith("diverged: diverges · seed 0: the loss is nan at step") for line in lines)
    assert "Traceback" not in one.text


@pytest.mark.slow
def test_launch_whose_driver_is_killed_goes_on_exactly(folder: Path, launch: Callable[..., Launched]) -> None:
    planned, ledger = cells(load_spec(Path("tiny.yaml"))), ledger_of(folder)
    for _ in range(3):
        one = launch()
        until(partial(checkpoints, ledger), one)
        one.process.kill()
        one.wait()
    last = launch()
    assert last.wait() == 0, last.text
    assert_exact(ledger, planned, folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_cell_whose_worker_is_killed_goes_on_exactly(
    folder: Path, launch: Callable[..., Launched], number: signal.Signals
) -> None:
    planned, ledger = cells(load_spec(Path("tiny.yaml"))), ledger_of(folder)
    one = launch()
    killed: list[str] = []
    for _ in range(2):
        until(lambda: [cell for cell in checkpoints(ledger) if cell.id not in killed], one)
        cell = next(cell for cell in checkpoints(ledger) if cell.id not in killed)
        os.kill(ledger.attempts(cell.id)[-1]["pid"], number)
        killed.append(cell.id)
    assert one.wait() == 0, one.text
    assert_exact(ledger, planned, folder)
    assert "goes again: the worker's process died" in one.text


@pytest.mark.slow
def test_cell_whose_worker_always_dies_fails_with_the_reason(folder: Path, launch: Callable[..., Launched]) -> None:
    shutil.copy(Path(__file__).parents[1] / "unlucky.py", folder / "own.py")
    dies = "{estimator: {import: 'own:Unlucky', what: dies}}"
    text = SPEC.replace("{estimator: {name: fsg, chunk_size: 8}}", dies).replace("seeds: [0, 1]", "seeds: [0]")
    (folder / "tiny.yaml").write_text(text.replace("checkpoint_every: 0.3", "max_retries: 1"))
    one = launch()
    assert one.wait() == 1, one.text
    planned, ledger = cells(load_spec(Path("tiny.yaml"))), ledger_of(folder)
    outcomes = {cell.variant: ledger.outcome(cell.id) for cell in planned}
    states = {name: outcome.state for name, outcome in outcomes.items()}
    assert states == {"pretrain": "done", "ste": "done", "fsg": "failed"}
    assert outcomes["fsg"].reason.startswith("the worker's process died")
    assert outcomes["fsg"].attempts == 3, "two that died, and one of the driver's that says so"


@pytest.mark.slow
def test_second_ctrl_c_ends_at_once_and_nothing_is_lost(folder: Path, launch: Callable[..., Launched]) -> None:
    planned, ledger = cells(load_spec(Path("tiny.yaml"))), ledger_of(folder)
    one = launch()
    until(lambda: checkpoints(ledger), one)
    one.ctrl_c()
    time.sleep(0.3)
    one.ctrl_c()
    assert one.wait(60) == 130, one.text
    assert "Traceback" not in one.text
    last = launch()
    assert last.wait() == 0, last.text
    assert_exact(ledger, planned, folder)


def test_launch_that_ends_with_something_undone_says_what(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(request: LaunchRequest, plan: ExperimentPlan, *rest: Any) -> tuple[list[Cell], list[str]]:
        left, ledger = plan.pending, plan.ledger
        ledger.claim(left[1].id, {}).finish("interrupted", "stopped")
        ledger.claim(left[2].id, {}).finish("failed", "no luck")
        return left, ["tuned"]

    monkeypatch.setattr("orchestration.commands.train.train_on_ray", train)
    assert launch(LaunchRequest(Path("tiny.yaml"))) == 1
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "incomplete" in line)
    left = "pretrain · seed 0 is waiting, pretrain · seed 1 is interrupted, ste · seed 0 is waiting, fsg · seed 1 is"
    assert line == (
        f"The launch is incomplete: {left} waiting, 1 more, the search of tuned came to no choice. "
        "To resume: fsg launch tiny.yaml"
    )


def test_results_that_cannot_be_written_to_are_refused_in_one_line(
    folder: Path, launch: Callable[..., Launched]
) -> None:
    (folder / "results").write_text("a file")
    one = launch()
    assert one.wait() == 2
    assert one.text == "results/tiny: cannot be written to (Not a directory)\n"


def refused(capsys: pytest.CaptureFixture[str], *sets: str, **options: Any) -> list[str]:
    """The lines that a launch of the tiny spec is refused with, before anything starts."""
    assert launch(LaunchRequest(Path("tiny.yaml"), sets=sets, **options)) == 2
    assert not Path("results").exists()
    return capsys.readouterr().err.splitlines()


def test_missing_data_are_refused_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tiny.npz").unlink()
    (line,) = refused(capsys)
    assert line.startswith("tiny.yaml:5:3: train.data: ")
    assert "tiny.npz" in line


def test_more_validation_images_than_images_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(capsys, "train.data.validation=1000")
    assert "validation is 1000, expected ≤ 319" in line


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_more_gpus_than_there_are_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(capsys, "resources.gpus=0.5")
    what = "a training asks for 0.5 (expected ≤ 0, the CUDA GPUs of this machine)"
    assert line == f"--set resources.gpus=0.5: resources.gpus: {what}"


def test_more_threads_than_cores_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(capsys, "train.threads=4096")
    assert "train.threads: a training asks for 4096 CPUs (expected ≤ " in line


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (["resources.gpus=2"], "--set resources.gpus=2: resources.gpus: a training asks for 2 (expected ≤ 1, the most"),
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


def test_cluster_that_has_no_processors_yet_is_waited_for(folder: Path) -> None:
    assert unmet_resources(load_spec(Path("tiny.yaml")), Path("tiny.yaml"), [], [{"CPU": 0.0, "GPU": 0.0}]) == []


def test_arithmetic_of_gpus_is_refused_without_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(capsys, "train.precision=bf16")
    assert "train.precision: bf16 needs a GPU (expected fp32, or resources.gpus above 0)" in line


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
