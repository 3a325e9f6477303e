"""`make gpu` as far as it goes without a GPU: what it compares, what it says, and that a part which fails is told."""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import outcomes, parts
from fsg import gpu
from fsg.estimators import EstimatorConfig
from fsg.imported import Imported
from fsg.optimizers import OptimizerConfig
from fsg.quantizers import QuantizerConfig

sys.path.append(str(Path(__file__).with_name("gpu")))
import cases

PAGE = command.ROOT / "docs" / "performance.md"


@pytest.mark.parametrize("case", ["ste dorefa adam", "fsg sign momentum", "lstmfc bwn sgd"])
def test_the_tolerance_is_for_sums_in_another_order_and_for_no_more(case: str) -> None:
    """Other convolutions of the CPU stay within it; a learning rate that is half too large does not."""
    settings = cases.config(case)
    exact = cases.losses(settings, "cpu")
    with torch.backends.mkldnn.flags(enabled=False, deterministic=None, allow_tf32=None):
        others = cases.losses(settings, "cpu")
    assert 0 < cases.disagreement(exact, others) < cases.tolerance(case)
    faster = replace(settings, optimizer=replace(settings.optimizer, lr=1.5 * settings.optimizer.lr))
    assert cases.disagreement(exact, cases.losses(faster, "cpu")) > cases.tolerance(case)


def test_every_choice_of_the_library_is_among_the_cases() -> None:
    unions = {"estimator": EstimatorConfig, "quantizer": QuantizerConfig, "optimizer": OptimizerConfig}
    for part, union in unions.items():
        assert {type(way) for way in cases.PARTS[part].values()} == set(get_args(union)) - {Imported}, part
    assert len(cases.CASES) == len(set(cases.CASES)) > 200


def test_bytes_are_those_of_the_whole_training() -> None:
    assert cases.digest("ste dorefa adam", "cpu") == cases.digest("ste dorefa adam", "cpu")
    assert cases.digest("ste sign bop", "cpu") != cases.digest("ste dorefa adam", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="NOT RUN: there is a GPU here")
def test_without_a_gpu_it_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert command.main() == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("NOT RUN make gpu: ")


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 9), ["sm_80"], True),
        ((8, 0), ["sm_86", "sm_90"], False),
        ((7, 0), ["sm_75", "sm_80"], False),
        ((12, 1), ["sm_120", "compute_120"], True),
        ((13, 0), ["sm_120", "compute_120"], True),
        ((13, 0), ["sm_120"], False),
        ((9, 4), ["gfx942"], True),
    ],
)
def test_a_gpu_wants_code_of_its_own_major_version_or_what_is_compiled_for_later_ones(
    capability: tuple[int, int], architectures: list[str], runs: bool
) -> None:
    assert gpu.runs_on(capability, architectures) == runs


def test_a_gpu_without_code_for_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    assert gpu.why_no_gpu() == "this torch has no code for a GPU of compute capability 7.0 (it has sm_75, sm_80)"
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_70"])
    assert gpu.why_no_gpu() == ""


def test_a_command_whose_time_is_over_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    program = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    ended = command.run([sys.executable, "-c", program], 1.0, {}, tmp_path / "log")
    assert ended.status is None
    assert ended.ending.startswith("stopped after")
    deadline = time.monotonic() + 10
    while _alive(int(ended.out)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_rows_that_a_part_does_not_come_to_are_not_run_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> command.Ended:
        return command.Ended(
            1, '{"what": "a", "milliseconds_a_step": 2.0}\nnoise\nCUDA error: an illegal access\n', 3.0
        )

    monkeypatch.setattr(command, "run", run)
    measured, lost = command.rows_of("steps", ["a", "b"], "cuda", 10.0, tmp_path)
    assert measured == {"what": "a", "milliseconds_a_step": 2.0}
    assert lost == {"what": "b", "not_run": "ended with status 1: CUDA error: an illegal access", "failed": True}


SUITE = """
import os, pytest
pytestmark = pytest.mark.gpu
def test_good(): assert os.environ["FSG_GPU_DEVICE"] == "cpu"
def test_bad(): assert 1 == 2
def test_left(): pytest.skip("NOT RUN: no such thing")
"""


def test_the_suites_outcomes_are_counted_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_it.py").write_text(SUITE)
    monkeypatch.setattr(command, "TESTS", (str(tmp_path / "test_it.py"),))
    tests = command.suite("cpu", 60.0, tmp_path)
    assert tests["passed"] == 1
    (failed,), (left,) = tests["failed"], tests["not_run"]
    assert failed.endswith("test_it.py::test_bad")
    assert left.endswith("test_it.py::test_left")
    assert (tests["failed"][failed], tests["not_run"][left]) == ("assert 1 == 2", "no such thing")
    rows = [{"what": "STE", "milliseconds_a_step": 2.5}, {"what": "FSG", "not_run": "no time"}]
    lines = command.table("A GPU", {"suite": tests, "rows": rows}, parts.COLUMNS).splitlines()
    assert lines[0] == "A GPU"
    assert "ms a step" in lines[2]
    assert lines[3].split() == ["STE", "2.5"]
    assert "GPU suite: 1 passed, 1 failed, 1 NOT RUN" in lines[5]
    assert lines[6:8] == [f"NOT RUN {left}: no such thing", "NOT RUN FSG: no time"]
    assert lines[8].startswith(f"FAILED {failed}: ")


def test_a_suite_that_does_not_end_by_itself_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its tests said before is kept."""

    def stopped(_: object, seconds: float, environment: dict[str, str], log: Path) -> command.Ended:
        assert time.time() + 40 < float(environment["FSG_GPU_UNTIL"]) < time.time() + seconds - 9
        Path(environment["FSG_GPU_OUTCOMES"]).write_text('{"test": "a", "outcome": "passed", "why": ""}\n')
        return command.Ended(None, "", 60.0)

    monkeypatch.setattr(command, "run", stopped)
    tests = command.suite("cpu", 60.0, tmp_path)
    assert (tests["passed"], tests["failed"]) == (1, {"the suite": "stopped after 60 s"})
    monkeypatch.setattr(command, "run", lambda *_: command.Ended(4, "no such file\n", 1.0))
    assert command.suite("cpu", 60.0, tmp_path)["failed"] == {"the suite": "ended with status 4: no such file"}


def test_tests_that_are_left_when_the_time_is_over_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSG_GPU_UNTIL", str(time.time() - 1))
    with pytest.raises(pytest.skip.Exception, match="NOT RUN: the time of the suite is over"):
        outcomes.pytest_runtest_setup()
    monkeypatch.setenv("FSG_GPU_UNTIL", str(time.time() + 60))
    outcomes.pytest_runtest_setup()


def test_an_error_fails_the_bench_and_a_gpu_that_is_too_small_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("no deterministic\n way"), None])

    def started(*_: object) -> parts.Running:
        if (error := next(errors)) is not None:
            raise error
        return parts.Running(lambda: None, "", None)

    monkeypatch.setattr(parts, "started", started)
    monkeypatch.setattr(parts, "STEPS", dict(list(parts.STEPS.items())[:3]))
    small, wrong, measured = parts.steps(Path("absent.npz"), "cpu", 60.0)
    assert small["not_run"] == "OutOfMemoryError: CUDA out of memory."
    assert (wrong["not_run"], small["failed"], wrong["failed"]) == ("RuntimeError: no deterministic way", False, True)
    assert measured["milliseconds_a_step"] > 0
    assert "over_plain" not in measured, "the plain loop was not measured"


def test_the_choice_of_a_scan_is_for_its_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSG_SCAN", "torch")
    with parts.scan("mamba-ssm"):
        assert os.environ["FSG_SCAN"] == "mamba-ssm"
    assert os.environ["FSG_SCAN"] == "torch"
    with parts.scan(""):
        assert "FSG_SCAN" not in os.environ


def test_the_page_has_a_line_for_each_row() -> None:
    shown = PAGE.read_text().split("## On a GPU")[1].split("\n## ")[0]
    for name in (name for names in parts.ROWS.values() for name in names):
        assert f"| {name} |" in shown
