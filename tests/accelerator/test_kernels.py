"""How many kernels a step starts, and how many bytes they read and write: a small network's step is as long as these.

Counted on the simulated accelerator, ResNet-20, after the history has filled; what a kernel of Triton's is inside is
not seen.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulated_accelerator import NAME, Accelerator

import fsg
from fsg import mamba, selective_scan
from fsg.data import FashionMNISTSubset
from fsg.hypernetworks import EMA
from fsg.mamba import Mamba
from fsg.models import ResNet
from fsg.train_config import TrainConfig
from fsg.trainer import Training

pytestmark = pytest.mark.accelerator
STEP = TrainConfig(
    data=FashionMNISTSubset(train_limit=640),
    model=ResNet.Config(depth=20),
    batch_size=16,
    epochs=1,
    log_every=1000,
    diagnostics=False,
)
# Kernels, as docs/performance.md has them, and megabytes: within 2.1 % those of a step that went layer by layer and
# could not be captured, to which a graph adds a learning rate for each weight, and copies to places that stay.
MOST = {
    "full precision": (fsg.FullPrecision.Config(), 215, 220.31),
    "ste": (fsg.STE.Config(), 240, 265.23),
    "multifc": (fsg.MultiFC.Config(), 584, 330.69),
    "fsg, an average": (fsg.FSG.Config(slow_net=EMA()), 324, 408.33),
}


WITHIN_TRITONS = 12  # that operators of ours start; each of the four is counted as one


@pytest.mark.parametrize(("estimator", "kernels", "megabytes"), MOST.values(), ids=MOST)
def test_a_step_is_few_kernels_and_moves_no_more_bytes(estimator: Any, kernels: int, megabytes: float) -> None:
    gpu = step(estimator)
    assert gpu.kernels <= kernels, gpu.launches.most_common(10)
    assert gpu.moved / 1e6 <= megabytes


@pytest.mark.skipif(
    not selective_scan.HAS_TRITON or os.environ.get("TRITON_INTERPRET") != "1",
    reason="NOT RUN: Triton and TRITON_INTERPRET=1, which make test-accelerator sets, are needed",
)
def test_a_step_with_a_slow_net_is_few_kernels_where_its_scan_is_tritons(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of kernels does not hang on the sizes; these are soon interpreted."""
    for module in (mamba, selective_scan):
        monkeypatch.setattr(module, "way_on", lambda device: "triton")
    small = fsg.FSG.Config(chunk_size=4096, layer_embedding_dim=2, history_length=2, slow_net=Mamba(d_state=2))
    gpu = step(small, before=3)
    assert gpu.kernels + WITHIN_TRITONS <= 535, gpu.launches.most_common(10)


def step(estimator: Any, before: int = 8) -> Accelerator:
    """What one step did, after so many."""
    with Accelerator(Path(fsg.__file__).parent) as gpu:
        training = Training(replace(STEP, estimator=estimator), 0, device=NAME)
        for _ in range(before):
            training.advance()
        gpu.reset()
        training.advance()
    return gpu
