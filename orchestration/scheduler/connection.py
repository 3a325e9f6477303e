"""The connection to Ray: a Ray of this process, watched while it runs, or a cluster's.

Call `environment.prepare` before this module is imported: Ray reads its environment then.
"""

import gc
import logging
import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import ray

from orchestration.scheduler.environment import Unusable
from orchestration.util import submission
from orchestration.util.directory import working_in
from orchestration.util.error_text import first_line
from orchestration.util.passwords import hide_passwords
from orchestration.util.provenance import cores
from orchestration.util.scratch import scratch
from orchestration.util.user_code import SHIPPED, other_environment, python_files

_VITAL = ("raylet", "gcs_server")
POLL_INTERVAL = 0.5
TIME_TO_FAIL = 45.0  # for a start that lacks a process: Ray gives up after 30 s, or ends this process after 60
TRIES_TO_START, TRIES_AFTER_A_DEATH = 5, 2


@contextmanager
def connect(
    address: str | None,
    packages: Sequence[Path] = (),
    own: Path | None = None,
    died: Callable[[str], None] = lambda name: None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[None]:
    """A Ray of this process's own, on loopback, or with `address` a running cluster's.

    To a cluster, these packages are sent, and the Python files of the user's `own` folder. Where a process of its own
    Ray dies, `died` is called with its name, in a thread: whoever then calls Ray may wait for ever. Where a start fails
    as one has died, `say` gets a line and Ray is started again. Raises Unusable.
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
            }
        else:
            shipped: dict[str, Any] = {"py_modules": [str(package) for package in packages]}
            if own is not None:
                python_files(own, folder / "package" / SHIPPED)
                shipped |= {"working_dir": str(folder / "package")}
            # What was submitted with the driver is what its workers get, too.
            options |= {"address": address} | ({} if submission.record() else {"runtime_env": shipped})
        try:
            # A Ray of this process's own: `scratch` knows its processes by the folder's name in their environment.
            place = {"RAY_TMPDIR": str(folder), "TMPDIR": tempfile.gettempdir()} if address is None else {}
            # Ray has workers import from the directory in which it is started.
            with _refusing(address), other_environment(place), _hung_up_later(), working_in(folder):
                _knock(address)
                if address is None:
                    _start(options, died, say)
                else:
                    ray.init(**options)
            with _watched(died) if address is None else nullcontext():
                yield
        finally:
            gc.collect()  # Ray 2.51 ends the process if another thread collects a handle of Ray's while it shuts down
            ray.shutdown()


@contextmanager
def _hung_up_later() -> Iterator[None]:
    """Within, a SIGHUP waits; for ever in what is started there: a terminal that closes speaks to Ray's processes, too.

    It is the driver that stops the workers, each at a checkpoint.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _refusing(address: str | None) -> Iterator[None]:
    """Says in a line why there is no connection to the cluster at an address."""
    try:
        yield
    except Exception as error:
        why = None if address is None else _why_unconnected(error)
        if why is None:
            raise
        raise Unusable(hide_passwords(f"--address {address}: {why}", address)) from error


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
    if type(error).__name__ == "AuthenticationError" or "uthentication" in text:  # Ray 2.51 has no such class
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
def _watched(died: Callable[[str], None], expected: Sequence[str] = _VITAL, patience: float = 0.0) -> Iterator[None]:
    """Within, the two processes without which this process's own Ray is none are looked after.

    `died` is called where one has died, or an expected one is not there, for so many seconds.
    """
    stop, seen = threading.Event(), _vital()

    def watch() -> None:
        since = time.monotonic()
        while not stop.wait(POLL_INTERVAL):
            seen.update(_vital())
            dead = [name for name in (*expected, *seen) if name not in seen or not _runs(seen[name])]
            since = since if dead else time.monotonic()
            if dead and time.monotonic() - since >= patience:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # what takes this one's place hears it
                died(dead[0])
                return

    thread = threading.Thread(target=watch, name="Ray's watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()


def _vital() -> dict[str, psutil.Process]:
    """Those processes of this one's own Ray, by name, also ones that have died and nobody has asked about."""
    found = dict[str, psutil.Process]()
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            found |= {child.name(): child} if child.name() in _VITAL else {}
    return found


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _start(options: dict[str, Any], died: Callable[[str], None], say: Callable[[str], None]) -> None:
    """Ray gives a node of its own half a minute to start: on a busy machine it takes more than one try.

    A start that goes on though a process has died may do so for minutes, or end this process. Raises Unusable.
    """
    before, deaths = set(psutil.Process().children()), 0
    for tried in range(1, TRIES_TO_START + 1):
        try:
            with _watched(died, _VITAL[1:], TIME_TO_FAIL):
                ray.init(**options)
            return
        except Exception as error:
            dead = sorted(name for name in _VITAL if name not in (found := _vital()) or not _runs(found[name]))
            deaths += bool(dead)
            ray.shutdown()
            for process in set(psutil.Process().children()) - before:
                with suppress(psutil.Error):
                    process.kill()
                    process.wait()
            if tried == TRIES_TO_START or deaths == TRIES_AFTER_A_DEATH:
                hint = "expected some memory, room in /tmp, and processors that are not all busy"
                why = f"its {dead[0]} died" if dead else first_line(error)
                raise Unusable(f"Ray does not start on this machine, tried {tried} times: {why} ({hint})") from error
            if dead:
                say(f"Ray's {dead[0]} died while it started: it is started again")


def capacity() -> dict[str, float]:
    """CPUs and GPUs of the Ray that is connected."""
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return {"CPU": resources.get("CPU", 0.0), "GPU": resources.get("GPU", 0.0)}
