"""`fsg export RESULTS CELL --to FILE`: a trained network leaves the ledger, packed, and verified before it is kept."""

import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

import fsg
from fsg import packing
from fsg.binarize import BinaryNetwork
from fsg.costs import NetworkCost, network_cost
from fsg.image_dataset import ImageDataset
from fsg.metrics import Batches
from fsg.onnx_graph import OPSET, onnx_model
from orchestration.commands.exit_status import DONE, FAILED
from orchestration.ledger.ledger import Ledger
from orchestration.ledger.results import Results
from orchestration.runtime.own_code import edits, import_own_code
from orchestration.spec.cells import Cell
from orchestration.spec.fields import nearest
from orchestration.tracking.program import trained_network
from orchestration.util.magnitude import magnitude

_LOGITS = 1e-4  # of the largest logit, or of 1
_PREDICTIONS = 0.999  # where one rounding can flip a one-bit activation
Predictor = Callable[[Tensor], Tensor]
Texts = dict[str, str]


@dataclass(frozen=True)
class Agreement:
    """Two networks on the same images: the worst difference of a logit, the largest logit, and other predictions."""

    images: int = 0
    worst: float = 0.0
    largest: float = 0.0
    others: int = 0

    def and_of(self, expected: Tensor, found: Tensor) -> "Agreement":
        """With another batch's logits, [b, classes]. What is not a number is infinitely far."""
        worst = (expected - found).abs().nan_to_num(nan=torch.inf).max().item()
        return Agreement(
            images=self.images + len(expected),
            worst=max(self.worst, worst),
            largest=max(self.largest, expected.abs().max().item()),
            others=self.others + int((expected.argmax(1) != found.argmax(1)).sum()),
        )

    def holds(self, one_bit_activations: bool) -> bool:
        """Whether logits are the same to 10⁻⁴ and predictions equal, or 99.9 % of them where activations are signs."""
        if one_bit_activations:
            return self.others <= (1 - _PREDICTIONS) * self.images
        return self.others == 0 and self.worst <= _LOGITS * max(1.0, self.largest)

    def __str__(self) -> str:
        equal = f"{self.others:,} predictions differ" if self.others else "all predictions equal"
        return f"worst difference of a logit {self.worst:.2g} (largest logit {self.largest:.3g}), {equal}"


def export(folder: Path, name: str, to: Path, fold: bool) -> int:
    """Write the file and print what it is. Returns the exit status.

    Raises ValueError for a name of another kind, a cell without weights, and a network that the file cannot hold, and
    OSError where it cannot be written.
    """
    if to.suffix not in _FORMATS:
        raise ValueError(f"--to {to}: expected a name that ends in {', '.join(_FORMATS)}{nearest(to.suffix, _FORMATS)}")
    if not to.parent.is_dir():
        raise ValueError(f"--to {to}: there is no folder {to.parent}")
    results, ledger = Results(folder), Ledger(folder)
    cell = results.cell(name)
    weights = results.weights(cell.id)
    import_own_code(ledger)
    if changed := edits(cell.train):
        raise ValueError(f"{cell.label}: {'; '.join(changed)} (expected the files as they were)")
    dataset = cell.train.data.load()
    reference = trained_network(cell.train, weights, dataset).eval()
    split = _split(cell, dataset)
    batches = dataset.evaluation(split)
    with tempfile.TemporaryDirectory(prefix=".fsg-export-", dir=to.parent) as scratch:
        draft = Path(scratch) / to.name
        try:
            binary, predictor = _written(reference, draft, torch.zeros(2, *dataset.shape), fold, _about(cell, dataset))
        except ImportError as error:
            missing = str(error.name).partition(".")[0]
            raise ValueError(f"--to {to}: {missing} is not installed (expected: pip install 'fsg[export]')") from error
        agreement = compared(reference, predictor, batches)
        cost, size = network_cost(reference, dataset.shape), draft.stat().st_size
        if kept := agreement.holds(any(one.activation_bits == 1 for one in cost.layers if one.flops)):
            draft.replace(to)
    verified = f"on {agreement.images:,} {split} images: {agreement}"
    if not kept:
        print(f"{to}: not kept: it predicts otherwise than the ledger's network {verified}")
        return FAILED
    for line in [*_lines(to, size, cost, binary), f"verified     {verified}"]:
        print(line)
    return DONE


def _split(cell: Cell, dataset: ImageDataset) -> Literal["train", "validation", "test"]:
    """The test images where the cell has opened them; otherwise those that it was validated on, if there are any."""
    if cell.train.test == "end":
        return "test"
    return "validation" if len(dataset.validation_labels) else "train"


def _about(cell: Cell, dataset: ImageDataset) -> Texts:
    """What a user of the file must know besides: an image is (pixel/255 − mean)/std."""
    mean, std = (json.dumps([round(value, 8) for value in each.tolist()]) for each in (dataset.mean, dataset.std))
    names = {"classes": json.dumps(dataset.class_names)} if dataset.class_names else {}
    return names | {"mean": mean, "std": std, "cell": cell.id, "made_by": f"fsg {fsg.__version__}"}


def _written(
    network: nn.Module, path: Path, images: Tensor, fold: bool, about: Texts
) -> tuple[BinaryNetwork, Predictor]:
    """The network that was written, and what the file predicts."""
    binary = BinaryNetwork.of(network)
    binary = binary.folded(images) if fold else binary
    write, predictor_of = _FORMATS[path.suffix]
    write(binary, images, path, about)
    return binary, predictor_of(binary, path)


def _write_onnx(binary: BinaryNetwork, images: Tensor, path: Path, about: Texts) -> None:
    path.write_bytes(onnx_model(binary, images, about).SerializeToString())


def _in_onnxruntime(_: BinaryNetwork, path: Path) -> Predictor:
    import onnxruntime  # start-up time: optional too

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.contiguous().numpy()})[0])


def _write_packed(binary: BinaryNetwork, _: Tensor, path: Path, about: Texts) -> None:
    packing.write(binary.contents(about), path)


def _in_torch(binary: BinaryNetwork, path: Path) -> Predictor:
    tensors = packing.read(path).tensors()
    return lambda images: functional_call(binary.network, tensors, (images,))


_FORMATS = {
    ".onnx": (_write_onnx, _in_onnxruntime),
    ".npz": (_write_packed, _in_torch),
    ".safetensors": (_write_packed, _in_torch),
}


@torch.no_grad()
def compared(reference: Predictor, other: Predictor, batches: Batches) -> Agreement:
    """Their logits on the same images."""
    agreement = Agreement()
    for images, _ in batches:
        agreement = agreement.and_of(reference(images), other(images))
    return agreement


def _lines(to: Path, size: int, cost: NetworkCost, binary: BinaryNetwork) -> Iterable[str]:
    opset = f", opset {OPSET}" if to.suffix == ".onnx" else ""
    yield f"{to}: packed{opset}"
    times = f"{cost.float_bytes / size:.1f} times as large"
    yield f"size         {magnitude(size, 'B')}; float32 (latent weights) {magnitude(cost.float_bytes, 'B')}, {times}"
    yield f"parameters   {cost.parameters:,}, {100 * cost.binary_share:.1f}\u00a0% binary"
    yield f"an image     {magnitude(cost.flops, 'FLOPs')}, {magnitude(cost.bops, 'BOPs')}"
    if binary.not_packed:
        yield f"float32      {', '.join(binary.not_packed)}: their levels are no sum of planes of signs"
