"""How well places are filled by trainings that sleep: `python -m benchmarks.places 20 40` (seconds, trainings).

The measure is the time until all have ended over that of the best order on the same places, each counted from the
moment at which its worker began its first training. `--one-trial-each` is Ray Tune as it is, each training a trial, on
warm workers that have imported torch as well; no trial is asked for before a place is free, as a search wants it.
There are eight places, or `--places`.
"""

import argparse
import contextlib
import heapq
import json
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import ROOT, Row, in_a_process
from benchmarks.tiny import Silent, one_layer, train_config
from orchestration.ledger.ledger import Ledger
from orchestration.scheduler import environment
from orchestration.spec.cells import Cell, cell_id

PLACES = 8
_STEPS = 6


@dataclass(frozen=True)
class Filled:
    """When each worker began its first training, and when the last training ended, in seconds."""

    began: Sequence[float]
    ended: float
    places: int = PLACES

    def over_ideal(self, seconds: float, count: int) -> float:
        """The time from the first start over that of the best order; a place without a worker is free like the last."""
        first, last = min(self.began), max(self.began)
        free = [*self.began, *[last] * (self.places - len(self.began))]
        return (self.ended - first) / (best_end(free, seconds, count) - first)


def best_end(free: Sequence[float], seconds: float, count: int) -> float:
    """When so many trainings have ended on places that are free from then on, each as soon as a place is."""
    places = list(free)
    heapq.heapify(places)
    for _ in range(count):
        heapq.heapreplace(places, places[0] + seconds)
    return max(places)


def sleeping(folder: Path, seconds: float, count: int) -> list[Cell]:
    """Cells that take so long, and next to no processor time."""
    train = train_config(folder, 1, one_layer(seconds / _STEPS))
    return [Cell(cell_id(train, seed), "train", "sleeping", {}, seed, train) for seed in range(count)]


def workers(seconds: float, count: int, places: int) -> Filled:
    """Trainings as a launch runs them."""
    from orchestration.scheduler import tune
    from orchestration.scheduler.resources import TrialResources

    with tempfile.TemporaryDirectory(prefix="fsg-bench-") as made:
        ledger, cells = Ledger(Path(made) / "sleeping"), sleeping(Path(made), seconds, count)
        for cell in cells:
            ledger.add(cell)
        tune.run(ledger, cells, TrialResources(python_path=[str(ROOT)]), Silent(), stop_file=Path(made) / "stop")
        attempts = [ledger.attempts(cell.id)[0] for cell in cells]
    began: dict[int, float] = {}
    for attempt in sorted(attempts, key=lambda attempt: attempt["started_at"]):
        began.setdefault(attempt["pid"], attempt["started_at"] / 1000)
    return Filled(list(began.values()), max(attempt["end"]["ended_at"] for attempt in attempts) / 1000, places)


def one_trial_each(seconds: float, count: int, places: int) -> Filled:
    """Trainings as trials of Tune, on workers that it keeps warm: as a search does, none is asked for ahead."""
    from ray import tune
    from ray.tune.search import ConcurrencyLimiter, Searcher

    class Sleeping(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            import torch  # noqa: F401 - what each worker needs

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def step(self) -> dict[str, Any]:
            began = time.time()
            time.sleep(seconds)
            return {"done": True, "process": os.getpid(), "began": began, "ended": time.time()}

    class Trials(Searcher):
        given = 0

        def suggest(self, trial_id: str) -> Any:
            if self.given == count:
                return Searcher.FINISHED
            self.given += 1
            return {"number": self.given}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            assert not error

        def save(self, checkpoint_path: str) -> None: ...
        def restore(self, checkpoint_path: str) -> None: ...

    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(places)
    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            Sleeping,
            tune_config=tune.TuneConfig(
                num_samples=-1, reuse_actors=True, search_alg=ConcurrencyLimiter(Trials(), max_concurrent=places)
            ),
            run_config=tune.RunConfig(
                name="bare",
                storage_path=folder,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # it would end the worker
            ),
        )
        results = [result.metrics or {} for result in tuner.fit()]
    began: dict[int, float] = {}
    for result in sorted(results, key=lambda result: result["began"]):
        began.setdefault(result["process"], result["began"])
    return Filled(list(began.values()), max(result["ended"] for result in results), places)


def rows(small: bool = False) -> list[Row]:
    """The rows of `make bench`, each measured on a Ray of its own."""
    found, places = [], 2 if small else PLACES
    for seconds, count, must in ((0.5, 16, 10.0),) if small else ((20, 40, 1.05), (2, 160, 1.5)):
        name = f"{count} trainings of {seconds} s on {places} places: time / best order"
        measured = in_a_process("places", seconds, count, "--places", places)
        found.append(Row(name, measured["over_ideal"], must, measured=measured))
    seconds, count = (0.5, 16) if small else (2, 160)
    measured = in_a_process("places", seconds, count, "--places", places, "--one-trial-each")
    found.append(
        Row(
            f"… of {seconds} s, each a trial of bare Ray Tune (for comparison)",
            measured["over_ideal"],
            measured=measured,
        )
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.places", description=__doc__.splitlines()[0])
    parser.add_argument("seconds", type=float, help="how long each training sleeps")
    parser.add_argument("count", type=int, help="how many trainings")
    parser.add_argument("--one-trial-each", action="store_true", help="bare Ray Tune, each training a trial")
    parser.add_argument("--places", type=int, default=PLACES, help=f"how many there are (default {PLACES})")
    given = parser.parse_args()
    environment.prepare(None)
    import ray

    ray.init(num_cpus=given.places, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
    with contextlib.redirect_stdout(None):
        filled = (one_trial_each if given.one_trial_each else workers)(given.seconds, given.count, given.places)
    found = {"over_ideal": filled.over_ideal(given.seconds, given.count), "workers": len(filled.began)}
    print(json.dumps(found | {"seconds": filled.ended - min(filled.began)}))


if __name__ == "__main__":
    main()
