"""What users keep in a state: it comes back as it was, type and all, or is refused by its path."""

import random
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from fsg.checkpoint import digest, from_bytes, to_bytes


@dataclass
class Memory:
    mean: float = 0.5


class Pair(NamedTuple):
    a: int
    b: int


KEPT: dict[str, Any] = {
    "numpy number": np.float64(0.1),
    "numpy half": np.float16(3),
    "numpy yes": np.bool_(True),
    "numpy date": np.datetime64("2020-01-01"),
    "tuple": (1, (2, "x"), []),
    "empty tuple": (),
    "large whole number": 2**100,
    "bytes": b"x",
    "complex": 1j,
    "size": torch.Size([2, 3]),
    "dtype": torch.float32,
    "keys": {(0, 1): 3, 1: 2, "a": {"b": None}},
}
ARRAYS = {
    "transposed": np.arange(6).reshape(2, 3).T,
    "flipped": np.arange(6.0)[::-1],
    "empty": np.zeros((0, 3), np.float32),
    "without a dimension": np.array(3.5),
    "text": np.array(["ab", "c"]),
    "unsigned": np.arange(3, dtype=np.uint64),
    "big endian": np.arange(3, dtype=">i4"),
}
REFUSED = {
    "a set": {1},
    "a frozenset": frozenset(),
    "a Memory": Memory(),
    "a defaultdict": defaultdict(int),
    "a deque": deque([1]),
    "a Pair": Pair(1, 2),
    "a function": lambda: 1,
    "a ndarray": np.array([None]),
}


@pytest.mark.parametrize("value", KEPT.values(), ids=KEPT.keys())
def test_value_comes_back_as_it_was(value: Any) -> None:
    (again,) = from_bytes(to_bytes({"memory": [value]}))["memory"]
    assert type(again) is type(value)
    assert again == value


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_array_comes_back_as_it_was_and_can_be_written_to(array: Any) -> None:
    state = {"memory": {"mean": (array, 1)}}
    again = from_bytes(to_bytes(state))
    found = again["memory"]["mean"][0]
    assert (type(found), found.dtype, found.shape) == (np.ndarray, array.dtype, array.shape)
    assert found.tolist() == array.tolist()
    assert found.flags.writeable
    assert digest(again) == digest(state)


@pytest.mark.parametrize(("name", "value"), REFUSED.items(), ids=REFUSED.keys())
def test_what_would_not_come_back_is_refused_by_its_path(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^estimator\.memory\[1\]: {name} \(expected tensors, arrays, numbers") as no:
        to_bytes({"estimator": {"memory": [0, value]}})
    assert "\n" not in str(no.value)


@pytest.mark.parametrize(
    ("key", "message"), [(np.int64(1), "^memory: a key that is of type int64"), ("stored as", "^memory: a key named")]
)
def test_key_that_would_not_come_back_is_refused(key: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_bytes({"memory": {key: 1}})


@pytest.mark.parametrize("name", ["MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"])
def test_numpy_generator_goes_on_where_it_was(name: str) -> None:
    generator = np.random.Generator(getattr(np.random, name)(3))
    generator.random(7, dtype=np.float32)  # half a draw is left over
    again = from_bytes(to_bytes({"rng": generator}))["rng"]
    assert [generator.random(dtype=np.float32) for _ in range(5)] == [again.random(dtype=np.float32) for _ in range(5)]


def test_other_generators_go_on_where_they_were() -> None:
    python, legacy, of_torch = random.Random(3), np.random.RandomState(3), torch.Generator().manual_seed(3)
    python.gauss(0, 1)  # the other of its pair is left over
    legacy.randn()
    state = {"python": python, "legacy": legacy, "torch": of_torch}
    before = digest(state)
    again = from_bytes(to_bytes(state))
    assert before == digest(again)
    assert [again["python"].gauss(0, 1) for _ in range(3)] == [python.gauss(0, 1) for _ in range(3)]
    assert again["legacy"].randn(3).tolist() == legacy.randn(3).tolist()
    assert torch.equal(torch.rand(3, generator=again["torch"]), torch.rand(3, generator=of_torch))
    assert before != digest(state)


def test_digest_sees_the_middle_of_a_large_array() -> None:
    one, other = np.zeros(10_000), np.zeros(10_000)
    other[5_000] = 1e-9
    assert digest({"a": one}) != digest({"a": other})


def test_file_with_another_type_is_refused_by_the_name_of_the_type(tmp_path: Any) -> None:
    torch.save({"factor": np.float64(0.5)}, tmp_path / "old.pt")
    with pytest.raises(
        ValueError, match=r"^not a readable checkpoint \(it holds a numpy\._core\.multiarray\.scalar\)$"
    ):
        from_bytes((tmp_path / "old.pt").read_bytes())
