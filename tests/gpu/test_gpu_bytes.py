"""The bytes of a training on a GPU: the same again, in another process, after a resume; a CPU's are never mixed in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import BYTES, DEVICE, STEPS, after, config, digest

from fsg import checkpoint
from fsg.trainer import Training

pytestmark = pytest.mark.gpu
CASES = Path(__file__).with_name("cases.py")


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, str]:
    """What another process makes of the same trainings."""
    environment = os.environ | {"PYTHONPATH": str(CASES.parents[2])}
    ran = subprocess.run([sys.executable, str(CASES)], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return dict(json.loads(ran.stdout.splitlines()[-1]))


@pytest.mark.parametrize("name", BYTES)
def test_two_trainings_in_one_process_and_one_in_another_end_with_the_same_bytes(
    name: str, elsewhere: dict[str, str]
) -> None:
    assert digest(name) == digest(name) == elsewhere[name]


@pytest.mark.parametrize("name", BYTES)
def test_a_training_that_is_resumed_ends_with_the_bytes_of_one_that_is_not(name: str) -> None:
    whole = Training(BYTES[name], 0, device=DEVICE)
    after(whole, STEPS)
    kept = checkpoint.from_bytes(checkpoint.to_bytes(whole.state_dict()))
    resumed = Training(BYTES[name], 0, device=DEVICE)
    resumed.load_state_dict(kept)
    assert after(resumed, 2 * STEPS) == after(whole, 2 * STEPS)


@pytest.mark.parametrize("onto_gpu", [True, False], ids=["onto the GPU", "onto the CPU"])
def test_a_checkpoint_of_the_other_device_is_refused_and_nothing_is_changed(gpu: str, onto_gpu: bool) -> None:
    there, here = ("cpu", gpu) if onto_gpu else (gpu, "cpu")
    other, training = (Training(config("fsg dorefa adam"), 0, device=device) for device in (there, here))
    after(other, STEPS)
    before = after(training, 1)
    with pytest.raises(ValueError, match=f"the checkpoint is of a training on {there}"):
        training.load_state_dict(other.state_dict())
    assert checkpoint.digest(training.state_dict()) == before
