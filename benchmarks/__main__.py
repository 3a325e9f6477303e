"""What things cost: `python -m benchmarks` (make bench).

Every row is a ratio of two things measured in the same run, medians of interleaved repetitions; where a row is about
memory, the two are processes that take turns. ResNet-20, batch 128, images of 32x32 (random ones), 2 threads, but where
a row says otherwise. `--record` keeps the figures in benchmarks/recorded.json and their table in docs/performance.md;
`--quick` is a small size of everything, to see that it runs: its figures mean nothing.
"""

import argparse
import json
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import curves, images, slow_net, steps
from benchmarks.measuring import ROOT, Row, in_a_process, machine, number
from fsg.estimators import FSG, STE

RECORD, PAGE = ROOT / "benchmarks/recorded.json", ROOT / "docs/performance.md"
BEGIN, END = "<!-- what `make bench-record` measured -->", "<!-- end -->"


def training(threads: int, repetitions: int, quick: bool) -> list[Row]:
    torch.set_num_threads(threads)
    with TemporaryDirectory() as folder:
        file = steps.random_images(Path(folder), 640 if quick else 20_000)
        depth, batch = (8, 16) if quick else (20, 128)
        whole = steps.config(file, threads, depth, batch)
        small = steps.config(file, threads, depth, 16 if quick else 32)
        rows = steps.ratios(whole, repetitions)
        for count in dict.fromkeys((1, threads)):
            torch.set_num_threads(count)
            rows += steps.over_full_precision(replace(whole, threads=count), repetitions)
        rows += [steps.looking(whole, "STE", STE.Config()), steps.looking(whole, "FSG", FSG.Config())]
        sizes: dict[str, int] = {"weights": 512, "rounds": 1, "depth": 8, "batch": 8, "steps": 10} if quick else {
            "weights": 9216, "rounds": 3, "depth": 20, "batch": 128, "steps": 1000,
        }  # fmt: skip
        rows += slow_net.rows(threads=threads, **sizes)
        rows.append(images.augmentation(file, 1 if quick else 3))
        rows.append(images.from_files(Path(folder) / "files", 1 if quick else 5, 16 if quick else 1024))
        few = 1 if quick else 7
        rows.append(curves.over_history(small, [1, 2] if quick else [1, 2, 4, 8, 16], few).row())
        rows.append(curves.over_tokens(small, [200, 64] if quick else [200, 64, 8, 1], few).row())
        depths = [8, 14] if quick else [8, 14, 20, 32, 44, 56, 110]
        rows.append(curves.over_parameters(small, depths, few).row())
    return rows


def orchestration(_threads: int, _repetitions: int, quick: bool) -> list[Row]:
    trials = in_a_process("orchestration", "--json", "--small" if quick else "--long")
    return [Row(**row) for row in trials["rows"]]


PARTS = {"training": training, "orchestration": orchestration}


def described(on: dict[str, Any]) -> str:
    return (
        f"{on['processor']} ({on['architecture']}, {on['cores']} cores, {on['vectors']}), "
        f"{on['threads']} threads, torch {on['torch']}, Python {on['python']}"
    )


def markdown(part: str, found: dict[str, Any]) -> str:
    """The table of a part, and below it the points of its curves."""
    lines = [f"**{part.capitalize()}**, measured on: {described(found['machine'])}.", ""]
    lines += ["| | measured | must | aim |", "|---|---:|---:|---:|"]
    points = []
    for values in found["rows"]:
        row = Row(**values)
        lines.append(f"| {row.name} | {number(row.value)}{row.unit} | {row.wanted(row.must)} | {row.wanted(row.aim)} |")
        if "x" in row.measured:
            pairs = zip(row.measured["x"], row.measured["seconds"], strict=True)
            each = ", ".join(f"{number(1000 * seconds)} ms at {_x(x, row.measured['unit'])}" for x, seconds in pairs)
            points.append(f"- {row.name.split(':')[0]}: {each}.")
    return "\n".join([*lines, *([""] if points else []), *points])


def tables(found: dict[str, dict[str, Any]]) -> str:
    return "\n\n".join(markdown(part, found[part]) for part in PARTS if part in found)


def _x(x: float, unit: str) -> str:
    return {"K": f"K = {x:.0f}", "parameters": f"{x:,.0f}"}.get(unit, f"chunk_size {1 / x:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=str(__doc__).splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=31)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument("--json", type=Path, default=ROOT / "results/bench.json", help="default: results/bench.json")
    parser.add_argument("--record", action="store_true", help="keep the figures in the repository too")
    parser.add_argument("--quick", action="store_true", help="small sizes: only to see that it runs")
    given = parser.parse_args()
    if given.record and given.quick:
        parser.error("--quick measures nothing that is worth to --record")
    parts = [given.only] if given.only else list(PARTS)
    rows = {part: PARTS[part](given.threads, 1 if given.quick else given.repetitions, given.quick) for part in parts}
    on = machine(given.threads)
    found = {part: {"machine": on, "quick": given.quick, "rows": [asdict(row) for row in rows[part]]} for part in parts}
    table = Table(title="quick: these figures mean nothing" if given.quick else None)
    for heading in ("", "measured", "must", "aim", ""):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for row in chain(*rows.values()):
        verdict = "holds" if row.holds else "MISSED"
        table.add_row(row.name, number(row.value) + row.unit, row.wanted(row.must), row.wanted(row.aim), verdict)
    Console().print(table, described(on), sep="\n")
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(found, indent=1) + "\n")
    if given.record:
        kept = json.loads(RECORD.read_text()) | found if RECORD.exists() else found
        RECORD.write_text(json.dumps(kept, indent=1) + "\n")
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{tables(kept)}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
