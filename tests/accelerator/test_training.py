"""The training on the simulated accelerator: nothing on the wrong device, and no wait where none need be.

Between two rows of the log the host must neither wait for the device nor upload what is not pinned: `strict` raises.
"""

import itertools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from simulated_accelerator import NAME, Accelerator

import fsg
from fsg import checkpoint, history, mamba, selective_scan
from fsg.data import FashionMNISTSubset, ImageFolder
from fsg.hypernetworks import EMA, LSTM
from fsg.mamba import Mamba
from fsg.metrics import evaluate, recalibrated_batchnorm
from fsg.models import ResNet
from fsg.optimizers import SGD, Adam, Bop
from fsg.quantizers import BWN, DoReFa, Libra, ReCU, Sign
from fsg.train_config import TrainConfig
from fsg.trainer import Training

pytestmark = pytest.mark.accelerator
FSG = Path(fsg.__file__).parent
SMALL = fsg.FSG.Config(history_length=2)
BASE = TrainConfig(
    data=FashionMNISTSubset(validation=20, train_limit=160),
    model=ResNet.Config(depth=8, width=2),
    estimator=SMALL,
    batch_size=16,
    epochs=1,
    log_every=1000,
)
CONFIGS = {
    "estimator": {
        "ste": fsg.STE.Config(),
        "ste identity": fsg.STE.Config(derivative="identity"),
        "ede": fsg.EDE.Config(),
        "reste": fsg.ReSTE.Config(),
        "multifc": fsg.MultiFC.Config(),
        "fcgrad": fsg.FCGrad.Config(),
        "lstmfc": fsg.LSTMFC.Config(hidden=4),
        "full precision": fsg.FullPrecision.Config(),
        "fsg": SMALL,
        "fsg released": replace(SMALL, semantics="released", start="random", applied="previous"),
        "fsg normalize": replace(SMALL, normalize=True),
        "fsg lstm": replace(SMALL, slow_net=LSTM(hidden=4)),
        "fsg ema": replace(SMALL, slow_net=EMA()),
        "fsg long convolution": replace(SMALL, slow_net=Mamba(d_conv=8, expand=3), layer_embedding=False),
    },
    "quantizer": {
        "two bits": DoReFa(weight_bits=2),
        "four bits": DoReFa(weight_bits=4),
        "sign": Sign(),
        "bwn": BWN(),
        "bwn layer": BWN(scale="layer"),
        "libra": Libra(),
        "recu": ReCU(),
    },
    "optimizer": {
        "sgd": SGD(),
        "momentum": SGD(lr=0.1, momentum=0.9, weight_decay=5e-4),
        "adam uncorrected": Adam(epsilon="uncorrected", clip_latent=1.0),
        "bop": Bop(),
    },
    "precision": {"bf16": "bf16"},
    "model": {
        "one bit": ResNet.Config(depth=8, width=2, activation_bits=1),
        "one bit clipped": ResNet.Config(depth=8, width=2, activation_bits=1, activation_derivative="clipped"),
    },
    "full_precision_layers": {"first and last": ("conv1", "fc")},
}
CASES = [(part, name) for part, ways in CONFIGS.items() for name in ways]


def config(part: str, name: str, **changes: Any) -> TrainConfig:
    other = {"estimator": fsg.STE.Config()} if part in ("optimizer", "full_precision_layers") else {}
    return replace(BASE, **{**other, part: CONFIGS[part][name], **changes})


def after(steps: int, settings: TrainConfig) -> Training:
    training = Training(settings, 0, device=NAME)
    while training.step < steps:
        training.advance()
    return training


def ended(training: Training) -> str:
    while not training.done:
        training.advance()
    return checkpoint.digest(training.state_dict())


def strictly(gpu: Accelerator, action: Callable[[], object]) -> None:
    gpu.reset()
    gpu.strict = True
    try:
        action()
    finally:
        gpu.strict = False
    assert not gpu.waits
    assert not gpu.uploads


@pytest.mark.parametrize(("part", "name"), CASES, ids=[f"{part}: {name}" for part, name in CASES])
def test_a_step_neither_mixes_devices_nor_waits(part: str, name: str) -> None:
    """Steps 5 and 6 of ten, of which every one is looked at by the diagnostics; the history is full."""
    with Accelerator(FSG) as gpu:
        training = after(4, config(part, name))
        strictly(gpu, training.advance)
        strictly(gpu, training.advance)
        assert gpu.kernels > 100


RESUMED = [("estimator", "fsg"), ("optimizer", "bop"), ("precision", "bf16")]


@pytest.mark.parametrize(("part", "name"), RESUMED, ids=[name for _, name in RESUMED])
def test_a_training_resumed_in_the_middle_ends_with_the_same_bytes(part: str, name: str) -> None:
    with Accelerator(FSG):
        whole = after(7, config(part, name))
        kept = checkpoint.from_bytes(checkpoint.to_bytes(whole.state_dict()))
        ends = [ended(whole)]
        resumed = Training(config(part, name), 0, device=NAME)
        resumed.load_state_dict(kept)
        ends.append(ended(resumed))
    assert ends[0] == ends[1]


def test_a_training_ends_with_the_bytes_of_the_cpus() -> None:
    with Accelerator(FSG):
        ends = [ended(Training(config("estimator", "ste"), 0, device=device)) for device in ("cpu", NAME)]
    assert ends[0] == ends[1]


def test_a_row_of_the_log_waits_twice_and_no_more() -> None:
    with Accelerator(FSG) as gpu:
        training = after(3, config("estimator", "fsg", log_every=4))
        gpu.reset()
        (row,) = training.advance()
        assert "train/loss" in row.values
        assert gpu.waits.total() <= 2
        assert not gpu.uploads


def test_an_evaluation_waits_once_and_recalibration_never() -> None:
    with Accelerator(FSG) as gpu:
        training = after(1, config("estimator", "ste"))
        some = list(itertools.islice(training.dataset.evaluation("train", batch_size=16), 3))
        batches = list(training.dataset.evaluation("test", batch_size=500))
        assert len(batches) > 1
        gpu.reset()
        gpu.strict = True
        with recalibrated_batchnorm(training.model, some):
            gpu.strict = False
            assert gpu.kernels > 100
            evaluate(training.model, batches)
        assert gpu.waits.total() == 1
        assert not gpu.uploads


def test_a_validation_with_a_row_of_the_log_waits_three_times() -> None:
    """Whether losses and gradients are finite is asked once for both."""
    settings = config("estimator", "ste", log_every=4, evaluate_every=0.4, recalibrate_batchnorm=32, diagnostics=False)
    with Accelerator(FSG) as gpu:
        training = after(3, settings)
        gpu.reset()
        logged, validated = training.advance()
        assert ("train/loss" in logged.values, "validation/loss" in validated.values) == (True, True)
        assert gpu.waits.total() <= 3
        assert not gpu.uploads


def test_the_draws_of_an_epoch_are_four_uploads() -> None:
    with Accelerator(FSG) as gpu:
        dataset = BASE.data.load().to(NAME)
        gpu.reset()
        batches = dataset.batches(0, 0, 16)
        next(batches)
        assert gpu.uploads.total() <= 4
        strictly(gpu, lambda: list(batches))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images as files: noise of several sizes."""
    draw, at = np.random.default_rng(0), tmp_path_factory.mktemp("images")
    for number in range(40):
        path = at / ("train" if number < 30 else "val") / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20 + number, 30, 3), np.uint8)).save(path)
    return at


def test_a_step_on_images_from_files_neither_mixes_devices_nor_waits(folder: Path) -> None:
    """The first of an epoch as well; in micro-batches."""
    data = ImageFolder(folder=str(folder), size=12, validation=6)
    settings = replace(config("estimator", "fsg"), data=data, batch_size=3, accumulate=2, epochs=2)
    with Accelerator(FSG) as gpu:
        training = after(2, settings)
        for _ in range(4):  # of four an epoch
            strictly(gpu, training._train)
        assert gpu.kernels > 100
        batches = list(training.dataset.evaluation("test", batch_size=4))
        assert [len(labels) for _, labels in batches] == [4, 4, 2]
        strictly(gpu, lambda: list(training.dataset.evaluation("test", batch_size=4)))


def test_what_is_not_pinned_or_copied_at_once_is_an_upload() -> None:
    with Accelerator(FSG) as gpu:
        ordinary = torch.zeros(3)
        pinned = ordinary.pin_memory()
        pinned.to(NAME, non_blocking=True)
        assert not gpu.uploads
        pinned.to(NAME)
        ordinary.to(NAME, non_blocking=True)
        assert gpu.uploads.total() == 2


def test_a_training_on_images_from_files_ends_with_the_bytes_of_the_cpus(folder: Path) -> None:
    settings = replace(BASE, data=ImageFolder(folder=str(folder), size=12, validation=6), batch_size=6)
    settings = replace(settings, estimator=CONFIGS["estimator"]["ste"])
    with Accelerator(FSG):
        ends = [ended(Training(settings, 0, device=device)) for device in ("cpu", NAME)]
    assert ends[0] == ends[1]


def test_the_torch_scan_is_few_kernels() -> None:
    """A step of ResNet-20 with FSG, 64 elements a chunk, where neither Triton nor mamba-ssm is."""
    settings = replace(BASE, model=ResNet.Config(depth=20), estimator=fsg.FSG.Config(), diagnostics=False)
    with Accelerator(FSG) as gpu:
        training = after(5, settings)
        gpu.reset()
        training.advance()
        assert gpu.kernels <= 2500


@pytest.mark.skipif(
    not selective_scan.HAS_TRITON or os.environ.get("TRITON_INTERPRET") != "1",
    reason="NOT RUN: Triton and TRITON_INTERPRET=1, which make test-accelerator sets, are needed",
)
def test_a_step_with_tritons_kernels_neither_mixes_devices_nor_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (mamba, selective_scan):
        monkeypatch.setattr(module, "way_on", lambda device: "triton")
    few = replace(SMALL, chunk_size=1024, layer_embedding_dim=2, slow_net=Mamba(d_state=4))
    with Accelerator(FSG) as gpu:
        training = after(3, replace(BASE, estimator=few, diagnostics=False))
        strictly(gpu, training.advance)
        ours = {name for name in gpu.launches if "triton" in name}
        assert {name.removeprefix("fsg::triton_") for name in ours} == {
            "scan", "scan_backward", "convolve", "convolve_backward",
        }  # fmt: skip


def test_it_would_notice_an_index_left_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    of = history.Sequences.of
    monkeypatch.setattr(history.Sequences, "of", lambda layout, n, le, device: of(layout, n, le, torch.device("cpu")))
    with Accelerator(FSG), pytest.raises(RuntimeError, match="same device"):
        Training(config("estimator", "fsg"), 0, device=NAME).advance()
