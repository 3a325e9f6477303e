"""Each recipe trains: five steps of every variant at full width, few images a step, as its file says otherwise."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fsg.data import Arrays, FashionMNISTSubset
from fsg.starting_points import Pretrain, Scratch
from fsg.trainer import Training
from orchestration.spec.experiment import load_spec
from orchestration.spec.resolver import Point

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[1] / "configs" / "recipes"


def points() -> list[tuple[str, Point]]:
    return [(path.stem, point) for path in sorted(RECIPES.glob("*.yaml")) for point in load_spec(path).points]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """The embedded images in CIFAR's shape: grey on three channels, two rows and columns of black on each side."""
    raw = FashionMNISTSubset().read()
    pixels = np.pad(raw.train_images[:256].reshape(256, 28, 28), ((0, 0), (2, 2), (2, 2)))[..., None].repeat(3, axis=-1)
    labels = raw.train_labels[:256]
    file = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(file, train_images=pixels, train_labels=labels, test_images=pixels[:64], test_labels=labels[:64])
    return Arrays(file=str(file), validation=0, crop_padding=4)


@pytest.mark.parametrize(("recipe", "point"), points(), ids=lambda one: one if isinstance(one, str) else one.variant)
def test_five_steps_of_each_variant(recipe: str, point: Point, images: Arrays) -> None:
    init = Scratch() if isinstance(point.train.init, Pretrain) else point.train.init
    training = Training(replace(point.train, data=images, init=init, batch_size=8), seed=0)
    before = {name: weight.detach().clone() for name, weight in training.model.named_parameters()}
    for step in range(1, 6):
        training.advance()
        assert training.step == step
    training.state_dict()  # raises where a loss or a weight is not finite
    for name, weight in training.model.named_parameters():
        assert not torch.equal(before[name], weight), name


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_states_a_published_figure_and_where_it_is_from(path: Path) -> None:
    spec = load_spec(path)
    assert spec.report.primary in (spec.report.published or {})
    assert all(one.source for one in (spec.report.published or {}).values())
    assert "What differs:" in path.read_text()
    assert "Not run to the end here." in path.read_text()
