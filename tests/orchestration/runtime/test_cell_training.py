"""What a worker does with a cell, in this process."""

import gc
import io
import os
import random
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_experiment import images

from fsg import checkpoint, native
from fsg.checkpoint import digest, to_bytes
from fsg.data import Arrays
from fsg.estimators import FSG, STE
from fsg.imported import Imported, source_sha256
from fsg.mamba import kernel
from fsg.models import ResNet
from fsg.optimizers import Adam
from fsg.starting_points import File, Pretrain
from fsg.train_config import TrainConfig
from fsg.trainer import Training
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.stores import local
from orchestration.runtime.cell_training import CellTraining
from orchestration.runtime.faults import DeviceFault
from orchestration.runtime.inputs import inputs
from orchestration.spec.cells import Cell


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    file = tmp_path_factory.mktemp("images") / "tiny.npz"
    images(file)
    return TrainConfig(
        data=Arrays(file=str(file), validation=16, crop_padding=1),
        model=ResNet.Config(depth=8, width=2),
        estimator=FSG.Config(chunk_size=8, layer_embedding_dim=4),
        epochs=3,
        batch_size=16,
        log_every=2,
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "experiment")


def cell(train: TrainConfig, name: str = "a" * 16, depends_on: str | None = None) -> Cell:
    return Cell(name, "train", name, {}, 0, train, depends_on)


def unlucky(train: TrainConfig, what: str, at: int = 5) -> TrainConfig:
    path = "unlucky:Unlucky"
    own = Imported(path=path, settings={"what": what, "at": at}, source_sha256=source_sha256(path))
    return replace(train, estimator=own)


def ended(ledger: Ledger, one: Cell) -> CellTraining:
    ledger.add(one)
    training = CellTraining(ledger, one)
    training.run_for(3600)
    return training


def rows(ledger: Ledger, one: Cell) -> list[tuple[int, str, float]]:
    found = [(row.step, name, value) for row in ledger.rows(one.id) for name, value in row.values.items()]
    return [(step, name, value) for step, name, value in found if not name.startswith(("time/", "system/"))]


FRESH = """
import sys
from pathlib import Path
from orchestration.ledger.ledger import Ledger
from orchestration.runtime.cell_training import CellTraining
ledger = Ledger(Path(sys.argv[1]))
CellTraining(ledger, ledger.cell(sys.argv[2])).run_for(3600)
"""


@pytest.fixture(scope="module")
def whole(train: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    """The same cell in a ledger of its own, trained in one go by a fresh process."""
    undisturbed = Ledger(tmp_path_factory.mktemp("whole"))
    undisturbed.add(cell(train))
    subprocess.run([sys.executable, "-c", FRESH, str(undisturbed.folder), cell(train).id], check=True)
    return undisturbed


def assert_the_same(ledger: Ledger, one: Cell, whole: Ledger) -> None:
    """Rows, digest, diagnostics and the bytes of the weights are those of the undisturbed training."""
    other = cell(one.train)
    assert ledger.outcome(one.id).digest == whole.outcome(other.id).digest is not None
    assert sorted(rows(ledger, one)) == sorted(rows(whole, other))
    assert ledger.diagnostics(one.id) == whole.diagnostics(other.id)
    assert [table["epoch"] for table in ledger.diagnostics(one.id)] == [1, 2, 3]
    final, expected = ledger.final_weights(one.id), whole.final_weights(other.id)
    assert final is not None
    assert expected is not None
    assert final.read_bytes() == expected.read_bytes()


class After:
    """Says stop once, after so many questions."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_cell_is_trained_to_the_end(train: TrainConfig, whole: Ledger) -> None:
    one, ledger = cell(train), whole
    outcome = ledger.outcome(one.id)
    assert (outcome.state, outcome.step) == ("done", 15)
    assert outcome.seconds > 0
    names = {name for _, name, _ in rows(ledger, one)}
    assert {
        "train/loss",
        "lr",
        "epoch",
        *(f"{of}/{what}" for of in ("validation", "test") for what in ("loss", "accuracy")),
    } <= names
    assert len({(step, name) for step, name, _ in rows(ledger, one)}) == len(rows(ledger, one))
    flips = [(step, value) for step, name, value in rows(ledger, one) if name == "weights/flip_rate"]
    assert [step for step, _ in flips] == [table["step"] for table in ledger.diagnostics(one.id)]
    last = {name: value for row in ledger.rows(one.id) if row.step == 15 for name, value in row.values.items()}
    assert last["system/memory_megabytes"] > 10
    (attempt,) = ledger.attempts(one.id)
    assert attempt["device"]
    assert attempt["versions"]["torch"] == torch.__version__.split("+")[0]


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 9))])
def test_cell_that_is_stopped_anywhere_ends_like_one_that_is_not(
    ledger: Ledger, train: TrainConfig, whole: Ledger, seed: int
) -> None:
    """Stopped at random steps, with a checkpoint after every third step besides; sometimes it dies instead."""
    draw, one = random.Random(seed), cell(train)
    ledger.add(one)
    training, attempts = None, 0
    while training is None or training.ended != "done":
        attempts += 1
        training = CellTraining(
            ledger, one, checkpoint_every=0.0 if draw.random() < 0.5 else 60.0, stop=After(draw.randint(0, 9))
        )
        if draw.random() < 0.3:
            training.stop = lambda: False
            for _ in range(draw.randint(1, 8)):
                training.run_for(0.0)  # and then it is never heard of again
        else:
            training.run_for(3600)
    assert_the_same(ledger, one, whole)
    assert rows(ledger, one) == rows(whole, one)
    assert len(ledger.attempts(one.id)) <= attempts
    best, expected_best = ledger.best_weights(one.id), whole.best_weights(one.id)
    assert best is not None
    assert expected_best is not None
    assert best.name == expected_best.name


def test_best_weights_are_those_of_the_best_validation(ledger: Ledger, train: TrainConfig) -> None:
    one = cell(replace(train, epochs=4))
    ended(ledger, one)
    accuracies = [(value, -step) for step, name, value in rows(ledger, one) if name == "validation/accuracy"]
    step = -max(accuracies)[1]
    best = ledger.best_weights(one.id)
    assert best is not None
    assert best.name == ("final.pt" if step == 20 else f"best-{step:08d}.pt")


def test_best_weights_outlive_an_interruption(ledger: Ledger, train: TrainConfig) -> None:
    """The best validation comes before the cell is stopped, and nothing after it is as good."""
    spoilt = replace(train, estimator=unlucky(train, "spoils", at=21).estimator, optimizer=Adam(lr=1e-9), epochs=8)
    good = replace(train, estimator=STE.Config(), epochs=4)
    start = cell(good, "b" * 16)
    ended(ledger, start)
    one = replace(cell(replace(spoilt, init=Pretrain())), depends_on=start.id)
    ledger.add(one)
    stopped = CellTraining(ledger, one, stop=After(25))
    stopped.run_for(3600)
    assert stopped.ended == "interrupted"
    assert ended(ledger, one).ended == "done"
    accuracies = [value for _, name, value in rows(ledger, one) if name == "validation/accuracy"]
    assert max(accuracies) > accuracies[-1]
    best = ledger.best_weights(one.id)
    assert best is not None
    assert best.name == f"best-{5 * (1 + accuracies.index(max(accuracies))):08d}.pt"


def test_cell_without_epochs_is_evaluated_and_starts_from_the_weights_of_its_pretraining(
    ledger: Ledger, train: TrainConfig
) -> None:
    before = cell(replace(train, epochs=1), "b" * 16)
    ended(ledger, before)
    one = cell(replace(train, init=Pretrain(), epochs=0), depends_on=before.id)
    assert ended(ledger, one).ended == "done"
    assert {(step, name) for step, name, _ in rows(ledger, one)} == {(0, "test/loss"), (0, "test/accuracy")}
    final, start = ledger.final_weights(one.id), ledger.final_weights(before.id)
    assert final is not None
    assert start is not None
    assert final.read_bytes() == start.read_bytes()


def test_cell_that_is_stopped_before_it_began_leaves_no_attempt(ledger: Ledger, train: TrainConfig) -> None:
    one = cell(train)
    ledger.add(one)
    training = CellTraining(ledger, one, stop=lambda: True)
    training.run_for(1)
    assert training.ended == "interrupted"
    assert ledger.outcome(one.id).state == "waiting"


def test_damaged_weights_of_a_pretraining_fail_what_waits_for_it(ledger: Ledger, train: TrainConfig) -> None:
    before = cell(replace(train, epochs=0), "b" * 16)
    ended(ledger, before)
    weights = ledger.final_weights(before.id)
    assert weights is not None
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    training = ended(ledger, cell(replace(train, init=Pretrain()), depends_on=before.id))
    assert training.ended == "failed"
    assert "are missing or damaged" in training.reason


# what goes wrong


def test_exception_is_final_and_its_traceback_is_kept(ledger: Ledger, train: TrainConfig) -> None:
    one = cell(unlucky(train, "raises"))
    training = ended(ledger, one)
    assert (training.ended, training.reason) == ("failed", "ValueError: an idea that does not work")
    outcome = ledger.outcome(one.id)
    assert (outcome.state, outcome.reason) == ("failed", training.reason)
    assert training.log == outcome.log is not None
    assert 'raise ValueError("an idea' in outcome.log.read_text()
    assert [step for step, name, _ in rows(ledger, one) if name == "train/loss"] == [2, 4], "what was recorded is kept"


def test_divergence_is_an_outcome_of_its_own(ledger: Ledger, train: TrainConfig) -> None:
    one = cell(unlucky(train, "diverges"))
    assert ended(ledger, one).ended == "diverged"
    outcome = ledger.outcome(one.id)
    assert outcome.state == "diverged"
    assert outcome.reason.startswith(
        "the loss is nan at step 5; the first gradient with such values is that of conv1.weight"
    )
    assert outcome.log is None


def test_state_that_diverged_is_never_kept_and_the_last_good_one_is(ledger: Ledger, train: TrainConfig) -> None:
    """Though the next loss, and with it the next look at it, is far away."""
    one = cell(unlucky(replace(train, log_every=1000), "diverges"))
    ledger.add(one)
    training = CellTraining(ledger, one, checkpoint_every=0.0)
    training.run_for(3600)
    assert (training.ended, ledger.outcome(one.id).state) == ("diverged", "diverged")
    resume = ledger.resume_point(one.id)
    assert resume is not None
    assert resume.step == 4


def test_training_that_diverged_and_is_stopped_has_diverged(ledger: Ledger, train: TrainConfig) -> None:
    one = cell(unlucky(replace(train, log_every=1000, epochs=1, batch_size=8), "diverges"))
    ledger.add(one)
    training = CellTraining(ledger, one, stop=After(7))
    training.run_for(3600)
    assert training.ended == "diverged"
    assert "at step 5" in ledger.outcome(one.id).reason


def test_lack_of_memory_leaves_the_cell_open(ledger: Ledger, train: TrainConfig) -> None:
    for what, reason in (("out_of_memory", "no room"), ("takes_too_much", "[enforce fail at alloc_cpu.cpp")):
        one = cell(unlucky(train, what, at=2), what)
        training = ended(ledger, one)
        assert training.ended == "retry"
        assert training.reason.startswith(f"out of memory: {reason}")
        assert ledger.attempts(one.id)[0]["end"] is None


@pytest.mark.parametrize(
    "error",
    [torch.AcceleratorError("CUDA error: an illegal memory access"), RuntimeError("CUDA error: CUBLAS_STATUS_x")],
    ids=["illegal access", "cuBLAS"],
)
def test_a_fault_of_the_device_ends_the_process_and_leaves_the_cell_open(
    ledger: Ledger, train: TrainConfig, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object, **__: object) -> None:
        raise error

    one = cell(train)
    ledger.add(one)
    training = CellTraining(ledger, one, checkpoint_every=0.0)
    training.run_for(0.0)
    training.run_for(0.0)
    monkeypatch.setattr(Training, "advance", fault)
    with pytest.raises(DeviceFault, match=r"^the device failed: CUDA error: "):
        training.run_for(3600)
    assert training.ended == "retry"
    training.interrupt("the worker is stopped")  # asks the device for nothing more
    assert ledger.attempts(one.id)[0]["end"] is None
    monkeypatch.undo()
    assert ended(ledger, one).ended == "done"


def test_worker_that_waits_for_its_next_cell_keeps_nothing_of_the_last(ledger: Ledger, train: TrainConfig) -> None:
    one = cell(replace(train, epochs=1))
    ledger.add(one)
    training = CellTraining(ledger, one)
    training.run_for(0.0)
    assert training._run is not None
    network = weakref.ref(training._run.training)
    training.run_for(3600)
    gc.collect()
    assert (training.ended, network()) == ("done", None)


def test_attempt_that_is_superseded_stops(ledger: Ledger, train: TrainConfig) -> None:
    one = cell(train)
    ledger.add(one)
    training = CellTraining(ledger, one, checkpoint_every=0.0)
    training.run_for(0.0)
    training.run_for(0.0)
    ledger.claim(one.id, {})
    training.run_for(0.0)
    assert (training.ended, training.reason) == ("retry", "attempt 1 was superseded by attempt 2")


CUT_OFF = """
import os, signal, sys
from pathlib import Path
from orchestration.ledger.ledger import Ledger
from orchestration.runtime.cell_training import CellTraining
ledger = Ledger(Path(sys.argv[1]))
training = CellTraining(ledger, ledger.cell(sys.argv[2]), checkpoint_every=0.0)
while training.step < 6:
    training.run_for(0.0)
training.checkpoint_every = 3600.0
os.kill(os.getpid(), signal.SIGSTOP)
training.run_for(3600)
print(training.ended, training.reason, sep=": ")
"""


@pytest.mark.slow
def test_process_that_was_cut_off_and_writes_beside_its_successor_changes_nothing(
    ledger: Ledger, train: TrainConfig, whole: Ledger
) -> None:
    """A real second one: stopped as by a dead network, and woken when another has gone on from its checkpoint."""
    one = cell(train)
    ledger.add(one)
    command = [sys.executable, "-c", CUT_OFF, str(ledger.folder), one.id]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as cut_off:
        assert os.WIFSTOPPED(os.waitpid(cut_off.pid, os.WUNTRACED)[1])
        successor = CellTraining(ledger, one, checkpoint_every=0.0)
        while successor.step < 8:
            successor.run_for(0.0)
        assert ledger.attempts(one.id)[-1]["resumed_from"]["step"] == 6
        folder = ledger.folder / "trials" / one.id
        before = {path.name for path in (folder / "0001").iterdir()}
        shown = ledger.rows(one.id)
        cut_off.send_signal(signal.SIGCONT)
        successor.run_for(3600)
        told, _ = cut_off.communicate(timeout=120)
    assert told == "retry: attempt 1 was superseded by attempt 2\n"
    late = {path.name for path in (folder / "0001").iterdir()} - before
    assert {"final.pt", "diagnostics-00000010.json", "diagnostics-00000015.json"} <= late, "it did write"
    assert "end.json" not in late
    assert not any(name.startswith(("rows", "checkpoint")) for name in late)
    assert successor.ended == "done"
    assert ledger.rows(one.id)[: len(shown)] == shown
    assert_the_same(ledger, one, whole)
    assert ledger.final_weights(one.id) == folder / "0002" / "final.pt"


def test_full_disk_leaves_the_cell_open_until_there_is_room(
    ledger: Ledger, train: TrainConfig, whole: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cell(train)
    ledger.add(one)
    training = CellTraining(ledger, one, checkpoint_every=0.0)
    for _ in range(6):
        training.run_for(0.0)

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(local, "_write_exclusively", full)
        training.run_for(3600)
        assert training.ended == "unwritable"
        assert training.reason.startswith("No space left on device (")
        assert ended(ledger, one).ended == "unwritable", "nor can another attempt begin"
    assert len(ledger.attempts(one.id)) == 1
    assert rows(ledger, one) != [], "what was there is there"
    assert ended(ledger, one).ended == "done"
    assert_the_same(ledger, one, whole)


def test_damaged_checkpoint_is_passed_over_and_that_is_said(ledger: Ledger, train: TrainConfig, whole: Ledger) -> None:
    one = cell(train)
    ledger.add(one)
    training = CellTraining(ledger, one, checkpoint_every=0.0)
    for _ in range(9):
        training.run_for(0.0)
    newest = ledger.resume_point(one.id)
    assert newest is not None
    content = bytearray(newest.path.read_bytes())
    content[len(content) // 2] ^= 1
    newest.path.write_bytes(content)
    again = ended(ledger, one)
    assert again.note == f"damaged: 0001/checkpoint-{newest.step:08d}.pt; resumed from step {newest.step - 1}"
    assert ledger.attempts(one.id)[-1]["passed_over"] == [f"0001/checkpoint-{newest.step:08d}.pt"]
    assert_the_same(ledger, one, whole)


def test_training_all_of_whose_checkpoints_are_damaged_begins_again_and_says_so(
    ledger: Ledger, train: TrainConfig, whole: Ledger
) -> None:
    one = cell(train)
    ledger.add(one)
    training = CellTraining(ledger, one, checkpoint_every=0.0)
    for _ in range(4):
        training.run_for(0.0)
    for path in ledger.folder.glob("trials/*/0001/checkpoint-*.pt"):
        path.write_bytes(path.read_bytes()[:-1])
    again = ended(ledger, one)
    assert again.note == ("damaged: 0001/checkpoint-00000003.pt, 0001/checkpoint-00000002.pt; began again")
    assert again.ended == "done"
    assert_the_same(ledger, one, whole)


# what users bring


def own(train: TrainConfig, what: str) -> TrainConfig:
    path = "own_state:Own"
    return replace(train, estimator=Imported(path=path, settings={"what": what}, source_sha256=source_sha256(path)))


def masked(train: TrainConfig, **settings: float) -> TrainConfig:
    path = "own_state:Masked"
    model = Imported(path=path, settings=settings, source_sha256=source_sha256(path))
    return replace(train, model=model, estimator=STE.Config())


@pytest.mark.parametrize(
    "change",
    [
        lambda train: own(train, "draws"),
        lambda train: own(train, "keeps_numpy"),
        lambda train: own(train, "keeps_infinity"),
        masked,
    ],
    ids=["draws", "keeps_numpy", "keeps_infinity", "mask of infinity"],
)
def test_own_component_goes_on_bit_for_bit_in_a_process_that_did_other_things(
    ledger: Ledger, train: TrainConfig, tmp_path: Path, change: Callable[[TrainConfig], TrainConfig]
) -> None:
    one, undisturbed = cell(change(train)), Ledger(tmp_path / "undisturbed")
    assert ended(undisturbed, one).ended == "done"
    ledger.add(one)
    for questions in (4, 6):
        stopped = CellTraining(ledger, one, stop=After(questions))
        stopped.run_for(3600)
        assert stopped.ended == "interrupted"
        np.random.rand(5)
        random.random()
    training = ended(ledger, one)
    assert (training.ended, training.note) == ("done", "")
    assert_the_same_rows(ledger, undisturbed, one)


def assert_the_same_rows(ledger: Ledger, undisturbed: Ledger, one: Cell) -> None:
    assert sorted(rows(ledger, one)) == sorted(rows(undisturbed, one))
    assert ledger.outcome(one.id).digest == undisturbed.outcome(one.id).digest is not None


def test_checkpoint_of_an_older_version_is_resumed(ledger: Ledger, train: TrainConfig, whole: Ledger) -> None:
    """Which kept no generators but torch's."""
    one = cell(train)
    ledger.add(one)
    older = Training(train, 0)
    for _ in range(6):
        older.advance()
    state = older.state_dict()
    assert digest(state) == digest({name: part for name, part in state.items() if name != "host_generators"})
    del state["host_generators"]
    attempt = ledger.claim(one.id, {})
    attempt.checkpoint(to_bytes({"training": state, "best": {}}), 6)
    again = ended(ledger, one)
    assert (again.ended, again.note) == ("done", "")
    assert ledger.attempts(one.id)[-1]["resumed_from"]["step"] == 6
    assert ledger.outcome(one.id).digest == whole.outcome(one.id).digest


@pytest.mark.parametrize("interrupted", [False, True])
def test_state_that_cannot_be_kept_is_refused_at_the_first_checkpoint_by_its_path(
    ledger: Ledger, train: TrainConfig, interrupted: bool
) -> None:
    one = cell(own(train, "keeps_a_set"))
    ledger.add(one)
    never = lambda: False  # noqa: E731
    training = CellTraining(ledger, one, checkpoint_every=3600.0 * interrupted, stop=After(4) if interrupted else never)
    training.run_for(3600)
    assert training.ended == ledger.outcome(one.id).state == "failed"
    assert training.reason.startswith("ValueError: estimator.state.saved.memory[3]: a set (expected tensors, arrays,")
    assert not list(ledger.folder.glob("trials/*/*/checkpoint-*"))


def test_first_checkpoint_is_read_back_before_it_is_trusted(
    ledger: Ledger, train: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = checkpoint.from_bytes

    def otherwise(content: bytes) -> dict[str, Any]:
        state = read(content)
        state["training"]["model"]["conv1.weight"].view(-1)[0] += 1
        return state

    monkeypatch.setattr(checkpoint, "from_bytes", otherwise)
    one = cell(train)
    ledger.add(one)
    training = CellTraining(ledger, one, checkpoint_every=0.0)
    training.run_for(3600)
    assert (training.ended, training.step) == ("failed", 1)
    assert training.reason == "ValueError: a checkpoint reads back as something else than was written"
    assert not list(ledger.folder.glob("trials/*/*/checkpoint-*"))


def test_checkpoint_that_cannot_be_read_is_passed_over_for_the_one_before(
    ledger: Ledger, train: TrainConfig, whole: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole as it is: an older version wrote something that the safe loader refuses."""
    one, content = cell(train), io.BytesIO()
    ledger.add(one)
    training = CellTraining(ledger, one, checkpoint_every=0.0)
    while training.step < 7:
        training.run_for(0.0)
    torch.save({"training": np.float64(0.5), "best": {}}, content)
    monkeypatch.setattr(checkpoint, "to_bytes", lambda state: content.getvalue())
    training.run_for(0.0)
    monkeypatch.undo()
    again = ended(ledger, one)
    assert again.note == (
        "cannot be read: 0001/checkpoint-00000008.pt (ValueError: not a readable checkpoint (it holds a "
        "numpy._core.multiarray.scalar)); resumed from step 7"
    )
    assert ledger.attempts(one.id)[-1]["passed_over"] == ["0001/checkpoint-00000008.pt"]
    assert_the_same(ledger, one, whole)


def test_training_none_of_whose_checkpoints_can_be_loaded_begins_again(ledger: Ledger, train: TrainConfig) -> None:
    one = cell(own(train, "cannot_load"))
    ledger.add(one)
    CellTraining(ledger, one, stop=After(6)).run_for(3600)
    again = ended(ledger, one)
    assert again.ended == "done"
    assert again.note == "cannot be read: 0001/checkpoint-00000005.pt (KeyError: 'saved before'); began again"
    losses = [step for step, name, _ in rows(ledger, one) if name == "train/loss"]
    assert losses == [2, 4, 6, 8, 10, 12, 14, 15], "each row once"


def test_memory_in_no_state_is_told_once(ledger: Ledger, train: TrainConfig) -> None:
    training = ended(ledger, cell(own(train, "forgets")))
    assert training.ended == "done"
    told = "in no state_dict: estimator.lost: it changes from step to step, and a training that is resumed will differ"
    assert training.note == told


def test_network_that_starts_with_no_number_fails_and_does_not_diverge(ledger: Ledger, train: TrainConfig) -> None:
    training = ended(ledger, cell(masked(train, divisor=0.0)))
    assert training.ended == "failed"
    assert training.reason == (
        "ValueError: the network starts with NaN or infinity in embed.weight (expected finite numbers)"
    )


def test_source_that_was_edited_since_the_launch_is_not_trained(ledger: Ledger, train: TrainConfig) -> None:
    edited = replace(train, estimator=Imported(path="unlucky:Unlucky", settings={}, source_sha256="0" * 64))
    training = ended(ledger, cell(edited))
    assert training.ended == "failed"
    assert "unlucky:Unlucky was edited since the launch" in training.reason


def test_images_and_starting_weights_that_were_changed_since_the_launch_are_not_trained(
    ledger: Ledger, train: TrainConfig, tmp_path: Path
) -> None:
    weights = tmp_path / "start.npz"
    images = train.data.load()
    network = train.model.build(images.shape, images.classes).state_dict()
    np.savez(weights, **{name: tensor.numpy() for name, tensor in network.items()})
    started = replace(train, init=File(path=str(weights)), epochs=1)
    known = inputs([started])
    assert list(known) == [train.data.title(), str(weights)]

    def trained(name: str, recorded: dict[str, str]) -> CellTraining:
        one = cell(started, name)
        ledger.add(one)
        training = CellTraining(ledger, one, record={"inputs": recorded})
        training.run_for(3600)
        return training

    assert trained("a" * 16, known).ended == "done"
    for number, title in enumerate(known):
        training = trained(f"b{number}" * 8, known | {title: "0" * 64})
        assert training.ended == "failed"
        assert f"{title} was changed since the launch; another launch trains what it is now" in training.reason


# what the bits hang on


def test_attempt_records_what_its_bits_hang_on(ledger: Ledger, train: TrainConfig) -> None:
    for one in (cell(replace(train, epochs=0)), cell(replace(train, epochs=0, estimator=STE.Config()), "b" * 16)):
        ended(ledger, one)
    fsg, ste = (ledger.attempts(name * 16)[0] for name in "ab")
    assert fsg["kernel"] == kernel(train.estimator.slow_net, "cpu")  # type: ignore[union-attr, arg-type]
    assert ste["kernel"] == "", "it has no slow net"
    assert fsg["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert fsg["threads"] == "1"
    assert fsg["blas"]
    assert "cudnn" not in fsg


def test_resuming_with_another_kernel_is_told(
    ledger: Ledger, train: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cell(train)
    ledger.add(one)
    training = CellTraining(ledger, one, checkpoint_every=0.0)
    for _ in range(4):
        training.run_for(0.0)
    again = CellTraining(ledger, one)
    again.run_for(0.0)
    assert again.note == ""
    again.interrupt("enough")
    native.BUILT.clear()
    monkeypatch.setenv("FSG_NATIVE", "0")
    other = CellTraining(ledger, one)
    other.run_for(0.0)
    native.BUILT.clear()
    before = ledger.attempts(one.id)[0]["kernel"]
    told = f"slow net kernels torch (FSG_NATIVE=0) (before: {before})"
    assert other.note == f"resumed with other {told}: other bits are to be expected"


# warm workers


def test_third_cell_on_a_warm_worker_equals_the_same_in_a_fresh_process(
    ledger: Ledger, train: TrainConfig, whole: Ledger
) -> None:
    traces = replace(unlucky(train, "leaves_traces", at=4), epochs=1)
    first, second = cell(traces, "1" * 16), cell(replace(train, threads=2, epochs=0), "2" * 16)
    for one in (first, second, cell(train)):
        ended(ledger, one)
    assert_the_same(ledger, cell(train), whole)


# searches


def test_training_pauses_at_a_step_and_goes_on_to_the_same_end(
    ledger: Ledger, train: TrainConfig, whole: Ledger
) -> None:
    one = cell(train)
    ledger.add(one)
    states = []
    for until in (5, 5, 10, None):
        training = CellTraining(ledger, one, until=until)
        training.run_for(3600)
        states.append((training.ended, training.step))
    assert states == [("paused", 5), ("paused", 5), ("paused", 10), ("done", 15)]
    assert_the_same(ledger, one, whole)


def test_candidate_sees_no_test_images_and_what_continues_it_ends_like_an_ordinary_training(
    ledger: Ledger, train: TrainConfig, whole: Ledger
) -> None:
    candidate = replace(cell(replace(train, test="never"), "b" * 16), kind="candidate")
    ended(ledger, candidate)
    assert not any(name.startswith("test/") for _, name, _ in rows(ledger, candidate))
    final = replace(cell(train), continues=candidate.id)
    ledger.add(final)
    training = CellTraining(ledger, ledger.cell(final.id))
    training.run_for(0)
    assert training.ended is None, "that was the claim"
    training.run_for(0)
    assert training.ended == "done", "one step, which trains nothing"
    assert_the_same(ledger, final, whole)
    assert ledger.outcome(final.id).seconds >= ledger.outcome(candidate.id).seconds > 0


def test_what_continues_a_lost_candidate_is_trained_from_the_start(
    ledger: Ledger, train: TrainConfig, whole: Ledger
) -> None:
    final = replace(cell(train), continues="gone")
    assert ended(ledger, final).ended == "done"
    assert_the_same(ledger, final, whole)


def test_papers_protocol_is_test_images_too(ledger: Ledger, train: TrainConfig) -> None:
    one = cell(replace(train, test="never", data=replace(train.data, validation=0), epochs=1))
    assert ended(ledger, one).ended == "done"
    assert not any("test" in name for _, name, _ in rows(ledger, one))
