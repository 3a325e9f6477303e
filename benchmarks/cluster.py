"""How much sooner two workers finish than one, on a cluster that is up:   python -m benchmarks.cluster

The quick ablation is handed over twice, once with one training at a time. Start-up and pretraining are left out: what
is compared runs from the end of the last pretraining to the end of the last cell.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from datetime import datetime

NAME = "ablation_hgs-quick"


def fsg(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "orchestration.cli", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


def seconds(at_a_time: int, address: str, more: list[str]) -> float:
    results = f"/results/benchmark-{int(time.time())}-{at_a_time}"
    limits = ["--set", f"resources.max_concurrent={at_a_time}", *more]
    fsg(
        "launch", "configs/ablation_hgs.yaml", "--profile", "quick", "--address", address, "--results", results, *limits
    )
    ends = re.findall(
        r"^(\d\d:\d\d:\d\d)  done +(pretrain)?", fsg("logs", NAME, "--address", address), flags=re.MULTILINE
    )
    times = [(datetime.strptime(clock, "%H:%M:%S"), bool(pretraining)) for clock, pretraining in ends]
    first = max(moment for moment, pretraining in times if pretraining)
    return (max(moment for moment, _ in times) - first).total_seconds() % 86400


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default=os.environ.get("FSG_ADDRESS", "http://127.0.0.1:8265"))
    parser.add_argument("--set", action="append", default=[], dest="sets", help="for the spec, such as seeds=[0]")
    asked = parser.parse_args()
    more = [word for one in asked.sets for word in ("--set", one)]
    one, two = (seconds(number, asked.address, more) for number in (1, 2))
    print(f"one worker {one:.0f} s, two workers {two:.0f} s: {two / one:.2f} of it")
