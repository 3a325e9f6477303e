"""What a program prints, where it cannot be shown, is read by nobody, or is meant to speak to the terminal."""

import io
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Group
from rich.table import Table
from rich.text import Text

from orchestration.util import terminal
from orchestration.util.output import Escaping, Unfailing, escaped, unfailing_output

EVIL = "a\x1b]0;owned\x07b\x9b31m\r\u202ec\u2028"
TAMED = r"a\x1b]0;owned\x07b\x9b31m\r\u202ec\u2028"


def test_control_characters_are_escaped_and_nothing_else() -> None:
    assert escaped(EVIL) == TAMED
    assert escaped("größer → ✓ ±0.5 % 実験 🙂\n\ttable │ ─") == "größer → ✓ ±0.5 % 実験 🙂\n\ttable │ ─"
    assert escaped("\udcff") == r"\udcff"
    assert escaped("".join(map(chr, range(32)))).isprintable() is False  # the line break and the tab are left
    assert {c for c in escaped("".join(map(chr, range(256)))) if not c.isprintable()} <= {"\n", "\t", "\xa0"}


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", "gr??er ? 1"), ("latin-1", "größer ? 1"), ("utf-8", "größer → 1")]
)
def test_characters_that_cannot_be_shown_are_replaced(encoding: str, shown: str) -> None:
    behind = io.BytesIO()
    stream = Unfailing(io.TextIOWrapper(behind, encoding=encoding, errors="strict"))
    stream.write("größer → 1")
    stream.flush()
    assert behind.getvalue().decode(encoding) == shown


def test_what_nobody_reads_goes_nowhere() -> None:
    reader, writer = os.pipe()
    stream = Unfailing(os.fdopen(writer, "w"))
    os.close(reader)
    for _ in range(3):
        print("nobody", file=stream, flush=True)
    stream.stream.close()
    print("closed", file=stream, flush=True)
    assert stream.isatty() is False


def test_a_console_escapes_texts_and_keeps_its_own_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdout", Escaping(Unfailing(shown)))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    console = terminal.console()
    table = Table(EVIL, title=EVIL)
    table.add_row(Text(EVIL, style="red"))
    console.print(EVIL, Text(EVIL, style="red"), Group(EVIL, table), markup=False, highlight=False)
    coloured = re.compile(r"\x1b\[[0-9;]*m")
    assert coloured.search(shown.getvalue()), "the console's own"
    left = coloured.sub("", shown.getvalue())
    assert left.count(r"a\x1b]0;owned") == 6
    assert {c for c in left if not c.isprintable()} == {"\n"}
    print(EVIL)
    assert shown.getvalue().endswith(f"{TAMED}\n")


def test_streams_are_as_they_were_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.stdout, sys.stderr
    with unfailing_output():
        assert isinstance(sys.stdout, Escaping)
        assert isinstance(sys.stderr, Escaping)
    assert (sys.stdout, sys.stderr) == before
    monkeypatch.setattr(sys, "stdout", None)
    with unfailing_output():
        print("a closed descriptor")
    assert sys.stdout is None


FSG = Path(sys.executable).with_name("fsg")


@pytest.mark.parametrize("redirect", ["<&- >&- 2>&-", ">/dev/full 2>&1"])
def test_a_program_without_outputs_does_its_work(tmp_path: Path, redirect: str) -> None:
    """What it prints fails nothing."""
    for name, status in (("größer", 2), ("mine", 0)):
        ended = subprocess.run(
            ["bash", "-c", f"{FSG} new {name} {redirect}"],
            cwd=tmp_path, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == status, ended.stderr
        assert "Traceback" not in ended.stderr + ended.stdout
    (tmp_path / "heard").mkdir()
    subprocess.run([FSG, "new", "mine"], cwd=tmp_path / "heard", capture_output=True, check=True)
    assert (tmp_path / "mine.yaml").read_bytes() == (tmp_path / "heard" / "mine.yaml").read_bytes()


def test_a_file_that_is_opened_does_not_get_what_is_printed_to_a_closed_output(tmp_path: Path) -> None:
    program = (
        "import os; from orchestration.util import program; program.begin([])\n"
        "file = open('file', 'w'); os.write(1, b'said'); os.write(2, b'said'); file.close()\n"
    )
    words = shlex.join([sys.executable, "-c", program])
    subprocess.run(["bash", "-c", f"exec {words} <&- >&- 2>&-"], cwd=tmp_path, check=True)
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_program_that_is_stopped_while_it_begins_says_so_in_a_line(number: signal.Signals) -> None:
    program = (
        "import sys; sys.argv = ['fsg', 'schema']\n"
        "import os, signal\n"
        "from orchestration.util import program\n"
        "program.begin([])\n"
        f"os.kill(os.getpid(), {int(number)})\n"
        "import time; time.sleep(10)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.stderr == "Interrupted.\n"
    assert ended.returncode == -signal.SIGINT


def test_nohup_keeps_a_terminal_that_closes_from_stopping_anything() -> None:
    program = (
        "import os, signal; from orchestration.util import program\n"
        "program.begin([]); os.kill(os.getpid(), signal.SIGHUP); print(program.stops())\n"
    )
    words = ["nohup", sys.executable, "-c", program]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "SIGHUP" not in ended.stdout
    assert "SIGTERM" in ended.stdout
