import pytest
import torch

from fsg.history import ChunkLayout, GradientHistory


@pytest.mark.parametrize("length", [1, 3])
def test_history_evicts_oldest_gradient_and_keeps_the_order(length: int) -> None:
    history = GradientHistory(length, (2,), torch.zeros(1, dtype=torch.float64))
    seen = []
    for i in range(1, 9):
        history.append(torch.tensor([i, -i]))
        seen.append([i, -i])
        assert len(history) == min(i, length)
        assert history.oldest_first().tolist() == seen[-length:]
        assert history.newest().tolist() == [i, -i]


def test_history_goes_on_from_its_state() -> None:
    one, other = (GradientHistory(3, (2,), torch.zeros(1)) for _ in range(2))
    for i in range(5):
        one.append(torch.full((2,), float(i)))
    other.load_state_dict(one.state_dict())
    for history in (one, other):
        history.append(torch.full((2,), 9.0))
    assert torch.equal(one.oldest_first(), other.oldest_first())
    assert one.oldest_first()[:, 0].tolist() == [3.0, 4.0, 9.0]


def test_layout_packs_each_tensor_into_whole_chunks_and_unpacks_it_again() -> None:
    tensors = [torch.arange(6.0).view(2, 3), torch.arange(10.0, 14.0), torch.tensor([[20.0]])]
    layout = ChunkLayout(tuple(t.shape for t in tensors), 4)
    assert layout.chunks == (2, 1, 1)
    expected = [[0, 1, 2, 3], [4, 5, 0, 0], [10, 11, 12, 13], [20, 0, 0, 0]]
    assert layout.pack(tensors).tolist() == expected
    for tensor, again in zip(tensors, layout.unpack(layout.pack(tensors)), strict=True):
        assert torch.equal(tensor, again)


def test_layout_packs_in_logical_order_whatever_the_memory_format() -> None:
    tensor = torch.randn(2, 3, 4, 5)
    layout = ChunkLayout((tensor.shape,), 7)
    assert torch.equal(layout.pack([tensor]), layout.pack([tensor.to(memory_format=torch.channels_last)]))


def test_root_mean_square_is_a_tensors_own_without_its_padding() -> None:
    shapes = (torch.Size([5]), torch.Size([2]))
    layout = ChunkLayout(shapes, 4)
    gradients = [[torch.randn(5), torch.randn(2)] for _ in range(3)]
    history = torch.stack([layout.pack(g) for g in gradients])
    expected = [torch.stack([g[i] for g in gradients]).square().mean().sqrt() for i in range(2)]
    measured = layout.root_mean_square(history)
    torch.testing.assert_close(measured.flatten(), torch.stack([expected[0], expected[0], expected[1]]))
    assert (layout.root_mean_square(torch.zeros_like(history)) > 0).all()
