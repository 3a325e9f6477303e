"""FSG: binary neural networks trained by learned gradients.

    model = fsg.quantize(network, fsg.DoReFa())
    estimator = fsg.FSG.Config(history_length=5).build(model)
    optimizer = fsg.Adam(lr=1e-3).build(model)
    for images, labels in batches:
        fsg.train_step(model, estimator, optimizer, images, labels, lr=1e-3, progress=0.0)

`NUMERICS` is raised when, and only when, the numbers of a recorded training change; it is part of what identifies a
finished training.
"""

import logging
import os

from fsg.activations import RPReLU, SignActivation, SignActivations
from fsg.binarize import binarize
from fsg.estimators import EDE, FSG, LSTMFC, STE, FCGrad, FullPrecision, GradientEstimator, MultiFC, ReSTE
from fsg.layers import QuantConv2d, QuantLinear, dequantize, quantize
from fsg.models import ResNet, Torchvision, VGGSmall
from fsg.optimizers import SGD, Adam, AdamW, Bop, NAdam
from fsg.quantizers import BWN, DoReFa, Libra, ReCU, Sign
from fsg.step import train_step
from fsg.train_config import TrainConfig
from fsg.trainer import Training, train

logging.getLogger(__name__).addHandler(logging.NullHandler())
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts: without it its sums vary

NUMERICS = 1
__version__ = "0.1.0"

__all__ = [
    "BWN",
    "EDE",
    "FSG",
    "LSTMFC",
    "NUMERICS",
    "SGD",
    "STE",
    "Adam",
    "AdamW",
    "Bop",
    "DoReFa",
    "FCGrad",
    "FullPrecision",
    "GradientEstimator",
    "Libra",
    "MultiFC",
    "NAdam",
    "QuantConv2d",
    "QuantLinear",
    "RPReLU",
    "ReCU",
    "ReSTE",
    "ResNet",
    "Sign",
    "SignActivation",
    "SignActivations",
    "Torchvision",
    "TrainConfig",
    "Training",
    "VGGSmall",
    "binarize",
    "dequantize",
    "quantize",
    "train",
    "train_step",
]
