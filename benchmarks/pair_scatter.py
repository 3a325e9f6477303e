"""How much the paired differences of two variants scatter, and nothing of their mean.

    python -m benchmarks.pair_scatter FIRST SECOND RESULTS …

For n pairs with standard deviation s the half-width of the 95 % interval is t(0.975, n − 1)·s/√n. Who chooses the size
of an experiment by this has not seen which variant is ahead.
"""

import sys
from pathlib import Path

from scipy import stats

import orchestration
from orchestration.analysis.statistics import standard_deviation


def differences(folder: Path, first: str, second: str) -> list[float]:
    """Test accuracy of one variant minus that of another, with each seed that both have."""
    done = [cell for cell in orchestration.open_results(folder).cells() if cell["state"] == "done"]
    ours, theirs = ({one["seed"]: one["test/accuracy"] for one in done if one["variant"] == v} for v in (first, second))
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def main(first: str, second: str, *folders: str) -> None:
    for folder in map(Path, folders):
        found = differences(folder, first, second)
        deviation = standard_deviation(found)
        widths = {n: stats.t.ppf(0.975, n - 1) * deviation / n**0.5 for n in (6, 8, 10)}
        shown = ", ".join(f"±{100 * width:.2f} with {n}" for n, width in widths.items())
        print(f"{folder.name}: standard deviation {100 * deviation:.2f} points over {len(found)} pairs; {shown}")


if __name__ == "__main__":
    main(*sys.argv[1:])
