"""Training: one step, an evaluation, and the whole as something that can be stopped and gone on with anywhere."""

import hashlib
import itertools
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fsg.config import Settings, choice, setting
from fsg.data import DataConfig, FashionMNISTSubset
from fsg.estimators import STE, EstimatorConfig, GradientEstimator
from fsg.layers import quantize
from fsg.metrics import evaluate, recalibrated_batchnorm
from fsg.models import ModelConfig, ResNet
from fsg.optimizers import Adam, Optimizer, OptimizerConfig
from fsg.quantizers import DoReFa, FullPrecision, QuantizerConfig
from fsg.schedules import Cosine, ScheduleConfig
from fsg.starting_points import File, InitConfig, Pretrain, Scratch, load_into, load_weights

PAPERS_EPOCHS = 10


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """Everything that determines a training but its seed."""

    data: DataConfig = choice(FashionMNISTSubset, "The images.", discriminator="name")
    model: ModelConfig = choice(ResNet.Config, "The network.", discriminator="name")
    quantizer: QuantizerConfig = choice(DoReFa, "What makes its weights binary.", discriminator="name")
    estimator: EstimatorConfig = choice(STE.Config, "Where their gradient comes from.", discriminator="name")
    optimizer: OptimizerConfig = choice(Adam, "What is done with it.", discriminator="name")
    lr_schedule: ScheduleConfig = choice(Cosine, "How the learning rate changes.", discriminator="name")
    init: InitConfig = choice(Scratch, "Where the weights start.", discriminator="name")
    epochs: int = setting(10, "Passes over the training images; 0 evaluates the start.", ge=0)
    batch_size: int = setting(128, "Images a step.", ge=1)
    threads: int = setting(1, "CPU threads of a training; another number gives other sums, and so other bits.", ge=1)
    precision: Literal["fp32", "tf32", "bf16"] = choice("fp32", "Arithmetic of the network; tf32 and bf16 want a GPU.")
    recalibrate_batchnorm: int = setting(
        0, "Training images over which batch norm's statistics are re-estimated before an evaluation; 0: none.", ge=0
    )
    log_every: int = setting(10, "Steps whose mean loss makes one row.", ge=1)
    evaluate_every: int = setting(1, "Epochs between two validations.", ge=1)


class Row(NamedTuple):
    """Metrics at a global optimizer step."""

    step: int
    values: dict[str, float]


class Diverged(Exception):
    """The loss is no longer a number."""


def train_step(
    model: nn.Module,
    estimator: GradientEstimator,
    optimizer: Optimizer,
    images: Tensor,
    labels: Tensor,
    *,
    lr: float,
    progress: float,
) -> Tensor:
    """One step of training; returns the mean cross entropy of the batch, detached.

    images [b, C, H, W], labels [b]; `progress` is the part of the training that is over, in [0, 1].
    """
    weights = estimator.propose(model, lr=lr, progress=progress)
    loss = F.cross_entropy(functional_call(model, weights, (images,)), labels)
    optimizer.zero_grad()
    estimator.zero_grad()
    torch.autograd.backward(loss)
    if estimator.update(model):
        optimizer.step(lr)
    return loss.detach()


def train(config: TrainConfig, seed: int = 0, *, device: str = "cpu") -> Iterator[Row]:
    """The rows of a whole training, a pretraining that it asks for included (without its rows)."""
    start = None
    if isinstance(config.init, Pretrain):
        before = Training(pretraining(config), seed, device=device)
        while not before.done:
            before.advance()
        start = before.weights()
    training = Training(config, seed, start=start, device=device)
    while not training.done:
        yield from training.advance()


def pretraining(config: TrainConfig) -> TrainConfig:
    """The full-precision training that `init: pretrain` implies: same images, network, threads and precision.

    Raises ValueError for any other starting point.
    """
    init = config.init
    if not isinstance(init, Pretrain):
        raise ValueError(f"init is {init.name}, expected pretrain")
    return replace(
        config,
        quantizer=FullPrecision(),
        estimator=STE.Config(),
        optimizer=init.optimizer,
        lr_schedule=init.lr_schedule,
        init=Scratch(),
        epochs=init.epochs,
        batch_size=init.batch_size,
        recalibrate_batchnorm=0,
        evaluate_every=init.epochs,
    )


def derived_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose, so that what one part draws does not shift what another does."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:8]) >> 1


class Training:
    """A training between two steps: it can be advanced, saved, and gone on with elsewhere, bit for bit.

    Two trainings of one seed start from the same weights and see the same images in the same order, whatever their
    estimators: that is what makes seeds a pairing.
    """

    def __init__(
        self, config: TrainConfig, seed: int, *, start: dict[str, Tensor] | None = None, device: str = "cpu"
    ) -> None:
        """`start` is required where `config.init` is pretrain: the weights, by name.

        Raises ValueError for weights that do not fit the network, or where they are missing.
        """
        if isinstance(config.init, Pretrain) and start is None:
            raise ValueError("init is pretrain: expected the pretrained weights as `start`")
        if isinstance(config.init, File):
            start = load_weights(config.init.path)
        self.config, self.seed, self.device = config, seed, torch.device(device)
        self._set_precision()
        self.dataset = config.data.load().to(device)
        torch.manual_seed(derived_seed(seed, "network"))
        model = config.model.build(self.dataset.shape, self.dataset.classes)
        if start is not None:
            load_into(model, start)
        self.model = quantize(model, config.quantizer).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        torch.manual_seed(derived_seed(seed, "estimator"))
        self.estimator: GradientEstimator = config.estimator.build(self.model)
        self.optimizer: Optimizer = config.optimizer.build(self.model)
        torch.manual_seed(derived_seed(seed, "training"))
        self.step = 0
        self.steps_per_epoch: int = self.dataset.steps_per_epoch(config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.done = False
        self.best = (0, 0.0)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.time = {"train": 0.0, "evaluation": 0.0}
        self._batches: Iterator[tuple[Tensor, Tensor]] | None = None

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return self.step // self.steps_per_epoch

    def advance(self) -> list[Row]:
        """One step, with the validation after it where an epoch ends and the test where the training does.

        Raises Diverged, naming the step and the first tensor, where the loss is no longer finite.
        """
        rows: list[Row] = []
        if self.step < self.total_steps:
            rows += self._train()
            if self.step % self.steps_per_epoch == 0:
                rows += self._validate()
        if self.step == self.total_steps:
            rows += self._test()
            self.done = True
        return rows

    def weights(self) -> dict[str, Tensor]:
        """The network alone: latent weights, other parameters and buffers, by name."""
        return self.model.state_dict()

    def state_dict(self) -> dict[str, Any]:
        cuda = {"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {}
        return {
            "step": self.step,
            "done": self.done,
            "best": list(self.best),
            "loss_sum": self.loss_sum,
            "random": {"cpu": torch.get_rng_state(), **cuda},
            "model": self.weights(),
            "optimizer": self.optimizer.state_dict(),
            "estimator": self.estimator.state_dict(),
            "time": dict(self.time),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken; in place, so that memory formats stay."""
        self.step, self.done, self.time = state["step"], state["done"], dict(state["time"])
        self.best = (state["best"][0], state["best"][1])
        self.loss_sum.copy_(state["loss_sum"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.estimator.load_state_dict(state["estimator"])
        self._batches = None
        torch.set_rng_state(state["random"]["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)

    def _train(self) -> list[Row]:
        began = time.perf_counter()
        config, epoch = self.config, self.step / self.steps_per_epoch
        if self._batches is None:
            done = self.step % self.steps_per_epoch
            self._batches = self.dataset.batches(self.seed, self.epoch, config.batch_size, start=done)
        images, labels = next(self._batches)
        lr = config.optimizer.lr * config.lr_schedule.factor(epoch, config.epochs)
        progress = self.step / self.total_steps
        with self._arithmetic():
            loss = train_step(self.model, self.estimator, self.optimizer, images, labels, lr=lr, progress=progress)
        self.loss_sum += loss
        self.step += 1
        if self.step % self.steps_per_epoch == 0:
            self._batches = None
        logged = self.step % config.log_every == 0 or self.step == self.total_steps
        values = self._logged(lr) if logged else None
        self.time["train"] += time.perf_counter() - began
        if values is None:
            return []
        return [Row(self.step, {**values, "time/train_seconds": self.time["train"]})]

    def _logged(self, lr: float) -> dict[str, float]:
        over = (self.step - 1) % self.config.log_every + 1
        loss = float(self.loss_sum) / over
        self.loss_sum.zero_()
        if loss - loss != 0:
            raise Diverged(f"the loss is {loss} at step {self.step}; {self._first_not_finite()}")
        return {"train/loss": loss, "lr": lr, "epoch": self.step / self.steps_per_epoch}

    def _first_not_finite(self) -> str:
        for name, tensor in self.model.state_dict().items():
            if not torch.isfinite(tensor).all():
                return f"the first tensor with such values is {name}"
        return "the weights are still finite"

    def _validate(self) -> list[Row]:
        values: dict[str, float] = {}
        with self._evaluating():
            if len(self.dataset.validation_labels) and self.epoch % self.config.evaluate_every == 0:
                values |= self._evaluate("validation")
            if not self.config.data.validation and self.epoch > self.config.epochs - PAPERS_EPOCHS:
                values["papers_protocol/test_accuracy"] = self._evaluate("test")["test/accuracy"]
        if values.get("validation/accuracy", 0.0) > self.best[1]:
            self.best = (self.step, values["validation/accuracy"])
        return [Row(self.step, values)] if values else []

    def _test(self) -> list[Row]:
        with self._evaluating():
            values = self._evaluate("test")
        return [Row(self.step, {**values, "time/evaluation_seconds": self.time["evaluation"]})]

    def _evaluate(self, split: Literal["validation", "test"]) -> dict[str, float]:
        with self._arithmetic():
            loss, accuracy = evaluate(self.model, self.dataset.evaluation(split))
        return {f"{split}/loss": loss, f"{split}/accuracy": accuracy}

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        began = time.perf_counter()
        images, batch = self.config.recalibrate_batchnorm, self.config.batch_size
        if images:
            some = itertools.islice(self.dataset.evaluation("train", batch_size=batch), -(-images // batch))
            with self._arithmetic(), recalibrated_batchnorm(self.model, some):
                yield
        else:
            yield
        self.time["evaluation"] += time.perf_counter() - began

    def _set_precision(self) -> None:
        """Set on every construction, one way or the other: a worker that is warm may have had it otherwise."""
        torch.set_float32_matmul_precision("high" if self.config.precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = self.config.precision == "tf32"
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False

    def _arithmetic(self) -> AbstractContextManager[Any]:
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()
