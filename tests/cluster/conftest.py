"""The cluster suite says what it cannot test at all."""

import pytest

NOT_TESTED = (
    "the official images of Python and PostgreSQL where they cannot be pulled, NVIDIA GPUs, a cluster on Kubernetes, "
    "results in an object store that several nodes share"
)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if "cluster" in (config.option.markexpr or "") and "not cluster" not in config.option.markexpr:
        terminalreporter.write_line(f"NOT RUN by this suite: {NOT_TESTED}")
