"""Which kernel computes the slow net, and what is said where it is not the native one."""

import logging
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fsg import mamba, native, selective_scan
from fsg.mamba import Mamba, MambaBlock


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As in a process that has compiled nothing."""
    native.BUILT.clear()
    yield
    native.BUILT.clear()


def compiler(folder: Path, script: str) -> str:
    path = folder / "c++"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_kernel_names_the_compiler_its_version_and_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FSG_NATIVE", raising=False)
    if native.library("mamba") is None:
        pytest.skip("NOT RUN: no C++ compiler works here")
    built = native.build("mamba").how
    assert mamba.kernel(Mamba(), "cpu") == f"native: {built}"
    version = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=False).stdout.splitlines()[:1]
    assert not version or built.startswith(version[0]) or "CXX" in native.os.environ
    assert all(flag in built for flag in native.FLAGS)
    assert mamba.kernel(Mamba(d_state=257), "cpu") == "torch (d_state 257)"


@pytest.mark.parametrize(
    ("script", "reason"),
    [("echo 'what a compiler' >&2; exit 1", "what a compiler"), (None, "no C++ compiler")],
    ids=["fails", "absent"],
)
def test_falling_back_is_said_once_and_the_kernel_is_torch(
    script: str | None, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("FSG_NATIVE", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native.shutil, "which", lambda name: script and compiler(tmp_path, script))
    caplog.set_level(logging.WARNING, "fsg")
    with pytest.warns(UserWarning, match=re.escape(reason)):
        kernel = mamba.kernel(Mamba(), "cpu")
    assert kernel == f"torch ({reason})"
    assert native.library("mamba") is None
    assert not mamba.suits_native(torch.zeros(1, 4), MambaBlock(4, 1, 16, 2).A_log)
    assert [record.message for record in caplog.records] == [
        f"mamba.cpp cannot be compiled here ({reason}): plain torch is used, which is slower"
    ]


def test_another_version_of_the_compiler_compiles_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So that what is said of the library is what it was compiled by."""
    monkeypatch.delenv("FSG_NATIVE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    built = []
    monkeypatch.setattr(native, "_compile", lambda compiler, source, target: built.append(target))
    for version in ("one", "one", "two"):
        monkeypatch.setenv("CXX", compiler(tmp_path, f"echo {version}"))
        native.BUILT.clear()
        with pytest.warns(UserWarning, match="cannot be compiled"):  # nothing was written
            native.build("mamba")
    assert built[0] == built[1] != built[2]


def test_doing_without_is_recorded_and_no_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FSG_NATIVE", "0")
    assert mamba.kernel(Mamba(), "cpu") == "torch (FSG_NATIVE=0)"
    assert caplog.records == []


def test_on_a_gpu_the_kernel_is_tritons_and_mamba_ssms_only_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FSG_SCAN", raising=False)
    versions = {"mamba-ssm": "2.3", "triton": "3.8"}
    monkeypatch.setattr(mamba, "distributions", lambda name: [SimpleNamespace(version=versions[name])])
    monkeypatch.setattr(selective_scan, "HAS_TRITON", True)
    monkeypatch.setattr(selective_scan, "kernel", lambda: print)
    assert mamba.kernel(Mamba(), "cuda:1") == "triton 3.8"
    monkeypatch.setenv("FSG_SCAN", "mamba-ssm")
    assert mamba.kernel(Mamba(), "cuda") == "mamba-ssm 2.3 (other bits in every run)"
    monkeypatch.setattr(mamba, "distributions", lambda name: [])
    assert mamba.kernel(Mamba(), "meta") == "torch"
    monkeypatch.setenv("FSG_SCAN", "mamba")
    with pytest.raises(ValueError, match="FSG_SCAN is 'mamba', expected one of triton, torch, mamba-ssm"):
        mamba.kernel(Mamba(), "cuda")


def test_without_triton_the_kernel_is_torchs_and_what_is_not_installed_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FSG_SCAN", raising=False)
    monkeypatch.setattr(selective_scan, "HAS_TRITON", False)
    monkeypatch.setattr(selective_scan, "kernel", lambda: None)
    assert mamba.kernel(Mamba(), "cuda") == "torch"
    for wanted in ("triton", "mamba-ssm"):
        monkeypatch.setenv("FSG_SCAN", wanted)
        with pytest.raises(ValueError, match="not installed here"):
            mamba.kernel(Mamba(), "cuda")
