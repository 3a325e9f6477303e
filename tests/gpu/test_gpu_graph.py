"""The captured step on a GPU: the bits of the step that is not, whatever is trained; and what cannot be captured."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import BASE, CASES, STEPS, after, config, others
from torch import Tensor, nn

from fsg import checkpoint
from fsg.cuda_graph import CapturedStep, NotCaptured, OnCUDA
from fsg.models import ResNet
from fsg.train_config import TrainConfig
from fsg.trainer import Training

pytestmark = pytest.mark.gpu
REPLAYED = 3 * STEPS  # the captured step is the fourth
SOME = [case for case in CASES if others(case) <= (case.split()[0] in ("ste", "multifc", "fsg"))]
OTHERS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "tf32": {"precision": "tf32"},
    "diagnostics": {"diagnostics": True},
    "annealed once an epoch": {"anneal": "epoch"},
    "one bit": {"model": ResNet.Config(depth=8, width=2, activation_bits=1, activation_derivative="ede")},
}


def trained(settings: TrainConfig, device: str, captured: bool) -> tuple[list[Any], str]:
    """Rows and bytes of a training that spans two epochs; the setting itself is in a state's `made_by`."""
    training = Training(replace(settings, epochs=2, cuda_graph=captured), 0, device=device)
    rows = []
    while training.step < REPLAYED:
        rows += [(row.step, {k: v for k, v in row.values.items() if "time/" not in k}) for row in training.advance()]
    assert captured == bool(training.captured and training.captured.graphs)
    return rows, checkpoint.digest({name: part for name, part in training.state_dict().items() if name != "made_by"})


@pytest.mark.parametrize("case", SOME)
def test_a_captured_training_has_the_rows_and_the_bytes_of_one_that_is_not(gpu: str, case: str) -> None:
    assert trained(config(case), gpu, True) == trained(config(case), gpu, False)


@pytest.mark.parametrize("other", OTHERS)
def test_so_it_has_with_other_settings(gpu: str, other: str) -> None:
    settings = replace(config("fsg dorefa adam"), **OTHERS[other])
    assert trained(settings, gpu, True) == trained(settings, gpu, False)


def test_a_captured_training_goes_on_from_its_state_with_the_same_bytes(gpu: str) -> None:
    settings = replace(config("fsg-released dorefa adam"), epochs=2)
    whole = Training(settings, 0, device=gpu)
    after(whole, 2 * STEPS)
    kept = checkpoint.from_bytes(checkpoint.to_bytes(whole.state_dict()))
    resumed = Training(settings, 0, device=gpu)
    resumed.load_state_dict(kept)
    assert after(resumed, 4 * STEPS) == after(whole, 4 * STEPS)


def noisy(how: str, waits: bool = False) -> tuple[Training, str]:
    """A training whose network drops pixels, and may have the host ask for one."""

    def drop(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (images,) = inputs
        dropped = nn.functional.dropout(images, 0.1)
        return (dropped / 2 if waits and dropped.max().item() > 1e6 else dropped,)

    training = Training(replace(BASE, epochs=2, cuda_graph=False), 0, device="cuda")
    training.model.register_forward_pre_hook(drop)
    if how != "plain":
        training.captured = CapturedStep(training.parts(), OnCUDA(), compare=True, required=how == "required")
    return training, after(training, REPLAYED)


def test_what_is_random_is_drawn_anew_in_every_replay_as_it_would_have_been(gpu: str) -> None:
    training, bytes_ = noisy("captured")
    assert training.captured is not None
    assert training.captured.graphs
    assert bytes_ == noisy("plain")[1]


def test_what_cannot_be_captured_is_trained_plainly_with_the_same_bytes(gpu: str) -> None:
    with pytest.warns(UserWarning, match="the training step cannot be captured as a CUDA graph"):
        training, bytes_ = noisy("captured", waits=True)
    assert training.captured is not None
    assert not training.captured.graphs
    assert bytes_ == noisy("plain", waits=True)[1]
    torch.cuda.synchronize()


def test_what_has_to_be_captured_and_cannot_be_is_one_line(gpu: str) -> None:
    with pytest.raises(NotCaptured, match=r"cannot be captured .* \(expected cuda_graph: auto\)") as refused:
        noisy("required", waits=True)
    assert "\n" not in str(refused.value)
