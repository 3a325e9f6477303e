"""Training: one step, an evaluation, and the whole as something that can be stopped and gone on with anywhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fsg import host_generators, torch_optimizer
from fsg.activations import placed_state
from fsg.cuda_graph import captured_step
from fsg.diagnostics import Diagnostics, Table
from fsg.estimators import GradientEstimator
from fsg.estimators.protocol import InParts
from fsg.evaluations import Evaluations
from fsg.finite import Diverged, Watch, not_finite
from fsg.image_dataset import ImageDataset
from fsg.imported import Imported
from fsg.layers import anneal, dequantize
from fsg.lost_state import LostState
from fsg.made_by import made_by, refuse_another
from fsg.models import Torchvision
from fsg.optimizers import Optimizer
from fsg.precision import arithmetic, set_precision
from fsg.seeding import derived_seed, seed_generators
from fsg.starting_points import File, Pretrain, load_into, load_weights, named_for
from fsg.step import StepInParts, train_step
from fsg.train_config import NO_TEACHER, TrainConfig, pretraining

SAMPLES = 8  # steps of an epoch whose gradients the diagnostics look at


class Row(NamedTuple):
    """Metrics at a global optimizer step."""

    step: int
    values: dict[str, float]


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


def _teacher(config: TrainConfig, dataset: ImageDataset, start: dict[str, Tensor] | None) -> nn.Module:
    """The pretrained network as it was evaluated. Raises ValueError where there is none."""
    if start is None or not isinstance(config.init, Pretrain):
        raise ValueError(NO_TEACHER.format(config.init.name))
    teacher = config.model.build(dataset.shape, dataset.classes)
    if config.init.binary_activations:
        dequantize(config.quantized(teacher))
    load_into(teacher, start)
    teacher.eval().requires_grad_(False)
    return teacher.to(memory_format=torch.channels_last)


def refuse_not_finite(model: nn.Module) -> None:
    """Raises ValueError, naming it, for a parameter to be trained that starts as NaN or infinity."""
    bad = not_finite({name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad})
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ValueError(
            f"the network starts with NaN or infinity in {bad[0].strip('/')}{more} (expected finite numbers)"
        )


class Training:
    """A training between two steps: it can be advanced, saved, and gone on with elsewhere, bit for bit.

    Two trainings of one seed start from the same weights and see the same images in the same order, whatever their
    estimators: that is what makes seeds a pairing.
    """

    def __init__(
        self, config: TrainConfig, seed: int, *, start: dict[str, Tensor] | None = None, device: str = "cpu"
    ) -> None:
        """`start` is required where `config.init` is pretrain: the weights, by name.

        Raises ValueError for weights that do not fit the network, are not finite, or are missing.
        """
        if isinstance(config.init, Pretrain) and start is None:
            raise ValueError("init is pretrain: expected the pretrained weights as `start`")
        self.config, self.seed, self.device = config, seed, torch.device(device)
        own_model = isinstance(config.model, Imported | Torchvision.Config)
        set_precision(config.precision, self.device, own_model=own_model)
        self.dataset = config.data.load().to(device)
        seed_generators(derived_seed(seed, "network"))
        model = config.model.build(self.dataset.shape, self.dataset.classes)
        anneal(config.quantized(model), 0.0)
        if isinstance(config.init, File):
            start = named_for(model.state_dict(), load_weights(config.init.path))
        if start is not None:
            load_into(model, placed_state(model) | start)
        refuse_not_finite(model)
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss: Callable[..., Tensor] = config.loss.build()
        if isinstance(self.loss, nn.Module):
            self.loss.to(self.device)
        needs_teacher = getattr(self.loss, "needs_teacher", False)
        self.teacher = _teacher(config, self.dataset, start).to(self.device) if needs_teacher else None
        seed_generators(derived_seed(seed, "estimator"))
        self.estimator: GradientEstimator = config.estimator.build(self.model)
        self.optimizer: Optimizer = torch_optimizer.adapted(config.optimizer.build(self.model), self.model)
        self.lost_state = LostState(self.estimator, config.estimator.build)
        self._never_finite = {f"/model{name}" for name in not_finite(self.weights())}  # such as a mask of −∞
        seed_generators(derived_seed(seed, "training"))
        self.step = 0
        self.evaluations = Evaluations(config, self.model, self.dataset, self.device)
        self.steps_per_epoch = self.evaluations.steps_per_epoch
        every = max(1, self.steps_per_epoch // SAMPLES)
        observed = config.diagnostics and self.estimator.layers
        self.diagnostics = Diagnostics(self.estimator, sample_every=every) if observed else None
        self.table: Table | None = None
        self.watch = Watch(self.optimizer.names, self.optimizer.parameters)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.done = False
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.train_seconds = 0.0
        self._batches: Iterator[tuple[Tensor, Tensor]] | None = None
        self.captured = captured_step(self.config, self.device, self.parts)

    def parts(self) -> StepInParts:
        """The step in the parts that a graph can replay. Raises ValueError for an estimator that has none."""
        if not isinstance(self.estimator, InParts):
            raise ValueError(f"{type(self.estimator).__name__} is not made of parts (expected an fsg.InParts)")
        return StepInParts(
            self.model, self.estimator, self.optimizer,
            loss_function=self.loss, teacher=self.teacher,
            arithmetic=self._arithmetic, diagnostics=self.diagnostics, after=self._after,
        )  # fmt: skip

    def _after(self, loss: Tensor) -> None:
        """What the device notes of a step."""
        self.loss_sum += loss
        self.watch.see(loss)

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return self.step // self.steps_per_epoch

    def progress(self, step: int) -> float:
        """The part of the training that is over before a step, in [0, 1]; of its epoch where `anneal` is epoch."""
        into_epoch = step % self.steps_per_epoch if self.config.anneal == "epoch" else 0
        return (step - into_epoch) / max(1, self.total_steps)

    def advance(self, around_step: AbstractContextManager[Any] | None = None) -> list[Row]:
        """One step, with the validation after it where an epoch ends and the test where the training does.

        The step alone is made within `around_step`.
        Where an epoch has ended, `table` holds its diagnostics until the next call; otherwise it is None.
        Raises Diverged, naming the step and the first tensor, where loss or a gradient is no longer finite: whenever a
        row of losses is due, and before an evaluation. Raises RuntimeError where it is the images that are not.
        """
        rows: list[Row] = []
        self.table = None
        if self.step < self.total_steps:
            with around_step or nullcontext():
                rows += self._train()
            if self.step % self.steps_per_epoch == 0 and self.diagnostics is not None:
                self._check()
                self.table = self.diagnostics.finish(self.epoch, self.step)
            rows += self._validate()
        if self.step == self.total_steps:
            rows += self._test() if self.config.test == "end" else []
            self.done = True
        return rows

    def weights(self) -> dict[str, Tensor]:
        """The network alone: latent weights, other parameters and buffers, by name."""
        return self.model.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on from. Raises Diverged where a part that was finite at the start no longer is.

        A user's own estimator or optimizer may keep infinities; what is wrong with it shows in losses and gradients.
        """
        self._check()
        cuda = {"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {}
        state = {
            "made_by": made_by(self.config, self.seed),
            "step": self.step,
            "done": self.done,
            "best": list(self.evaluations.best),
            "loss_sum": self.loss_sum,
            "random": {"cpu": torch.get_rng_state(), **cuda},
            "model": self.weights(),
            "optimizer": self.optimizer.state_dict(),
            "estimator": self.estimator.state_dict(),
            "time": {"train": self.train_seconds, "evaluation": self.evaluations.seconds},
        }
        own = {part for part in ("estimator", "optimizer") if isinstance(getattr(self.config, part), Imported)}
        judged = {part: value for part, value in state.items() if part not in own}
        if bad := [name for name in not_finite(judged) if name not in self._never_finite]:
            raise Diverged(f"{bad[0].strip('/')} is not finite after step {self.step}")
        state["host_generators"] = host_generators.states(self._owners())
        if isinstance(self.loss, nn.Module) and (kept := self.loss.state_dict()):
            state["loss"] = kept
        return state | ({"diagnostics": self.diagnostics.state_dict()} if self.diagnostics is not None else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken; in place, so that memory formats stay.

        Where that had no diagnostics they begin here. Raises ValueError, in one line that says what differs, for the
        state of a training of other settings, another seed or another version; then nothing is changed.
        """
        refuse_another(state, made_by(self.config, self.seed), self.device)
        self.step, self.done = state["step"], state["done"]
        self.train_seconds, self.evaluations.seconds = state["time"]["train"], state["time"]["evaluation"]
        self.evaluations.best = (state["best"][0], state["best"][1])
        self.loss_sum.copy_(state["loss_sum"])
        load_into(self.model, state["model"])
        anneal(self.model, self.progress(max(0, self.step - 1)))  # as the last step left it
        self.optimizer.load_state_dict(state["optimizer"])
        self.estimator.load_state_dict(state["estimator"])
        if isinstance(self.loss, nn.Module) and "loss" in state:
            self.loss.load_state_dict(state["loss"])
        if self.diagnostics is not None:
            every = self.diagnostics.sample_every
            self.diagnostics = Diagnostics(self.estimator, sample_every=every)
            if "diagnostics" in state:
                self.diagnostics.load_state_dict(state["diagnostics"])
        self.watch = Watch(self.optimizer.names, self.optimizer.parameters, self.step)
        self.table = None
        self._batches = None
        self.captured = captured_step(self.config, self.device, self.parts)  # another state has other tensors
        torch.set_rng_state(state["random"]["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random"]["cuda"], self.device)
        if "host_generators" in state:  # older checkpoints have none
            host_generators.restore(state["host_generators"], self._owners())

    def _owners(self) -> dict[str, Any]:
        """The objects whose attributes may be random generators."""
        modules = {f"model.{name}": module for name, module in self.model.named_modules()}
        return {"estimator": self.estimator, "optimizer": self.optimizer, "loss": self.loss, **modules}

    def _train(self) -> list[Row]:
        began = time.perf_counter()
        config, epoch = self.config, self.step / self.steps_per_epoch
        if self._batches is None:
            done = self.step % self.steps_per_epoch
            self._batches = self.dataset.batches(self.seed, self.epoch, config.images_a_step, start=done)
        images, labels = next(self._batches)
        lr = config.optimizer.lr * config.lr_schedule.factor(epoch, config.epochs)
        self._step(images, labels, lr, self.progress(self.step))
        self.watch.news = True
        self.step += 1
        if self.step % self.steps_per_epoch == 0:
            self._batches = None
        logged = self.step % config.log_every == 0 or self.step == self.total_steps
        values = self._logged(lr) if logged else None
        self.train_seconds += time.perf_counter() - began
        if values is None:
            return []
        return [Row(self.step, {**values, "time/train_seconds": self.train_seconds})]

    def _step(self, images: Tensor, labels: Tensor, lr: float, progress: float) -> None:
        if self.captured is not None:
            self.captured.make(images, labels, lr=lr, progress=progress)
            return
        with self._watched_for_lost_state():
            loss = train_step(
                self.model, self.estimator, self.optimizer, images, labels,
                lr=lr, progress=progress, loss_function=self.loss, teacher=self.teacher,
                arithmetic=self._arithmetic(), diagnostics=self.diagnostics, micro_batch=self.config.batch_size,
            )  # fmt: skip
        self._after(loss)

    def _watched_for_lost_state(self) -> AbstractContextManager[None]:
        """The second step of a user's own estimator, which is the first with something to remember."""
        if self.step != 1 or not isinstance(self.config.estimator, Imported):
            return nullcontext()
        return self.lost_state.watching(self.model)

    def _logged(self, lr: float) -> dict[str, float]:
        self._check()
        over = (self.step - 1) % self.config.log_every + 1
        loss = float(self.loss_sum) / over
        self.loss_sum.zero_()
        return {"train/loss": loss, "lr": lr, "epoch": self.step / self.steps_per_epoch}

    def _check(self) -> None:
        """Raises Diverged where a step since the last check was not finite, RuntimeError where its images were not."""
        found = self.watch.check()
        if found is None:
            return
        step, what = found
        epoch, before = divmod(step - 1, self.steps_per_epoch)
        images, _ = next(self.dataset.batches(self.seed, epoch, self.config.images_a_step, start=before))
        if not torch.isfinite(images).all():  # no fault of what is trained
            raise RuntimeError(f"the images of step {step} hold NaN or infinity, and {what}")
        raise Diverged(what)

    def _validate(self) -> list[Row]:
        """The validation, where one is due after this step, or the papers' test after one of the last epochs."""
        due = self.evaluations.due(self.step)
        if not due:
            return []
        self._check()
        return [Row(self.step, self.evaluations.make(self.step, due))]

    def _test(self) -> list[Row]:
        values = self.evaluations.test(self.step)
        return [Row(self.step, {**values, "time/evaluation_seconds": self.evaluations.seconds})]

    def _arithmetic(self) -> AbstractContextManager[Any]:
        return arithmetic(self.config.precision, self.device)
