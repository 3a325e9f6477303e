"""A trained network leaves the ledger: `fsg export`."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from synthetic_experiment import RECORD, spec_of

import fsg
from fsg import packing
from fsg.data import Arrays
from fsg.estimators import STE, FullPrecision
from fsg.models import ResNet
from fsg.train_config import TrainConfig
from orchestration.cli import main
from orchestration.commands.export import Agreement
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.results import Results
from orchestration.runtime.cell_training import CellTraining
from orchestration.spec.cells import Cell
from orchestration.tracking.program import trained_network

CELLS = {"real": 0, "signs": 1, "recalibrated": 2, "full precision": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four trainings of 8 steps, one of which has not opened the test images, and one that was not begun."""
    folder = tmp_path_factory.mktemp("exported")
    draw = np.random.default_rng(0)
    pixels, labels = draw.integers(0, 255, (80, 8, 8), dtype=np.uint8), np.arange(80) % 4
    file = folder / "tiny.npz"
    np.savez(file, train_images=pixels[:60], train_labels=labels[:60], test_images=pixels[60:], test_labels=labels[60:])
    data = Arrays(file=str(file), validation=12, crop_padding=1)

    def training(**settings: object) -> TrainConfig:
        model = ResNet.Config(depth=8, width=2, activation_bits=settings.pop("bits", 32))  # type: ignore[arg-type]
        common = {"data": data, "model": model, "epochs": 2, "batch_size": 12, "estimator": STE.Config()}
        return TrainConfig(**common | settings)  # type: ignore[arg-type]

    trainings = [
        training(),
        training(bits=1, quantizer=fsg.BWN(), test="never"),
        training(quantizer=fsg.Libra(), recalibrate_batchnorm=24, full_precision_layers=("conv1", "fc")),
        training(estimator=FullPrecision.Config()),
        training(quantizer=fsg.Sign()),
    ]
    ledger = Ledger(folder / "experiment")
    cells = [Cell(f"{seed:016x}", "train", "ste", {}, seed, train) for seed, train in enumerate(trainings)]
    for cell in cells:
        ledger.add(cell)
    for cell in cells[:-1]:
        CellTraining(ledger, cell).run_for(1000)
    ledger.record_launch(
        RECORD
        | {"spec": spec_of().resolved(), "spec_source": "configs/x.yaml", "started": 0}
        | {"cells": [cell.id for cell in cells]}
    )
    return ledger.folder


def export(folder: Path, seed: int, to: Path, *options: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["export", str(folder), f"ste · seed {seed}", "--to", str(to), *options])
    return int(ended.value.code or 0)


def in_ledger(folder: Path, seed: int) -> tuple[torch.nn.Module, Cell]:
    results = Results(folder)
    cell = results.cell(f"ste · seed {seed}")
    return trained_network(cell.train, results.weights(cell.id), cell.train.data.load()).eval(), cell


@torch.no_grad()
def test_an_onnx_model_predicts_what_the_ledgers_network_does(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(folder, CELLS["real"], tmp_path / "x.onnx", "--fold") == 0
    said = capsys.readouterr().out.replace("\u00a0", " ")
    assert re.match(r".*x\.onnx: packed, opset 18\nsize +[\d.]+ kB; float32 \(latent weights\) 5\.66 kB, ", said)
    assert "parameters   1,330, 93.4 % binary\n" in said
    assert re.search(r"an image +[\d.]+ kFLOPs, [\d.]+ kBOPs\n", said)
    assert re.search(r"on 20 test images: worst difference of a logit \S+ \(.*\), all predictions equal\n$", said)
    network, cell = in_ledger(folder, CELLS["real"])
    images, _ = next(iter(cell.train.data.load().evaluation("test")))
    session = onnxruntime.InferenceSession(str(tmp_path / "x.onnx"))
    found = session.run(None, {"images": images.numpy()})[0]
    np.testing.assert_allclose(found, network(images).numpy(), atol=1e-4)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["mean"]) == pytest.approx(cell.train.data.load().mean.tolist())
    assert about["cell"] == cell.id
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]


@pytest.mark.parametrize(
    ("what", "suffix", "images"),
    [
        ("signs", ".npz", "12 validation"),
        ("recalibrated", ".safetensors", "20 test"),
        ("full precision", ".npz", "20 test"),
    ],
)
def test_packed_files_predict_what_the_ledgers_network_does(
    what: str, suffix: str, images: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"x{suffix}"
    assert export(folder, CELLS[what], file) == 0
    assert f"verified     on {images} images: " in capsys.readouterr().out
    network, _ = in_ledger(folder, CELLS[what])
    names = {name for name, _ in fsg.binarize(network).named_parameters()}
    tensors = packing.read(file).tensors()
    assert names < tensors.keys()
    for name in names:
        torch.testing.assert_close(tensors[name], network.get_parameter(name), atol=1e-6, rtol=0)


def test_the_documented_lines_read_the_packed_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export(folder, CELLS["signs"], tmp_path / "network.npz") == 0
    text = (Path(__file__).resolve().parents[3] / "docs" / "export.md").read_text()
    reading, in_python = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len([line for line in reading.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reading.py").write_text(reading)
    weights = runpy.run_path("reading.py")["weights"]
    network, _ = in_ledger(folder, CELLS["signs"])
    fsg.binarize(network)
    assert len(weights) == 10
    for name, weight in weights.items():
        np.testing.assert_allclose(weight, network.get_parameter(name).detach().numpy(), atol=1e-6)
    (tmp_path / "in_python.py").write_text(in_python)
    made = runpy.run_path("in_python.py")
    images = made["images"]
    with torch.no_grad():
        assert torch.allclose(made["network"](images), made["model"](images))
    assert {"network.onnx", "network.npz"} <= {path.name for path in tmp_path.iterdir()}


def test_a_file_that_predicts_otherwise_is_not_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = packing.packed_signs
    monkeypatch.setattr(packing, "packed_signs", lambda planes: ~packed(planes))
    assert export(folder, CELLS["real"], tmp_path / "x.npz") == 1
    said = capsys.readouterr().out
    assert re.match(
        r".*x\.npz: not kept: it predicts otherwise than the ledger's network on 20 test images: .*\n$", said
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("agreement", "real", "signs"),
    [
        (Agreement(1000, worst=1e-4, largest=0.5, others=0), True, True),
        (Agreement(1000, worst=1.1e-4, largest=0.5, others=0), False, True),
        (Agreement(1000, worst=1.9e-3, largest=20.0, others=0), True, True),
        (Agreement(1000, worst=1e-6, largest=1.0, others=1), False, True),
        (Agreement(1000, worst=1e-6, largest=1.0, others=2), False, False),
        (Agreement(999, worst=1e-6, largest=1.0, others=1), False, False),
    ],
)
def test_what_agreement_is(agreement: Agreement, real: bool, signs: bool) -> None:
    assert (agreement.holds(False), agreement.holds(True)) == (real, signs)


def test_logits_that_are_no_numbers_do_not_agree() -> None:
    found = Agreement().and_of(torch.ones(2, 3), torch.full((2, 3), torch.nan))
    assert found.worst == torch.inf
    assert not found.holds(False)


@pytest.mark.parametrize(
    ("seed", "to", "text"),
    [
        (0, "x.onx", "--to {}/x.onx: expected a name that ends in .onnx, .npz, .safetensors; did you mean .onnx?"),
        (0, "no/x.npz", "--to {0}/no/x.npz: there is no folder {0}/no"),
        (4, "x.npz", "ste · seed 4: is waiting: there are no final weights (expected a cell that is done)"),
        (9, "x.npz", "ste · seed 9: no such cell (expected an id or a label, as in 'ste · seed 0', "),
    ],
)
def test_bad_input_is_a_line(
    seed: int, to: str, text: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(folder, seed, tmp_path / to) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(text.format(tmp_path))
    assert said.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_onnx_a_line_says_what_to_install(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert export(folder, CELLS["real"], tmp_path / "x.onnx") == 2
    assert "x.onnx: onnx is not installed (expected: pip install 'fsg[export]')\n" in capsys.readouterr().err


def test_a_damaged_file_of_weights_is_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "experiment"))
    weights = Ledger(copied).final_weights(f"{0:016x}")
    assert weights is not None
    weights.write_bytes(b"x")
    assert export(copied, 0, tmp_path / "x.npz") == 2
    assert re.match(r"ste · seed 0: .*there are no final weights", capsys.readouterr().err)
