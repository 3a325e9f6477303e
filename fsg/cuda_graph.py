"""The training step as CUDA graphs: a few calls start all its kernels, where Python would start each by itself.

After a warm-up, in which every tensor that outlives a step finds its place, the parts of a step are captured once, each
into a graph with memory of its own, and replayed ever after. What autograd keeps from `generate` until the backward
pass of the next step lies in the memory of that part's graph, which writes it anew in every step; so it is captured
first, and replayed once more before the first step.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from fsg.imported import Imported
from fsg.models import Torchvision
from fsg.quantizers import BaseQuantizer
from fsg.step import PARTS, StepInParts


class NotCaptured(RuntimeError):
    """The step of a training cannot be captured, and why."""


def not_capturable(config: Any) -> str:
    """Which setting of a `TrainConfig` keeps its step from being captured, and why; empty where none does."""
    quantizer = config.quantizer
    if config.accumulate > 1:
        return f"accumulate is {config.accumulate}: a step is several passes through the network"
    if getattr(config.data, "unreadable", 0):
        return "unreadable images are left out, so that batches differ in size"
    for kind, component in (("estimator", config.estimator), ("optimizer", config.optimizer)):
        if isinstance(component, Imported):
            return f"the {kind} {component.path} gets its learning rate as a number, which a graph would keep for ever"
    at: Any = getattr(quantizer, "at", None)
    own = at is not None and getattr(at, "__func__", at) is not BaseQuantizer.at
    if own and (isinstance(quantizer, Imported) or at(0.0) is not quantizer):
        name = quantizer.path if isinstance(quantizer, Imported) else quantizer.name
        return f"the quantizer {name} is annealed: it is another one in every step"
    return ""


class Graph(Protocol):
    """The operations of one part of a step, as they were when it was captured."""

    def replay(self) -> None:
        """Do them, on the memory that they were captured with."""
        ...


class Capturing(Protocol):
    """How a device captures."""

    def capture(self, part: Callable[[], None]) -> Graph:
        """Keep the operations of a part, without doing them. Raises RuntimeError where one cannot be kept."""
        ...

    def warming_up(self) -> AbstractContextManager[None]:
        """Steps that are to be captured are made within before."""
        ...


class OnCUDA:
    """By `torch.cuda.graph`, on a stream of its own: autograd keeps to the stream on which it met a parameter first."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def capture(self, part: Callable[[], None]) -> Graph:
        graph = torch.cuda.CUDAGraph()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The CUDA Graph is empty")  # as some estimators' parts are
            # What other threads do on the device meanwhile, measure or write, is none of the graph's concern.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                part()
        return graph

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        now = torch.cuda.current_stream()
        self.stream.wait_stream(now)
        with torch.cuda.stream(self.stream):
            yield
        now.wait_stream(self.stream)


class CapturedStep:
    """A step that is made plainly as often as its estimator's `warm_up` says, then captured, and replayed ever after.

    With `compare` there are two more, which are compared, operation by operation: a user's own component may do
    something else in every step. A step that cannot be captured raises NotCaptured where it is `required`; otherwise it
    stays plain, and a warning says why.
    """

    def __init__(self, parts: StepInParts, device: Capturing, *, compare: bool = False, required: bool = False) -> None:
        self.parts, self.device = parts, device
        self.compare, self.required, self.plain = compare, required, False
        self.left = parts.estimator.warm_up + 2 * compare  # plain steps
        self.graphs: dict[str, Graph] = {}
        self.recording: Any = None

    def make(self, images: Tensor, labels: Tensor, *, lr: float, progress: float) -> Tensor:
        """One step; returns its loss, detached, which the next step overwrites. Raises NotCaptured."""
        self.parts.begin(images, labels, lr, progress)
        if self.graphs:
            self._replay()
            self.parts.count_replayed()
        elif self.left > 0 or self.plain:
            self._make_plainly()
        elif self._captured():  # in which the host has counted the step
            self.graphs["generate"].replay()
            self._replay()
        else:
            self.parts.begin(images, labels, lr, progress)
            self._make_plainly()
        return self.parts.loss

    def _make_plainly(self) -> None:
        within = self._recorded() if self.compare and 0 < self.left <= 3 else lambda part: nullcontext()
        with self.device.warming_up():
            for part in ("descend", "generate", "give", "look", "apply"):
                with within(part):
                    getattr(self.parts, part)()
        self.left = max(0, self.left - 1)

    def _recorded(self) -> Callable[[str], AbstractContextManager[None]]:
        from fsg.recording import Recording  # where it is used alone: it loads a part of torch's compiler

        self.recording = self.recording or Recording(PARTS)
        return lambda part: self.recording.of(part) if part in PARTS else nullcontext()

    def _captured(self) -> bool:
        """Whether all parts are captured. Nothing is done on the device: where one fails the host alone goes back."""
        parts = self.parts
        before = copy.deepcopy((parts.optimizer.state_dict(), parts.estimator.state_dict()))
        try:
            if self.recording is not None and (differs := self.recording.difference()):
                raise NotCaptured(differs)
            self.graphs = {part: self.device.capture(getattr(parts, part)) for part in PARTS}
        except RuntimeError as error:
            said = f"the training step cannot be captured as a CUDA graph: {str(error).strip().splitlines()[0]}"
            if self.required and isinstance(error, torch.OutOfMemoryError):
                raise
            if self.required:
                raise NotCaptured(f"{said} (expected cuda_graph: auto)") from error
            warnings.warn(f"{said}; its kernels are started one by one", stacklevel=2)
            self.plain = True
            parts.optimizer.load_state_dict(before[0])
            parts.estimator.load_state_dict(before[1])
        self.recording = None
        return not self.plain

    def _replay(self) -> None:
        self.graphs["descend"].replay()
        self.graphs["generate"].replay()
        self.graphs["give"].replay()
        self.parts.look()
        self.graphs["apply"].replay()


def captured_step(config: Any, device: torch.device, parts: Callable[[], StepInParts]) -> CapturedStep | None:
    """The step of a training of these settings (`TrainConfig`) on a device, where it is to be captured.

    Raises ValueError where it has to be, and the device has no graphs.
    """
    if device.type != "cuda":
        if config.cuda_graph is True:
            raise ValueError(f"cuda_graph is true, and the device is {device.type} (expected cuda, or auto)")
        return None
    if not config.cuda_graph:
        return None
    if why_not := not_capturable(config):
        warnings.warn(f"no CUDA graph: {why_not}", stacklevel=2)
        return None
    compare = any(isinstance(part, Imported | Torchvision.Config) for part in (config.model, config.loss))
    return CapturedStep(parts(), OnCUDA(), compare=compare, required=config.cuda_graph is True)
