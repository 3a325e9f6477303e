import os
import signal

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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what could not run here, and why: never a silent skip."""
    for report in terminalreporter.stats.get("skipped", []):
        why = str(report.longrepr[2]).removeprefix("Skipped: ").removeprefix("NOT RUN: ")
        terminalreporter.write_line(f"NOT RUN {report.nodeid}: {why}")
