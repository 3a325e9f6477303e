"""The network of a training before it is trained: for its shape alone, or for weights to be loaded into it."""

import warnings

import torch
from torch import nn

from fsg.estimators import FullPrecision
from fsg.imported import Imported
from fsg.train_config import TrainConfig


def untrained_network(train: TrainConfig, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Quantized as the training quantizes it; torch's generator of the CPU is left as it was."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what stays in full precision is told when it is trained
        network = train.model.build(shape, classes)
        train.quantized(network)
        if isinstance(train.estimator, FullPrecision.Config | Imported):  # our others leave the layers as they are
            train.estimator.build(network)
    return network
