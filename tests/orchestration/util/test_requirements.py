"""The ranges are those of pyproject.toml, wherever they are read from, and what is out of them is one line."""

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from orchestration import cli
from orchestration.util import requirements

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(autouse=True)
def _read_anew() -> Iterator[None]:
    requirements.supported.cache_clear()
    yield
    requirements.supported.cache_clear()


def declared() -> dict[str, Requirement]:
    every = map(Requirement, PROJECT["dependencies"])
    return {one.name: one for one in every if one.name in ("ray", "mlflow", "optuna", "pydantic")}


def without_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(requirements.metadata, "requires", absent)


def here(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Other versions are installed; None: it is not."""
    real = requirements.installed
    monkeypatch.setattr(requirements, "installed", lambda name: versions[name] if name in versions else real(name))


def test_ranges_are_those_of_the_project() -> None:
    assert len(declared()) == 4
    assert requirements.supported() == declared()


def test_clone_that_is_not_installed_reads_its_own_file(monkeypatch: pytest.MonkeyPatch) -> None:
    without_metadata(monkeypatch)
    assert requirements.supported() == declared()


def test_code_that_neither_says_takes_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_metadata(monkeypatch)
    monkeypatch.setattr(requirements, "__file__", str(tmp_path / "orchestration" / "util" / "requirements.py"))
    here(monkeypatch, ray="0.1")
    assert requirements.supported() == {}
    assert requirements.supports("ray", "0.1")
    assert requirements.unsupported() is None


def test_lock_is_within_the_ranges() -> None:
    locked = dict(line.split(" ")[0].split("==") for line in (ROOT / "requirements.lock").read_text().splitlines())
    assert all(one.specifier.contains(locked[name]) for name, one in declared().items())


def test_every_range_has_both_ends() -> None:
    for one in declared().values():
        assert sorted(bound.operator for bound in one.specifier) == ["<", ">="]


def test_what_is_installed_here_is_supported() -> None:
    assert requirements.unsupported() is None


def test_one_line_names_all_that_is_wrong_and_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here(monkeypatch, ray="2.50.1", optuna=None)
    with pytest.raises(SystemExit) as ended:
        cli.main(["schema"])
    assert ended.value.code == 2
    ray, optuna = (f"'{declared()[name]}'" for name in ("ray", "optuna"))
    said = f"optuna is not installed, ray 2.50.1 is not supported (expected: pip install {optuna} {ray})\n"
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("name", ["ray", "mlflow", "optuna", "pydantic"])
def test_bounds_are_where_the_project_says(name: str) -> None:
    bounds = {bound.operator: bound.version for bound in declared()[name].specifier}
    assert requirements.supports(name, bounds[">="])
    assert not requirements.supports(name, bounds["<"])
    assert not requirements.supports(name, f"{bounds['>=']}.dev0")


def test_help_waits_for_no_check() -> None:
    look = "import sys, orchestration.cli\nprint('packaging.requirements' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", look], check=True, cwd=ROOT, capture_output=True, text=True)
    assert said.stdout == "False\n"
