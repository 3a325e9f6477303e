"""Folders that outlive nobody."""

import subprocess
import sys
from pathlib import Path

from orchestration.util.scratch import keep, scratch

OWN = """
import sys
from orchestration.util.scratch import scratch
with scratch("fsg-", sys.argv[1]) as folder:
    (folder / "session").mkdir()
    print(folder.name, flush=True)
    sys.stdin.read()
"""


def test_folder_is_gone_at_the_end_unless_it_is_kept(tmp_path: Path) -> None:
    with scratch("fsg-", str(tmp_path)) as gone, scratch("fsg-", str(tmp_path)) as kept:
        (gone / "a").touch()
        keep(kept)
    assert list(tmp_path.iterdir()) == [kept]
    with scratch("fsg-", str(tmp_path)):
        assert kept.exists()


def test_what_the_dead_left_is_removed_and_nothing_of_the_living(tmp_path: Path) -> None:
    """Nor what is somebody else's: a folder of that prefix without an owner."""
    (tmp_path / "fsg-own").mkdir()
    (tmp_path / "other").mkdir()
    command = [sys.executable, "-c", OWN, str(tmp_path)]
    one, two = (subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2))
    assert one.stdout is not None
    assert two.stdout is not None
    dead, living = (tmp_path / process.stdout.readline().strip() for process in (one, two))
    one.kill()
    one.wait()
    assert (dead / "session").exists(), "nothing was put away"
    with scratch("fsg-", str(tmp_path)) as mine:
        assert set(tmp_path.iterdir()) == {tmp_path / "fsg-own", tmp_path / "other", living, mine}
        assert (living / "session").exists()
    two.communicate("")
    assert set(tmp_path.iterdir()) == {tmp_path / "fsg-own", tmp_path / "other"}
