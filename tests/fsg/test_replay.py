"""This code against the recorded traces of the released one, and the replay itself against broken ones."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fsg.replay import TraceError, replay

TRACES = sorted((Path(__file__).parent / "traces").glob("*.npz"))
# Tensors that a step records: loss and logits, four a layer, and (from the second step on) what is generated; then
# the network's 15 parameters and buffers and the hypernetworks' own.
RECORDED = {"fsg": 276, "multifc": 201, "fcgrad": 195, "lstmfc": 219}


@pytest.mark.parametrize("path", TRACES, ids=lambda p: p.stem)
def test_every_recorded_tensor_of_the_released_code_is_reproduced(path: Path) -> None:
    errors, missed = replay(path)
    assert missed == []
    assert sum(e.compared for e in errors) == RECORDED[path.stem.split("_")[0]]
    assert {e.kind: e.value for e in errors if e.value > 1e-12} == {}


def test_there_are_seven_traces() -> None:
    assert len(TRACES) == 7


def changed(path: Path, folder: Path, key: str, by: float) -> Path:
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays[key] = arrays[key] + by
    np.savez(folder / path.name, **arrays)
    return folder / path.name


@pytest.mark.parametrize("key", ["step3/slow_grad/conv2", "step5/net/bn1.running_var", "init/slow/mamba.A_log"])
def test_a_small_difference_anywhere_is_found(tmp_path: Path, key: str) -> None:
    errors, _ = replay(changed(TRACES[1], tmp_path, key, 1e-6))
    assert errors[0].value > 1e-9
    if not key.startswith("init"):
        assert errors[0].key == key


def test_a_recorded_tensor_that_nothing_compares_is_named(tmp_path: Path) -> None:
    with np.load(TRACES[0]) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez(tmp_path / "more.npz", **arrays, **{"step2/momentum/conv1": np.zeros(3)})
    assert replay(tmp_path / "more.npz")[1] == ["step2/momentum/conv1"]


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(TraceError, match="not a trace"):
        replay(tmp_path / "text.npz")


def test_the_command_says_where_it_differs_and_fails(tmp_path: Path) -> None:
    good = TRACES[0]
    bad = changed(TRACES[1], tmp_path, "step4/loss", 1e-3)
    run = subprocess.run([sys.executable, "-m", "fsg.replay", good, bad], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert f"{good.name}: 195 tensors compared" in run.stdout
    assert "agrees" in run.stdout.split(bad.name)[0]
    assert "step4/loss" in run.stdout.split(bad.name)[1]
    assert "DIFFERS" in run.stdout.split(bad.name)[1]
