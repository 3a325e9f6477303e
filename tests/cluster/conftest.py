"""The cluster suite says what it could not run here, and why."""

import pytest

NOT_TESTED = (
    "the official images of Python and PostgreSQL where they cannot be pulled, NVIDIA GPUs, a cluster on Kubernetes, "
    "results on an object store"
)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if "cluster" not in (config.option.markexpr or "") or "not cluster" in config.option.markexpr:
        return
    skipped = terminalreporter.stats.get("skipped", [])
    terminalreporter.write_line(f"cluster: {len(skipped)} NOT RUN")
    for report in skipped:
        terminalreporter.write_line(f"NOT RUN {report.nodeid}: {str(report.longrepr[2]).removeprefix('Skipped: ')}")
    terminalreporter.write_line(f"not tested by this suite: {NOT_TESTED}")
