"""Who holds an experiment, and whether that process is still alive."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from orchestration.ledger.stores.errors import LockedError

LOCK_TIMEOUT = 60.0


def this_process() -> dict[str, Any]:
    """Who is writing."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "process_started": psutil.Process().create_time()}


def alive(record: dict[str, Any]) -> bool:
    """Whether the process of a record runs; of another host's nothing is known, and it is taken to."""
    if record["host"] != socket.gethostname():
        return True
    try:
        return bool(abs(psutil.Process(record["pid"]).create_time() - record["process_started"]) < 2)
    except psutil.Error:
        return False


def machine() -> str:
    """This machine, since it was started: the same in each of its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def lock_record() -> bytes:
    return json.dumps(this_process() | {"machine": machine(), "since": time.time_ns() // 1_000_000}).encode()


def read_holder(content: bytes) -> dict[str, Any] | None:
    try:
        holder = json.loads(content)
        return holder if {"host", "pid", "since"} <= holder.keys() else None
    except (ValueError, AttributeError):
        return None


def who_holds(folder: Path, holder: dict[str, Any]) -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(holder["since"] / 1000)) if holder else "now"
    who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
    return f"{folder} is locked by {who} since {since}"


def refuse_if_alive(folder: Path, holder: dict[str, Any], silent: float) -> None:
    if silent < LOCK_TIMEOUT:
        last = f"last seen {silent:.0f} s ago; its lock expires after {LOCK_TIMEOUT:.0f} s"
        raise LockedError(f"{who_holds(folder, holder)} ({last})")


@contextmanager
def heartbeat(show: Callable[[], object]) -> Iterator[None]:
    """Within, a sign of life is given again and again, for other machines to see."""
    stop = threading.Event()

    def give() -> None:
        while not stop.wait(LOCK_TIMEOUT / 10):
            with suppress(OSError):
                show()

    thread = threading.Thread(target=give, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
