"""Every estimator with every quantizer and every optimizer trains on a GPU as on the CPU.

Sums are in another order there, and a weight near a threshold may turn: `tolerance` is what the losses may differ by
for that. The CPU's own other convolutions (those that are not oneDNN's) stay within it; the default suite tries some.
"""

import pytest
import torch
from cases import CASES, DEVICE, config, disagreement, losses, tolerance

from fsg import selective_scan

pytestmark = pytest.mark.gpu
COARSER = {"tf32": 0.01, "bf16": 0.05}


@pytest.mark.parametrize("precision", COARSER)
def test_a_coarser_precision_trains_to_losses_nearby(precision: str) -> None:
    if precision == "bf16" and DEVICE != "cpu" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("NOT RUN: this GPU has no bf16")
    exact = losses(config("fsg dorefa adam"), "cpu")
    found = losses(config("fsg dorefa adam", precision=precision), DEVICE)
    assert disagreement(exact, found) < COARSER[precision]


@pytest.mark.skipif(not selective_scan.HAS_TRITON, reason="NOT RUN: Triton is not installed")
def test_a_training_with_torchs_scan_has_the_losses_of_one_with_tritons(
    gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = "fsg-elements dorefa adam"
    settings = config(case)
    ones = losses(settings, gpu)
    monkeypatch.setenv("FSG_SCAN", "torch")
    others = losses(settings, gpu)
    assert disagreement(ones, others) < tolerance(case)


@pytest.mark.parametrize("case", CASES)
def test_a_training_has_the_cpus_losses(case: str) -> None:
    settings = config(case)
    assert disagreement(losses(settings, "cpu"), losses(settings, DEVICE)) < tolerance(case)
