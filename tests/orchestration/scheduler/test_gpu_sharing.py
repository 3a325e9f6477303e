"""How many trainings share what there is."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestration.commands.plan import plan
from orchestration.commands.request import LaunchRequest
from orchestration.runtime.pilot import Cost
from orchestration.scheduler import gpu_sharing
from orchestration.scheduler.gpu_sharing import Sharing, best, candidates, measure


def test_powers_of_two_are_tried_and_what_there_is() -> None:
    assert [candidates(most) for most in (1, 2, 3, 6, 8, 64)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4, 6],
        [1, 2, 4, 8],
        [1, 2, 4, 8],
    ]


def test_most_steps_a_second_win_and_of_equals_the_fewer() -> None:
    measured = [Sharing(1, 10.0, 1.0), Sharing(2, 18.0, 1.0), Sharing(4, 18.5, 1.0), Sharing(8, 12.0, 1.0)]
    assert best(measured).concurrent == 2
    assert best(measured[:1]).concurrent == 1
    with pytest.raises(ValueError, match="not even one"):
        best([])


def test_throughput_is_of_all_together_and_memory_ends_it() -> None:
    found = measure(8, 1000.0, lambda number: (0.1 * number**0.5, 300.0))
    assert [(one.concurrent, round(one.steps_a_second, 1)) for one in found] == [(1, 10.0), (2, 14.1)]
    assert len(measure(8, 10_000.0, lambda number: (0.1, 300.0))) == 4


def test_what_no_longer_fits_ends_the_measuring_and_what_never_does_is_raised() -> None:
    def fits(number: int) -> tuple[float, float]:
        if number > 2:
            raise MemoryError
        return 0.1, 1.0

    assert [one.concurrent for one in measure(8, 1e9, fits)] == [1, 2]

    def breaks(number: int) -> tuple[float, float]:
        raise ValueError("an idea that does not work")

    with pytest.raises(ValueError, match="an idea"):
        measure(8, 1e9, breaks)


SPEC = (
    "name: a\n"
    "train:\n  data: {name: fashion_mnist_subset, train_limit: 640}\n"
    "  model: {name: resnet, depth: 8, width: 2}\n  epochs: 1\n  batch_size: 32\n"
    "variants: {ste: {}, fsg: {estimator: fsg}}\nseeds: [0]\nreport: {baseline: ste, primary: fsg}\n"
    "resources: {gpus: auto}\n"
)


def test_clocks_of_pilots_start_when_all_are_warm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pilots are forked, and so have this process's functions."""
    (tmp_path / "a.yaml").write_text(SPEC)

    def pilot(cell: Any, device: str, together: Callable[[], object]) -> Cost:
        try:
            (tmp_path / "one is late").mkdir()
        except FileExistsError:
            (tmp_path / "one is late").rmdir()
            time.sleep(0.5)
        with (tmp_path / "warm").open("a") as file:
            file.write(f"{time.monotonic()}\n")
        together()
        with (tmp_path / "timed").open("a") as file:
            file.write(f"{time.monotonic()}\n")
        return Cost(0.1, 0.0, megabytes=1.0)

    monkeypatch.setattr(gpu_sharing, "run_pilot", pilot)
    monkeypatch.setattr(gpu_sharing, "cores", lambda: 2)
    assert plan(LaunchRequest(tmp_path / "a.yaml", results=tmp_path / "results"), with_pilot=False) == 0
    assert "2 trainings share" in " ".join(capsys.readouterr().out.split())
    warm, timed = ([float(line) for line in (tmp_path / name).read_text().split()] for name in ("warm", "timed"))
    assert len(warm) == len(timed) == 3, "one alone, then two"
    assert min(timed[1:]) >= max(warm[1:])


def test_auto_is_measured_where_the_trainings_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text(SPEC)
    request = LaunchRequest(tmp_path / "a.yaml", results=tmp_path / "results")
    assert plan(request, with_pilot=False) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "gpus: auto: " in shown
    assert "trainings share" in shown
    few = LaunchRequest(tmp_path / "a.yaml", sets=["train.batch_size=640"], results=tmp_path / "results")
    assert plan(few, with_pilot=False) == 2
    assert "resources.gpus: auto cannot be measured: too few steps" in capsys.readouterr().err
    elsewhere = LaunchRequest(tmp_path / "a.yaml", results=tmp_path / "results", address="auto")
    assert plan(elsewhere, with_pilot=False) == 2
    assert "resources.gpus: auto is measured on this machine" in capsys.readouterr().err
