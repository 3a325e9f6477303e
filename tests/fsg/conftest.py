import numpy as np
import pytest

from fsg.data import Arrays


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """A hundred images of noise, four classes of which nothing can be learned."""
    draw = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "small.npz"
    images, labels = draw.integers(0, 255, (100, 8, 8), dtype=np.uint8), np.arange(100) % 4
    np.savez(path, **{f"{s}_{n}": a for s in ("train", "test") for n, a in (("images", images), ("labels", labels))})
    return Arrays(file=str(path), validation=20, crop_padding=1)
