"""The settings of a training."""

import functools
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from fsg.activations import ActivationConfig, RealActivations
from fsg.config import Settings, choice, setting
from fsg.cuda_graph import not_capturable
from fsg.data import DataConfig, FashionMNISTSubset
from fsg.estimators import STE, EstimatorConfig, FullPrecision
from fsg.imported import Imported
from fsg.layers import quantize
from fsg.losses import CrossEntropy, Distillation, LossConfig
from fsg.models import ModelConfig, ResNet
from fsg.optimizers import Adam, OptimizerConfig
from fsg.precision import Precision
from fsg.quantizers import DoReFa, QuantizerConfig
from fsg.schedules import Cosine, ScheduleConfig
from fsg.shapes import shapes_only
from fsg.starting_points import InitConfig, Pretrain, Scratch

NO_TEACHER = "the loss needs a teacher, and init is {} (expected init: pretrain, whose network is the teacher)"


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
    precision: Precision = choice(
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
