import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from fsg.config import Settings, choice, from_dict, setting, to_dict
from fsg.estimators import FSG
from fsg.hypernetworks import EMA
from fsg.imported import Imported, config_class, source_sha256
from fsg.train_config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Inner(Settings):
    name: Literal["inner"] = "inner"
    depth: int = setting(2, "How deep.", ge=1, lt=10)


@dataclass(frozen=True, kw_only=True)
class Outer(Settings):
    inner: Inner = choice(Inner, "What is inside.")
    folder: str = setting("data", "Where.", identity=False)
    newer: float = setting(0.5, "What there was not at first.", identity="unless_default")


def test_bounds_hold_without_a_validator() -> None:
    assert Inner(depth=9).depth == 9
    with pytest.raises(ValueError, match=r"Inner: depth is 10, expected < 10"):
        Inner(depth=10)
    with pytest.raises(ValueError, match=r"expected ≥ 1"):
        Inner(depth=0)


def test_identity_leaves_out_what_determines_no_number() -> None:
    assert Outer().identity() == {"inner": {"name": "inner", "depth": 2}}
    assert Outer(folder="elsewhere").identity() == Outer().identity()
    assert Outer(inner=Inner(depth=3)).identity() != Outer().identity()


def test_identity_has_a_newer_setting_where_it_is_not_what_there_was_before() -> None:
    assert Outer(newer=0.5).identity() == Outer().identity()
    assert Outer(newer=0.25).identity() == Outer().identity() | {"newer": 0.25}
    assert from_dict(Outer, to_dict(Outer(newer=0.25))) == Outer(newer=0.25)


def test_settings_survive_their_mapping() -> None:
    config = TrainConfig(estimator=FSG.Config(slow_net=EMA(decay=0.5), history_length=7), epochs=3)
    assert from_dict(TrainConfig, to_dict(config)) == config


MODULE = """
from dataclasses import dataclass
from fsg.config import Settings, setting
from fsg.estimators import FSG

class Mine:
    @dataclass(frozen=True, kw_only=True)
    class Config(FSG.Config):
        strength: float = setting(0.5, "How strong.", gt=0)
        cache: str = setting("", "Where.", identity=False)

class NoConfig:
    class Config: ...
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "users_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("users_module", None)
    return tmp_path / "users_module.py"


def test_an_imported_component_is_the_users_own_with_its_nested_settings(module: Path) -> None:
    settings = to_dict(config_class("users_module:Mine")(strength=2.0, slow_net=EMA(), cache="/tmp/x"))
    component = Imported(path="users_module:Mine", settings=settings, source_sha256=source_sha256("users_module:Mine"))
    assert component.resolve().slow_net == EMA()
    assert component.strength == 2.0
    assert "cache" not in component.identity()["settings"]
    assert component.identity()["source_sha256"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("users_module", "expected module:Class"),
        ("users_module:Absent", "cannot import"),
        ("no_such_module:X", "cannot import"),
        ("users_module:NoConfig", "has a Config that is no"),
        ("users_module:setting", "is a function, expected a class"),
    ],
)
def test_a_path_that_leads_to_no_settings_is_refused(module: Path, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_class(path)
