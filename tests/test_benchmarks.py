"""The benchmarks run, compare like with like, and the page shows what was recorded."""

import importlib.util
import json
import mmap
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import long_life, slow_net
from benchmarks.__main__ import BEGIN, END, PAGE, RECORD, markdown, tables
from benchmarks.curves import Curve
from benchmarks.measuring import ROOT, Row, forget_peak, machine, memory
from benchmarks.places import Filled, best_end

mambapy = pytest.mark.skipif(importlib.util.find_spec("mambapy") is None, reason="NOT RUN: mambapy is not installed")


@mambapy
def test_mambapys_block_and_ours_compute_the_same_numbers() -> None:
    ours, theirs = slow_net.ours(40)().detach(), slow_net.mambapys(40)().detach()
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_a_curve_has_the_exponent_of_its_end() -> None:
    assert Curve("", [1, 2, 4], [9, 1, 2], "K").exponent == pytest.approx(1)
    assert Curve("", [1, 2], [1, 4], "K").exponent == pytest.approx(2)
    assert not Curve("", [1, 2], [1, 4], "K").row().holds
    assert Curve("", [1, 2], [1, 1.5], "K").row().holds


def test_a_row_holds_in_its_direction() -> None:
    assert Row("", 1.0, 1.05).holds
    assert not Row("", 1.06, 1.05).holds
    assert Row("", 31, 30, at_least=True).holds
    assert not Row("", 29, 30, at_least=True).holds
    assert Row("to compare with", 29).holds


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="NOT RUN: peaks of memory are Linux's")
def test_a_peak_is_that_since_it_was_forgotten() -> None:
    with mmap.mmap(-1, 80_000_000) as held:  # memory that comes from the system, not from what was freed before
        held.write(b"1" * len(held))
        assert memory("VmHWM") >= len(held)
    forget_peak()
    before = memory("VmHWM")
    with mmap.mmap(-1, 100_000_000) as again:
        again.write(b"1" * len(again))
    assert memory("VmHWM") - before > 0.9 * 100_000_000


def test_the_page_shows_what_was_recorded() -> None:
    """Where nothing is, the page says so."""
    shown = PAGE.read_text().split(BEGIN)[1].split(END)[0].strip()
    if RECORD.exists():
        assert shown == tables(json.loads(RECORD.read_text()))
    else:
        assert shown == "(`make bench-record` has not been run since this page was written.)"


def test_the_table_of_the_page() -> None:
    rows: list[dict[str, Any]] = [
        {"name": "a / b", "value": 1.0456, "must": 1.05, "aim": 1.0},
        {"name": "peak", "value": 1.23, "must": 4, "unit": " GB"},
        {"name": "times", "value": 123.4, "must": 30, "aim": 100, "at_least": True},
        Curve("Time over K", [1, 16], [0.01, 0.02], "K").row().__dict__,
    ]
    lines = markdown("training", {"machine": machine(2), "rows": rows}).splitlines()
    assert "| a / b | 1.05 | ≤ 1.05 | ≤ 1 |" in lines
    assert "| peak | 1.23 GB | ≤ 4 GB |  |" in lines
    assert "| times | 123 | ≥ 30 | ≥ 100 |" in lines
    assert lines[-1] == "- Time over K: 10 ms at K = 1, 20 ms at K = 16."


@pytest.mark.slow(minutes=2)
@mambapy
def test_every_benchmark_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--threads", "1", "--json", str(tmp_path / "bench.json")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "bench.json").read_text())
    rows = [row for part in found.values() for row in part["rows"]]
    processor = torch.cpu.get_capabilities()
    bf16 = bool(processor.get("amx_bf16") or processor.get("avx512_bf16"))
    assert len(rows) == 23 + bf16
    assert all(row["value"] == row["value"] for row in rows)
    assert all(part["machine"]["processor"] for part in found.values())
    assert re.search(r"these figures mean nothing", run.stdout)


def test_the_best_order_fills_each_place_as_soon_as_it_is_free() -> None:
    assert best_end([0.0, 1.0], 2.0, 1) == 2.0
    assert best_end([0.0, 1.0], 2.0, 3) == 4.0
    assert best_end([0.0, 0.0], 2.0, 4) == 4.0
    began = [3.0, 4.0, *[5.0] * 6]
    assert Filled(began, 7.0).over_ideal(2.0, 8) == 1.0, "counted from the first start"
    assert Filled(began, 9.0).over_ideal(2.0, 8) == 1.5
    assert Filled([3.0, 4.0, 5.0], 9.0).over_ideal(2.0, 8) == 1.5, "five places have no worker"


def test_what_grows_is_compared_between_a_tenth_of_a_launch_and_its_end() -> None:
    looks = [(done, {"driver: MB": 100.0 + done, "processes": 9.0}) for done in range(101)]
    found = long_life.medians(looks, 100)
    assert found == {
        "at a tenth": {"driver: MB": 112.5, "processes": 9.0},
        "at the end": {"driver: MB": 197.5, "processes": 9.0},
    }
    assert "| driver: MB | 112 | 198 | +85 |" in long_life.table(found)
    few = long_life.medians([looks[30], looks[60]], 100)
    assert (few["at a tenth"]["driver: MB"], few["at the end"]["driver: MB"]) == (130.0, 160.0)


@pytest.mark.slow
def test_a_launch_is_looked_at_from_its_workers_start_to_their_end(tmp_path: Path) -> None:
    looks = long_life.observe(tmp_path, 12)
    assert {"driver: MB", "driver: descriptors", "workers: threads", "/dev/shm: MB", "temporary files"} <= set(
        looks[0][1]
    )
    assert all(value > 0 for value in looks[-1][1].values())
    assert [done for done, _ in looks] == sorted(done for done, _ in looks)
    assert list((tmp_path / "temporary").iterdir()) == []
