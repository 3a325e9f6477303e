import gc
import os
import re
import signal
from pathlib import Path

import pytest

# Before torch is imported, here and in what the tests start: two test processes with two threads each on two cores
# wait for each other at every little sum.
os.environ["OMP_NUM_THREADS"] = "1"
# Ray makes its workers so nice that beside other work on a busy machine they hardly ever run: minutes for seconds.
os.environ.setdefault("RAY_worker_niceness", "0")
# A shell that starts something in the background lets it ignore Ctrl-C, and all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if (
    hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
):  # and nohup, the end of its terminal
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def no_test_is_asked_for(path: Path, asked: str) -> bool:
    """Whether a file's text, or that of all files of a folder, says that `-m ASKED` leaves out every test in it."""
    if path.is_dir():
        files = list(path.rglob("test_*.py"))
        return bool(files) and all(no_test_is_asked_for(file, asked) for file in files)
    text = path.read_text()
    if asked.isidentifier():
        return f"mark.{asked}" not in text
    refused = asked.removeprefix("not ").split(" and not ")
    marked = re.search(r"^pytestmark = (?:\[\s*)?pytest\.mark\.(\w+)", text.partition("\ndef ")[0], flags=re.MULTILINE)
    return marked is not None and marked[1] in refused


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """In a suite, what has no test of it is not imported: that would take longer than many tests."""
    if config.args != config.getini("testpaths") or not (collection_path.is_dir() or collection_path.suffix == ".py"):
        return None
    return no_test_is_asked_for(collection_path, config.option.markexpr) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`slow(minutes=3)`: the longest begin first, or at the end one process would wait for the other."""
    expected = {item.path: 0.0 for item in items}
    for item in items:
        mark = item.get_closest_marker("slow")
        expected[item.path] += mark.kwargs.get("minutes", 0) if mark is not None else 0
    items.sort(key=lambda item: -expected[item.path])


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look at it again and again."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what could not run here, and why: never a silent skip."""
    for report in terminalreporter.stats.get("skipped", []):
        why = str(report.longrepr[2]).removeprefix("Skipped: ").removeprefix("NOT RUN: ")
        terminalreporter.write_line(f"NOT RUN {report.nodeid}: {why}")
