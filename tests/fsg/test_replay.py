"""This code against the recorded traces of the released one, and the replay itself against broken ones."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trace_oracle import again, config_of, write

from fsg.replay import TOLERANCE, TraceError, replay

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


@pytest.mark.parametrize("path", TRACES, ids=lambda p: p.stem)
def test_the_oracle_records_what_the_released_code_did(path: Path) -> None:
    """So that what it says of other settings counts."""
    with np.load(path) as archive:
        recorded = {key: archive[key] for key in archive.files if key not in ("config", "x", "y")}
    found = again(path)
    assert set(found) == set(recorded)
    for key, value in recorded.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-9, atol=1e-12, err_msg=key)


SMALL = {"steps": 4, "expand": 3}
NARROW = {"channels": (2, 3, 2)}
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "history longer than the training, other learning rates": (
        config_of("fsg", history_length=8, lr=0.1, fast_lr=0.05, slow_lr=0.02, **SMALL),
        NARROW | {"seed": 5},
    ),
    "history that turns over twice, a layer in full precision": (
        config_of("fsg", history_length=2, expand=3, layers=["conv1", "conv2"]),
        NARROW,
    ),
    "two bits, relu, alpha 0.3": (
        config_of("fsg", weight_bits=2, nonlinearity="relu", alpha=0.3, optimizer="sgd", lr=0.5, **SMALL),
        NARROW,
    ),
    "bwn, sgd, tanh": (
        config_of("fsg", quantizer="bwn", nonlinearity="tanh", optimizer="sgd", lr=0.3, **SMALL),
        NARROW,
    ),
    "one of everything": (
        config_of("fsg", hidden=1, steps=4, expand=1, d_state=1, d_conv=1, history_length=1),
        {"batch": 5, "size": 7, "channels": (1, 2, 3), "classes": 3},
    ),
    "much of everything": (
        config_of("fsg", hidden=9, steps=4, expand=5, d_state=20, d_conv=9, dt_rank=3, history_length=5),
        {"batch": 4, "channels": (2, 3, 2), "classes": 4},
    ),
    "the fast gradient alone": (config_of("fsg", alpha=0.0, **SMALL), NARROW),
    "the slow gradient alone in the look-ahead": (config_of("fsg", alpha=1.0, **SMALL), NARROW),
    "multifc, four bits, tanh, sgd": (
        config_of("multifc", weight_bits=4, nonlinearity="tanh", optimizer="sgd", lr=0.5),
        {},
    ),
    "multifc, bwn, adam": (config_of("multifc", quantizer="bwn", hyper_lr=0.02), {"channels": (3, 5, 4)}),
    "fcgrad, relu, adam": (config_of("fcgrad", nonlinearity="relu", hidden=3), {}),
    "fcgrad, bwn, tanh": (config_of("fcgrad", quantizer="bwn", nonlinearity="tanh", optimizer="sgd", lr=0.5), {}),
    "lstmfc, bwn, sgd": (config_of("lstmfc", quantizer="bwn", optimizer="sgd", lr=0.5, hidden=2), {}),
    "fcgrad, MetaQuant's own bwn, sgd": (
        config_of("fcgrad", quantizer="metaquant_bwn", optimizer="sgd", lr=0.5, hyper_weight_decay=0.1),
        {},
    ),
    "lstmfc, MetaQuant's own bwn, adam": (
        config_of("lstmfc", quantizer="metaquant_bwn", hyper_weight_decay=5e-4, hidden=2),
        {"seed": 3},
    ),
    "lstmfc, three bits": (config_of("lstmfc", weight_bits=3, hidden=1, steps=3), {"batch": 5, "size": 6}),
}


@pytest.mark.parametrize(("config", "sizes"), OTHERS.values(), ids=OTHERS.keys())
def test_traces_of_other_settings_are_reproduced(config: Any, sizes: Any, tmp_path: Path) -> None:
    write(tmp_path / "other.npz", config, **sizes)
    errors, missed = replay(tmp_path / "other.npz")
    assert missed == []
    with np.load(tmp_path / "other.npz") as archive:
        recorded = [key for key in archive.files if key.startswith("step")]
    assert sum(e.compared for e in errors) == len(recorded)
    assert {e.key: e.value for e in errors if e.value > TOLERANCE} == {}


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


def test_a_tensor_of_the_start_that_nothing_uses_is_named(tmp_path: Path) -> None:
    with np.load(TRACES[0]) as archive:
        arrays = {name: archive[name] for name in archive.files}
    np.savez(tmp_path / "more.npz", **arrays, **{"init/meta/linear3.weight": np.zeros(3)})
    assert replay(tmp_path / "more.npz")[1] == ["init/meta/linear3.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": ["fc", "conv1"]}, "layers .*, expected some of conv1, conv2, fc in this order"),
        ({"quantizer": "ternary"}, "quantizer 'ternary', expected one of dorefa, bwn"),
        ({"activation_bits": 1}, "1-bit weights and 1-bit activations"),
        ({"method": "ste"}, "method 'ste', expected one of fsg, multifc"),
        ({"d_model": 2}, "d_model 2, expected 1"),
        ({"expand": 5}, r"cannot be replayed \(Error"),
        ({"alpha": None}, "cannot be replayed"),
    ],
)
def test_a_trace_of_what_this_code_does_not_have_is_refused_in_a_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with np.load(next(path for path in TRACES if path.stem.startswith("fsg"))) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["config"] = np.array(json.dumps(json.loads(str(arrays["config"])) | change))
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(TraceError, match=message) as refusal:
        replay(tmp_path / "other.npz")
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(TraceError, match="not a trace"):
        replay(tmp_path / "text.npz")


def test_the_command_says_where_it_differs_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = TRACES[0]
    bad = changed(TRACES[1], tmp_path, "step4/loss", 1e-3)
    monkeypatch.delitem(sys.modules, "fsg.replay")
    for traces, status in (([good, bad], 1), ([good], 0)):
        monkeypatch.setattr(sys, "argv", ["replay", *map(str, traces)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("fsg.replay", run_name="__main__")
        assert ended.value.code == status
        said = capsys.readouterr().out
        assert f"{good.name}: 195 tensors compared" in said
        assert "agrees" in said.split(bad.name)[0]
        if status:
            assert "step4/loss" in said.split(bad.name)[1]
            assert "DIFFERS" in said.split(bad.name)[1]
