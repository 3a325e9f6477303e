"""What trainings read: their images, and the weights that they start from."""

from collections.abc import Iterable, Mapping
from typing import Any

from fsg.starting_points import File
from fsg.train_config import TrainConfig


def inputs(trains: Iterable[TrainConfig]) -> dict[str, str]:
    """The fingerprint of each, by its title or path. Raises OSError or ValueError where one cannot be read."""
    named = {name: source for train in trains for name, source in _sources(train).items()}
    return {name: source.fingerprint() for name, source in named.items()}


def changed(train: TrainConfig, recorded: Mapping[str, str]) -> list[str]:
    """One line for each of a training's that has another content than was recorded; others are not compared."""
    now = inputs([train])
    return [f"{name} was changed since the launch" for name in now if recorded.get(name, now[name]) != now[name]]


def _sources(train: TrainConfig) -> dict[str, Any]:
    return {train.data.title(): train.data} | ({train.init.path: train.init} if isinstance(train.init, File) else {})
