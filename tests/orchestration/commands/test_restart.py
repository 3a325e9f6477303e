"""A launch whose Ray dies goes on as the same experiment, whatever has become of its spec and its words meanwhile."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from launches import (
    NO_MLFLOW,
    SEARCH,
    SHORT,
    SPEC,
    Launched,
    assert_exact,
    bring_own_code,
    checkpoints,
    ledger_of,
    planned_here,
    processes,
    until,
)
from tiny_experiment import images as other_images
from tiny_experiment import trained, written

import fsg
from orchestration.commands import bundle
from orchestration.commands import launch as launching
from orchestration.commands.plan import ExperimentPlan
from orchestration.commands.request import LaunchRequest, Refused
from orchestration.commands.restart import Restart, restart_process
from orchestration.ledger.ledger import Ledger
from orchestration.runtime.inputs import changed
from orchestration.util.directory import working_in
from orchestration.util.scratch import scratch
from orchestration.util.user_code import other_environment

OTHER = SPEC.replace("seeds: [0, 1]", "seeds: [3, 4, 5]").replace("epochs: 20", "epochs: 2")


@pytest.fixture
def recorded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[ExperimentPlan, Restart]]:
    """Records a launch, and trains nothing: its plan, and what the process would get that takes its place."""

    def record(*sets: str) -> tuple[ExperimentPlan, Restart]:
        begun: list[tuple[LaunchRequest, ExperimentPlan, int]] = []

        def run(request: LaunchRequest, plan: ExperimentPlan, number: int) -> int:
            begun.append((request, plan, number))
            return 0

        monkeypatch.setattr(launching, "run", run)
        assert launching.launch(LaunchRequest(Path("tiny.yaml"), sets=sets, tracking_uri="http://me:secret@host")) == 0
        ((request, plan, number),) = begun
        monkeypatch.setenv("FSG_RESTART", Restart(plan.ledger.folder, number, request).to_text())
        return plan, Restart.of_this_process()

    return record


def same(now: ExperimentPlan, before: ExperimentPlan) -> bool:
    return (now.cells, now.expected, now.spec.resolved(), now.spec.studies, now.pending) == (
        before.cells, before.expected, before.spec.resolved(), before.spec.studies, before.pending,
    )  # fmt: skip


def test_words_of_a_launch_come_through_with_their_passwords_and_nobody_else_gets_them(
    recorded: Callable[..., tuple[ExperimentPlan, Restart]],
) -> None:
    _, restart = recorded("train.epochs=5")
    request = restart.request
    assert (request.source, request.results, request.sets) == (Path("tiny.yaml"), Path("results"), ("train.epochs=5",))
    assert request.tracking_uri == "http://me:secret@host"
    assert request.against is None
    assert request.command == "fsg launch tiny.yaml --set train.epochs=5 --tracking-uri 'http://me:***@host'"
    assert "FSG_RESTART" not in os.environ
    with pytest.raises(ValueError, match="there is no launch to go on with"):
        Restart.of_this_process()


@pytest.mark.parametrize("text", [SPEC, SEARCH])
@pytest.mark.parametrize("edited", [OTHER, "name: [", None])
def test_plan_is_the_recorded_one_whatever_the_file_says_now(
    folder: Path, recorded: Callable[..., tuple[ExperimentPlan, Restart]], text: str, edited: str | None
) -> None:
    (folder / "tiny.yaml").write_text(text)
    plan, restart = recorded("train.batch_size=8")
    (folder / "tiny.yaml").unlink()
    if edited is not None:
        (folder / "tiny.yaml").write_text(edited)
    now, launch = restart.plan(Ledger(restart.folder))
    assert same(now, plan)
    assert now.spec.sha256() == launch["spec_sha256"]


def test_goes_on_in_a_launch_of_its_own_with_the_same_cells(
    folder: Path, recorded: Callable[..., tuple[ExperimentPlan, Restart]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, restart = recorded()
    plan.ledger.record_launch_end(1, {"finished": 1, "exit_status": 1, "reason": "raylet died"})
    (folder / "tiny.yaml").write_text(OTHER)
    monkeypatch.setenv("FSG_RESTART", restart.to_text())
    assert launching.go_on() == 0
    first, second = plan.ledger.launches()
    assert (first["reason"], second["goes_on_from"]) == ("raylet died", 1)
    assert "reason" not in second
    assert plan.ledger.launch_problems() == []
    same_in_both = ("cells", "spec", "spec_text", "inputs", "data", "command", "sets")
    assert [second[name] for name in same_in_both] == [first[name] for name in same_in_both]


def test_images_that_were_changed_meanwhile_are_not_taken_for_those_of_the_launch(
    folder: Path, recorded: Callable[..., tuple[ExperimentPlan, Restart]]
) -> None:
    plan, restart = recorded()
    other_images(folder / "tiny.npz")
    now, launch = restart.plan(Ledger(restart.folder))
    assert same(now, plan)
    (told,) = changed(now.cells[0].train, now.ledger.recorded_inputs(launch["number"]))
    assert told.endswith("tiny.npz was changed since the launch")


def test_own_code_is_found_where_the_spec_was(
    folder: Path, recorded: Callable[..., tuple[ExperimentPlan, Restart]]
) -> None:
    own = "{fsg: {estimator: {import: 'own:Unlucky', what: waits, at: 40}}"
    (folder / "tiny.yaml").write_text(SHORT.replace("{fsg: {estimator: {name: fsg, chunk_size: 8}}", own))
    bring_own_code(folder)
    plan, restart = recorded()
    (folder / "tiny.yaml").unlink()
    now, _ = restart.plan(Ledger(restart.folder))
    assert same(now, plan)


def test_record_that_does_not_hold_is_refused_in_one_line_after_the_start(
    folder: Path,
    recorded: Callable[..., tuple[ExperimentPlan, Restart]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan, restart = recorded()
    with monkeypatch.context() as newer:
        newer.setattr(fsg, "NUMERICS", fsg.NUMERICS + 1)
        with pytest.raises(Refused, match="the code was changed during the launch"):
            restart.plan(Ledger(restart.folder))
    path = plan.ledger.folder / "launches" / "0001.json"
    path.write_text(path.read_text()[:-20])
    monkeypatch.setenv("FSG_RESTART", restart.to_text())
    assert launching.go_on() == 1
    assert (
        capsys.readouterr().err == f"{restart.folder}: launches/0001.json is damaged (expected the launch's record)\n"
    )


def test_what_takes_its_place_begins_where_and_as_the_launch_did(
    folder: Path, recorded: Callable[..., tuple[ExperimentPlan, Restart]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where Ray has died while it was started, from another directory and with another environment."""
    plan, restart = recorded()
    begun: list[tuple[str, dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda program, words, environment: begun.append((os.getcwd(), environment)))
    monkeypatch.setattr(psutil.Process, "children", lambda process, recursive: [])
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with scratch("fsg-", str(folder)) as elsewhere:
        monkeypatch.setenv("OF_A_LIBRARY", f"{elsewhere}/cache")
        changes = {"TMPDIR": str(elsewhere), "RAY_TMPDIR": str(elsewhere)}
        with other_environment(changes), working_in(elsewhere):
            assert os.environ["TMPDIR"] == str(elsewhere)
            restart_process("raylet", restart.request, plan.ledger, restart.number)
    ((where, environment),) = begun
    assert where == str(folder)
    assert environment["TMPDIR"] == "/var/tmp"
    assert not {"RAY_TMPDIR", "OF_A_LIBRARY"} & set(environment), "what names a folder ends with the folder's owner"
    assert plan.ledger.launches()[0]["reason"] == "raylet died"
    monkeypatch.setenv("FSG_RESTART", environment["FSG_RESTART"])
    again = Restart.of_this_process()
    assert (again.folder, again.number) == (restart.folder, restart.number)
    assert again.request.command == restart.request.command


@pytest.mark.slow
@pytest.mark.usefixtures("short", "mlflow_gives_up")
def test_ray_dies_under_a_launch_whose_spec_is_edited_and_then_removed(
    folder: Path, launch: Callable[..., Launched]
) -> None:
    planned, ledger = planned_here(), ledger_of(folder)
    one = launch(*NO_MLFLOW)
    until(lambda: processes(one, "gcs_server"), one)[0].kill()  # Ray itself would wait for it for minutes, or exit
    until(lambda: "Ray's gcs_server died" in one.text, one, 200)
    for name, edit in (
        ("raylet", lambda: (folder / "tiny.yaml").write_text(OTHER)),
        ("gcs_server", (folder / "tiny.yaml").unlink),
    ):
        (victim,) = until(lambda name=name: checkpoints(ledger) and processes(one, name), one)  # type: ignore[misc]
        edit()
        victim.kill()
        told = one.text.count("restarting from the ledger")
        until(lambda told=told: one.text.count("restarting from the ledger") > told, one)  # type: ignore[misc]
    assert one.wait() == 0, one.text
    assert one.text.count("Ray's gcs_server died") == 2
    assert "Traceback" not in one.text
    assert {cell.id for cell in ledger.cells()} == {cell.id for cell in planned}
    assert_exact(ledger, planned)
    assert len({launch["spec_sha256"] for launch in ledger.launches()}) == 1


class Opened:
    """`fsg open BUNDLE --run`."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output.txt"
        words = [sys.executable, "-m", "orchestration.cli", "open", "tiny.fsg.zip", "--run", "--into", "opened"]
        with self.output.open("w") as output:
            self.process = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True)

    @property
    def text(self) -> str:
        return self.output.read_text()


@pytest.fixture
def opened(folder: Path) -> Iterator[Opened]:
    trained(written(folder), folder / "results" / "tiny")
    bundle.pack(folder / "results" / "tiny", folder / "tiny.fsg.zip")
    one = Opened(folder)
    yield one
    with suppress(psutil.Error):
        for process in psutil.Process(one.process.pid).children(recursive=True):
            process.kill()
        one.process.kill()


@pytest.mark.slow
def test_ray_dies_under_a_bundle_that_is_run_again_and_whose_spec_is_gone(folder: Path, opened: Any) -> None:
    ledger = Ledger(folder / "opened" / "again" / "tiny")
    end = time.monotonic() + 300
    while not any(ledger.attempts(cell.id) for cell in ledger.cells()):
        assert opened.process.poll() is None, opened.text
        assert time.monotonic() < end
        time.sleep(0.05)
    (folder / "opened" / "spec.yaml").unlink()
    (folder / "tiny.fsg.zip").unlink()
    processes(opened, "raylet")[0].kill()
    assert opened.process.wait(600) == 0, opened.text
    assert "Traceback" not in opened.text
    assert re.search(r"^Ray's raylet died: restarting from the ledger$", opened.text, flags=re.MULTILINE)
    assert {ledger.outcome(cell.id).state for cell in ledger.cells()} == {"done"}
    assert opened.text.count("1, 1: no pairs, 1 same cells") == 2, "it is compared with what was packed"
