"""Folders that outlive nobody."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from orchestration.util.put_away import processes_with
from orchestration.util.scratch import keep, private_temporary_files, scratch

OWN = """
import os, subprocess, sys
from orchestration.util.scratch import scratch
SLEEPS = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
with scratch("fsg-", sys.argv[1]) as folder:
    (folder / "session").mkdir()
    for name in ("RAY_TMPDIR", "OTHER"):
        environment = {"RAY_TMPDIR": f"{folder}"} if name == "RAY_TMPDIR" else {}
        words = [sys.executable, "-c", SLEEPS]
        one = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, start_new_session=True)
        one.stdout.readline()
        print(one.pid, end=" ")
    print(folder.name, flush=True)
    sys.stdin.read()
"""


class Owner:
    """A process with a folder, and two of its own: one whose environment names the folder, and another."""

    def __init__(self, below: Path) -> None:
        command = [sys.executable, "-c", OWN, str(below)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        named, other, name = self.process.stdout.readline().split()
        self.named, self.other, self.folder = psutil.Process(int(named)), psutil.Process(int(other)), below / name

    def put_away(self) -> psutil.Process:
        """The process that sees to the folder."""
        (found,) = self.those_that_see_to_it()
        return found

    def those_that_see_to_it(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                found += [process] if str(self.folder) in process.cmdline() else []
        return found

    def over(self) -> None:
        self.process.communicate("")


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Callable[[], Owner]]:
    made: list[Owner] = []

    def make() -> Owner:
        made.append(Owner(tmp_path))
        return made[-1]

    yield make
    for one in made:
        for process in (one.process, one.named, one.other):
            with suppress(psutil.Error):
                process.kill()


def those_that_run() -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            process.cmdline()
            yield process


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_gone(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def test_folder_is_closed_to_others_and_gone_at_the_end_unless_it_is_kept(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with scratch("fsg-", str(tmp_path)) as gone, scratch("fsg-", str(tmp_path)) as kept:
            assert stat.S_IMODE(gone.stat().st_mode) == 0o700
            (gone / "a").touch()
            keep(kept)
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == [kept]
    with scratch("fsg-", str(tmp_path)):
        assert kept.exists()
    until(lambda: not any(str(kept) in " ".join(process.cmdline()) for process in those_that_run()))
    assert kept.exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None])
def test_folder_and_the_processes_that_its_path_was_handed_to_end_with_their_owner(
    owner: Callable[[], Owner], tmp_path: Path, how: signal.Signals | None
) -> None:
    """Whatever becomes of the owner: a signal to it and to all that is near it, or its end."""
    one, another = owner(), owner()
    one.put_away().send_signal(signal.SIGTERM)
    one.process.send_signal(how) if how else one.over()
    one.process.wait()
    until(lambda: is_gone(one.named) and not one.folder.exists())
    assert not is_gone(one.other), "it has nothing to do with the folder"
    until(lambda: not one.those_that_see_to_it())
    assert another.folder.exists()
    assert not is_gone(another.named)
    assert processes_with(another.folder) == [another.named.pid]


MAKES_IT_AGAIN = """
import os, subprocess, sys
from orchestration.util.scratch import scratch
MAKES = "import os\\nwhile True: os.system('mkdir -p $RAY_TMPDIR/logs')"
with scratch("fsg-", sys.argv[1]) as folder:
    one = subprocess.Popen([sys.executable, "-c", MAKES], env={"RAY_TMPDIR": f"{folder}"}, start_new_session=True)
    while not (folder / "logs").exists():
        pass
    print(one.pid, flush=True)
"""


def test_folder_that_its_processes_make_again_while_they_end_is_gone_with_them(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAKES_IT_AGAIN, str(tmp_path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    maker = psutil.Process(int(done.stdout)) if psutil.pid_exists(int(done.stdout)) else None
    until(lambda: maker is None or is_gone(maker))
    until(lambda: not list(tmp_path.iterdir()))


def test_what_both_left_that_were_killed_is_removed_and_nothing_of_the_living(
    owner: Callable[[], Owner], tmp_path: Path
) -> None:
    """Nor what is somebody else's: a folder of that prefix without an owner."""
    (tmp_path / "fsg-own").mkdir()
    (tmp_path / "other").mkdir()
    dead, living = owner(), owner()
    dead.put_away().kill()
    dead.process.kill()
    dead.process.wait()
    assert (dead.folder / "session").exists(), "nothing was put away"
    with scratch("fsg-", str(tmp_path)) as mine:
        assert set(tmp_path.iterdir()) == {tmp_path / "fsg-own", tmp_path / "other", living.folder, mine}
        assert (living.folder / "session").exists()
    living.over()
    assert set(tmp_path.iterdir()) == {tmp_path / "fsg-own", tmp_path / "other"}


def test_temporary_files_of_a_launch_lie_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with private_temporary_files():
        (folder,) = tmp_path.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        with tempfile.TemporaryDirectory() as made, scratch("fsg-other-") as other:
            assert {Path(made).parent, other.parent} == {folder}
    assert tempfile.gettempdir() == str(tmp_path)
    assert list(tmp_path.iterdir()) == []
