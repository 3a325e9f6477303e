"""Hold this code against a recorded trace of another: `python -m fsg.replay TRACE.npz`.

A trace is an `.npz` of a few training steps of a small network (conv1 – bn1 – ReLU – conv2 – bn2 – ReLU – mean over
the plane – fc), number by number, in float64. The same training step, estimators, layers and optimizers that users
run are run on its batches from its initial state, and every recorded tensor is compared; what stands under init/ must
be used. All sizes are the trace's.

    config                                       JSON: method, quantizer, optimizer, sizes, learning rates
    x [steps, b, 3, h, w], y [steps, b]          the batches
    init/{net,fast,slow,meta}/…                  parameters and buffers at the start
    step{t}/{net,fast,slow,meta}/…               the same after step t
    step{t}/loss, logits                         of step t
    step{t}/{quantized_grad,effective_weight,quantized_weight,weight,fast_grad,slow_grad,meta_grad}/<layer>
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fsg.config import Settings
from fsg.estimators import FSG, LSTMFC, FCGrad, MultiFC
from fsg.estimators.look_ahead import LookAhead
from fsg.estimators.metaquant import MetaQuant
from fsg.layers import quantize
from fsg.mamba import Mamba, MambaBlock
from fsg.optimizers import SGD, Adam
from fsg.quantizers import BWN, DoReFa, Sign
from fsg.step import train_step

TOLERANCE = 1e-9


class TraceError(Exception):
    """A file that is no trace, or one of something that this code does not have."""


class TracedNetwork(nn.Module):
    """The network of the traces; [b, channels, h, w] → [b, classes]."""

    def __init__(self, channels: int = 3, first: int = 4, second: int = 6, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(second)
        self.fc = nn.Linear(second, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.bn1(self.conv1(images)).relu()
        features = self.bn2(self.conv2(features)).relu()
        self.logits: Tensor = self.fc(features.mean((2, 3)))
        return self.logits


@dataclass(frozen=True)
class Error:
    """The largest relative error ‖a − b‖/‖b‖ (‖a‖ where b = 0) of one kind of tensor, and the key where it stands."""

    kind: str
    value: float
    key: str
    compared: int


def replay(path: Path) -> tuple[list[Error], list[str]]:
    """The errors by kind of tensor, worst first, and the recorded keys that were not compared (under init/: not used).

    Raises TraceError.
    """
    trace, config = _read(path)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        errors: dict[str, Error] = {}
        compared = {"config", "x", "y"}
        for key, tensor in _run(trace, config):
            if key in trace:
                compared.add(key)
                if not key.startswith("init/"):
                    _worse(errors, key, _relative(tensor, trace[key]))
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise TraceError(f"{path}: cannot be replayed ({reason})") from error
    finally:
        torch.set_default_dtype(before)
    return sorted(errors.values(), key=lambda e: -e.value), sorted(set(trace) - compared)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            config = json.loads(str(archive["config"]))
            tensors = {key: torch.from_numpy(np.array(archive[key])) for key in archive.files if key != "config"}
            return tensors | {"config": torch.zeros(())}, config
    except (OSError, ValueError, KeyError) as error:
        raise TraceError(f"{path}: not a trace ({error})") from error


def _run(trace: dict[str, Tensor], config: dict[str, Any]) -> Iterable[tuple[str, Tensor]]:
    """Every tensor that a trace may hold, under its key, in the order of the computation."""
    (first, channels, *_), (second, *_) = trace["init/net/conv1.weight"].shape, trace["init/net/conv2.weight"].shape
    network = TracedNetwork(channels, first, second, len(trace["init/net/fc.bias"]))
    yield from _load(network, trace, "net", {})
    layers = [name for name in ("conv1", "conv2", "fc") if name in config["layers"]]
    if layers != config["layers"]:
        raise TraceError(f"layers {config['layers']}, expected some of conv1, conv2, fc in this order")
    quantize(network, _quantizer(config), {"conv1", "conv2", "fc"} - set(layers))
    estimator = _estimator(config).build(network)
    renamed = (
        {f"linear{i + 1}.weight": f"network.Linear{i}.weight" for i in range(3)}
        if config["method"] == "multifc"
        else {}
    )
    for name, net in estimator.nets.items():
        yield from _load(net, trace, name, renamed)
    optimizer = _optimizer(config).build(network)
    for t, (images, labels) in enumerate(zip(trace["x"], trace["y"], strict=True)):
        generated = _generated(estimator) if t else {}
        loss = train_step(network, estimator, optimizer, images, labels, lr=config["lr"], progress=t / config["steps"])
        yield f"step{t}/loss", loss
        yield f"step{t}/logits", network.logits
        for i, (name, layer) in enumerate(estimator.layers.items()):
            for kind, tensors in generated.items():
                yield f"step{t}/{kind}/{name}", tensors[i]
            gradient = estimator.quantized[i].grad
            assert gradient is not None
            yield f"step{t}/quantized_grad/{name}", gradient
            yield f"step{t}/quantized_weight/{name}", estimator.quantized[i]
            yield f"step{t}/effective_weight/{name}", estimator.effective[i]
            yield f"step{t}/weight/{name}", layer.weight
        for part, module, names in [("net", network, {}), *((n, net, renamed) for n, net in estimator.nets.items())]:
            for name, tensor in module.state_dict().items():
                yield f"step{t}/{part}/{names.get(name, name)}", tensor


def _generated(estimator: LookAhead) -> dict[str, list[Tensor]]:
    """What the hypernetworks left for the step to come."""
    if isinstance(estimator, MetaQuant):
        return {"meta_grad": estimator.flat.unpack(estimator.generated.detach())}
    assert isinstance(estimator, FSG)
    assert estimator.fast_gradient is not None
    assert estimator.slow_gradient is not None
    unpack = estimator.layout.unpack
    return {"fast_grad": unpack(estimator.fast_gradient), "slow_grad": unpack(estimator.slow_gradient)}


def _load(
    module: nn.Module, trace: dict[str, Tensor], part: str, names: dict[str, str]
) -> Iterable[tuple[str, Tensor]]:
    """Yields what was loaded, under its key."""
    keys = {name: f"init/{part}/{names.get(name, name)}" for name in module.state_dict()}
    module.load_state_dict({name: trace[key] for name, key in keys.items()})
    for key in keys.values():
        yield key, trace[key]


def _quantizer(config: dict[str, Any]) -> DoReFa | Sign | BWN:
    """`bwn` is that of FSG's code, the sign; `metaquant_bwn` has MetaQuant's scale."""
    bits = config["weight_bits"]
    if config["activation_bits"] != 32 or (bits != 1 and config["quantizer"] != "dorefa"):
        raise TraceError(
            f"{bits}-bit weights and {config['activation_bits']}-bit activations, expected 32-bit activations "
            "and, for bwn, 1-bit weights"
        )
    rules = {
        "dorefa": lambda: _DoReFa(weight_bits=bits),
        "bwn": Sign,
        "metaquant_bwn": lambda: BWN(scale="layer", calibrate=False),
    }
    return _one_of(rules, config, "quantizer")()


def _optimizer(config: dict[str, Any]) -> SGD | Adam:
    rules = {"sgd": lambda: SGD(lr=config["lr"]), "adam": lambda: Adam(lr=config["lr"], epsilon="uncorrected")}
    return _one_of(rules, config, "optimizer")()


@dataclass(frozen=True, kw_only=True)
class _DoReFa(DoReFa):
    """With any number of bits."""

    def __post_init__(self) -> None:
        if not 1 <= self.weight_bits <= 8:
            raise TraceError(f"weight_bits {self.weight_bits}, expected 1 to 8")


@dataclass(frozen=True, kw_only=True)
class _RankedMamba(Mamba):
    """With a rank of its own for the projection of Δ."""

    dt_rank: int = 1

    def build(self, width: int) -> MambaBlock:
        return MambaBlock(width, self.expand, self.d_state, self.d_conv, self.dt_rank)


@dataclass(frozen=True, kw_only=True)
class _ReleasedFSG(FSG.Config):
    """At any slow weight: the released code has both nets always, and its update is the fast gradient."""

    def __post_init__(self) -> None:
        Settings.__post_init__(self)

    def build(self, model: nn.Module) -> FSG:
        return FSG(self, model, idle=True)


def _estimator(config: dict[str, Any]) -> Any:
    def fsg() -> FSG.Config:
        mamba = _RankedMamba(
            expand=config["expand"], d_state=config["d_state"], d_conv=config["d_conv"], dt_rank=config["dt_rank"]
        )
        if config["d_model"] != 1:
            raise TraceError(f"d_model {config['d_model']}, expected 1: a token is one element")
        return _ReleasedFSG(
            semantics="released", start="random", applied="previous", slow_weight=config["alpha"],
            history_length=config["history_length"], chunk_size=1, layer_embedding_dim=1,
            slow_net=mamba, hidden=config["hidden"], nonlinearity=config["nonlinearity"] or "linear",
            fast_lr=config["fast_lr"], slow_lr=config["slow_lr"],
        )  # fmt: skip

    def metaquant(kind: Any, **more: Any) -> Any:
        decay = config.get("hyper_weight_decay", 0.0)
        return kind.Config(hidden=config["hidden"], hyper_lr=config["hyper_lr"], hyper_weight_decay=decay, **more)

    nonlinearity = {"nonlinearity": config["nonlinearity"] or "linear"}
    methods = {
        "fsg": fsg,
        "multifc": lambda: metaquant(MultiFC, **nonlinearity),
        "fcgrad": lambda: metaquant(FCGrad, **nonlinearity),
        "lstmfc": lambda: metaquant(LSTMFC),
    }
    return _one_of(methods, config, "method")()


def _one_of(known: dict[str, Any], config: dict[str, Any], field: str) -> Any:
    if config[field] not in known:
        raise TraceError(f"{field} {config[field]!r}, expected one of {', '.join(known)}")
    return known[config[field]]


def _relative(measured: Tensor, recorded: Tensor) -> float:
    if measured.shape != recorded.shape:
        return math.inf
    difference = float((measured.detach().double() - recorded.double()).norm())
    size = float(recorded.double().norm())
    error = difference / (size or 1.0)
    return error if error == error else math.inf


def _worse(errors: dict[str, Error], key: str, value: float) -> None:
    kind = key.split("/")[1]
    known = errors.get(kind, Error(kind, -1.0, "", 0))
    worst = (known.value, known.key) if known.value >= value else (value, key)
    errors[kind] = Error(kind, *worst, known.compared + 1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fsg.replay", description="Replay a recorded trace with this code.")
    parser.add_argument("trace", type=Path, nargs="+", help="an .npz file")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help="largest relative error (default %(default)g)"
    )
    arguments = parser.parse_args()
    good = True
    for path in arguments.trace:
        try:
            errors, missed = replay(path)
        except TraceError as refused:
            print(f"{refused}", file=sys.stderr)
            return 2
        print(f"{path.name}: {sum(e.compared for e in errors)} tensors compared")
        print(f"  {'kind':<18}{'tensors':>8}  {'largest relative error':<24}where")
        for error in errors:
            print(f"  {error.kind:<18}{error.compared:>8}  {error.value:<24.2e}{error.key}")
        for key in missed:
            print(f"  not compared: {key}")
        agrees = bool(errors) and not missed and all(e.value <= arguments.tolerance for e in errors)
        print(f"  {'agrees' if agrees else 'DIFFERS'} (tolerance {arguments.tolerance:g})")
        good = good and agrees
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
