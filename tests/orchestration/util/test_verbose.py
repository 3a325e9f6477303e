"""`--verbose`: log lines on the standard error, above a live view, and nothing without it."""

import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_experiment
from rich.console import Console
from rich.live import Live

from orchestration.util.verbose import log_to_stderr

ROOT = Path(__file__).resolve().parents[3]
LINE = r"\d\d:\d\d:\d\d  orchestration\.[\w.]+: .+"


@pytest.fixture
def loggers_as_they_were() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("fsg", "orchestration")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def plan(folder: Path, *words: str) -> tuple[str, str]:
    command = [sys.executable, str(ROOT / "orchestration" / "launch.py"), "tiny.yaml", "--plan", "--no-pilot", *words]
    environment = os.environ | {"COLUMNS": "120"}
    said = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, env=environment)
    return said.stdout, said.stderr


@pytest.mark.slow
def test_a_command_logs_to_the_standard_error_when_asked_to_and_prints_the_same(tmp_path: Path) -> None:
    tiny_experiment.written(tmp_path)
    printed, complained = plan(tmp_path)
    assert complained == ""
    printed_too, logged = plan(tmp_path, "--verbose")
    assert printed_too == printed
    lines = logged.splitlines()
    (summary,) = re.findall(r"^3 cells, .*$", printed, flags=re.MULTILINE)
    assert all(re.fullmatch(LINE, line) for line in lines), logged
    assert [line.split("  ", 1)[1] for line in lines] == [
        "orchestration.spec.experiment: tiny.yaml loaded: 2 points, 0 searches, 1 seeds",
        f"orchestration.commands.plan: planned: {summary}; 0 orphans",
    ]


def test_importing_the_packages_configures_no_logging() -> None:
    program = (
        "import logging, fsg, orchestration.api\n"
        "for name in ('fsg', 'orchestration'):\n"
        "    logger = logging.getLogger(name)\n"
        "    print(logger.level, [type(handler).__name__ for handler in logger.handlers])\n"
        "    logger.warning('not shown')\n"
        "print(logging.getLogger().handlers)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, capture_output=True, text=True)
    assert (said.stdout, said.stderr) == ("0 ['NullHandler']\n" * 2 + "[]\n", "")


@pytest.mark.parametrize("terminal", [True, False])
def test_log_lines_stand_above_a_live_view_in_a_terminal_and_in_a_file_as_they_are(
    loggers_as_they_were: None, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    screen, stderr = io.StringIO(), io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    log_to_stderr()
    console = Console(file=screen, force_terminal=True, width=100)
    with Live("the view", console=console, auto_refresh=False, redirect_stdout=False) as live:
        live.refresh()
        logging.getLogger("orchestration.some.module").info("a [step] is done")
        live.refresh()
    shown = screen.getvalue() if terminal else stderr.getvalue()
    other = stderr.getvalue() if terminal else screen.getvalue()
    assert "a [step] is done" not in other
    line = r"\d\d:\d\d:\d\d  orchestration\.some\.module: a \[step\] is done\n"
    assert re.search(r"\x1b\[2K" + line + "the view" if terminal else f"^{line}$", shown), shown
