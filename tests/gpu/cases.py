"""The trainings that the GPU suite compares, and how: small networks, a few steps, losses and bytes.

`python tests/gpu/cases.py` prints the digests of `BYTES` as JSON: what another process makes of them.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import fsg
from fsg import checkpoint
from fsg.data import FashionMNISTSubset
from fsg.hypernetworks import EMA, LSTM
from fsg.mamba import Mamba
from fsg.models import ResNet
from fsg.optimizers import SGD, Adam, AdamW, Bop, NAdam
from fsg.quantizers import BWN, DoReFa, Libra, ReCU, Sign
from fsg.train_config import TrainConfig
from fsg.trainer import Training

DEVICE = os.environ.get("FSG_GPU_DEVICE", "cuda")  # cpu: a dry run of the suite itself
STEPS = 4  # the history of two gradients is full, and read
SMALL = fsg.FSG.Config(history_length=2)
BASE = TrainConfig(
    data=FashionMNISTSubset(validation=20, train_limit=160),
    model=ResNet.Config(depth=8, width=2),
    batch_size=16,
    epochs=1,
    log_every=1,
    diagnostics=False,
)
ESTIMATORS = {
    "ste": fsg.STE.Config(),
    "identity": fsg.STE.Config(derivative="identity"),
    "ede": fsg.EDE.Config(),
    "reste": fsg.ReSTE.Config(),
    "multifc": fsg.MultiFC.Config(),
    "fcgrad": fsg.FCGrad.Config(),
    "lstmfc": fsg.LSTMFC.Config(hidden=4),
    "fsg": SMALL,
    "fsg-released": replace(SMALL, semantics="released", start="random", applied="previous"),
    "fsg-elements": replace(SMALL, chunk_size=1, layer_embedding_dim=1, slow_net=Mamba(d_conv=8, expand=3)),
    "fsg-lstm": replace(SMALL, slow_net=LSTM(hidden=4)),
    "fsg-ema": replace(SMALL, slow_net=EMA()),
    "full-precision": fsg.FullPrecision.Config(),
}
QUANTIZERS = {
    "dorefa": DoReFa(),
    "two-bits": DoReFa(weight_bits=2),
    "sign": Sign(),
    "bwn": BWN(),
    "libra": Libra(),
    "recu": ReCU(),
}
OPTIMIZERS = {
    "sgd": SGD(lr=0.05),
    "momentum": SGD(lr=0.05, momentum=0.9, weight_decay=5e-4),
    "adam": Adam(),
    "adamw": AdamW(),
    "nadam": NAdam(),
    "bop": Bop(),
}
PARTS: dict[str, dict[str, Any]] = {"estimator": ESTIMATORS, "quantizer": QUANTIZERS, "optimizer": OPTIMIZERS}
BOPS = ("dorefa", "sign", "bwn")  # the quantizers that Bop takes: its weights are ±1


def combinations() -> Iterator[str]:
    """Each estimator with each quantizer and each optimizer, where it means something."""
    for estimator, quantizer, optimizer in product(ESTIMATORS, QUANTIZERS, OPTIMIZERS):
        quantized = estimator != "full-precision" or (quantizer == "dorefa" and optimizer != "bop")
        if quantized and (optimizer != "bop" or quantizer in BOPS):
            yield f"{estimator} {quantizer} {optimizer}"


def others(case: str) -> int:
    """In how many of quantizer and optimizer a case departs from the default."""
    return ("dorefa" not in case.split()) + ("adam" not in case.split())


CASES = sorted(combinations(), key=others)  # where the time ends the suite, every estimator was there


def config(case: str, **changes: Any) -> TrainConfig:
    """The training that a case names: estimator, quantizer, optimizer."""
    chosen = {part: ways[name] for (part, ways), name in zip(PARTS.items(), case.split(), strict=True)}
    return replace(BASE, **chosen, **changes)


# Of these every byte is compared: each kind of hypernetwork, of optimizer and of precision.
BYTES = {
    case: config(case)
    for case in ("ste dorefa adam", "ste sign bop", "multifc bwn momentum", "lstmfc dorefa adam", "fsg dorefa adam",
                 "fsg-elements libra sgd", "fsg-lstm dorefa adam", "fsg-ema recu momentum")
} | {precision: config("fsg dorefa adam", precision=precision) for precision in ("bf16", "tf32")}  # fmt: skip


def tolerance(case: str) -> float:
    """What the losses of STEPS steps may differ by, relatively, for sums in another order.

    Bop turns a whole weight at a threshold, and ReSTE's derivative has no bound: there one last bit can do more.
    """
    return 0.1 if "bop" in case or "reste" in case else 5e-4


def losses(settings: TrainConfig, device: str) -> list[float]:
    """The mean loss of each of the first steps."""
    training = Training(settings, 0, device=device)
    rows = [row for _ in range(STEPS) for row in training.advance()]
    return [row.values["train/loss"] for row in rows if "train/loss" in row.values]


def disagreement(ones: Sequence[float], others: Sequence[float]) -> float:
    """The largest |a − b| / |a| of two trainings' losses."""
    return max(abs(a - b) / abs(a) for a, b in zip(ones, others, strict=True))


def after(training: Training, steps: int) -> str:
    """The SHA-256 of everything that a training is after so many steps."""
    while training.step < steps:
        training.advance()
    return checkpoint.digest(training.state_dict())


def digest(name: str, device: str = DEVICE) -> str:
    return after(Training(BYTES[name], 0, device=device), 2 * STEPS)


if __name__ == "__main__":
    print(json.dumps({name: digest(name) for name in BYTES}))
