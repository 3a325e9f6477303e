"""The simulated accelerator does what a GPU does: counts, and refuses."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from simulated_accelerator import NAME, Accelerator
from torch import Tensor

from fsg import foreach

pytestmark = pytest.mark.accelerator


@pytest.fixture
def gpu() -> Iterator[Accelerator]:
    with Accelerator(Path(__file__).parent) as accelerator:
        yield accelerator


WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0]),
    "bool": lambda x: bool(x[0] > 0),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu", non_blocking=False),
    "copy": lambda x: torch.zeros(3).copy_(x),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 1],
    "mask_set": lambda x: x.__setitem__(x > 1, torch.zeros((), device=NAME)),
    "masked_select": lambda x: x.masked_select(x > 1),
    "unique": lambda x: x.unique(),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "repeat": lambda x: x.repeat_interleave(torch.ones(3, dtype=torch.long, device=NAME)),
    "where_one": lambda x: torch.where(x > 1),
}
UPLOADS: dict[str, Callable[[Tensor], object]] = {
    "to": lambda x: torch.zeros(3).to(NAME),
    "tensor": lambda x: torch.tensor([1, 2], device=NAME),
    "number": lambda x: torch.tensor(1.0, device=NAME),
    "copy": lambda x: x.copy_(torch.zeros(3)),
    "number_copied": lambda x: x[1:2].copy_(torch.tensor(1.0)),
    "index": lambda x: x[torch.tensor([0, 2])],
    "list_index": lambda x: x[[0, 2]],
    "where": lambda x: torch.where(x > 1, torch.tensor(1.0), x),
    "set": lambda x: x.__setitem__(slice(0, 2), torch.ones(2)),
}
NEITHER: dict[str, Callable[[Tensor], object]] = {
    "arithmetic": lambda x: (x * 2 + 1).exp().sum() / 3,
    "number": lambda x: x * torch.tensor(2.0),
    "where": lambda x: torch.where(x > 0, 1.0, x),
    "where_numbers": lambda x: torch.where(x > 0, 1.0, -1.0),
    "masked_fill": lambda x: x.masked_fill(x > 0, 0),
    "factories": lambda x: [torch.arange(3, device=NAME), torch.full((2,), 3.0, device=NAME), x.new_zeros(2)],
    "fill": lambda x: x.__setitem__(0, 1.0),
    "repeat": lambda x: x.repeat_interleave(torch.ones(3, dtype=torch.long, device=NAME), output_size=3),
}
MIXED: dict[str, Callable[[Tensor], object]] = {
    "add": lambda x: x + torch.zeros(3),
    "cat": lambda x: torch.cat([x, torch.zeros(3)]),
    "stack": lambda x: torch.stack([x[0], torch.tensor(1.0)]),
    "matmul": lambda x: x @ torch.zeros(3),
    "index_select": lambda x: x.index_select(0, torch.tensor([0])),
    "foreach": lambda x: foreach.add_([x], [torch.zeros(3)]),
    "grad": lambda x: setattr(x, "grad", torch.zeros(3)),
    "numpy": lambda x: x.numpy(),
}


@pytest.mark.parametrize("name", WAITS)
def test_waits_are_counted_where_they_are(gpu: Accelerator, name: str) -> None:
    x = torch.tensor([1.0, 2.0, 3.0]).to(NAME)
    gpu.reset()
    WAITS[name](x)
    assert list(gpu.waits.values()) == [1]
    assert not gpu.uploads
    ((place, _),) = gpu.waits
    assert place.startswith(Path(__file__).name)


@pytest.mark.parametrize("name", UPLOADS)
def test_uploads_are_counted(gpu: Accelerator, name: str) -> None:
    x = torch.tensor([1.0, 2.0, 3.0]).to(NAME)
    gpu.reset()
    UPLOADS[name](x)
    assert list(gpu.uploads.values()) == [1]
    assert not gpu.waits


@pytest.mark.parametrize("name", NEITHER)
def test_what_only_queues_work_is_neither(gpu: Accelerator, name: str) -> None:
    x = torch.tensor([1.0, 2.0, 3.0]).to(NAME)
    gpu.reset()
    NEITHER[name](x)
    assert not gpu.waits
    assert not gpu.uploads


@pytest.mark.parametrize("name", MIXED)
def test_mixed_devices_are_refused(gpu: Accelerator, name: str) -> None:
    x = torch.tensor([1.0, 2.0, 3.0]).to(NAME)
    with pytest.raises((RuntimeError, TypeError)):
        MIXED[name](x)


def test_kernels_are_counted_and_what_they_move(gpu: Accelerator) -> None:
    x = torch.ones(3).to(NAME)
    many = [x.clone() for _ in range(49)]
    gpu.reset()
    foreach.mul_(many, 2.0)
    assert gpu.kernels == 2
    assert gpu.launches.total() == 1
    gpu.reset()
    (x.view(3, 1)[1:] + 1).t()
    assert gpu.kernels == 1, "a view starts no kernel"
    assert gpu.moved == 2 * 4 + 2 * 4, "two numbers are read, two are written"
