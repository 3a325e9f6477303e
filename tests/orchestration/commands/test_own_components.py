"""What is named is what is built, or is refused before anything starts: where, what was expected, what to do."""

import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fsg
from fsg.trainer import Training
from orchestration.commands.launch import launch
from orchestration.commands.plan import plan
from orchestration.commands.request import LaunchRequest
from orchestration.spec.cells import cells
from orchestration.spec.experiment import ExperimentSpec, SpecErrors, load_spec

SPEC = """name: own
train:
  data: {name: arrays, file: tiny.npz, validation: 16, crop_padding: 0}
  model: {name: resnet, depth: 8, width: 2}
  epochs: 1
  batch_size: 16
  diagnostics: false
variants:
  ste: {}
  mine: {MINE}
seeds: [0]
report: {baseline: ste, primary: mine}
"""
HEAD = """
from dataclasses import dataclass
from typing import Literal
import fsg
import torch
from torch import nn
from fsg.config import Settings, setting
from fsg.data import Images
from fsg.models import ResNet
from fsg.optimizers import Optimizer
from fsg.quantizers import BaseQuantizer

settings = dataclass(frozen=True, kw_only=True)
"""
_numbers = itertools.count()
# As Python itself says it.
NO_UPDATE = (
    "with abstract method update"
    if sys.version_info < (3, 12)
    else "without an implementation for abstract method 'update'"
)


@pytest.fixture
def own(folder: Path, capsys: pytest.CaptureFixture[str]) -> "Own":
    return Own(folder, capsys)


class Own:
    """A spec with a module of one's own beside it, which is called OWN in both."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys, self.module = folder, capsys, f"own_component_{next(_numbers)}"

    def write(self, mine: str, source: str) -> Path:
        (self.folder / f"{self.module}.py").write_text((HEAD + source).replace("OWN", self.module))
        path = self.folder / "own.yaml"
        path.write_text(SPEC.replace("MINE", mine).replace("OWN", self.module))
        return path

    def spec(self, mine: str, source: str) -> ExperimentSpec:
        return load_spec(self.write(mine, source))

    def told(self, mine: str, source: str, *sets: str, command: Callable[..., int] = plan) -> list[str]:
        """What the command refuses, with exit status 2; nothing where it does not."""
        path = self.write(mine, source)
        request = LaunchRequest(path, results=self.folder / "results", sets=list(sets))
        status = command(request, **({"with_pilot": False} if command is plan else {}))
        printed = self.capsys.readouterr()
        assert status in (0, 2)
        assert not (self.folder / "results").exists()
        lines = printed.err.splitlines() if status else []
        assert "Traceback" not in printed.err + printed.out
        return [line.replace(self.module, "OWN").replace(f"{self.folder}/", "") for line in lines]


# What is refused. Each is (what the variant says, the module, the place, what is said).

CONFIG = "    @settings\n    class Config(Settings):\n        name: Literal['m'] = 'm'\n"
REFUSED: dict[str, tuple[str, str, str]] = {
    "an inherited config makes the base class": (
        "estimator",
        "class Mine(fsg.STE):\n    def update(self, model): return super().update(model)\n",
        "STE.Config builds a STE, not a Mine (expected a Config nested in Mine whose build returns one)",
    ),
    "so does one of two generations": (
        "estimator",
        "class Middle(fsg.FSG): pass\nclass Mine(Middle): pass\n",
        "FSG.Config builds a FSG, not a Mine (expected a Config nested in Mine whose build returns one)",
    ),
    "a config of its own whose build is inherited": (
        "estimator",
        "class Mine(fsg.FSG):\n    @settings\n    class Config(fsg.FSG.Config):\n        more: float = setting(1.0)\n",
        "Mine.Config builds a FSG, not a Mine (expected a Config nested in Mine whose build returns one)",
    ),
    "an inherited config of a network": (
        "model",
        "class Mine(ResNet):\n    def forward(self, x): return -super().forward(x)\n",
        "ResNet.Config builds a ResNet, not a Mine (expected a Config nested in Mine whose build returns one)",
    ),
    "a config that builds another of the same kind": (
        "estimator",
        f"class Mine(fsg.STE):\n{CONFIG}        def build(self, model): return fsg.STE.Config().build(model)\n",
        "Mine.Config builds a STE, not a Mine (expected a Config nested in Mine whose build returns one)",
    ),
    "a config without build": (
        "estimator",
        "@settings\nclass Mine(Settings):\n    name: Literal['m'] = 'm'\n",
        "Mine has no build(model) (expected one that returns the gradient estimator)",
    ),
    "a nested one without build": (
        "model",
        f"class Mine(nn.Module):\n{CONFIG}",
        "Mine.Config has no build(shape, classes) (expected one that returns the network)",
    ),
    "a build that returns nothing": (
        "estimator",
        "@settings\nclass Mine(Settings):\n    def build(self, model): fsg.STE.Config().build(model)\n",
        "build returned nothing (expected a class derived from fsg.GradientEstimator)",
    ),
    "a build that returns another kind": (
        "model",
        "@settings\nclass Mine(Settings):\n    def build(self, shape, classes): return fsg.DoReFa()\n",
        "build returned a DoReFa (expected a torch.nn.Module)",
    ),
    "a build that raises": (
        "estimator",
        "@settings\nclass Mine(Settings):\n    def build(self, model): return model.head.weight\n",
        "AttributeError: 'ResNet' object has no attribute 'head' (expected a gradient estimator that can be built)",
    ),
    "a network where an estimator is wanted": (
        "estimator",
        "class Mine(nn.Module): pass\n",
        "Mine is a network, and no gradient estimator (expected a class derived from fsg.GradientEstimator)",
    ),
    "an estimator where a network is wanted": (
        "model",
        "class Mine(fsg.STE): pass\n",
        "Mine is a gradient estimator, and no network (expected a torch.nn.Module)",
    ),
    "an estimator where a quantizer is": (
        "quantizer",
        f"class Mine(fsg.STE):\n{CONFIG}        def build(self, model): return Mine(model, fsg.STE.Config())\n",
        "Mine is no quantizer: it has no prequantize, quantize, position, calibration, pull_back "
        "(expected a dataclass derived from fsg.quantizers.BaseQuantizer and fsg.config.Settings)",
    ),
    "a quantizer where an estimator is": (
        "estimator",
        "@settings\nclass Mine(BaseQuantizer, Settings): pass\n",
        "Mine has no build(model) (expected one that returns the gradient estimator)",
    ),
    "a quantizer where the images are": (
        "data",
        "@settings\nclass Mine(BaseQuantizer, Settings): pass\n",
        "Mine is no dataset: it has no load, fingerprint (expected a dataclass derived from fsg.data.Images)",
    ),
    "images where a schedule is": (
        "lr_schedule",
        "@settings\nclass Mine(Images): pass\n",
        "Mine is no schedule: it has no factor (expected a dataclass with a method factor(epoch, epochs))",
    ),
    "an estimator where an optimizer is": (
        "optimizer",
        "class Mine(fsg.STE): pass\n",
        "Mine is a gradient estimator, and no optimizer (expected a class derived from fsg.optimizers.Optimizer)",
    ),
    "a module in an optimizer's place": (
        "optimizer",
        "@settings\nclass Mine(Settings):\n    lr: float = setting(0.1)\n"
        "    def build(self, model): return nn.Identity()\n",
        "build returned an Identity, which has no step, names (expected a class derived from fsg.optimizers.Optimizer)",
    ),
    "an optimizer without a learning rate": (
        "optimizer",
        "@settings\nclass Mine(Settings):\n    def build(self, model): return fsg.Adam().build(model)\n",
        "has no setting lr (expected one: the learning rate before the schedule)",
    ),
    "a quantizer that returns nothing": (
        "quantizer",
        "@settings\nclass Mine(BaseQuantizer, Settings):\n    def quantize(self, prequantized): prequantized.sign()\n",
        "quantize returned nothing (expected a tensor)",
    ),
    "a quantizer of another shape": (
        "quantizer",
        "@settings\nclass Mine(BaseQuantizer, Settings):\n    def position(self, w): return w.mean()\n",
        "position made [] of a weight [2, 3] (expected its shape)",
    ),
    "a quantizer whose annealed self is nothing": (
        "quantizer",
        "@settings\nclass Mine(BaseQuantizer, Settings):\n    def at(self, progress): pass\n",
        "at(0.0) returned nothing (expected the quantizer for that progress)",
    ),
    "a quantizer whose scale has a gradient of another shape": (
        "quantizer",
        "@settings\nclass Mine(BaseQuantizer, Settings):\n    def scale_gradient(self, w, g): return (w * g).sum()\n",
        "scale_gradient made [] of a weight [2, 3] (expected its shape)",
    ),
    "a schedule that returns nothing": (
        "lr_schedule",
        "@settings\nclass Mine(Settings):\n    def factor(self, epoch, epochs): pass\n",
        "factor(0.0, …) returned nothing (expected a number)",
    ),
    "an estimator that is not wholly made": (
        "estimator",
        "class Mine(fsg.STE):\n    def __init__(self, model): pass\n",
        "it has no layers (expected super().__init__(model) in its constructor)",
    ),
    "an estimator without an update": (
        "estimator",
        "class Mine(fsg.GradientEstimator):\n    def propose(self, model, *, lr, progress): return {}\n",
        f"TypeError: Can't instantiate abstract class Mine {NO_UPDATE} "
        "(expected a gradient estimator that can be built)",
    ),
    "an optimizer where an estimator is": (
        "estimator",
        "class Mine(Optimizer):\n    @settings\n    class Config(fsg.SGD): pass\n",
        "Mine is no gradient estimator (expected a class derived from fsg.GradientEstimator)",
    ),
    "images that are no dataset": (
        "data",
        "@settings\nclass Mine(Images):\n    def load(self): return []\n    def fingerprint(self): return ''\n",
        "load returned a list (expected a fsg.data.Dataset)",
    ),
    "images without a digest": (
        "data",
        "@settings\nclass Mine(Images):\n    def load(self): return fsg.data.FashionMNISTSubset().load()\n"
        "    def fingerprint(self): pass\n",
        "fingerprint returned no text (expected a digest of the images)",
    ),
    "images without a split": (
        "data",
        "class Mine:\n    def load(self): return fsg.data.FashionMNISTSubset().load()\n"
        "    def fingerprint(self): return ''\n",
        "has no setting validation (expected one: how many training images are held out)",
    ),
    "a config that is no settings": (
        "estimator",
        "class Mine(fsg.GradientEstimator):\n    class Config:\n        lr = 1\n",
        "'OWN:Mine' has a Config that is no fsg.config.Settings (expected one, or none)",
    ),
    "settings that are no dataclass": (
        "estimator",
        "class Mine(Settings):\n    a: float = 1.0\n    def build(self, model): return None\n",
        "Mine is no dataclass, so a is none of its settings (expected @dataclass(frozen=True, kw_only=True) above it)",
    ),
    "a class of nothing": (
        "estimator",
        "class Mine: pass\n",
        "Mine is no gradient estimator (expected a class derived from fsg.GradientEstimator)",
    ),
    "a constructor without the model": (
        "estimator",
        "class Mine(fsg.STE):\n    def __init__(self, strength=1.0): pass\n",
        "Mine takes no argument called model (expected one, or a nested Config with build(model))",
    ),
    "an argument that no file can state": (
        "estimator",
        "class Mine(fsg.STE):\n    def __init__(self, model, net: nn.Module): pass\n",
        "Mine: its argument net is nothing that settings can state (expected numbers, text, lists; or a nested Config)",
    ),
    "an argument of which nothing is known": (
        "estimator",
        "class Mine(fsg.STE):\n    def __init__(self, model, what): pass\n",
        "Mine: its argument what has neither an annotation nor a default "
        "(expected numbers, text, lists; or a nested Config)",
    ),
    "a default that no file can state": (
        "model",
        "class Mine(nn.Module):\n    def __init__(self, classes, activation=nn.ReLU()): pass\n",
        "Mine: its argument activation is nothing that settings can state "
        "(expected numbers, text, lists; or a nested Config)",
    ),
    "a function": (
        "estimator",
        "def Mine(model): pass\n",
        "'OWN:Mine' is a function, expected a class (expected module:Class, installed or beside the spec)",
    ),
    "a misspelt class": (
        "estimator",
        "class Miner(fsg.STE): pass\n",
        "cannot import 'OWN:Mine': module 'OWN' has no attribute 'Mine' "
        "(expected module:Class, installed or beside the spec; did you mean Miner?)",
    ),
    "a program": (
        "estimator",
        "raise SystemExit(2)\n",
        'SystemExit: 2 (expected a module that does not end Python when it is imported: if __name__ == "__main__":)',
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_be_the_component_that_is_named_is_refused_by_line_and_column(own: Own, case: str) -> None:
    kind, source, said = REFUSED[case]
    (line,) = own.told(f"{kind}: {{import: 'OWN:Mine'}}", source)
    place, _, rest = line.partition(": ")
    assert re.fullmatch(r"own\.yaml:10:\d+", place)
    assert rest == f"variants.mine.{kind}.import: {said}"


def test_launch_refuses_it_too_and_starts_nothing(own: Own) -> None:
    kind, source, said = REFUSED["an inherited config makes the base class"]
    (line,) = own.told(f"{kind}: {{import: 'OWN:Mine'}}", source, command=launch)
    assert line.endswith(said)


@pytest.mark.parametrize("case", ["a config without build", "an estimator where a quantizer is"])
def test_what_a_class_shows_is_refused_when_the_file_is_read(own: Own, case: str) -> None:
    kind, source, said = REFUSED[case]
    with pytest.raises(SpecErrors) as refused:
        own.spec(f"{kind}: {{import: 'OWN:Mine'}}", source)
    assert [line.partition(".import: ")[2] for line in refused.value.lines] == [said]


BASE = "class Mine(fsg.STE): pass\n"


def test_a_module_that_is_found_elsewhere_is_told_with_what_to_do(own: Own) -> None:
    path = own.write("estimator: {import: 'random:Mine'}", BASE)
    (own.folder / "random.py").write_text(HEAD + BASE)
    with pytest.raises(SpecErrors) as refused:
        load_spec(path)
    assert "is hidden by the module random of Python" in str(refused.value)
    assert "(expected another name: rename random.py)" in str(refused.value)
    (line,) = own.told("estimator: {import: 'OWN.py:Mine'}", BASE)
    assert line.endswith("(expected module:Class; did you mean OWN:Mine?)")


def test_the_place_is_where_it_was_said(own: Own) -> None:
    said = ": STE.Config builds a STE, not a Mine (expected a Config nested in Mine whose build returns one)"
    assert own.told("estimator.import: 'OWN:Mine'", BASE) == [f"own.yaml:10:10: variants.mine.estimator.import{said}"]
    whole = f"variants.mine.estimator={{import: '{own.module}:Mine'}}"
    (line,) = own.told("epochs: 2", BASE, whole)
    assert line == f"--set {whole}: variants.mine.estimator{said}".replace(own.module, "OWN")
    path = own.write("epochs: 2", BASE)
    text = path.read_text().replace("  model:", f"  estimator: {{import: '{own.module}:Mine'}}\n  model:")
    path.write_text(text)
    assert plan(LaunchRequest(path, results=own.folder / "results"), with_pilot=False) == 2
    assert f"own.yaml:4:15: train.estimator.import{said}" in own.capsys.readouterr().err
    gridded = (
        SPEC.replace("mine: {MINE}", "mine: {epochs: 2}") + f"grid: {{estimator: [{{import: '{own.module}:Mine'}}]}}\n"
    )
    path.write_text(gridded)
    assert plan(LaunchRequest(path, results=own.folder / "results"), with_pilot=False) == 2
    assert f"own.yaml:13:8: grid.estimator{said}" in own.capsys.readouterr().err


NETWORK = """
class Mine(nn.Module):
    def __init__(self, shape, classes, width: int = 4):
        super().__init__()
        self.body, self.head = nn.Conv2d(shape[0], width, 3), nn.Linear(width, classes)
    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)))
"""


def test_a_misspelt_layer_of_a_network_of_ones_own_is_told(own: Own) -> None:
    mine = "full_precision_layers: {}, model: {{import: 'OWN:Mine'}}".format
    assert own.told(mine("[head]"), NETWORK) == []
    assert own.told(mine("[haed, '*.x']"), NETWORK) == [
        "own.yaml:10:10: variants.mine.full_precision_layers: "
        "no layer is named 'haed', expected a pattern for some of body, head"
    ]
    (line,) = own.told(mine("['*']"), NETWORK)
    assert line.endswith("the model has no layer to quantize: expected at least one convolution or nn.Linear")


# What is used in the natural way: the keyword arguments are the settings.

ESTIMATOR = """
class Mine(fsg.GradientEstimator):
    def __init__(self, model, strength: float = 1, *, layers: list[str] | None = None, rounds=3):
        super().__init__(model)
        self.strength, self.only, self.rounds = strength, layers, rounds
    def propose(self, model, *, lr, progress):
        self.quantized = {
            f"{n}.weight": l.quantizer(l.weight.detach()).requires_grad_() for n, l in self.layers.items()
        }
        return self.quantized
    def update(self, model):
        for n, l in self.layers.items():
            l.weight.grad = self.strength * self.quantized[f"{n}.weight"].grad
        return True
"""
NATURAL = {
    "estimator": (", strength: 2, layers: [fc], rounds: 4", ESTIMATOR),
    "model": (", width: 3", NETWORK),
    "quantizer": (
        ", scale: 0.5",
        "class Mine(BaseQuantizer):\n    def __init__(self, scale=1.0): self.scale = scale\n"
        "    def quantize(self, w): return self.scale * super().quantize(w)\n",
    ),
    "optimizer": (
        ", lr: 0.5",
        "class Mine(Optimizer):\n    def __init__(self, model, lr: float = 0.1):\n"
        "        super().__init__(fsg.SGD(momentum=0.9), model)\n",
    ),
    "lr_schedule": (
        ", half: 0.25",
        "class Mine:\n    def __init__(self, half: float): self.half = half\n"
        "    def factor(self, epoch, epochs): return self.half\n",
    ),
}


def settings_of(spec: ExperimentSpec, kind: str) -> Any:
    return getattr(next(point.train for point in spec.points if point.variant == "mine"), kind).settings


@pytest.mark.parametrize("kind", NATURAL)
def test_a_class_without_a_config_is_built_with_its_keyword_arguments(own: Own, kind: str) -> None:
    written, source = NATURAL[kind]
    spec = own.spec(f"{kind}: {{import: 'OWN:Mine'{written}}}", source)
    assert own.told(f"{kind}: {{import: 'OWN:Mine'{written}}}", source) == []
    training = Training(next(point.train for point in spec.points if point.variant == "mine"), 0)
    before = training.model.state_dict()["conv1.weight" if kind != "model" else "body.weight"].clone()
    training.advance()
    weights = training.model.state_dict()["conv1.weight" if kind != "model" else "body.weight"]
    assert not weights.equal(before)
    built: Any = {"estimator": training.estimator, "model": training.model, "optimizer": training.optimizer}.get(kind)
    if kind == "estimator":
        assert (type(built).__name__, built.strength, built.only, built.rounds) == ("Mine", 2.0, ["fc"], 4)
        assert settings_of(spec, kind) == {"strength": 2.0, "layers": ["fc"], "rounds": 4}
    elif kind == "model":
        assert (type(built).__name__, built.body.out_channels) == ("Mine", 3)
    elif kind == "optimizer":
        assert (type(built).__name__, training.config.optimizer.lr) == ("Mine", 0.5)
    elif kind == "quantizer":
        layer = next(iter(training.estimator.layers.values()))
        assert set(layer.quantizer(layer.weight).unique().tolist()) == {-0.5, 0.5}
    else:
        assert training.config.lr_schedule.factor(0.0, 1) == 0.25


def test_arguments_may_be_tuples_and_other_components(own: Own) -> None:
    source = (
        "class Mine(fsg.STE):\n    def __init__(self, model, config: fsg.STE.Config, betas=(0.5, 0.9)):\n"
        "        super().__init__(model, config)\n        self.betas = betas\n"
    )
    mine = "estimator: {import: 'OWN:Mine', config: {name: ste, derivative: identity}}"
    assert own.told(mine, source) == []
    training = Training(next(point.train for point in own.spec(mine, source).points if point.variant == "mine"), 0)
    estimator: Any = training.estimator
    assert (type(estimator).__name__, estimator.config.derivative, estimator.betas) == ("Mine", "identity", (0.5, 0.9))


def test_what_is_no_part_of_it_is_an_attribute_error_and_builds_nothing(own: Own) -> None:
    spec = own.spec("estimator: {import: 'OWN:Mine'}", ESTIMATOR)
    estimator = next(point.train for point in spec.points if point.variant == "mine").estimator
    assert (estimator.strength, hasattr(estimator, "layers_of_mine")) == (1.0, False)


def test_what_cannot_be_built_without_numbers_is_built_with_some(own: Own) -> None:
    source = "class Mine(fsg.STE):\n    def __init__(self, model):\n        super().__init__(model, fsg.STE.Config())\n"
    source += "        self.scale = float(model.conv1.weight.std())\n"
    assert own.told("estimator: {import: 'OWN:Mine'}", source) == []


def test_a_pretrainings_own_optimizer_is_built_too(own: Own) -> None:
    source = "@settings\nclass Mine(Settings):\n    lr: float = setting(0.1)\n    def build(self, model): pass\n"
    (line,) = own.told("init: {name: pretrain, optimizer: {import: 'OWN:Mine'}}", source)
    assert re.fullmatch(r"own\.yaml:10:\d+: variants\.mine\.init\.optimizer\.import: build returned nothing, .*", line)


def test_an_own_constructor_counts_before_an_inherited_config(own: Own) -> None:
    source = (
        "class Mine(fsg.STE):\n    def __init__(self, model, power: int = 2):\n"
        "        super().__init__(model, fsg.STE.Config())\n        self.power = power\n"
    )
    spec = own.spec("estimator: {import: 'OWN:Mine', power: 3}", source)
    training = Training(next(point.train for point in spec.points if point.variant == "mine"), 0)
    assert (type(training.estimator).__name__, training.estimator.power) == ("Mine", 3)  # type: ignore[attr-defined]


def test_its_settings_are_checked_by_annotations_and_defaults(own: Own) -> None:
    wrong = {
        "strength: strong": "strength: got 'strong' (expected a number)",
        "rounds: 1.5": "rounds: got 1.5 (expected a whole number)",
        "layers: 3": "layers: got 3 (expected a list or null)",
        "strenght: 1": "strenght: estimator OWN:Mine has no such field "
        "(expected one of strength, layers, rounds; did you mean strength?)",
    }
    for written, said in wrong.items():
        (line,) = own.told(f"estimator: {{import: 'OWN:Mine', {written}}}", ESTIMATOR)
        assert line.partition("variants.mine.estimator.")[2] == said


def test_one_setting_said_in_two_ways_is_one_cell(own: Own) -> None:
    mine = "estimator: {import: 'OWN:Mine', strength: NUMBER}"
    ids = {cells(own.spec(mine.replace("NUMBER", number), ESTIMATOR))[1].id for number in ("1", "1.0")} | {
        cells(own.spec("estimator: {import: 'OWN:Mine'}", ESTIMATOR))[1].id
    }
    assert len(ids) == 1


def test_a_config_of_another_file_that_builds_what_is_named_is_used(own: Own) -> None:
    (own.folder / f"{own.module}_config.py").write_text(
        f"{HEAD}\n@settings\nclass C(Settings):\n    def build(self, model):\n        import {own.module} as own\n"
        "        return own.Mine(model, fsg.STE.Config())\n"
    )
    source = "from OWN_config import C\nclass Mine(fsg.STE):\n    Config = C\n"
    assert own.told("estimator: {import: 'OWN:Mine'}", source) == []
    other = source.replace("class Mine", "class Other(fsg.STE): pass\nclass Mine")
    own.module += "_other"
    (own.folder / f"{own.module}_config.py").write_text(
        f"{HEAD}\n@settings\nclass C(Settings):\n    def build(self, model):\n        import {own.module} as own\n"
        "        return own.Other(model, fsg.STE.Config())\n"
    )
    (line,) = own.told("estimator: {import: 'OWN:Mine'}", other)
    assert line.endswith("C builds an Other, not a Mine (expected a Config nested in Mine whose build returns one)")


SCALED = """from dataclasses import dataclass
from typing import Literal

from fsg import GradientEstimator
from fsg.config import Settings, setting


class Scaled(GradientEstimator):
    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        name: Literal["scaled"] = "scaled"
        strength: float = setting(1.0, "What the gradient is multiplied with.", gt=0)

        def build(self, model):
            return Scaled(model, self.strength)

    def __init__(self, model, strength):
        super().__init__(model)
        self.strength = strength

    def propose(self, model, *, lr, progress):
        self.quantized = {
            f"{name}.weight": layer.quantizer(layer.weight.detach()).requires_grad_()
            for name, layer in self.layers.items()
        }
        return self.quantized

    def update(self, model):
        for name, layer in self.layers.items():
            layer.weight.grad = self.strength * self.quantized[f"{name}.weight"].grad
        return True
"""


def test_a_component_of_one_file_keeps_the_id_that_it_had(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded when a component's id was the digest of its file."""
    monkeypatch.setattr(fsg, "NUMERICS", 1)
    (folder / "users_scaled.py").write_text(SCALED)
    (folder / "s.yaml").write_text(
        "name: t\ntrain: {epochs: 1}\n"
        'variants: {a: {}, b: {estimator: {import: "users_scaled:Scaled", strength: 0.5}}}\n'
        "seeds: [3]\nreport: {baseline: a, primary: b}\n"
    )
    assert [cell.id for cell in cells(load_spec(folder / "s.yaml"))] == ["aef1c0188d916831", "5fc16c46d391add6"]


def test_images_of_ones_own_that_cannot_be_loaded_are_told(own: Own) -> None:
    source = "@settings\nclass Mine(Images):\n    def read(self): return {}['images']\n"
    assert own.told("data: {import: 'OWN:Mine'}", source)[0].endswith(
        "KeyError: 'images' (expected images that can be loaded)"
    )


LOSSES = """
import torch
class Listed:
    def __call__(self, logits, labels):
        return [0.0]

class EachImage(nn.Module):
    def forward(self, logits, labels):
        return nn.functional.cross_entropy(logits, labels, reduction="none")

class Constant(nn.Module):
    def forward(self, logits, labels):
        return torch.zeros(())

class Follows(nn.Module):
    needs_teacher = True
    def forward(self, logits, labels, teacher):
        return (logits - teacher).square().mean()

class NotCalled:
    pass

@settings
class TorchsOwn(Settings):
    lr: float = setting(0.1)
    def build(self, model):
        return torch.optim.SGD(model.parameters(), lr=self.lr)

class Good(nn.Module):
    def __init__(self, power: float = 2.0):
        super().__init__()
        self.power = power
    def forward(self, logits, labels):
        return nn.functional.cross_entropy(logits, labels) ** self.power
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Listed", "it returned a list for logits and labels (expected a number that depends on the logits)"),
        ("EachImage", "it returned a tensor [2] for logits and labels (expected a number that depends on the logits)"),
        ("Constant", "it returned a tensor [] without a gradient (expected a number that depends on the logits)"),
        (
            "Follows",
            "the loss needs a teacher, and init is scratch (expected init: pretrain, whose network is the teacher)",
        ),
        (
            "NotCalled",
            "build returned a NotCalled (expected a class whose instances are called with logits and labels)",
        ),
    ],
)
def test_a_loss_that_is_none_is_refused_where_it_is_named(own: Own, name: str, message: str) -> None:
    assert own.told(f'loss: {{import: "OWN:{name}"}}', LOSSES) == [
        f"own.yaml:10:17: variants.mine.loss.import: {message}"
    ]


def test_a_loss_of_ones_own_and_torchs_losses_and_optimizers_are_planned(own: Own) -> None:
    for mine in (
        'loss: {import: "OWN:Good", power: 1.5}',
        'loss: {import: "torch.nn:MultiMarginLoss", margin: 0.5}',
        'optimizer: {import: "torch.optim:RMSprop", lr: 1e-3, momentum: 0.9}',
        'optimizer: {import: "torch.optim:AdamW", lr: 1e-3, betas: [0.8, 0.99]}',
        'optimizer: {import: "OWN:TorchsOwn"}',
    ):
        assert own.told(mine, LOSSES) == []


@pytest.mark.parametrize(
    ("mine", "message"),
    [
        (
            'optimizer: {import: "torch.optim:RMSprob"}',
            "own.yaml:10:30: variants.mine.optimizer.import: cannot import 'torch.optim:RMSprob': module 'torch.optim' "
            "has no attribute 'RMSprob' (expected module:Class, installed or beside the spec; did you mean RMSprop?)",
        ),
        (
            'optimizer: {import: "torch.optim:RMSprop", momentun: 0.9}',
            "own.yaml:10:53: variants.mine.optimizer.momentun: optimizer torch.optim:RMSprop has no such field "
            "(expected one of lr, alpha, eps, weight_decay, momentum, centered, capturable, foreach, maximize, "
            "differentiable; did you mean momentum?)",
        ),
        (
            'optimizer: {import: "torch.optim:LBFGS"}',
            "own.yaml:10:22: variants.mine.optimizer.import: LBFGS.step needs a closure (expected an optimizer that "
            "steps by the gradients)",
        ),
        (
            "model: {name: torchvision, arch: resnet19}",
            "own.yaml:10:10: variants.mine.model: arch is 'resnet19' (expected a classifier of torchvision, such as "
            "resnet18 or mobilenet_v2; did you mean resnet18?)",
        ),
        (
            "model: {name: torchvision, arch: alexnet}",
            "own.yaml:10:10: variants.mine.model: alexnet cannot take images of 1x12x12: ",
        ),
        (
            "loss: distillation",
            "own.yaml:10:10: variants.mine.loss: the loss needs a teacher, and init is scratch (expected init: "
            "pretrain, whose network is the teacher)",
        ),
        (
            "loss: {name: cross_entropy, label_smoothing: 2}",
            "own.yaml:10:55: variants.mine.loss.label_smoothing: got 2 (expected a number from 0 to 1)",
        ),
        (
            "activations: {name: sign, derivative: sharp}",
            "own.yaml:10:48: variants.mine.activations.derivative: got 'sharp' (expected one of clipped, approx_sign, "
            "ede, reste)",
        ),
        (
            "optimizer: {name: sgd, nesterov: true}",
            "own.yaml:10:10: variants.mine.optimizer: nesterov is true, and momentum is 0 (expected a momentum > 0)",
        ),
    ],
)  # fmt: skip
def test_parts_that_cannot_be_are_refused_in_one_line(own: Own, mine: str, message: str) -> None:
    try:
        (line,) = own.told(mine, LOSSES)
    except SpecErrors as errors:
        (line,) = str(errors).replace(f"{own.folder}/", "").splitlines()
    assert line.startswith(message)
