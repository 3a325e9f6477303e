"""Records traces as `python -m fsg.replay` reads them, from the written description alone: nothing of fsg is in here.

It is as slow and as plain as it can be: a token at a time, a parameter at a time, in float64 with autograd.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA = {None: lambda v: v, "relu": torch.relu, "tanh": torch.tanh}


class Rounding(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, w: Tensor, levels: float) -> Tensor:  # levels 0: the sign
        context.save_for_backward(w)
        return torch.round(levels * w) / levels if levels else torch.where(w >= 0, 1.0, -1.0).to(w.dtype)

    @staticmethod
    def backward(context: Any, g: Tensor) -> Any:
        return g * (context.saved_tensors[0].abs() <= 1), None


def prequantized(w: Tensor, config: dict[str, Any]) -> Tensor:
    squashed = torch.tanh(w)
    return squashed / (2 * squashed.detach().abs().max()) + 0.5 if config["quantizer"] == "dorefa" else w


def quantized(w: Tensor, config: dict[str, Any]) -> Tensor:
    if config["quantizer"] == "bwn":
        return Rounding.apply(w, 0.0)
    if config["quantizer"] == "metaquant_bwn":
        return w.detach().abs().mean() * Rounding.apply(w, 0.0)
    return 2 * Rounding.apply(w, 2.0 ** config["weight_bits"] - 1) - 1


def calibration(w: Tensor, config: dict[str, Any]) -> Tensor:
    if config["quantizer"] in ("bwn", "metaquant_bwn"):
        return torch.ones_like(w)
    squashed = torch.tanh(w.detach())
    return (1 - squashed**2) / squashed.abs().max()


def mlp(net: dict[str, Tensor], names: list[str], w: Tensor, nonlinearity: str | None) -> Tensor:
    column = w.reshape(-1, 1)
    for name in names[:-1]:
        column = SIGMA[nonlinearity](column @ net[name].T)
    return (column @ net[names[-1]].T).reshape(w.shape)


def mamba(p: dict[str, Tensor], tokens: Tensor) -> Tensor:
    inner, states = p["mamba.A_log"].shape
    x, z = (tokens @ p["mamba.in_proj.weight"].T).split(inner, 1)
    kernel = p["mamba.conv1d.weight"][:, 0]
    taps = kernel.shape[1]
    padded = torch.cat([x.new_zeros(taps - 1, inner), x])
    x = torch.stack([(padded[t : t + taps] * kernel.T).sum(0) for t in range(len(tokens))]) + p["mamba.conv1d.bias"]
    x = x * torch.sigmoid(x)
    rank = p["mamba.dt_proj.weight"].shape[1]
    dt, b, c = (x @ p["mamba.x_proj.weight"].T).split([rank, states, states], 1)
    delta = F.softplus(dt @ p["mamba.dt_proj.weight"].T + p["mamba.dt_proj.bias"])
    decay = torch.exp(delta[:, :, None] * -torch.exp(p["mamba.A_log"])).unbind()
    added = ((delta * x)[:, :, None] * b[:, None, :]).unbind()
    h = [x.new_zeros(inner, states)]
    for t in range(len(tokens)):
        h.append(torch.addcmul(added[t], decay[t], h[t]))
    y = (torch.stack(h[1:]) @ c[:, :, None])[:, :, 0] + p["mamba.D"] * x
    return (y * z * torch.sigmoid(z)) @ p["mamba.out_proj.weight"].T


def initial(config: dict[str, Any], channels: tuple[int, int, int], classes: int) -> dict[str, dict[str, Tensor]]:
    """Random parameters, by the parts that a trace has; the network's buffers are among them."""
    first, second, third = channels
    net: dict[str, Tensor] = {"conv1.weight": torch.randn(second, first, 3, 3) / 3}
    net["conv2.weight"] = torch.randn(third, second, 3, 3) / 3
    for name, width in (("bn1", second), ("bn2", third)):
        net |= {f"{name}.weight": torch.rand(width) + 0.5, f"{name}.bias": 0.1 * torch.randn(width)}
        net |= {f"{name}.running_mean": torch.zeros(width), f"{name}.running_var": torch.ones(width)}
        net[f"{name}.num_batches_tracked"] = torch.tensor(0)
    net |= {"fc.weight": torch.randn(classes, third) / 2, "fc.bias": 0.1 * torch.randn(classes)}
    h = config["hidden"]
    fast = {f"linear{i + 1}.weight": torch.randn(*s) / math.sqrt(s[1]) for i, s in enumerate(((h, 1), (h, h), (1, h)))}
    if config["method"] == "fsg":
        e, n, r = config["expand"], config["d_state"], config["dt_rank"]
        slow = {
            "layer_embedding.weight": torch.randn(len(config["layers"]), 1),
            "mamba.in_proj.weight": torch.randn(2 * e, 1),
            "mamba.conv1d.weight": torch.randn(e, 1, config["d_conv"]) / 2,
            "mamba.conv1d.bias": torch.randn(e) / 2,
            "mamba.x_proj.weight": torch.randn(r + 2 * n, e) / math.sqrt(e),
            "mamba.dt_proj.weight": torch.randn(e, r),
            "mamba.dt_proj.bias": torch.randn(e) - 2,
            "mamba.A_log": torch.randn(e, n),
            "mamba.D": torch.randn(e),
            "mamba.out_proj.weight": torch.randn(1, e) / math.sqrt(e),
        }
        return {"net": net, "fast": fast, "slow": slow}
    if config["method"] == "multifc":
        return {"net": net, "meta": {f"network.Linear{i}.weight": w for i, w in enumerate(fast.values())}}
    if config["method"] == "fcgrad":
        return {"net": net, "meta": {"linear1.weight": torch.randn(h, 1), "linear2.weight": torch.randn(1, h) / h}}
    lstm = {f"lstm1.{kind}_{of}_l0": 0.3 * torch.randn(4 * h, 1 if of == "ih" else h) for kind in ("weight",) for of in ("ih", "hh")}  # fmt: skip  # noqa: E501
    lstm |= {f"lstm1.bias_{of}_l0": 0.3 * torch.randn(4 * h) for of in ("ih", "hh")}
    return {"net": net, "meta": lstm | {"fc1.weight": torch.randn(1, h), "fc1.bias": torch.randn(1)}}


class Recording:
    """The state of a training, and what is recorded of it."""

    def __init__(self, config: dict[str, Any], parts: dict[str, dict[str, Tensor]]) -> None:
        self.config, self.parts, self.layers = config, parts, config["layers"]
        self.net = parts["net"]
        self.trained = [n for n in self.net if not n.split(".")[1].startswith(("running", "num"))]
        self.kept: dict[str, Tensor] = {}  # each parameter's raw gradient, later the direction last applied
        self.g: dict[str, Tensor] = {}
        self.w_tilde: dict[str, Tensor] = {}
        self.history: dict[str, list[Tensor]] = {layer: [] for layer in self.layers}
        self.states: dict[str, tuple[Tensor, Tensor]] = {}
        self.m = {n: torch.zeros_like(self.net[n]) for n in self.trained}
        self.v = {n: torch.zeros_like(self.net[n]) for n in self.trained}
        rates = {part: config[f"{part}_lr" if part != "meta" else "hyper_lr"] for part in parts if part != "net"}
        self.adams = {}
        for part, lr in rates.items():
            for tensor in parts[part].values():
                tensor.requires_grad_()
            decay = config.get("hyper_weight_decay", 0.0)
            self.adams[part] = torch.optim.Adam(parts[part].values(), lr=lr, weight_decay=decay)
        self.found: dict[str, Any] = {f"init/{part}/{n}": w.detach().clone() for part in parts for n, w in parts[part].items()}  # fmt: skip  # noqa: E501

    def generate(self, layer: str) -> dict[str, Tensor]:
        config, g, w = self.config, self.g[layer], self.w_tilde[layer]
        if config["method"] == "fsg":
            fast, slow = self.parts["fast"], self.parts["slow"]
            f = g * mlp(fast, [f"linear{i}.weight" for i in (1, 2, 3)], w, config["nonlinearity"])
            self.history[layer] = [*self.history[layer], g.reshape(-1)][-config["history_length"] :]
            head = slow["layer_embedding.weight"][self.layers.index(layer)].reshape(1, 1)
            tokens = torch.cat([head, *(past.reshape(-1, 1) for past in self.history[layer])])
            return {"fast_grad": f, "slow_grad": mamba(slow, tokens)[-g.numel() :].reshape(g.shape)}
        meta = self.parts["meta"]
        if config["method"] == "multifc":
            return {"meta_grad": g * mlp(meta, [f"network.Linear{i}.weight" for i in range(3)], w, config["nonlinearity"])}  # fmt: skip  # noqa: E501
        if config["method"] == "fcgrad":
            return {"meta_grad": mlp(meta, ["linear1.weight", "linear2.weight"], g, config["nonlinearity"])}
        zero = torch.zeros(w.numel(), config["hidden"])
        h, c = self.states.get(layer, (zero, zero))
        gates = w.reshape(-1, 1) @ meta["lstm1.weight_ih_l0"].T + meta["lstm1.bias_ih_l0"]
        gates = gates + h @ meta["lstm1.weight_hh_l0"].T + meta["lstm1.bias_hh_l0"]
        i, forget, cell, o = gates.chunk(4, 1)
        c = torch.sigmoid(forget) * c + torch.sigmoid(i) * torch.tanh(cell)
        h = torch.sigmoid(o) * torch.tanh(c)
        self.states[layer] = (h.detach(), c.detach())
        return {"meta_grad": g * (h @ meta["fc1.weight"].T + meta["fc1.bias"]).reshape(w.shape)}

    def step(self, t: int, x: Tensor, y: Tensor) -> None:
        config, lr = self.config, self.config["lr"]
        leaves = {n: self.net[n].detach().clone().requires_grad_() for n in self.trained}
        used, applied, effective, hats = dict(leaves), {}, {}, {}
        for layer in self.layers:
            weight = f"{layer}.weight"
            w, c = self.net[weight].detach(), calibration(self.net[weight], config)
            effective[layer] = leaves[weight]
            if t:
                made = self.generate(layer)
                self.record(t, {f"{kind}/{layer}": tensor for kind, tensor in made.items()})
                if config["method"] == "fsg":
                    f, alpha = c * made["fast_grad"], config["alpha"]
                    applied[weight] = f.detach()
                    effective[layer] = w - lr * (alpha * made["slow_grad"] + (1 - alpha) * f)
                else:
                    m = c * made["meta_grad"]
                    applied[weight] = m.detach()
                    effective[layer] = w - lr * (m + (self.kept[weight] - m).detach())
                if f"{layer}.bias" in leaves:
                    used[f"{layer}.bias"] = leaves[f"{layer}.bias"] - lr * self.kept[f"{layer}.bias"]
            tilde = prequantized(effective[layer], config)
            hats[layer] = used[weight] = quantized(tilde, config)
            hats[layer].retain_grad()
            self.w_tilde[layer] = tilde.detach()
        features = self.norm("bn1", F.conv2d(x, used["conv1.weight"], padding=1), used).relu()
        features = self.norm("bn2", F.conv2d(features, used["conv2.weight"], stride=2, padding=1), used).relu()
        logits = features.mean((2, 3)) @ used["fc.weight"].T + used["fc.bias"]
        loss = F.cross_entropy(logits, y)
        for adam in self.adams.values():
            adam.zero_grad()
        loss.backward()
        self.record(t, {"loss": loss, "logits": logits})
        for layer in self.layers:
            self.g[layer] = hats[layer].grad.detach().clone()
            self.record(t, {f"quantized_grad/{layer}": self.g[layer], f"quantized_weight/{layer}": hats[layer]})
            self.record(t, {f"effective_weight/{layer}": effective[layer]})
        raw = {n: applied.get(n, leaves[n].grad) for n in self.trained}
        if t:
            for adam in self.adams.values():
                adam.step()
            self.apply(t, raw)
        else:
            self.kept = raw
        for layer in self.layers:
            self.record(t, {f"weight/{layer}": self.net[f"{layer}.weight"]})
        for part, tensors in self.parts.items():
            self.record(t, {f"{part}/{n}": tensor for n, tensor in tensors.items()})

    def norm(self, name: str, features: Tensor, used: dict[str, Tensor]) -> Tensor:
        mean, variance = features.mean((0, 2, 3)), features.var((0, 2, 3), unbiased=False)
        count = features.numel() / features.shape[1]
        for kind, value in (("running_mean", mean), ("running_var", variance * count / (count - 1))):
            old = self.net[f"{name}.{kind}"]
            self.net[f"{name}.{kind}"] = 0.9 * old + 0.1 * value.detach()
        self.net[f"{name}.num_batches_tracked"] = self.net[f"{name}.num_batches_tracked"] + 1
        normal = (features - mean[:, None, None]) / (variance + 1e-5).sqrt()[:, None, None]
        return normal * used[f"{name}.weight"][:, None, None] + used[f"{name}.bias"][:, None, None]

    def apply(self, n: int, gradients: dict[str, Tensor]) -> None:
        for name, g in gradients.items():
            direction = g
            if self.config["optimizer"] == "adam":
                self.m[name] = 0.9 * self.m[name] + 0.1 * g
                self.v[name] = 0.999 * self.v[name] + 0.001 * g * g
                direction = self.m[name] / (self.v[name].sqrt() + 1e-8) * math.sqrt(1 - 0.999**n) / (1 - 0.9**n)
            self.net[name] = self.net[name].detach() - self.config["lr"] * direction
            self.kept[name] = direction

    def record(self, t: int, tensors: dict[str, Tensor]) -> None:
        self.found |= {f"step{t}/{key}": tensor.detach().clone() for key, tensor in tensors.items()}


def config_of(method: str, **changes: Any) -> dict[str, Any]:
    """That of the recorded traces, with changes."""
    own = {
        "fsg": {
            "alpha": 0.9, "history_length": 3, "d_model": 1, "d_state": 4, "d_conv": 4, "expand": 6, "dt_rank": 1,
            "fast_lr": 0.01, "slow_lr": 0.001,
        },
    }.get(method, {"hyper_lr": 0.001})  # fmt: skip
    common: dict[str, Any] = {
        "format": 1, "dtype": "float64", "method": method, "quantizer": "dorefa", "weight_bits": 1,
        "activation_bits": 32, "optimizer": "adam", "lr": 0.02, "hidden": 7, "nonlinearity": None, "steps": 6,
        "layers": ["conv1", "conv2", "fc"],
    }  # fmt: skip
    return common | own | changes


def again(trace: Path) -> dict[str, np.ndarray]:
    """What is recorded of a training with a trace's start, batches and settings."""
    with np.load(trace) as archive:
        config = json.loads(str(archive["config"]))
        given = {key: torch.from_numpy(archive[key]) for key in archive.files if key != "config"}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in given.items():
        if key.startswith("init/"):
            _, part, name = key.split("/")
            parts.setdefault(part, {})[name] = tensor.clone()
    return _run(config, parts, given["x"], given["y"])


def write(
    path: Path, config: dict[str, Any], *, seed: int = 0, batch: int = 8, size: int = 8,
    channels: tuple[int, int, int] = (3, 4, 6), classes: int = 5,
) -> None:  # fmt: skip
    """A trace of a training with random start and batches."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(seed)
        x = torch.randn(config["steps"], batch, channels[0], size, size)
        y = torch.randint(classes, (config["steps"], batch))
        found = _run(config, initial(config, channels, classes), x, y)
    finally:
        torch.set_default_dtype(before)
    np.savez(path, config=json.dumps(config), x=x.numpy(), y=y.numpy(), **found)


def _run(config: dict[str, Any], parts: dict[str, dict[str, Tensor]], x: Tensor, y: Tensor) -> dict[str, np.ndarray]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        recording = Recording(config, parts)
        for t, (images, labels) in enumerate(zip(x, y, strict=True)):
            recording.step(t, images, labels)
    finally:
        torch.set_default_dtype(before)
    return {key: tensor.numpy() for key, tensor in recording.found.items()}
