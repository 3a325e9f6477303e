"""The code in the documentation runs as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_the_librarys_code_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "library.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 6
    program = "\n".join(blocks).replace("TrainConfig(epochs=1)", "TrainConfig(epochs=0)")
    program += "\nmodel = fsg.quantize(torch.nn.Linear(2, 2), fsg.Sign())\n"
    program += "scaled = Scaled.Config(strength=0.5).build(torch.nn.Sequential(model))\n"
    program += "assert len(scaled.layers) == 1\n"
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "test/accuracy" in run.stdout
