"""`fsg open`: check a bundle, unpack it, and run it again where that is asked for."""

from pathlib import Path

from orchestration.commands import bundle
from orchestration.commands.exit_status import DONE
from orchestration.commands.launch import launch
from orchestration.commands.request import LaunchRequest


def open_bundle(path: Path, into: Path | None, run: bool) -> int:
    """Check a bundle and say what is in it. Returns the exit status. Raises BundleError, OSError, ValueError."""
    opened = bundle.check(path)
    folder = into or Path(f"{opened.experiment}-opened")
    results = folder / "again"
    if into is not None or run:
        bundle.unpack(opened, folder)
    for line in bundle.describe(opened, folder, results):
        print(line, flush=True)
    return _run_again(opened, folder, results) if run else DONE


def _run_again(opened: bundle.Opened, folder: Path, results: Path) -> int:
    profile, sets = opened.manifest["profile"], tuple(opened.manifest["sets"])
    before = folder / "results" / opened.experiment
    return launch(LaunchRequest(opened.spec(folder), profile, sets, results, against=before))
