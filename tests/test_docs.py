"""The code in the documentation runs as it stands there, but for its sizes."""

import re
import runpy
from pathlib import Path

import pytest

from fsg.data import FashionMNISTSubset
from fsg.models import ResNet

LIBRARY = Path(__file__).resolve().parents[1] / "docs" / "library.md"
SMALLER = {
    "models.resnet18(num_classes=10)": "models.shufflenet_v2_x0_5(num_classes=10)",
    "torch.randn(4, 3, 64, 64)": "torch.randn(4, 3, 32, 32)",
    "TrainConfig(epochs=1)": "TrainConfig(epochs=1, data=few, model=narrow)",
}
# What each block must have done.
AFTER = [
    "assert len(estimator.layers) == 57 and optimizer.steps == 2 and loss.isfinite()",
    "assert list(estimator.layers) == ['1', '4'] and optimizer.steps == 1",
    "assert len(optimizer.state) == 6 and loss.isfinite()",
    "assert len(estimator.layers) == 8 and 'head' not in estimator.layers and optimizer.steps == 2",
    "assert table['layer'] == list(estimator.layers) and table['observed_steps'] == 4 and optimizer.steps == 6",
    "assert row.step == 2 and 'test/accuracy' in row.values",
    """
model = fsg.quantize(nn.Sequential(nn.Linear(2, 2)), fsg.Sign())
estimator, optimizer = Scaled.Config(strength=0.5).build(model), fsg.SGD(lr=0.1).build(model)
fsg.train_step(model, estimator, optimizer, torch.randn(3, 2), torch.arange(3) % 2, lr=0.1, progress=0.0)
assert torch.equal(model[0].weight.grad, 0.5 * estimator.quantized["0.weight"].grad) and optimizer.steps == 1
""",
    "assert len(estimator.layers) == 5 and (vgg.get_parameter('features.3.activation.threshold') != 0).all()",
    "assert Focal(0.0)(torch.zeros(2, 4), torch.arange(2)).item() == nn.functional.cross_entropy("
    "torch.zeros(2, 4), torch.arange(2)).item()",
]


def test_the_librarys_code_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = LIBRARY.read_text()
    for old, new in SMALLER.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    program = tmp_path / "library.py"
    program.write_text("\n".join(line for pair in zip(blocks, AFTER, strict=True) for line in pair))
    few = FashionMNISTSubset(validation=100, train_limit=256)
    runpy.run_path(str(program), {"few": few, "narrow": ResNet.Config(depth=8, width=2)})
    printed = capsys.readouterr().out
    assert "blocks.0.attention.qkv" in printed
    assert "test/accuracy" in printed
