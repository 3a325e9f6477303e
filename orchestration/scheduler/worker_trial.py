"""A worker as a trial of Ray Tune: Tune finds a place for it, the exchange tells it what to train."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune

from orchestration.runtime.faults import DeviceFault
from orchestration.runtime.messages import Arrival, Failure, Message, WorkerReport
from orchestration.runtime.worker import Worker, WorkerConfig
from orchestration.util.error_text import one_line


class WorkerTrial(tune.Trainable):
    """Trains what the exchange says until that is nothing; its one step is a worker's whole life."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([dict(config["shape"])])

    def setup(self, config: dict[str, Any]) -> None:
        self._number, self._shape = config["worker"], tuple(map(tuple, config["shape"]))
        settings: WorkerConfig
        settings, self._exchange = ray.cloudpickle.loads(config["settings_and_exchange"])
        with self._telling_of_failure():
            self._worker = Worker(settings)

    def step(self) -> dict[str, Any]:
        with self._telling_of_failure():
            me = ray.cloudpickle.dumps(ray.get_runtime_context().current_actor)  # type: ignore[no-untyped-call]
            self._tell(Arrival(self._shape, os.getpid(), me))
            while (order := ray.get(self._exchange.next_order.remote(self._number))) is not None:
                self._tell(self._worker.train(order, self._report))
        return {"done": True}

    def cleanup(self) -> None:
        self._worker.stop()

    def wait(self) -> None:
        """Returns once the step that was begun before has ended; fails where the process has."""

    def _report(self, report: WorkerReport) -> bool:
        """Whether to go on: also where the driver cannot be reached for a while, as the ledger has what matters."""
        try:
            return self._tell(report)
        except ray.exceptions.RayError:
            return True

    def _tell(self, message: Message) -> bool:
        return bool(ray.get(self._exchange.tell.remote(self._number, message)))

    @contextmanager
    def _telling_of_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if hasattr(self, "_worker"):
                self._worker.stop()
            known = isinstance(error, DeviceFault)
            told = str(error) if known else f"the worker failed: {type(error).__name__}: {one_line(error)}"
            self._tell(Failure(told))
            raise
