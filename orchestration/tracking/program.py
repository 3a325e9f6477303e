"""A trained network as a program of torch's own (`.pt2`): pixels in, logits out, and nothing of this project needed.

The program holds the network as it predicts: its quantized layers as plain ones with the quantized weights, in
evaluation mode, behind the normalisation of the images. No pickle is in it that torch's safe loader would refuse.
"""

import copy
import io
import itertools
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fsg.binarize import binarize
from fsg.config import to_dict
from fsg.image_dataset import ImageDataset
from fsg.metrics import recalibrated_batchnorm
from fsg.starting_points import load_into
from fsg.train_config import TrainConfig
from fsg.untrained import untrained_network

_BATCH = 2  # of the example that is traced: a dimension of 1 would be taken for a constant


@dataclass(frozen=True)
class Program:
    """The content of a `.pt2` file: uint8 images [b, *shape] → float32 logits [b, classes]."""

    content: bytes
    shape: tuple[int, int, int]
    classes: int


class _Predictor(nn.Module):
    """(pixel/255 − mean)/std, then the network: uint8 [b, C, H, W] → [b, classes]."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, dataset: ImageDataset) -> None:
        super().__init__()
        std = dataset.std.double().reshape(-1, 1, 1)
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("shift", (-dataset.mean.double().reshape(-1, 1, 1) / std).float())
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(torch.addcmul(self.shift, images.float(), self.scale))


class Exporter:
    """Writes trained networks as programs. Those of one architecture are traced once, which takes seconds."""

    def __init__(self) -> None:
        self._traced: dict[str, bytes] = {}

    def program(self, train: TrainConfig, weights: Mapping[str, Tensor]) -> Program:
        """The network that a training ended with, by its weights.

        Raises what reading its images or tracing raises: a network of the user's own may not be traceable.
        """
        dataset = train.data.load()
        predictor = _Predictor(binarize(trained_network(train, weights, dataset)), dataset).eval()
        predictor.to(memory_format=torch.contiguous_format)  # as the bytes lie in the program
        modules = str(predictor)  # where signs stand, too
        key = json.dumps([to_dict(train)["model"], modules, dataset.shape, dataset.classes], sort_keys=True)
        if key not in self._traced:
            example = torch.zeros(_BATCH, *dataset.shape, dtype=torch.uint8)
            batch = {0: torch.export.Dim("batch", min=1)}
            traced, content = torch.export.export(predictor, (example,), dynamic_shapes=[batch]), io.BytesIO()
            torch.export.save(traced, content)
            self._traced[key] = content.getvalue()
        return Program(_with(predictor.state_dict(), self._traced[key]), dataset.shape, dataset.classes)


def _with(tensors: Mapping[str, Tensor], program: bytes) -> bytes:
    """The same program with other tensors, whose bytes lie in it one by one: a tenth of the time of writing it anew."""
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(program)) as old, zipfile.ZipFile(content, "w") as new:
        (listed,) = (name for name in old.namelist() if name.endswith("/model_weights_config.json"))
        folder = listed.rpartition("/")[0]
        held = {f"{folder}/{at['path_name']}": name for name, at in json.loads(old.read(listed))["config"].items()}
        for name in old.namelist():
            new.writestr(name, _raw(tensors[held[name]]) if name in held else old.read(name))
    return content.getvalue()


def _raw(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def trained_network(train: TrainConfig, weights: Mapping[str, Tensor], dataset: ImageDataset) -> nn.Module:
    """The network that a training ended with, with the batch-norm statistics that an evaluation of it would use."""
    network = untrained_network(train, dataset.shape, dataset.classes)
    load_into(network, dict(weights))
    if not train.recalibrate_batchnorm:
        return network
    batches = -(-train.recalibrate_batchnorm // train.batch_size)
    some = itertools.islice(dataset.evaluation("train", batch_size=train.batch_size), batches)
    with recalibrated_batchnorm(network, some):
        return copy.deepcopy(network)
