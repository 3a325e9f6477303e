"""The released setting of the slow net (a token an element, 100 channels), ours and mambapy's, each in a process.


python -m benchmarks.slow_net ours|mambapy|step|steps …     measures one and prints JSON
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import Row, forget_peak, in_a_process, memory
from benchmarks.steps import config, random_images
from fsg.estimators import FSG
from fsg.history import ChunkLayout
from fsg.hypernetworks import SlowNet
from fsg.mamba import Mamba
from fsg.trainer import Training

MAMBA = Mamba(expand=100, d_state=16, d_conv=8)
GRADIENTS = 5
RELEASED = FSG.Config(
    semantics="released", start="random", applied="previous", history_length=GRADIENTS,
    chunk_size=1, layer_embedding_dim=1, slow_net=MAMBA,
)  # fmt: skip


def ours(weights: int) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    net = SlowNet(MAMBA, ChunkLayout((torch.Size([weights]),), 1), 1, layer_embedding=True)
    history = torch.randn(GRADIENTS, weights, 1)
    return lambda: net(history)


def mambapys(weights: int) -> Callable[[], Tensor]:
    """The same block with the same numbers, over the same sequence, as mambapy computes it."""
    from mambapy.mamba import MambaBlock, MambaConfig

    torch.manual_seed(0)
    net = SlowNet(MAMBA, ChunkLayout((torch.Size([weights]),), 1), 1, layer_embedding=True)
    history = torch.randn(GRADIENTS, weights, 1)
    block = MambaBlock(MambaConfig(d_model=1, n_layers=1, d_state=16, expand_factor=100, d_conv=8))
    block.load_state_dict(net.get_submodule("mamba").state_dict())
    assert net.layer_embedding is not None
    sequence = torch.cat([net.layer_embedding.weight.detach(), history.flatten(0, 1)])[None]
    return lambda: block(sequence)[0, -weights:]


def measured(run: Callable[[int], Callable[[], Tensor]], weights: int, repetitions: int) -> dict[str, Any]:
    """Seconds of forward and backward, and the most memory that they took above what the idle process has."""
    run(64)().square().sum().backward()  # what is loaded or compiled on first use
    forward = run(weights)
    idle = memory("VmRSS")
    forget_peak()
    seconds = []
    for _ in range(repetitions):
        began = time.perf_counter()
        forward().square().sum().backward()
        seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds), "bytes_above_idle": memory("VmHWM") - idle}


def step_memory(threads: int, depth: int, batch: int) -> dict[str, Any]:
    """The peak of a whole process that takes steps with a full history."""
    with tempfile.TemporaryDirectory() as folder:
        images = random_images(Path(folder), 4 * batch)
        training = Training(replace(config(images, threads, depth, batch), estimator=RELEASED), 0)
        for _ in range(GRADIENTS + 1):
            training.advance()
        began = time.perf_counter()
        training.advance()
        return {"bytes": memory("VmHWM"), "seconds": time.perf_counter() - began}


def growth(threads: int, steps: int) -> dict[str, Any]:
    """The peak of many steps with everything on, and that of their first fifth."""
    with tempfile.TemporaryDirectory() as folder:
        images = random_images(Path(folder), 1600)
        small = replace(config(images, threads, depth=8, batch=16), diagnostics=True)
        training = Training(replace(small, estimator=FSG.Config()), 0)
        peaks = []
        for first, last in ((0, steps // 5), (steps // 5, steps)):
            forget_peak()
            for _ in range(first, last):
                training.advance()
            peaks.append(memory("VmHWM"))
        return {"bytes_first": peaks[0], "bytes_later": peaks[1], "steps": steps}


def rows(weights: int, rounds: int, threads: int, depth: int, batch: int, steps: int) -> list[Row]:
    """The processes of ours and mambapy's take turns."""
    of_a_step = in_a_process("slow_net", "step", "--threads", threads, "--depth", depth, "--batch", batch)
    of_steps = in_a_process("slow_net", "steps", "--threads", threads, "--steps", steps)
    found = [
        Row(
            "A whole step of that setting, ResNet-20: peak of the process",
            of_a_step["bytes"] / 1e9, 4, 2, unit=" GB", measured=of_a_step,
        ),
        Row(
            f"Peak memory of {steps} FSG steps / of their first fifth",
            of_steps["bytes_later"] / of_steps["bytes_first"], 1.01, 1.0, measured=of_steps,
        ),
    ]  # fmt: skip
    if importlib.util.find_spec("mambapy") is None:
        print("NOT RUN: the comparison with mambapy (it is not installed; the dev requirements have it)")
        return found
    sizes = ("--weights", weights, "--threads", threads)
    pairs = [
        (in_a_process("slow_net", "ours", *sizes, "--repetitions", 5), in_a_process("slow_net", "mambapy", *sizes))
        for _ in range(rounds)
    ]
    mine, theirs = (
        {key: statistics.median(pair[i][key] for pair in pairs) for key in ("seconds", "bytes_above_idle")}
        for i in (0, 1)
    )
    both = {"ours": mine, "mambapy": theirs, "weights": weights}
    what = f"forward and backward, released setting, {weights:,} weights"
    return [
        Row(f"mambapy's block / our slow net: {what}", theirs["seconds"] / mine["seconds"], 30, 100, True, "", both),
        Row(
            "… memory above the idle process, ours / mambapy's",
            mine["bytes_above_idle"] / theirs["bytes_above_idle"], 0.10, 0.03, measured=both,
        ),
        *found,
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.slow_net")
    parser.add_argument("what", choices=["ours", "mambapy", "step", "steps"])
    for name, default in (("weights", 9216), ("repetitions", 1), ("threads", 2), ("depth", 20), ("batch", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--steps", type=int, default=1000)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = {
        "ours": lambda: measured(ours, given.weights, given.repetitions),
        "mambapy": lambda: measured(mambapys, given.weights, given.repetitions),
        "step": lambda: step_memory(given.threads, given.depth, given.batch),
        "steps": lambda: growth(given.threads, given.steps),
    }[given.what]()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
