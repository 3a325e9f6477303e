"""What bash completes once `fsg --install-completion` has been run: it installs what `--show-completion` prints."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("typed", "meant"), [("fsg la", "launch"), ("fsg launch --prof", "--profile"), ("fsg xyz", "")]
)
def test_bash_completes_commands_and_options(typed: str, meant: str) -> None:
    words = typed.split()
    script = (
        'eval "$(fsg --show-completion bash)"; '
        f"COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _fsg_completion fsg; echo ${{COMPREPLY[@]}}"
    )
    known = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "SHELL": "/bin/bash"}
    said = subprocess.run(["bash", "-c", script], env=known, capture_output=True, text=True, timeout=120, check=False)
    assert (said.stdout.strip(), said.stderr) == (meant, "")
