"""The classifiers of torchvision, which is imported when one of them is asked for."""

import difflib
import functools
import importlib
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from fsg import config
from fsg.config import setting
from fsg.models.sizes import refuse_unfit
from fsg.shapes import shapes_only

# What a training needs, and an architecture does not do unasked: one output, and a size of its own.
_SINGLE_OUTPUT = {"aux_logits": False, "init_weights": True}
_ARGUMENTS: dict[str, dict[str, Any]] = {"googlenet": _SINGLE_OUTPUT, "inception_v3": _SINGLE_OUTPUT}
_SIZED = {"vit": "image_size"}  # by the first part of the name


class Torchvision:
    """Any classifier of torchvision, with random weights, for images of any size and number of channels it can take.

    Where images have not three channels, the first convolution is one of as many, drawn anew with the deviation that
    its weights had. `small_images` adapts the stem for images of about 32x32: the first convolution becomes 3x3 with
    stride 1, and a max pool before the second one goes, as in SimCLR's networks for CIFAR (Chen et al., ICML 2020,
    arXiv:2002.05709, appendix B.9). Shapes: images [b, C, H, W] → logits [b, classes].
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Settings):
        """A classifier of torchvision by its name there."""

        name: Literal["torchvision"] = "torchvision"
        arch: str = setting("resnet18", "Its name in torchvision.models, such as resnet18 or mobilenet_v2.")
        small_images: bool = setting(False, "Whether its stem is adapted for images of about 32x32.")

        def __post_init__(self) -> None:
            """Raises ValueError, with the nearest name, for an architecture that torchvision lacks."""
            super().__post_init__()
            known = _architectures()
            if known and self.arch not in known:
                near = difflib.get_close_matches(str(self.arch), known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                what = f"a classifier of torchvision, such as resnet18 or mobilenet_v2{hint}"
                raise ValueError(f"arch is {self.arch!r} (expected {what})")

        def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
            """The full-precision network for images of `shape` (channels, height, width), drawn from torch's generator.

            Raises ValueError where torchvision is missing, for an architecture that cannot take such images, and for
            `small_images` where the stem is no strided convolution.
            """
            refuse_unfit(self.arch, shape, classes)
            _fits(self, shape)
            return _built(self, shape, classes)


def _models() -> Any:
    return importlib.import_module("torchvision.models")


@functools.cache
def _architectures() -> tuple[str, ...]:
    """The names of torchvision's classifiers; none where it cannot be imported, as where a report alone is read."""
    try:
        models = _models()
    except ImportError:
        return ()
    return tuple(models.list_models(module=models))


@functools.cache
def _fits(config: Torchvision.Config, shape: tuple[int, int, int]) -> None:
    """A forward pass where nothing is computed, once a process. Raises ValueError where it cannot be."""
    try:
        with shapes_only(), torch.random.fork_rng(devices=[]):
            _built(config, shape, 2).eval()(torch.empty(2, *shape))
    except ImportError as error:
        raise ValueError(f"{config.arch}: torchvision is needed, and cannot be imported ({error})") from error
    except (RuntimeError, AssertionError) as error:
        images, what = "x".join(map(str, shape)), " ".join(str(error).split())[:200]
        raise ValueError(
            f"{config.arch} cannot take images of {images}: {what} (expected images of another size)"
        ) from error


def _built(config: Torchvision.Config, shape: tuple[int, int, int], classes: int) -> nn.Module:
    sized = {argument: shape[1] for kind, argument in _SIZED.items() if config.arch.split("_")[0] == kind}
    get = functools.partial(
        _models().get_model, config.arch, weights=None, num_classes=classes, **_ARGUMENTS.get(config.arch, {}), **sized
    )
    try:
        model: nn.Module = get()
    except NotImplementedError:  # it reads its own weights while they are drawn, which the meta device has not
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            model = get().to("meta")
    if config.small_images:
        _adapt_stem(model, config.arch)
    if shape[0] != 3:
        _take_channels(model, shape[0])
    return model


def _first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    return next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))


def _adapt_stem(model: nn.Module, arch: str) -> None:
    """Raises ValueError for a stem that cuts patches, and for one that has no stride."""
    name, first = _first_convolution(model)
    if first.stride == (1, 1) or first.stride == first.kernel_size:
        does = "has no stride" if first.stride == (1, 1) else "cuts the image into patches"
        raise ValueError(f"small_images is true, and {arch}'s first convolution {does} (expected small_images: false)")
    stem = nn.Conv2d(first.in_channels, first.out_channels, 3, padding=1, bias=first.bias is not None)
    _draw_like(stem, first)
    model.set_submodule(name, stem)
    _, (behind, second) = [one for one in model.named_modules() if isinstance(one[1], nn.Conv2d | nn.MaxPool2d)][:2]
    if isinstance(second, nn.MaxPool2d):
        model.set_submodule(behind, nn.Identity())


def _take_channels(model: nn.Module, channels: int) -> None:
    name, first = _first_convolution(model)
    size: Any = first.kernel_size
    geometry: dict[str, Any] = {"stride": first.stride, "padding": first.padding, "bias": first.bias is not None}
    taking = nn.Conv2d(channels, first.out_channels, size, **geometry)
    _draw_like(taking, first)
    model.set_submodule(name, taking)


@torch.no_grad()
def _draw_like(convolution: nn.Conv2d, other: nn.Conv2d) -> None:
    """Weights as another convolution's were drawn: their variance goes down with the pixels of the kernel."""
    if not other.weight.is_meta:
        pixels = [math.prod(one.kernel_size) for one in (other, convolution)]
        nn.init.normal_(convolution.weight, std=float(other.weight.std()) * math.sqrt(pixels[0] / pixels[1]))
    if convolution.bias is not None and other.bias is not None:
        convolution.bias.copy_(other.bias)
