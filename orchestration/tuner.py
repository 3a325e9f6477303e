"""Ray Tune as a servant: it places cells on warm workers; order, retries and what is left to do are decided here.

Tune's own recovery is not used: no trial is ever restored by it, and what it writes goes to a temporary folder. When
the driver dies, the ledger is all that the next launch needs.
"""

import logging
import os
import re
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil  # type: ignore[import-untyped]
import ray
from ray import tune
from ray._private import services
from ray.air._internal import usage
from ray.air.execution._internal import RayActorManager
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
from ray.tune import registry
from ray.tune import tune as tune_run
from ray.tune.execution import tune_controller
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from orchestration import store, submitted
from orchestration.ledger import Ledger, Unwritable
from orchestration.plan import Cell, Leg
from orchestration.provenance import cores
from orchestration.python_files import python_files
from orchestration.ray_settings import SECONDS_TO_BEGIN, Unusable
from orchestration.scratch import scratch
from orchestration.trainable import CellTrainable, Told

_VITAL = ("raylet", "gcs_server")
_KILLED = re.compile(r"Selected to kill: .*\bpid=(\d+), actual memory used=([\d.]+)GB")
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_START, TRIES_TO_START = float(SECONDS_TO_BEGIN), 3


class Listener(Protocol):
    """Who is told what happens, in the driver's thread; `waits` says what the waiting cells wait for."""

    waits: Callable[[], dict[str, int]]

    def started(self, cell: Cell) -> None: ...
    def progressed(self, cell: Cell, step: int, of_steps: int, metrics: dict[str, float]) -> None: ...
    def again(self, cell: Cell, reason: str) -> None: ...
    def noted(self, cell: Cell, note: str) -> None: ...
    def ended(self, cell: Cell, state: str, reason: str, log: str) -> None: ...


class Source(Protocol):
    """What finds work while others are at work: a search, which decides from what is over what comes next."""

    def more(self) -> Sequence[Leg]:
        """Work for a free place; none: wait, or nothing is left (`finished`)."""
        ...

    def ended(self, cell: Cell, state: str, reason: str) -> None:
        """A cell that came from here is no longer trained: as ended, or `paused`."""
        ...

    @property
    def finished(self) -> bool: ...


@dataclass
class Queue:
    """What is left to do, in order: hands out cells, waits for pretrainings, hands a cell out again after a death.

    About `at_a_time` cells fit: so many are handed out at once, then one ahead of those that run, since among several
    Tune would choose. `max_concurrent` limits the cells that are out, `max_retries` how often a cell whose process died
    or ran out of memory is handed out again. A failed pretraining fails the cells that wait for it. Once the ledger
    could not be written to (`unwritable` says how), nothing more is handed out.

    Where all that is left waits, a `source` is asked for more, though never ahead: what it gives may hang on what runs.
    """

    cells: Iterable[Cell]
    listener: Listener
    at_a_time: int = 1
    max_concurrent: int | None = None
    max_retries: int = 3
    stopping: Callable[[], bool] = lambda: False
    source: Source | None = None

    def __post_init__(self) -> None:
        self._waiting = deque(self.cells)
        self.taken: dict[str, Cell] = {cell.id: cell for cell in self._waiting}
        self._until: dict[str, int | None] = {}
        self._sourced: set[str] = set()
        self._out: dict[str, Cell] = {}
        self._running: set[str] = set()
        self._pending = {cell.id for cell in self._waiting}
        self._failed: dict[str, tuple[str, str]] = {}
        self._deaths: dict[str, int] = {}
        self.unwritable = ""

    @property
    def finished(self) -> bool:
        left = self._waiting or (self.source is not None and not self.source.finished)
        return not self._out and (self._handing_out_no_more() or not left)

    def until(self, cell_id: str) -> int | None:
        """The step up to which a cell is to be trained now; None: to its end."""
        return self._until.get(cell_id)

    def waits(self) -> dict[str, int]:
        """What the waiting cells wait for, and how many do."""
        found: Counter[str] = Counter()
        for cell in list(self._waiting):  # what draws is another thread
            before = self.taken.get(cell.depends_on or "")
            found[before.label if before is not None and before.id in self._pending else "a free place"] += 1
        return dict(found)

    def take(self) -> Cell | None:
        """The next cell that can start now; None: wait, or nothing is left (`finished`)."""
        ahead = len(self._out) - len(self._running)
        if self._handing_out_no_more() or ahead >= max(1, self.at_a_time - len(self._running)):
            return None
        if self.max_concurrent is not None and len(self._out) >= self.max_concurrent:
            return None
        cell = self._next()
        if cell is None and self.source is not None and len(self._out) < self.at_a_time:
            for leg in self.source.more():
                self._add(leg)
            cell = self._next()
        return cell

    def _add(self, leg: Leg) -> None:
        cell = leg.cell
        self._until[cell.id] = leg.until
        self._sourced.add(cell.id)
        if cell.id not in self._pending:
            self._pending.add(cell.id)
            self._failed.pop(cell.id, None)
            self._waiting.append(cell)
            self.taken[cell.id] = cell

    def _next(self) -> Cell | None:
        while True:
            # The first one that waits for nothing: among many thousands nearly always the very first.
            cell = next((cell for cell in self._waiting if cell.depends_on not in self._pending), None)
            if cell is None:
                return None
            self._waiting.remove(cell)
            if cell.depends_on not in self._failed:
                self._out[cell.id] = cell
                return cell
            self._over(cell, "failed", "its pretraining {}: {}".format(*self._failed[cell.depends_on]), "")

    def started(self, cell_id: str) -> None:
        """A cell that was taken has a worker."""
        self._running.add(cell_id)
        self.listener.started(self._out[cell_id])

    def ended(self, cell_id: str, state: str, reason: str = "", log: str = "", blamed: bool = True) -> str | None:
        """Take a cell back: as ended, or as `again` (its process died, say), which counts where it is to blame.

        Returns its final state; None where it goes out once more.
        """
        cell = self._out.pop(cell_id)
        self._running.discard(cell_id)
        if state == "unwritable":
            state, self.unwritable = "interrupted", reason
        if state == "again":
            if self._handing_out_no_more():
                state = "interrupted"
            else:
                deaths = self._deaths[cell_id] = self._deaths.get(cell_id, 0) + blamed
                if deaths <= self.max_retries:
                    self._waiting.appendleft(cell)
                    self.listener.again(cell, reason)
                    return None
                state, reason = "failed", f"{reason} ({deaths} times)"
        self._over(cell, state, reason, log)
        return state

    def why_failed(self, cell_id: str) -> str:
        """The reason of a cell that has failed or diverged."""
        return self._failed[cell_id][1]

    def _handing_out_no_more(self) -> bool:
        return bool(self.unwritable) or self.stopping()

    def _over(self, cell: Cell, state: str, reason: str, log: str) -> None:
        if state in ("failed", "diverged"):
            self._failed[cell.id] = state, reason
        if state != "interrupted":
            self._pending.discard(cell.id)
        self.listener.ended(cell, state, reason, log)
        if self.source is not None and cell.id in self._sourced and state != "interrupted":
            self.source.ended(cell, state, reason)


@dataclass(frozen=True)
class Slots:
    """What one cell takes, and where it finds things."""

    gpus: float = 0.0
    cpus: int | None = None
    max_concurrent: int | None = None
    max_retries: int = 3
    checkpoint_every: float = 60.0
    python_path: Sequence[str] = field(default=())

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    def of(self, cell: Cell) -> dict[str, float]:
        return {"CPU": self.cpus or cell.train.threads} | ({"GPU": self.gpus} if self.gpus else {})


def run(
    ledger: Ledger,
    cells: Sequence[Cell],
    slots: Slots,
    listener: Listener,
    *,
    stop_file: Path,
    record: dict[str, Any] | None = None,
    source: Source | None = None,
    at_a_time: int | None = None,
) -> list[Cell]:
    """Train cells, and what a source adds, until each has ended or `stop_file` exists; Ray is connected (`connected`).

    Returns the cells that were handed out or waited. Raises Unwritable where a worker could not write to the ledger.
    """
    at_a_time = at_a_time or in_parallel(cells, slots)
    queue = Queue(
        cells, listener, at_a_time, slots.max_concurrent, slots.max_retries, store.Awaited(stop_file).exists, source
    )
    listener.waits = queue.waits
    fixed = {
        "results": str(ledger.folder.resolve()),
        "stop_file": str(stop_file.resolve()),
        "directory": os.getcwd(),
        "python_path": list(slots.python_path),
        "device": slots.device,
        "checkpoint_every": slots.checkpoint_every,
        "record": record or {},
    }
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(at_a_time)
    usage.tag_callbacks = lambda callbacks: False  # it is off, yet imports MLflow to count them: a second
    tune_controller.RayActorManager = _Workers  # type: ignore[attr-defined]
    tune_run.TuneController = _Controller  # type: ignore[attr-defined]
    with scratch("fsg-tune-") as folder, _registered_once():
        tune.run(
            tune.with_resources(CellTrainable, lambda config: tune.PlacementGroupFactory([config["resources"]])),
            config=fixed,
            name="tune",
            storage_path=str(folder),
            search_alg=_Handing(queue, slots),
            scheduler=tune.schedulers.FIFOScheduler(),  # type: ignore[no-untyped-call]
            num_samples=-1,
            max_failures=0,
            reuse_actors=True,
            verbose=0,
            raise_on_failed_trial=False,
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: trial.trial_id,
            callbacks=[_Listening(queue, ledger, listener)],
        )
    if queue.unwritable:
        raise Unwritable(queue.unwritable)
    return list(queue.taken.values())


class _Workers(RayActorManager):
    """Tune's; to these a worker that Ray kills for want of memory has died, where Tune itself would break off."""

    def _actor_task_failed(self, tracked_actor_task: TrackedActorTask, exception: Exception) -> None:
        if isinstance(exception, ray.exceptions.OutOfMemoryError):
            exception = ray.exceptions.RayActorError(error_msg=str(exception))
        super()._actor_task_failed(tracked_actor_task, exception)


class _Controller(TuneController):
    """Tune's; here a worker that is free does not take the place of one that is starting, which Tune would end then.

    Trainings that are shorter than the start of a worker would all be done by one. A worker that does not start within
    `SECONDS_TO_START` loses its training to a free one all the same.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._starting: dict[str, float] = {}

    def _maybe_reuse_cached_actor(self, trial: Trial) -> bool:
        own = self._trial_to_actor.get(trial)
        if own is not None and own not in self._started_actors and self._actor_manager.is_actor_started(own):
            since = self._starting.setdefault(trial.trial_id, time.monotonic())
            if time.monotonic() - since < SECONDS_TO_START:
                return False
        self._starting.pop(trial.trial_id, None)
        return bool(super()._maybe_reuse_cached_actor(trial))


@contextmanager
def _registered_once() -> Iterator[None]:
    """Within, Tune remembers what its trials run: it would ask Ray's head for it five times a trial."""
    tune_registry: Any = registry
    ask, known = tune_registry._internal_kv_get, dict[bytes, bytes]()

    def get(key: bytes) -> bytes | None:
        found = known.get(key) or ask(key)
        if found is not None:
            known[key] = found
        return found

    tune_registry._internal_kv_get = get
    try:
        yield
    finally:
        tune_registry._internal_kv_get = ask


@contextmanager
def connected(
    address: str | None,
    packages: Sequence[Path] = (),
    own: Path | None = None,
    died: Callable[[str], None] = lambda name: None,
) -> Iterator[None]:
    """A Ray of this process's own, on loopback, or with `address` a running cluster's.

    To a cluster, these packages are sent, and the Python files of the user's `own` folder. Where a process of its own
    Ray dies, `died` is called with its name, in a thread: whoever then calls Ray may wait for ever. Raises Unusable.

    `ray_settings.prepare` has to come before the import of this module.
    """
    for name in ("ray", "ray.tune", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL, "configure_logging": False}
    with scratch("fsg-", "/tmp") as folder:  # sockets lie below it, and their paths must be short
        if address is None:
            options |= {
                "address": "local",
                "num_cpus": cores(),
                "object_store_memory": 100 * 2**20,
                "include_dashboard": False,
                "_temp_dir": str(folder),
            }
        else:
            shipped: dict[str, Any] = {"py_modules": [str(package) for package in packages]}
            if own is not None:
                shipped |= {"working_dir": str(python_files(own, folder / "own"))}
            # What was handed over with the driver (`submitted`) is what its workers get, too.
            options |= {"address": address} | ({} if submitted.record() else {"runtime_env": shipped})
        try:
            with _refusing(address):
                _knock(address)
                _start(options, own=address is None)
            with _watched(died) if address is None else nullcontext():
                yield
        finally:
            ray.shutdown()


@contextmanager
def _refusing(address: str | None) -> Iterator[None]:
    """Says in a line why there is no connection to the cluster at an address."""
    try:
        yield
    except Exception as error:
        why = None if address is None else _why_unconnected(error)
        if why is None:
            raise
        raise Unusable(f"--address {address}: {why}") from error


def _knock(address: str | None) -> None:
    """Raises ConnectionError where nothing listens: Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise ConnectionError(str(error)) from error


def _why_unconnected(error: Exception) -> str | None:
    text = " ".join(str(error).split())
    if isinstance(error, ray.exceptions.AuthenticationError) or "uthentication" in text:
        hint = "expected the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
        return f"the cluster refuses the token, or there is none ({hint})"
    if "Version mismatch" in text:
        both = [f"{name} {version}" for name, version in re.findall(r"(Ray|Python): ([\w.]+)", text)]
        half = len(both) // 2
        return f"the cluster has {' and '.join(both[:half])}, here is {' and '.join(both[half:])} (expected the same)"
    if isinstance(error, ConnectionError | TimeoutError) or "onnect" in text:
        hint = "expected auto or HOST:PORT on one of its nodes; from elsewhere http://HOST:8265"
        return f"no cluster answers that this machine is a node of ({hint})"
    return None


@contextmanager
def _watched(died: Callable[[str], None]) -> Iterator[None]:
    """Within, the two processes without which this process's own Ray is none are looked after."""
    vital = _vital()
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(SECONDS_BETWEEN_LOOKS):
            for name, process in vital:
                if not _runs(process) and not stop.is_set():
                    died(name)
                    return

    thread = threading.Thread(target=watch, name="Ray's watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()


def _vital() -> list[tuple[str, psutil.Process]]:
    """Those processes of this one's own Ray that run, by name."""
    return [(child.name(), child) for child in psutil.Process().children() if _runs(child) and child.name() in _VITAL]


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class _NotStarted(Exception):
    """Ray's own processes did not come up."""


def _start(options: dict[str, Any], own: bool) -> None:
    """Ray gives a node of its own half a minute to start; on a busy machine that is too short. Raises Unusable."""
    if not own:
        ray.init(**options)
        return
    before = set(psutil.Process().children())
    end = time.monotonic() + SECONDS_TO_START
    for left in reversed(range(TRIES_TO_START)):
        try:
            with _patient(end):
                ray.init(**options)
            return
        except Exception as error:
            ray.shutdown()
            if not isinstance(error, _NotStarted) and "Failed to start GCS" not in str(error):
                raise
            for process in set(psutil.Process().children()) - before:
                process.kill()
                process.wait()
            if not left or time.monotonic() >= end:
                hint = "expected some memory, room in /tmp, and processors that are not all busy"
                what = f"Ray does not start on this machine, tried {TRIES_TO_START - left} times"
                raise Unusable(f"{what}: {_first_line(error)} ({hint})") from error


@contextmanager
def _patient(end: float) -> Iterator[None]:
    """Within, Ray waits until `end` for a node whose processes run, and no longer: nothing else tells it to."""
    look = services.get_node

    def get_node(*arguments: Any) -> Any:
        while True:
            try:
                return look(*arguments)  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                dead = set(_VITAL) - {name for name, _ in _vital()}
                if dead:
                    raise _NotStarted(f"its {dead.pop()} died") from error
                if time.monotonic() >= end:
                    raise _NotStarted(f"no answer within {SECONDS_TO_START:.0f} s") from error
                time.sleep(SECONDS_BETWEEN_LOOKS)

    services.get_node = get_node
    try:
        yield
    finally:
        services.get_node = look


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def capacity() -> dict[str, float]:
    """CPUs and GPUs of the Ray that is connected."""
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return {"CPU": resources.get("CPU", 0.0), "GPU": resources.get("GPU", 0.0)}


def in_parallel(cells: Sequence[Cell], slots: Slots) -> int:
    """How many of the smallest cells fit: as many may be staged, so that no warm worker is let go of."""
    have = capacity()
    fits = min(int(min(have[name] // amount for name, amount in slots.of(cell).items() if amount)) for cell in cells)
    return max(1, min(fits, slots.max_concurrent or fits, len(cells)))


class _Handing(Searcher):
    """Hands the queue's cells to Tune as configs."""

    def __init__(self, queue: Queue, slots: Slots) -> None:
        super().__init__()
        self.queue, self.slots = queue, slots

    def suggest(self, trial_id: str) -> Any:
        cell = self.queue.take()
        if cell is None:
            return Searcher.FINISHED if self.queue.finished else None
        return {"cell": cell.id, "resources": self.slots.of(cell), "until": self.queue.until(cell.id)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: `_Listening` hears the same, and the cause of a death with it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("the ledger is where a launch goes on from")


class _Listening(tune.Callback):
    """Tells the queue and the listener what Tune hears of the workers."""

    def __init__(self, queue: Queue, ledger: Ledger, listener: Listener) -> None:
        self.queue, self.ledger, self.listener = queue, ledger, listener
        self._noted: set[tuple[str, str]] = set()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.queue.started(self._cell(trial).id)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        told = Told.of(result)
        if told.note and (trial.trial_id, told.note) not in self._noted:
            self._noted.add((trial.trial_id, told.note))
            self.listener.noted(self._cell(trial), told.note)
        if told.of_steps or told.metrics:
            self.listener.progressed(self._cell(trial), told.at_step, told.of_steps, told.metrics)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        told = Told.of(trial.last_result)
        self._end(trial, told.state, told.reason, told.log)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        told = _told(trial)
        self._end(trial, "again", cause(told), "", blamed=not self._took_less(trial, told))

    def _end(self, trial: Trial, state: str, reason: str, log: str, blamed: bool = True) -> None:
        cell = self._cell(trial)
        if self.queue.ended(cell.id, state, reason, log, blamed) == "failed" and state == "again":
            self._record_death(cell, self.queue.why_failed(cell.id))

    def _took_less(self, trial: Trial, told: Sequence[str]) -> bool:
        with suppress(OSError):
            return any(took_less(told, attempt["pid"]) for attempt in self.ledger.attempts(self._cell(trial).id)[-1:])
        return False

    def _record_death(self, cell: Cell, reason: str) -> None:
        """The dead cannot write: an attempt of the driver's own says how the cell failed."""
        with suppress(OSError):
            self.ledger.claim(cell.id, {"device": "", "by": "driver"}).finish("failed", reason, seconds=0.0)

    def _cell(self, trial: Trial) -> Cell:
        return self.queue.taken[trial.config["cell"]]


def _told(trial: Trial) -> list[str]:
    """What Ray wrote down of a worker's death."""
    try:
        return Path(str(trial.error_file)).read_text().splitlines()
    except OSError:
        return []


def cause(told: Sequence[str]) -> str:
    """Why a worker died, in one line: what Ray wrote down of it, without the advice around it."""
    text = " ".join(told)
    if "creation task" in text or "RayTaskError" in text:
        return "the worker failed: " + next((line for line in reversed(told) if line.strip()), "").strip()
    if "running low on memory" in text:
        return "the worker was killed: the machine ran low on memory"
    detail = re.search(r"Worker exit detail: (.*?)\.(\s|$)", text)
    return "the worker's process died" + (f": {detail[1]}" if detail else "")


def took_less(told: Sequence[str], pid: int) -> bool:
    """Whether Ray, for want of memory, killed a worker along with one that had taken more."""
    killed = [found for line in told if (found := _KILLED.search(line))]
    taken = {int(found[1]): float(found[2]) for found in killed}
    return pid in taken and taken[pid] < max(taken.values())
