"""Networks, activations, losses and optimizers in whole trainings: resumed to the bit, and in no older identity."""

import copy
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fsg.activations import SignActivation, SignActivations
from fsg.checkpoint import digest, from_bytes, to_bytes
from fsg.config import from_dict, to_dict
from fsg.data import Arrays
from fsg.estimators import FSG, FullPrecision
from fsg.imported import Imported
from fsg.layers import QuantizedLayer
from fsg.losses import CrossEntropy, Distillation
from fsg.models import ResNet, Torchvision, VGGSmall
from fsg.optimizers import SGD, Adam, AdamW, Bop, NAdam
from fsg.starting_points import Pretrain
from fsg.train_config import TrainConfig, pretraining
from fsg.trainer import Training

FSG_SMALL = FSG.Config(hidden=5, chunk_size=16, layer_embedding_dim=4, history_length=3)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Two epochs of four steps."""
    draw = np.random.default_rng(0)
    arrays = {"images": draw.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8), "labels": np.arange(40) % 4}
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(path, **{f"{split}_{name}": array for split in ("train", "test") for name, array in arrays.items()})
    data = Arrays(file=str(path), validation=8, crop_padding=1, flip=False)
    return TrainConfig(
        data=data, model=ResNet.Config(depth=8, width=2), epochs=2, batch_size=8, optimizer=Adam(lr=3e-3)
    )


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with losses of a user's own."""
    (tmp_path / "own_losses.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_losses"


OWN = """
import torch
import torch.nn.functional as F
from torch import nn

class Moving(nn.Module):
    '''Remembers the losses that it has seen, and draws from a generator of its own.'''
    def __init__(self, strength: float = 0.5):
        super().__init__()
        self.strength, self.generator = strength, torch.Generator().manual_seed(0)
        self.register_buffer("mean", torch.zeros(()))
    def forward(self, logits, labels):
        loss = F.cross_entropy(logits, labels)
        self.mean.lerp_(loss.detach(), 0.3)
        drawn = torch.rand((), generator=self.generator)
        return loss * (1 + self.strength * self.mean) + drawn * logits.square().mean()

class Follows:
    needs_teacher = True
    def __call__(self, logits, labels, *, teacher):
        return (logits - teacher).square().mean()
"""


def finished(training: Training) -> Training:
    while not training.done:
        training.advance()
    return training


def start_of(config: TrainConfig) -> dict[str, Tensor] | None:
    return finished(Training(pretraining(config), 1)).weights() if isinstance(config.init, Pretrain) else None


def check_resumes_to_the_bit(config: TrainConfig, stops: tuple[int, ...] = (1, 6)) -> Training:
    """Returns the training without a stop."""
    start = start_of(config)
    whole = finished(Training(config, 1, start=start))
    training = Training(config, 1, start=start)
    for stop in stops:
        while training.step < stop:
            training.advance()
        saved = to_bytes(training.state_dict())
        training.advance()  # what comes after must not show
        training = Training(config, 1, start=start)
        training.load_state_dict(from_bytes(saved))
        assert digest(training.state_dict()) == digest(from_bytes(saved))
    assert digest(finished(training).state_dict()) == digest(whole.state_dict())
    return whole


def sha(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def test_identities_are_those_from_before_there_were_losses_and_activations_to_choose() -> None:
    """The digests are those that the code had before."""
    assert sha(TrainConfig().identity()) == "e3cc9ae5fe46731c"
    kept = TrainConfig(init=Pretrain(), optimizer=SGD(momentum=0.9), full_precision_layers=("conv1",))
    assert sha(kept.identity()) == "dc23bad40aec142b"
    assert sha(pretraining(TrainConfig(init=Pretrain(optimizer=Bop()))).identity()) == "8cddc3e8a35cc3ae"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loss", CrossEntropy(label_smoothing=0.1)),
        ("activations", SignActivations()),
        ("model", ResNet.Config(shortcut="A")),
        ("model", ResNet.Config(classifier_norm=True)),
        ("optimizer", SGD(momentum=0.9, nesterov=True)),
    ],
)
def test_what_is_chosen_is_in_the_identity_and_survives_a_file(field: str, value: Any) -> None:
    config = replace(TrainConfig(), **{field: value})
    assert config.identity() != TrainConfig().identity()
    assert config.identity()[field] == value.identity()
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config


NETWORKS = {
    "vgg_small": (VGGSmall.Config(width=2), ("features.0", "fc"), 5),
    "torchvision": (Torchvision.Config(arch="squeezenet1_1", small_images=True), ("features.0", "classifier.*"), 24),
    "A": (ResNet.Config(depth=8, width=2, shortcut="A", classifier_norm=True), ("conv1", "fc"), 6),
    "pooled": (ResNet.Config(depth=8, width=2, shortcut="pooled", activation_bits=1), ("*.downsample.*",), 8),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_starts_from_its_pretraining_and_keeps_layers(config: TrainConfig, network: str) -> None:
    model, kept, quantized = NETWORKS[network]
    config = replace(config, model=model, full_precision_layers=kept, init=Pretrain(epochs=1), diagnostics=False)
    before = Training(pretraining(config), 1)
    before.advance()
    training = Training(config, 1, start=before.weights())
    assert digest(training.weights()) == digest(before.weights())
    assert len(training.estimator.layers) == quantized
    training.advance()
    assert not any(isinstance(training.model.get_submodule(name), QuantizedLayer) for name in kept if "*" not in name)


def test_signs_before_any_networks_layers_are_annealed_and_resumed(config: TrainConfig) -> None:
    signs = SignActivations(derivative="ede", thresholds="learned", relu="rprelu")
    config = replace(
        config, model=VGGSmall.Config(width=2), activations=signs, full_precision_layers=("features.0", "fc")
    )
    training = check_resumes_to_the_bit(config)
    placed = {n: m for n, m in training.model.named_modules() if isinstance(m, SignActivation)}
    assert len(placed) == 5
    for module in placed.values():
        assert module.progress == 7 / 8
        assert module.threshold is not None
        assert module.threshold.abs().sum() > 0


def test_two_steps_binarise_activations_first_and_weights_then(config: TrainConfig) -> None:
    signs = SignActivations(thresholds="learned", relu="hardtanh")
    config = replace(config, activations=signs, full_precision_layers=("conv1", "fc"), init=Pretrain(epochs=1))
    plain, first = (
        pretraining(replace(config, init=replace(config.init, binary_activations=both)))  # type: ignore[type-var]
        for both in (False, True)
    )
    assert plain == pretraining(replace(TrainConfig(), init=config.init, data=config.data, model=config.model))
    assert (first.activations, first.full_precision_layers) == (signs, ("conv1", "fc"))
    one = finished(Training(first, 1))
    seen: list[Tensor] = []
    layer = one.model.get_submodule("layer2.0.conv1")
    assert type(layer) is nn.Conv2d
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    one.model(torch.randn(2, 1, 8, 8))
    assert set(seen[0].unique().tolist()) == {-1.0, 1.0}
    assert one.weights()["layer2.0.conv1.activation.threshold"].abs().sum() > 0

    config = replace(config, init=replace(config.init, binary_activations=True))  # type: ignore[type-var]
    two = Training(config, 1, start=one.weights())
    assert digest(two.weights()) == digest(one.weights())
    of_real = Training(replace(config, init=Pretrain(epochs=1)), 1, start=finished(Training(plain, 1)).weights())
    assert (of_real.weights()["layer2.0.conv1.activation.threshold"] == 0).all()
    short = {name: tensor for name, tensor in one.weights().items() if name != "layer2.0.conv1.weight"}
    with pytest.raises(ValueError, match=re.escape("missing layer2.0.conv1.weight")):
        Training(config, 1, start=short)


def test_label_smoothing_spreads_a_part_of_the_target_evenly() -> None:
    logits, labels = np.random.default_rng(0).normal(size=(5, 4)), np.array([0, 3, 1, 1, 2])
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = 0.7 * np.eye(4)[labels] + 0.3 / 4
    measured = CrossEntropy(label_smoothing=0.3).build()(torch.from_numpy(logits), torch.from_numpy(labels))
    assert float(measured) == pytest.approx(-(target * log_probabilities).sum(1).mean(), rel=1e-12)


@pytest.mark.parametrize(("temperature", "weight"), [(4.0, 0.5), (1.0, 1.0), (2.5, 0.0)])
def test_distillation_is_the_divergence_from_the_teacher_beside_the_cross_entropy(
    temperature: float, weight: float
) -> None:
    draw, labels = np.random.default_rng(0), np.array([0, 3, 1, 1, 2])
    logits, teacher = draw.normal(size=(5, 4)), 3 * draw.normal(size=(5, 4))

    def softmax(x: Any) -> Any:
        return np.exp(x) / np.exp(x).sum(1, keepdims=True)

    p, q = softmax(teacher / temperature), softmax(logits / temperature)
    hard = -np.log(softmax(logits)[np.arange(5), labels]).mean()
    expected = (1 - weight) * hard + weight * temperature**2 * (p * np.log(p / q)).sum(1).mean()
    loss = Distillation(temperature=temperature, weight=weight).build()
    measured = loss(torch.from_numpy(logits), torch.from_numpy(labels), teacher=torch.from_numpy(teacher))
    assert float(measured) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("binary", [False, True])
def test_distillation_learns_from_the_pretrained_network_which_stays_as_it_was(
    config: TrainConfig, binary: bool
) -> None:
    config = replace(
        config,
        init=Pretrain(epochs=1, binary_activations=binary),
        activations=SignActivations(thresholds="learned"),
        full_precision_layers=("conv1",),
        loss=Distillation(weight=0.9),
        log_every=1,
    )
    assert pretraining(config).loss == CrossEntropy()
    training = check_resumes_to_the_bit(config)
    start = start_of(config)
    assert training.teacher is not None
    assert start is not None
    assert digest(training.teacher.state_dict()) == digest(start)
    assert not training.teacher.training

    first = Training(config, 1, start=start)
    model, teacher = copy.deepcopy(first.model), first.teacher
    assert teacher is not None
    images, labels = next(first.dataset.batches(1, 0, 8))
    with torch.no_grad():
        expected = Distillation(weight=0.9)(model.train()(images), labels, teacher=teacher(images))
    (row,) = (row for row in first.advance() if "train/loss" in row.values)
    assert row.values["train/loss"] == pytest.approx(float(expected), rel=1e-6)


def test_evaluation_is_of_cross_entropy_whatever_is_minimised(config: TrainConfig) -> None:
    runs = [
        Training(replace(config, epochs=0, loss=loss), 1)
        for loss in (CrossEntropy(), CrossEntropy(label_smoothing=0.9))
    ]
    values = [run.advance()[0].values["test/loss"] for run in runs]
    assert values[0] == values[1]


def test_a_loss_of_ones_own_is_resumed_with_its_buffers_and_generators(config: TrainConfig, own: str) -> None:
    config = replace(config, loss=Imported.of(f"{own}:Moving", {"strength": 0.2}))
    training = check_resumes_to_the_bit(config)
    assert isinstance(training.loss, nn.Module)
    assert training.loss.get_buffer("mean") > 0
    assert config.identity()["loss"]["settings"] == {"strength": 0.2}


def test_a_loss_of_ones_own_may_have_the_teacher(config: TrainConfig, own: str) -> None:
    config = replace(config, loss=Imported.of(f"{own}:Follows", {}), init=Pretrain(epochs=1))
    assert check_resumes_to_the_bit(config, (2,)).teacher is not None
    with pytest.raises(ValueError, match=r"the loss needs a teacher, and init is scratch \(expected init: pretrain"):
        Training(replace(config, init=TrainConfig().init), 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": Distillation()}, r"needs a teacher, and init is scratch \(expected init: pretrain"),
        ({"init": Pretrain(binary_activations=True)}, r"activations is real \(expected activations: sign\)"),
        (
            {"model": ResNet.Config(activation_bits=1), "activations": SignActivations()},
            r"activation_bits is 1, and activations is sign \(expected one of the two\)",
        ),
    ],
)
def test_parts_that_do_not_go_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TrainConfig(), **changes)


OPTIMIZERS = {
    "adamw": AdamW(lr=1e-3),
    "nadam": NAdam(lr=1e-3),
    "nesterov": SGD(lr=0.01, momentum=0.9, nesterov=True),
    "RMSprop": ("torch.optim:RMSprop", {"lr": 1e-3, "momentum": 0.9, "centered": True}),
    "Adagrad": ("torch.optim:Adagrad", {"lr": 1e-2}),
    "Adafactor": ("torch.optim:Adafactor", {"lr": 1e-2}),
    "AdamW amsgrad": ("torch.optim:AdamW", {"lr": 1e-3, "amsgrad": True, "betas": [0.8, 0.99]}),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_is_resumed_to_the_bit(config: TrainConfig, optimizer: str) -> None:
    """Under an estimator that looks ahead along what one of torch's did, too."""
    chosen: Any = OPTIMIZERS[optimizer]
    chosen = Imported.of(*chosen) if isinstance(chosen, tuple) else chosen
    estimator = FSG_SMALL if optimizer == "RMSprop" else FullPrecision.Config()
    check_resumes_to_the_bit(replace(config, optimizer=chosen, estimator=estimator), (3,))


def test_torchs_optimizer_gets_its_settings_and_the_schedules_learning_rate(config: TrainConfig) -> None:
    """Against ours of the same formula."""
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2}
    both = (Imported.of("torch.optim:SGD", settings), SGD(**settings))
    trainings = [finished(Training(replace(config, optimizer=one), 1)) for one in both]
    for (name, one), other in zip(trainings[0].weights().items(), trainings[1].weights().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_an_optimizer_that_wants_a_closure_is_refused(config: TrainConfig) -> None:
    with pytest.raises(ValueError, match=r"LBFGS.step needs a closure \(expected an optimizer that steps by the grad"):
        Training(replace(config, optimizer=Imported.of("torch.optim:LBFGS", {})), 1)
