"""`make gpu`: the GPU suite, the bench and epochs, within a time, in one table and one JSON file.

It needs torch, numpy and pytest. Every part is a process of its own with its share of the time; what one does not reach
is NOT RUN, with the reason. Exit status: 0 all went well, 1 a test or a part failed, 2 torch has no GPU to use here.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

BEGAN = time.monotonic()
ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/gpu", "tests/fsg/test_selective_scan.py", "tests/fsg/test_data.py")
SHARES = {"suite": 0.4, "steps": 0.45, "beside": 0.5, "epochs": 0.9}  # of what is left when a part begins


class Ended(NamedTuple):
    """A process: its status (None: it was stopped), what it printed, and its seconds."""

    status: int | None
    out: str
    seconds: float

    @property
    def ending(self) -> str:
        if self.status is None:
            return f"stopped after {self.seconds:.0f} s"
        last = [line for line in self.out.splitlines() if line.strip()][-1:]
        return f"ended with status {self.status}: {''.join(last)[:300]}"


def run(command: Sequence[str], seconds: float, environment: Mapping[str, str], log: Path) -> Ended:
    """A command and all that it starts, stopped when its time is over."""
    began = time.monotonic()
    whole = os.environ | environment
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=whole, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return Ended(status, log.read_text(errors="replace"), time.monotonic() - began)


def within(share: float) -> float:
    """Of a part's seconds those that it is told to take, its start included; in the rest it ends by itself."""
    return max(0.5 * share, min(0.85 * share, share - 10))


def suite(device: str, seconds: float, folder: Path) -> dict[str, Any]:
    """The tests marked gpu: how many passed, which failed and why, and what was not run."""
    outcomes = folder / "outcomes"
    outcomes.touch()
    environment = {
        "FSG_GPU_DEVICE": device,
        "FSG_GPU_UNTIL": str(time.time() + within(seconds)),
        "FSG_GPU_OUTCOMES": str(outcomes),
    }
    options = ("-q", "-m", "gpu", "-p", "no:cacheprovider", "-p", "benchmarks.gpu.outcomes")
    ended = run([sys.executable, "-m", "pytest", *options, *TESTS], seconds, environment, folder / "suite.txt")
    told = [json.loads(line) for line in outcomes.read_text().splitlines()]
    failed = {one["test"]: one["why"] for one in told if one["outcome"] == "failed"}
    if ended.status not in (0, 1):
        failed["the suite"] = ended.ending
    return {
        "seconds": ended.seconds,
        "passed": sum(one["outcome"] == "passed" for one in told),
        "failed": failed,
        "not_run": {one["test"]: one["why"] for one in told if one["outcome"] == "skipped"},
    }


def rows_of(part: str, expected: Sequence[str], device: str, seconds: float, folder: Path) -> list[dict[str, Any]]:
    """The rows that a part has measured; what it has not come to is not run, for the reason that it ended with."""
    given = {"--device": device, "--seconds": within(seconds), "--since": time.time()}
    words = [str(word) for pair in given.items() for word in pair]
    command = [sys.executable, "-m", "benchmarks.gpu.parts", part, *words]
    ended = run(command, seconds, {}, folder / f"{part}.txt")
    rows = [json.loads(line) for line in ended.out.splitlines() if line.startswith("{")]
    told = {row["what"] for row in rows}
    return rows + [{"what": name, "not_run": ended.ending, "failed": True} for name in expected if name not in told]


def table(title: str, found: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    """Plain text: what, and a column of each figure; below it what was not run, and what failed."""
    measured = [row for row in found["rows"] if "not_run" not in row]
    width = max([len(row["what"]) for row in measured] + [4])
    lines = [title, "", f"{'':{width}}" + "".join(f"{heading:>12}" for heading in columns.values())]
    for row in measured:
        cells = (f"{row[key]:.4g}" if key in row else "" for key in columns)
        lines.append(f"{row['what']:{width}}" + "".join(f"{cell:>12}" for cell in cells))
    tests = found["suite"]
    counts = f"{tests['passed']} passed, {len(tests['failed'])} failed, {len(tests['not_run'])} NOT RUN"
    lines += ["", f"GPU suite: {counts}, in {tests['seconds']:.0f} s", *_not_run(found)]
    lines += [f"FAILED {name}: {why}" for name, why in tests["failed"].items()]
    return "\n".join(lines)


def _not_run(found: Mapping[str, Any]) -> list[str]:
    """A line a reason: tests that share one are counted."""
    by_reason: dict[str, list[str]] = {}
    for name, why in found["suite"]["not_run"].items():
        by_reason.setdefault(why, []).append(name)
    tests = [
        f"NOT RUN {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {why}"
        for why, names in by_reason.items()
    ]
    return tests + [f"NOT RUN {row['what']}: {row['not_run']}" for row in found["rows"] if "not_run" in row]


def machine(device: str) -> dict[str, Any]:
    import torch  # after it is known to be there

    from fsg.mamba import Mamba, kernel

    on = {"python": platform.python_version(), "torch": torch.__version__, "device": device, "cores": os.cpu_count()}
    if device == "cpu":
        return on
    has = torch.cuda.get_device_properties(0)
    return on | {
        "gpu": has.name,
        "capability": f"{has.major}.{has.minor}",
        "gpu_megabytes": has.total_memory / 1e6,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "scan": kernel(Mamba(), device),
    }


def _driver() -> str:
    """The version of NVIDIA's driver; empty where nvidia-smi does not say."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.partition("\n")[0]
    return ""


def why_not(device: str) -> str:
    """Why nothing can be run here; empty where it can."""
    try:
        import torch  # noqa: F401  # its absence is one line, not a traceback
    except ImportError as error:
        return f"torch cannot be imported by {sys.executable} ({error})"
    from fsg.gpu import why_no_gpu

    return "" if device == "cpu" else why_no_gpu()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cpu: a dry run, whose figures mean nothing")
    parser.add_argument("--seconds", type=float, default=480, help="for everything; default: 480")
    parser.add_argument("--json", type=Path, default=ROOT / "results/gpu.json", help="default: results/gpu.json")
    given = parser.parse_args()
    if why := why_not(given.device):
        print(f"NOT RUN make gpu: {why}")
        return 2
    from benchmarks.gpu.parts import COLUMNS, ROWS

    end, rows = BEGAN + given.seconds, []
    on = machine(given.device)
    where = on.get("gpu", "on a CPU: a dry run, whose figures mean nothing")
    title = f"{where}, torch {on['torch']}, Python {on['python']}"
    print(f"{title}: the suite, then {', '.join(ROWS)}, within {given.seconds:.0f} s", flush=True)
    with TemporaryDirectory() as name:
        folder = Path(name)
        tests = suite(given.device, SHARES["suite"] * (end - time.monotonic()), folder)
        for part, expected in ROWS.items():
            rows += rows_of(part, expected, given.device, SHARES[part] * (end - time.monotonic()), folder)
    found = {"machine": on, "dry_run": given.device == "cpu", "suite": tests, "rows": rows}
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(title, found, COLUMNS))
    return int(bool(tests["failed"]) or any(row.get("failed") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
