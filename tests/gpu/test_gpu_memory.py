"""Memory on a GPU: a training's peak is its own and does not grow, and too little of it is one error."""

import gc
from dataclasses import replace

import pytest
import torch
from cases import BASE, STEPS, after, config, digest

from fsg.models import ResNet
from fsg.trainer import Training

pytestmark = pytest.mark.gpu
LARGE = replace(BASE, model=ResNet.Config(depth=8, width=64), batch_size=140)


def emptied() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def peak() -> int:
    """Bytes of tensors that a small training takes at most."""
    emptied()
    before = torch.cuda.memory_allocated()
    after(Training(config("fsg dorefa adam"), 0, device="cuda"), 2 * STEPS)
    return torch.cuda.max_memory_allocated() - before


def test_the_peak_of_a_training_is_its_own(gpu: str) -> None:
    peak()  # what libraries keep from their first use on
    alone = peak()
    after(Training(LARGE, 0, device=gpu), 1)
    assert alone / 1.02 <= peak() <= 1.02 * alone


def test_the_peak_does_not_grow_with_the_steps(gpu: str) -> None:
    training = Training(config("fsg dorefa adam", epochs=10), 0, device=gpu)
    peaks = []
    for steps in (10, 20, 60):
        torch.cuda.reset_peak_memory_stats()
        after(training, steps)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[2] <= peaks[1]


def test_too_little_memory_for_the_first_step_is_one_error_and_the_next_training_runs(gpu: str) -> None:
    expected = digest("ste dorefa adam", gpu)
    training = Training(LARGE, 0, device=gpu)
    emptied()
    few = torch.cuda.memory_reserved() + 16_000_000
    torch.cuda.set_per_process_memory_fraction(few / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            training.advance()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    del training
    emptied()
    assert digest("ste dorefa adam", gpu) == expected
