import pytest
import torch

from fsg.checkpoint import digest, from_bytes, to_bytes


def state() -> dict[str, object]:
    return {
        "step": 3,
        "nested": {"weights": torch.arange(6.0).view(2, 3), "list": [torch.tensor(1), 2.5]},
        "time": {"train": 1.0},
    }


def test_a_state_survives_its_file() -> None:
    again = from_bytes(to_bytes(state()))
    assert again["step"] == 3
    assert torch.equal(again["nested"]["weights"], torch.arange(6.0).view(2, 3))
    assert again["nested"]["list"] == [torch.tensor(1), 2.5]
    assert digest(again) == digest(state())


def test_digest_depends_on_values_names_shapes_and_types_but_not_on_time_or_order_or_memory_format() -> None:
    base = {"a": torch.arange(16.0).view(1, 4, 2, 2), "b": 1}
    same = {"b": 1, "a": base["a"].to(memory_format=torch.channels_last), "time": {"x": 3.0}}
    assert digest(base) == digest(same)
    others = [
        {"a": base["a"] + 1e-7, "b": 1},
        {"c": base["a"], "b": 1},
        {"a": base["a"].view(4, 4), "b": 1},
        {"a": base["a"].double(), "b": 1},
        {"a": base["a"].view(torch.int32), "b": 1},
        {"a": base["a"], "b": 2},
    ]
    assert len({digest(base), *map(digest, others)}) == 7


def test_a_view_is_saved_without_what_it_views() -> None:
    whole = torch.zeros(1_000_000)
    assert len(to_bytes({"view": whole[:10]})) < 10_000


@pytest.mark.parametrize("content", [b"", b"nonsense", to_bytes(state())[:-100]])
def test_a_broken_file_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        from_bytes(content)


def test_code_in_a_file_is_not_run(tmp_path) -> None:  # type: ignore[no-untyped-def]
    class Evil:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (open, (str(tmp_path / "pwned"), "w"))

    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        from_bytes((tmp_path / "evil.pt").read_bytes())
    assert not (tmp_path / "pwned").exists()
