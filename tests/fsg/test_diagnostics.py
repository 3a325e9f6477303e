"""What a researcher of binary networks looks at, against NumPy; and that looking changes nothing."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_estimators import ESTIMATORS, Network, every_estimator
from torch import Tensor, nn

from fsg.checkpoint import digest, from_bytes, to_bytes
from fsg.data import Arrays
from fsg.diagnostics import Diagnostics, gram, over_all_layers, positive, saturated
from fsg.estimators import FSG, STE
from fsg.hypernetworks import EMA
from fsg.layers import quantize
from fsg.models import ResNet
from fsg.optimizers import SGD, Adam
from fsg.quantizers import DoReFa, Sign
from fsg.step import train_step
from fsg.train_config import TrainConfig
from fsg.trainer import Training

Arrays32 = list[np.ndarray]


def watched(config: Any, steps: int, quantizer: Any = None, **settings: Any) -> tuple[Any, Diagnostics, list[Any]]:
    """A network after some steps of plain SGD, what was seen, and of each step (W before it, g, direction applied)."""
    torch.manual_seed(0)
    model = quantize(Network(), quantizer or DoReFa())
    estimator, optimizer = config.build(model), SGD(lr=0.3).build(model)
    diagnostics = Diagnostics(estimator, **settings)
    seen = []
    for t in range(steps):
        generator = torch.Generator().manual_seed(t)
        images = torch.randn(8, 2, 6, 6, generator=generator)
        labels = torch.randint(3, (8,), generator=generator)
        before = [w.detach().numpy().copy() for w in estimator.weights]
        train_step(model, estimator, optimizer, images, labels, lr=0.3, progress=0.0, diagnostics=diagnostics)
        g = [q.grad.numpy().copy() for q in estimator.quantized]
        seen.append((before, g, [w.grad.numpy().copy() for w in estimator.weights]))
    return estimator, diagnostics, seen


def test_flips_are_counted_between_steps_and_never_flipped_since_the_beginning() -> None:
    estimator, diagnostics, seen = watched(STE.Config(), 9, Sign())
    first, second = diagnostics.finish(1, 9), None
    signs = [[np.where(w >= 0, 1, -1) for w in before] for before, _, _ in seen]
    changes = [[a != b for a, b in zip(*pair, strict=True)] for pair in zip(signs[1:], signs[:-1], strict=True)]
    rates = [sum(step[i].sum() for step in changes) / (9 * w.size) for i, w in enumerate(signs[0])]
    never = [1 - np.any([step[i] for step in changes], axis=0).mean() for i in range(len(rates))]
    assert max(rates) > 0
    np.testing.assert_allclose(first["flip_rate"], rates, rtol=1e-12)
    np.testing.assert_allclose(first["never_flipped"], never, rtol=1e-12)

    estimator.propose(None, lr=0.0, progress=0.0)
    diagnostics.observe()
    second = diagnostics.finish(2, 10)
    now = [np.where(w.detach().numpy() >= 0, 1, -1) for w in estimator.weights]
    np.testing.assert_allclose(second["flip_rate"], [(a != b).mean() for a, b in zip(now, signs[-1], strict=True)])
    assert (second["steps"], second["observed_steps"]) == (1, 10)
    assert all(b <= a for a, b in zip(first["never_flipped"], second["never_flipped"], strict=True))


def test_shares_over_all_layers_count_each_weight_once() -> None:
    table = {"weights": [1, 3], "flip_rate": [0.4, 0.0], "never_flipped": [0.0, 1.0], "saturated": [0.2, 0.6]}
    expected = {"weights/flip_rate": 0.1, "weights/never_flipped": 0.75, "weights/saturated": 0.5}
    assert over_all_layers(table) == pytest.approx(expected)


def test_a_weight_that_flips_back_has_flipped_twice() -> None:
    model = quantize(nn.Linear(4, 1, bias=False), Sign())
    estimator = STE.Config().build(model)
    weights = [[1, 1, -1, 0.0], [-1, 1, -1, 0.0], [1, 1, 1, -0.5], [1, 1, 1, -0.5]]
    for i, row in enumerate(weights):
        model.weight.data.copy_(torch.tensor([row]))
        if i == 0:
            diagnostics = Diagnostics(estimator)
        estimator.propose(model, lr=0.0, progress=0.0)
        diagnostics.observe()
    table = diagnostics.finish(1, 4)
    assert table["flip_rate"] == [4 / (4 * 4)]
    assert table["never_flipped"] == [0.25]
    assert table["layer"] == [""]
    assert table["weights"] == [4]


def test_saturated_weights_are_those_with_hardly_a_derivative() -> None:
    weight = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (40, 30)))
    squashed = np.tanh(weight.numpy())
    assert float(saturated(DoReFa(), weight)) == pytest.approx(
        (1 - squashed**2 < 0.01 * (1 - squashed**2).max()).mean()
    )
    assert float(saturated(Sign(), weight)) == pytest.approx((np.abs(weight.numpy()) > 1).mean())
    assert float(saturated(Sign(), torch.full((3,), 2.0))) == 1
    assert float(saturated(DoReFa(), torch.full((3,), 1e-3))) == 0


def test_gram_holds_all_inner_products_in_double_precision() -> None:
    a, b = (np.random.default_rng(i).normal(0, s, (3, 4)) for i, s in ((0, 1e-25), (1, 1e25)))
    found = gram([torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)]).numpy()
    expected = np.array([[(x * y).sum() for y in (a, b)] for x in (a, b)])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_signs_are_those_of_the_quantized_weights_zero_counted_as_positive() -> None:
    assert positive([torch.tensor([[-1.0, 0.0]]), torch.tensor([2.0])]).tolist() == [False, True, True]


def cosine(a: Arrays32, b: Arrays32) -> float:
    x, y = (np.concatenate([part.ravel().astype(np.float64) for part in parts]) for parts in (a, b))
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def rms_norm(parts: Arrays32) -> float:
    return float(np.sqrt(np.mean([(part.astype(np.float64) ** 2).sum() for part in parts])))


def test_norms_and_cosines_of_ste_follow_from_the_sampled_steps() -> None:
    estimator, diagnostics, seen = watched(STE.Config(), 10, sample_every=4)
    table = diagnostics.finish(1, 10)
    sampled = [seen[t] for t in (2, 6)]
    assert table["sampled_steps"] == 2
    for i in range(len(estimator.layers)):
        g = [one[1][i] for one in sampled]
        squashed = [np.tanh(one[0][i]) for one in sampled]
        ste = [(1 - s**2) / np.abs(s).max() * each for s, each in zip(squashed, g, strict=True)]
        assert table["norm_quantized"][i] == pytest.approx(rms_norm(g), rel=1e-5)
        assert table["norm_ste"][i] == pytest.approx(rms_norm(ste), rel=1e-5)
        assert table["norm_applied"][i] == pytest.approx(rms_norm([one[2][i] for one in sampled]), rel=1e-5)
        assert table["cosine_quantized_ste"][i] == pytest.approx(cosine(g, ste), rel=1e-5)
        assert table["cosine_ste_applied"][i] == pytest.approx(1, rel=1e-6)


def test_fsg_fast_and_slow_are_those_of_the_formula() -> None:
    """With an average for the slow net and a fast net of known k: fast = c⊙g(1 + k·W̃), slow = c⊙average(g)."""
    config = FSG.Config(hidden=3, slow_net=EMA(decay=0.5), slow_weight=0.3, history_length=2)
    estimator, diagnostics, seen = watched(config, 4, sample_every=3)  # the second step of four is looked at: t = 1
    assert estimator.config.applied == "current"
    table = diagnostics.finish(1, 4)
    assert table["sampled_steps"] == 1
    for i in range(len(estimator.layers)):
        latent, newest, applied = (part[i] for part in seen[1])
        squashed = np.tanh(latent)
        c = (1 - squashed**2) / np.abs(squashed).max()
        slow = c * (newest + 0.5 * seen[0][1][i]) / 1.5
        assert table["norm_slow"][i] == pytest.approx(rms_norm([slow]), rel=1e-4)
        fast = (applied - 0.3 * slow) / 0.7
        assert table["norm_fast"][i] == pytest.approx(rms_norm([fast]), rel=1e-4)
        assert table["cosine_fast_slow"][i] == pytest.approx(cosine([fast], [slow]), rel=1e-4)


@every_estimator
def test_every_estimator_shows_gradients_of_its_layers_shapes(config: Any) -> None:
    if config.name == "full_precision":
        with pytest.raises(ValueError, match="no quantized layer to look at"):
            watched(config, 0)
        return
    estimator, diagnostics, _ = watched(config, 2, sample_every=1)
    kinds = estimator.gradients_by_kind()
    assert {"quantized", "ste", "applied"} <= set(kinds)
    for tensors in kinds.values():
        assert [t.shape for t in tensors] == [w.shape for w in estimator.weights]
    for latent, layer in zip(estimator.weights, estimator.layers.values(), strict=True):
        assert latent is layer.weight
    table = diagnostics.finish(1, 2)
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    assert all(len(v) == len(estimator.layers) for v in table.values() if isinstance(v, list))
    assert all(-1 <= v <= 1 for name in table if name.startswith("cosine") for v in table[name] if v is not None)


def test_a_step_without_an_update_has_no_gradient_applied() -> None:
    _, diagnostics, _ = watched(ESTIMATORS["fsg_released"], 1, sample_every=1)
    table = diagnostics.finish(1, 1)
    assert "norm_applied" not in table
    assert {"norm_fast", "norm_slow", "cosine_fast_slow"} <= set(table)


def test_a_gradient_that_is_zero_has_no_cosine() -> None:
    model = quantize(nn.Linear(2, 2), Sign())
    estimator = STE.Config().build(model)
    diagnostics = Diagnostics(estimator, sample_every=1)
    estimator.propose(model, lr=0.0, progress=0.0)
    diagnostics.observe()
    table = diagnostics.finish(1, 1)
    assert table["norm_ste"] == [0.0]
    assert table["cosine_quantized_ste"] == [None]


# in a training


@pytest.fixture(scope="module")
def config(noise: Arrays) -> TrainConfig:
    return TrainConfig(
        data=noise,
        model=ResNet.Config(depth=8, width=2),
        estimator=FSG.Config(hidden=4, chunk_size=8, layer_embedding_dim=4, history_length=3),
        optimizer=Adam(lr=0.03),
        epochs=2,
        batch_size=16,
    )


def test_a_table_at_the_end_of_each_epoch_changes_no_number_and_no_identity(config: TrainConfig) -> None:
    unseen = replace(config, diagnostics=False)
    assert unseen.identity() == config.identity()
    ended, found = [], []
    for each in (config, unseen):
        training, rows = Training(each, 1), []
        while not training.done:
            rows += training.advance()
            found += [] if training.table is None else [training.table]
        losses = [(r.step, r.values["train/loss"]) for r in rows if "train/loss" in r.values]
        ended.append((digest(training.weights()), digest(training.state_dict()), losses))
        assert ("diagnostics" in training.state_dict()) == each.diagnostics
    assert ended[0] == ended[1]
    assert [(t["epoch"], t["step"], t["steps"]) for t in found] == [(1, 5, 5), (2, 10, 5)]
    assert [t["sampled_steps"] for t in found] == [5, 5]
    assert found[0]["layer"] == list(training.estimator.layers)
    assert any(rate > 0 for rate in found[0]["flip_rate"])


def test_diagnostics_begin_where_a_state_had_none(config: TrainConfig) -> None:
    before, after = Training(replace(config, diagnostics=False), 1), Training(config, 1)
    for _ in range(7):
        before.advance()
    after.advance()
    after.load_state_dict(from_bytes(to_bytes(before.state_dict())))
    while not after.done:
        after.advance()
        table = after.table
    assert table is not None
    assert (table["epoch"], table["steps"], table["observed_steps"]) == (2, 3, 3)


def test_an_estimator_of_ones_own_needs_nothing_for_it() -> None:
    class Own(STE):
        def gradients_by_kind(self) -> dict[str, list[Tensor]]:
            return {"applied": super().gradients_by_kind()["applied"], "mine": [2 * w for w in self.weights]}

    model = quantize(nn.Linear(3, 2), Sign())
    estimator = Own(model, STE.Config())
    diagnostics = Diagnostics(estimator, sample_every=1)
    estimator.propose(model, lr=0.0, progress=0.0)
    diagnostics.observe()
    assert diagnostics.finish(1, 1)["norm_mine"] == pytest.approx([2 * float(model.weight.detach().norm())])
