"""setup.sh, which `make` calls, and the README's commands for a machine without make."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHON = f"python3.{sys.version_info.minor}"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The project with a lock file of one small package, in a folder with a space in its name."""
    clone = tmp_path / "a clone"
    clone.mkdir()
    for name in ("setup.sh", "Makefile", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    for package in ("fsg", "orchestration"):
        (clone / package).mkdir()
        (clone / package / "__init__.py").touch()
    (clone / "requirements.lock").write_text("setuptools\nwheel\n")
    return clone


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The programs of a machine on which only this Python works: a newer one is a stub that fails, as pyenv's do."""
    folder = tmp_path / "bin"
    for newer in ("python3.14", "python3.13", "python3.12", "python3.11", "python3"):
        program(folder, newer, "echo command not found >&2; exit 127")
    program(folder, PYTHON, f'exec {shlex.quote(sys.executable)} "$@"')
    return folder


def set_up(clone: Path, machine: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{machine}:/usr/bin:/bin", **variables}
    return subprocess.run([clone / "setup.sh"], env=environment, text=True, capture_output=True, timeout=300)


def test_a_machine_without_a_fitting_python_is_told_in_one_line(clone: Path, machine: Path) -> None:
    program(machine, PYTHON, "exit 1")
    one = set_up(clone, machine)
    assert one.returncode == 1
    assert one.stderr.startswith("no python3.11 to python3.14: expected Python 3.11 to 3.14 with its venv module")
    assert one.stderr.count("\n") == 1
    named = set_up(clone, machine, PYTHON="python2.7")
    assert (named.returncode, named.stderr.split(":")[0]) == (1, "python2.7")
    assert not (clone / ".venv").exists()


@pytest.mark.slow
def test_set_up_takes_the_python_that_works_and_takes_up_again_what_was_broken_off(clone: Path, machine: Path) -> None:
    first = set_up(clone, machine)
    assert first.returncode == 0, first.stderr
    version = "Python " + sys.version.split()[0]
    assert f"Setting up .venv with {version}: 2 packages" in first.stdout
    assert re.search(r"^\[  1 of about 2\] setuptools", first.stdout, re.M)
    assert (clone / ".venv" / ".installed").exists()
    found = subprocess.check_output([clone / ".venv/bin/python", "-Ic", "import fsg; print(fsg.__file__)"], text=True)
    assert Path(found.strip()) == clone / "fsg" / "__init__.py"
    (clone / ".venv" / ".installed").unlink()
    (clone / ".venv" / "kept").touch()
    assert set_up(clone, machine).returncode == 0
    assert (clone / ".venv" / "kept").exists()
    for pip in clone.glob(".venv/lib/*/site-packages/pip"):  # broken off before pip was there
        shutil.rmtree(pip)
    assert set_up(clone, machine).returncode == 0
    assert not (clone / ".venv" / "kept").exists()
    assert (clone / ".venv" / ".installed").exists()


@pytest.mark.slow
def test_uv_installs_where_it_is_there_and_pip_where_uv_cannot(clone: Path, machine: Path) -> None:
    program(machine, "uv", f'echo "$@" >> {shlex.quote(str(machine / "calls"))}')
    assert set_up(clone, machine).returncode == 0
    assert (machine / "calls").read_text().splitlines() == [
        "pip install --python .venv/bin/python -r requirements.lock",
        "pip install --python .venv/bin/python --no-deps --no-build-isolation -e .",
    ]
    program(machine, "uv", "exit 2")
    second = set_up(clone, machine)
    assert second.returncode == 0, second.stderr
    assert "uv could not install; pip tries." in second.stdout
    (clone / "requirements.lock").write_text("no-such-package-of-fsg==1.0\n")
    (clone / ".venv" / ".installed").unlink()
    third = set_up(clone, machine)
    assert third.returncode != 0
    assert "No matching distribution found for no-such-package-of-fsg==1.0" in third.stdout
    assert not (clone / ".venv" / ".installed").exists()


@pytest.mark.slow
def test_the_readmes_commands_without_make(clone: Path, machine: Path) -> None:
    """The first installs, from a short lock file; the second is asked for its plan, with this suite's packages."""
    (block,) = re.findall(r"Without make:\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    install, launch = block.replace("\\\n", "").strip().splitlines()
    program(machine, "python3.11", f'exec {shlex.quote(sys.executable)} "$@"')
    environment = {**os.environ, "PATH": f"{machine}:/usr/bin:/bin"}
    subprocess.run(["bash", "-ec", install], cwd=clone, env=environment, check=True, timeout=300)
    assert list(clone.glob(".venv/lib/*/site-packages/*fsg*"))
    for name in ("configs", "fsg", "orchestration"):
        shutil.copytree(ROOT / name, clone / name, dirs_exist_ok=True)
    (site,) = (ROOT / ".venv").glob("lib/*/site-packages")
    environment["PYTHONPATH"] = str(site)
    command = f"{launch} --plan --no-pilot"
    planned = subprocess.run(["bash", "-ec", command], cwd=clone, env=environment, text=True, capture_output=True)
    assert planned.returncode == 0, planned.stderr
    assert "ablation_hgs" in planned.stdout
