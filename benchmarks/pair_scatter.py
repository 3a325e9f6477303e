"""How much the paired differences of two variants scatter, and nothing of their mean.

    python -m benchmarks.pair_scatter FIRST SECOND RESULTS … [--metric validation/accuracy]

For n pairs with standard deviation s the half-width of the 95 % interval is t(0.975, n − 1)·s/√n. Who chooses the size
of an experiment by this has not seen which variant is ahead.
"""

import argparse
from pathlib import Path

from scipy import stats

import orchestration
from orchestration.analysis.statistics import standard_deviation


def differences(folder: Path, first: str, second: str, metric: str = "test/accuracy") -> list[float]:
    """One variant's metric minus that of another, with each seed that both have."""
    done = [cell for cell in orchestration.open_results(folder).cells() if cell["state"] == "done"]
    ours, theirs = ({one["seed"]: one[metric] for one in done if one["variant"] == v} for v in (first, second))
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pair_scatter", description=__doc__)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--metric", default="test/accuracy")
    given = parser.parse_args()
    for folder in given.results:
        found = differences(folder, given.first, given.second, given.metric)
        deviation = standard_deviation(found)
        widths = {n: stats.t.ppf(0.975, n - 1) * deviation / n**0.5 for n in (6, 8, 10)}
        shown = ", ".join(f"±{100 * width:.2f} with {n}" for n, width in widths.items())
        print(f"{folder.name}: standard deviation {100 * deviation:.2f} points over {len(found)} pairs; {shown}")


if __name__ == "__main__":
    main()
