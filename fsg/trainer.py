"""Training: one step, an evaluation, and the whole as something that can be stopped and gone on with anywhere."""

import functools
import hashlib
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

import fsg
from fsg import host_generators, torch_optimizer
from fsg.activations import ActivationConfig, RealActivations, placed_state
from fsg.checkpoint import leaves
from fsg.config import Settings, choice, setting
from fsg.cuda_graph import captured_step, not_capturable
from fsg.data import DataConfig, FashionMNISTSubset
from fsg.diagnostics import Diagnostics, Table
from fsg.estimators import STE, EstimatorConfig, FullPrecision, GradientEstimator
from fsg.estimators.protocol import InParts
from fsg.finite import Diverged, Watch, not_finite
from fsg.image_dataset import ImageDataset
from fsg.imported import Imported
from fsg.layers import anneal, dequantize, quantize
from fsg.losses import CrossEntropy, Distillation, LossConfig
from fsg.lost_state import LostState
from fsg.metrics import evaluate, recalibrated_batchnorm
from fsg.models import ModelConfig, ResNet, Torchvision
from fsg.optimizers import Adam, Optimizer, OptimizerConfig
from fsg.quantizers import DoReFa, QuantizerConfig
from fsg.schedules import Cosine, ScheduleConfig
from fsg.shapes import shapes_only
from fsg.starting_points import File, InitConfig, Pretrain, Scratch, load_into, load_weights
from fsg.step import StepInParts, train_step

PAPERS_EPOCHS = 10
NO_TEACHER = "the loss needs a teacher, and init is {} (expected init: pretrain, whose network is the teacher)"
SAMPLES = 8  # steps of an epoch whose gradients the diagnostics look at


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """Everything that determines a training but its seed."""

    data: DataConfig = choice(FashionMNISTSubset, "The images.", discriminator="name")
    model: ModelConfig = choice(ResNet.Config, "The network.", discriminator="name")
    quantizer: QuantizerConfig = choice(DoReFa, "What makes its weights binary.", discriminator="name")
    full_precision_layers: tuple[str, ...] = choice(
        (), "Layers that are not quantized, by name; * stands for anything, as in [conv1, '*.downsample.*', fc]."
    )
    activations: ActivationConfig = choice(
        RealActivations,
        "What the quantized layers see: real numbers, or signs.",
        discriminator="name",
        identity="unless_default",
    )
    estimator: EstimatorConfig = choice(STE.Config, "Where their gradient comes from.", discriminator="name")
    optimizer: OptimizerConfig = choice(Adam, "What is done with it.", discriminator="name")
    lr_schedule: ScheduleConfig = choice(Cosine, "How the learning rate changes.", discriminator="name")
    loss: LossConfig = choice(CrossEntropy, "What is minimised.", discriminator="name", identity="unless_default")
    anneal: Literal["step", "epoch"] = choice(
        "step",
        "How often what is annealed (ede, reste, recu) moves: at every step, or once an epoch as in released code.",
        identity="unless_default",
    )
    init: InitConfig = choice(Scratch, "Where the weights start.", discriminator="name")
    epochs: int = setting(10, "Passes over the training images; 0 evaluates the start.", ge=0)
    batch_size: int = setting(128, "Images a step, or a micro-batch where `accumulate` has several.", ge=1)
    accumulate: int = setting(
        1,
        "Micro-batches of batch_size images a step, which has the gradient of the mean over all of them.",
        ge=1,
        identity="unless_default",
    )
    threads: int = setting(1, "CPU threads of a training; another number gives other sums, and so other bits.", ge=1)
    precision: Literal["fp32", "tf32", "bf16"] = choice(
        "fp32", "Arithmetic of the network; tf32 wants a GPU, bf16 a GPU or a CPU with AMX or AVX512-BF16."
    )
    recalibrate_batchnorm: int = setting(
        0, "Training images over which batch norm's statistics are re-estimated before an evaluation; 0: none.", ge=0
    )
    log_every: int = setting(10, "Steps whose mean loss makes one row.", ge=1)
    evaluate_every: float = setting(1.0, "Epochs between two validations; 0.1 makes ten an epoch.", gt=0)
    test: Literal["end", "never"] = choice(
        "end",
        "When the test images are looked at; never: a search, which must not see them, can do without.",
        identity=False,  # the training is the same: `orchestration.spec.cells.cell_id` tells the two apart
    )
    cuda_graph: Literal["auto", True, False] = choice(
        "auto",
        "Whether a GPU replays the step from a CUDA graph: true, false, or auto, where its components can be captured.",
        identity="unless_default",
    )
    diagnostics: bool = setting(
        True, "Whether flips, saturation and gradients are kept, layer by layer, once an epoch.", identity=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "full_precision_layers", tuple(self.full_precision_layers))
        if self.full_precision_layers and not isinstance(self.model, Imported):
            _check_layers(self.model, self.full_precision_layers)
        self._check_activations()
        if self.cuda_graph is True and (why_not := not_capturable(self)):
            raise ValueError(f"cuda_graph is true, and {why_not} (expected cuda_graph: auto)")
        if isinstance(self.loss, Distillation) and not isinstance(self.init, Pretrain):
            raise ValueError(NO_TEACHER.format(self.init.name))

    def _check_activations(self) -> None:
        binary = not isinstance(self.activations, RealActivations)
        if binary and isinstance(self.model, ResNet.Config) and self.model.activation_bits == 1:
            raise ValueError("model.activation_bits is 1, and activations is sign (expected one of the two)")
        if isinstance(self.init, Pretrain) and self.init.binary_activations and not binary:
            raise ValueError("init.binary_activations is true, and activations is real (expected activations: sign)")

    @property
    def images_a_step(self) -> int:
        return self.batch_size * self.accumulate

    def quantized(self, model: nn.Module) -> nn.Module:
        """The model with its layers quantized and its activations placed, in place."""
        return quantize(model, self.quantizer, self.full_precision_layers, self.activations)


@functools.cache
def _check_layers(model: ModelConfig, full_precision: tuple[str, ...]) -> None:
    """Raises ValueError for a pattern without a layer, whatever the images are."""
    with shapes_only():
        quantize(model.build((3, 224, 224), 2), DoReFa(), full_precision)


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


def pretraining(config: TrainConfig) -> TrainConfig:
    """The full-precision training that `init: pretrain` implies: same images, network, threads and precision.

    Quantizer, activations and kept layers have no say in it, and are the defaults, so that trainings which differ in
    them share it; with `binary_activations` the signs are placed as they will be.
    Raises ValueError for any other starting point.
    """
    init = config.init
    if not isinstance(init, Pretrain):
        raise ValueError(f"init is {init.name}, expected pretrain")
    return replace(
        config,
        quantizer=DoReFa(),
        full_precision_layers=config.full_precision_layers if init.binary_activations else (),
        activations=config.activations if init.binary_activations else RealActivations(),
        estimator=FullPrecision.Config(),
        optimizer=init.optimizer,
        lr_schedule=init.lr_schedule,
        loss=CrossEntropy(),
        init=Scratch(),
        epochs=init.epochs,
        batch_size=init.batch_size,
        accumulate=1,
        anneal="step",
        recalibrate_batchnorm=0,
        evaluate_every=float(init.epochs),
    )


def validations(epochs: float, every: float) -> int:
    """How many validations are due within so many epochs, one `every` so many: ⌊epochs / every⌋."""
    return int(epochs / every + 1e-9)  # ten tenths are one, whatever the last bits


def refuse_not_finite(model: nn.Module) -> None:
    """Raises ValueError, naming it, for a parameter to be trained that starts as NaN or infinity."""
    bad = not_finite({name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad})
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ValueError(
            f"the network starts with NaN or infinity in {bad[0].strip('/')}{more} (expected finite numbers)"
        )


def derived_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose, so that what one part draws does not shift what another does."""
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:8]) >> 1


def seed_generators(seed: int) -> None:
    """`torch.manual_seed` for the CPU and, where there is one, the GPU.

    torch's own also leaves a call with a stack trace for every kind of device that there is not, for ever.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


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
        if isinstance(config.init, File):
            start = load_weights(config.init.path)
        self.config, self.seed, self.device = config, seed, torch.device(device)
        self._set_precision()
        self.dataset = config.data.load().to(device)
        seed_generators(derived_seed(seed, "network"))
        model = config.model.build(self.dataset.shape, self.dataset.classes)
        anneal(config.quantized(model), 0.0)
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
        self.steps_per_epoch: int = self.dataset.steps_per_epoch(config.images_a_step)
        every = max(1, self.steps_per_epoch // SAMPLES)
        observed = config.diagnostics and self.estimator.layers
        self.diagnostics = Diagnostics(self.estimator, sample_every=every) if observed else None
        self.table: Table | None = None
        self.watch = Watch(self.optimizer.names, self.optimizer.parameters)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.done = False
        self.best = (0, 0.0)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.time = {"train": 0.0, "evaluation": 0.0}
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
            "made_by": self._made_by(),
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
        self._refuse(state)
        self.step, self.done, self.time = state["step"], state["done"], dict(state["time"])
        self.best = (state["best"][0], state["best"][1])
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

    def _made_by(self) -> dict[str, Any]:
        return {"numerics": fsg.NUMERICS, "seed": self.seed, "config": self.config.identity()}

    def _refuse(self, state: dict[str, Any]) -> None:
        if "made_by" not in state:
            raise ValueError("the checkpoint does not say what it is of: it is of an older version, or of no training")
        there, here = ("cuda" if cuda else "cpu" for cuda in ("cuda" in state["random"], self.device.type == "cuda"))
        if there != here:
            raise ValueError(f"the checkpoint is of a training on {there} (here {here}), whose bits are others")
        theirs, ours = (dict(leaves(made)) for made in (state["made_by"], self._made_by()))
        ways = [*ours, *(way for way in theirs if way not in ours)]
        other = [
            f"{'.'.join(way.strip('/').split('/')).removeprefix('config.')} is {theirs.get(way, 'absent')!r} "
            f"(here {ours.get(way, 'absent')!r})"
            for way in ways
            if theirs.get(way, "absent") != ours.get(way, "absent")
        ]
        if other:
            more = f" and {len(other) - 4} more" if len(other) > 4 else ""
            raise ValueError(f"the checkpoint is of another training: {', '.join(other[:4])}{more}")

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
        self.time["train"] += time.perf_counter() - began
        if values is None:
            return []
        return [Row(self.step, {**values, "time/train_seconds": self.time["train"]})]

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
        before, now = ((self.step - back) / self.steps_per_epoch for back in (1, 0))
        due = validations(now, self.config.evaluate_every) > validations(before, self.config.evaluate_every)
        validated = due and len(self.dataset.validation_labels) > 0
        last = self.step % self.steps_per_epoch == 0 and self.epoch > self.config.epochs - PAPERS_EPOCHS
        papers = last and not self.config.data.validation and self.config.test == "end"
        if not (validated or papers):
            return []
        self._check()
        values: dict[str, float] = {}
        with self._evaluating():
            if validated:
                values |= self._evaluate("validation")
            if papers:
                values["papers_protocol/test_accuracy"] = self._evaluate("test")["test/accuracy"]
        if values.get("validation/accuracy", 0.0) > self.best[1]:
            self.best = (self.step, values["validation/accuracy"])
        return [Row(self.step, values)]

    def _test(self) -> list[Row]:
        with self._evaluating():
            values = self._evaluate("test")
        return [Row(self.step, {**values, "time/evaluation_seconds": self.time["evaluation"]})]

    def _evaluate(self, split: Literal["validation", "test"]) -> dict[str, float]:
        with self._arithmetic():
            loss, accuracy = evaluate(self.model, self.dataset.evaluation(split))
        if loss - loss != 0:
            raise Diverged(f"the {split} loss is {loss} after step {self.step}; the training losses are finite")
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
        if self.device.type != "cpu":  # on a CPU they are; to say so would import torch's compiler, seconds
            own = isinstance(self.config.model, Imported | Torchvision.Config)
            torch.use_deterministic_algorithms(True, warn_only=own)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()
