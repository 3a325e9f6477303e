"""The report, from real ledgers filled with made-up rows."""

import copy
import csv
import functools
import html.parser
import math
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console
from ruamel.yaml import YAML
from scipy import stats
from synthetic_experiment import (
    STEPS_AN_EPOCH,
    Row,
    cells_of,
    diverge,
    fail,
    finish,
    launched,
    rows_of,
    spec_of,
    trained,
)

from fsg.costs import LayerCost, NetworkCost
from orchestration.analysis.comparisons import Line
from orchestration.ledger.ledger import Ledger
from orchestration.report import differences, layer_maps
from orchestration.report.csv_files import curves_csv, layers_csv
from orchestration.report.data import Report, build
from orchestration.report.figures import drawing
from orchestration.report.places import places_of
from orchestration.report.resolved import resolved_text
from orchestration.report.tables import convergence, terminal_table
from orchestration.report.write import write
from orchestration.spec.cells import Cell
from orchestration.spec.fields import Published
from orchestration.spec.networks import NetworkOfLines

ABLATION = ("fsg", "no_history", "no_layer_embedding", "fast_only", "slow_only", "ema", "fsg_released", "ste")


def finished(folder: Path, accuracies: dict[str, list[float]]) -> Ledger:
    """An experiment whose test accuracies are given, a list over seeds for each variant."""
    spec = spec_of(tuple(accuracies), range(len(next(iter(accuracies.values())))))
    cells = cells_of(spec)
    ledger = launched(folder, spec, cells)
    for cell in cells:
        finish(ledger, cell, accuracies[cell.variant][cell.seed])
    return ledger


def line(report: Report, variant: str, grid: str = "") -> Line:
    (found,) = [one for one in report.lines if (one.variant, one.grid) == (variant, grid)]
    return found


def printed(report: Report, width: int = 80) -> str:
    console = Console(width=width, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(terminal_table(report))
    return capture.get()


class _Page(html.parser.HTMLParser):
    """What of a page points elsewhere, its ids, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elsewhere: list[str] = []
        self.ids: list[str] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(("#", "data:image/png")):
                self.elsewhere.append(f"{tag} {name}={value}")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words += data


def page_of(report: Report) -> tuple[str, _Page]:
    (path,) = [path for path in write(report) if path.suffix == ".html"]
    text = path.read_text(encoding="utf-8")
    return text, _Page(text)


def test_line_has_mean_deviation_and_paired_difference(tmp_path: Path) -> None:
    ours, theirs = [0.80, 0.82, 0.87], [0.79, 0.80, 0.83]
    report = build(finished(tmp_path / "x", {"fsg": ours, "ste": theirs}))
    found = line(report, "fsg")
    assert found.metric.mean == pytest.approx(np.mean(ours))
    assert found.metric.deviation == pytest.approx(np.std(ours, ddof=1))
    assert found.comparison is not None
    assert found.comparison.mean == pytest.approx(np.mean(ours) - np.mean(theirs))
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.comparison.interval == pytest.approx((expected.low, expected.high))
    assert (found.done, len(found.trials), found.seconds) == (3, 3, 75.0)
    assert line(report, "ste").comparison is None
    assert report.unit.spread(found.metric).replace("\u00a0", " ") == "83.00 ± 3.61"
    assert report.unit.write(found.comparison.mean, signed=True) == "+2.33"


def test_final_loss_is_the_mean_over_the_last_epoch(tmp_path: Path) -> None:
    spec = spec_of(("fsg", "ste"), (0,))
    report = build(trained(tmp_path / "x", spec))
    losses = [row.values["train/loss"] for row in rows_of(cells_of(spec)[0]) if "train/loss" in row.values]
    assert line(report, "fsg").loss.mean == pytest.approx(np.mean(losses[-2:]))  # two rows an epoch


def test_too_few_seeds_to_reject_is_said_and_no_difference_claimed(tmp_path: Path) -> None:
    verdict = build(finished(tmp_path / "x", {"fsg": [0.9, 0.901, 0.902], "ste": [0.8, 0.8, 0.8]})).verdict
    assert (verdict.headline, verdict.shown) == ("No difference shown", False)
    assert "10.10 points higher test accuracy than ste over 3 paired seeds" in verdict.sentence
    assert "the interval excludes zero" in verdict.sentence
    assert "p\u00a0=\u00a00.25" in verdict.sentence
    assert "cannot give less than p\u00a0=\u00a00.25" in verdict.consequence
    assert "6 seeds are the fewest that could" in verdict.consequence


def test_enough_agreeing_seeds_show_a_difference_of_either_sign(tmp_path: Path) -> None:
    higher, lower = [0.81, 0.82, 0.83, 0.82, 0.81, 0.83], [0.80, 0.80, 0.81, 0.80, 0.80, 0.81]
    up = build(finished(tmp_path / "up", {"fsg": higher, "ste": lower})).verdict
    down = build(finished(tmp_path / "down", {"fsg": lower, "ste": higher})).verdict
    assert (up.shown, up.headline) == (True, "fsg: higher test accuracy, significant at 5\u00a0%")
    assert (down.shown, down.headline) == (True, "fsg: lower test accuracy, significant at 5\u00a0%")
    assert "p\u00a0=\u00a00.0312" in up.sentence


def test_seeds_that_disagree_show_nothing(tmp_path: Path) -> None:
    verdict = build(
        finished(tmp_path / "x", {"fsg": [0.8, 0.82, 0.8, 0.83, 0.8, 0.82], "ste": [0.81, 0.8, 0.82, 0.8, 0.82, 0.81]})
    ).verdict
    assert not verdict.shown
    assert "the interval includes zero" in verdict.sentence
    assert "no proof that there is none" in verdict.consequence


def test_test_and_interval_must_agree(tmp_path: Path) -> None:
    """Five small gains and a large one: every flip is lower, but the interval includes zero."""
    gains = [0.001, 0.001, 0.001, 0.001, 0.001, 0.09]
    verdict = build(finished(tmp_path / "x", {"fsg": [0.8 + g for g in gains], "ste": [0.8] * 6})).verdict
    assert not verdict.shown
    assert "disagree" in verdict.consequence


def test_one_seed_has_no_interval_and_no_test(tmp_path: Path) -> None:
    verdict = build(finished(tmp_path / "x", {"fsg": [0.9], "ste": [0.8]})).verdict
    assert verdict.headline == "One seed shows nothing"
    assert "p\u00a0=" not in verdict.sentence


def test_diverged_seed_counts_as_accuracy_zero_and_is_named(tmp_path: Path) -> None:
    spec = spec_of(("fsg", "ste"), (0, 1, 2))
    cells = cells_of(spec)
    ledger = launched(tmp_path / "x", spec, cells)
    for cell in cells:
        if (cell.variant, cell.seed) == ("fsg", 1):
            diverge(ledger, cell)
        else:
            finish(ledger, cell, 0.9 if cell.variant == "fsg" else 0.6)
    report = build(ledger)
    assert line(report, "fsg").values == {0: 0.9, 1: 0.0, 2: 0.9}
    assert line(report, "fsg").metric.mean == pytest.approx(0.6)
    assert line(report, "fsg").comparison.differences == pytest.approx((0.3, -0.6, 0.3))  # type: ignore[union-attr]
    _, page = page_of(report)
    assert "Diverged, and counted with an accuracy of 0 %: fsg · seed 1." in page.words
    assert "the loss is nan at step 40" in page.words
    assert "2/3, 1 diverged" in page.words
    assert "✗ diverged, counted as 0 %" in printed(report)
    (curve,) = [curve for curve in report.panels[0][0].curves if curve.label == "fsg"]
    assert len(curve.diverged) == 1
    assert curve.diverged[0][0][-1] == pytest.approx(1.5)  # its last row, in epochs


@pytest.mark.parametrize("at", [30, 0])
@pytest.mark.parametrize("metric", ["test/accuracy", "test/loss"])
def test_table_without_a_measured_pair_says_so_and_has_no_difference(
    tmp_path: Path, metric: str, at: int, drawn: None
) -> None:
    """Also where nothing was recorded before the end, and there is no curve."""
    spec = spec_of(("fsg", "ste"), (0, 1), metric=metric)
    cells = cells_of(spec)
    ledger = launched(tmp_path / "x", spec, cells)
    for cell in cells:
        diverge(ledger, cell, at=at)
    report = build(ledger)
    told = "Nothing is measured: no pair of a variant and ste has a training that came to its end"
    assert report.nothing_measured == told
    assert f"{told}." in report.warnings
    assert told in " ".join(printed(report).split())
    assert "+0.00" not in printed(report)
    assert line(report, "fsg").comparison.n == 0  # type: ignore[union-attr]
    _, page = page_of(report)
    assert f"{told}." in page.words


def test_diverged_seed_makes_a_loss_infinite_and_the_verdict_says_so(tmp_path: Path, drawn: None) -> None:
    spec = spec_of(("fsg", "ste"), (0, 1), metric="test/loss")
    cells = cells_of(spec)
    ledger = launched(tmp_path / "x", spec, cells)
    diverge(ledger, cells[0])
    for cell in cells[1:]:
        finish(ledger, cell)
    report = build(ledger)
    assert report.verdict.headline == "Not comparable"
    assert math.isinf(line(report, "fsg").metric.mean)
    assert "∞" in printed(report)
    page_of(report)


def test_incomplete_experiment_says_what_is_missing(tmp_path: Path) -> None:
    spec = spec_of(("fsg", "ste"), (0, 1, 2))
    cells = cells_of(spec)
    ledger = launched(tmp_path / "x", spec, cells)
    finish(ledger, cells[0])
    finish(ledger, cells[1])
    fail(ledger, cells[2])
    report = build(ledger)
    assert "over one seed of 3 planned" in report.verdict.sentence
    assert [trial.state for trial in report.unfinished] == ["failed", "waiting", "waiting", "waiting"]
    _, page = page_of(report)
    assert "4 of 6 cells are not done" in page.words
    assert "RuntimeError: no | such thing <b>" in page.words
    markdown = (ledger.folder / "report.md").read_text()
    assert r"RuntimeError: no \| such thing" in markdown


def test_experiment_of_which_nothing_is_done_has_a_report(tmp_path: Path, drawn: None) -> None:
    spec = spec_of()
    report = build(launched(tmp_path / "x", spec, cells_of(spec)))
    assert report.verdict.headline == "No verdict yet"
    _, page = page_of(report)
    assert "nothing recorded yet" in page.words
    printed(report)


def test_folder_without_a_launch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no launch is recorded"):
        build(Ledger(tmp_path / "x"))


def test_contaminated_validation_is_marked(tmp_path: Path, drawn: None) -> None:
    spec = spec_of(seeds=(0,))
    cells = cells_of(spec, contaminated=True)
    ledger = launched(tmp_path / "x", spec, cells)
    for cell in cells:
        finish(ledger, cell)
    _, page = page_of(build(ledger))
    assert "Validation figures are contaminated" in page.words
    assert "Validation accuracy (contaminated)" in page.words


def test_mixed_commits_and_devices_are_flagged(tmp_path: Path) -> None:
    spec = spec_of()
    cells = cells_of(spec)
    ledger = launched(tmp_path / "x", spec, cells)
    finish(ledger, cells[0], git_commit="b" * 40, device="cuda")
    for cell in cells[1:]:
        finish(ledger, cell)
    warnings = build(ledger).warnings
    assert (
        f"Cells of different commits stand in one table: 0123456789abcdef0123456789abcdef01234567, {'b' * 40}."
        in warnings
    )
    assert "Cells of different devices stand in one table: cpu, cuda." in warnings


def test_what_the_bits_hang_on_is_flagged_where_it_differs_and_not_where_it_is_unknown(tmp_path: Path) -> None:
    spec = spec_of(("fsg", "ste"), (0, 1))
    cells = cells_of(spec)
    same = {"cpu_capability": "AVX2", "blas": "mkl", "threads": "1"}
    known = launched(tmp_path / "known", spec, cells)
    for cell in cells:
        kernel = f"native: {cell.seed}" if cell.variant == "fsg" else ""
        features = "AVX512" if (cell.variant, cell.seed) == ("ste", 1) else "AVX2"
        finish(known, cell, **same | {"kernel": kernel, "cpu_capability": features, "libraries": {"einops": "0.8"}})
    report = build(known)
    assert report.warnings == (
        "Cells of different slow net kernels stand in one table: native: 0, native: 1.",
        "Cells of different processor features stand in one table: AVX2, AVX512.",
        "1 pairs compare different processor features: fsg · seed 1 (AVX2, ste: AVX512).",
    )
    assert "cells of different slow net kernels, processor features" in printed(report)
    partly = launched(tmp_path / "partly", spec, cells)
    for cell in cells:
        finish(partly, cell, **same if cell.variant == "fsg" else {})
    assert build(partly).warnings == ()


def test_versions_of_what_a_component_imports_are_compared_by_name(tmp_path: Path) -> None:
    spec = spec_of(("fsg", "ste"), (0, 1))
    ledger = launched(tmp_path / "x", spec, cells_of(spec))
    for cell in cells_of(spec):
        finish(ledger, cell, libraries={"einops": f"0.{cell.seed}"} if cell.variant == "fsg" else {})
    assert build(ledger).warnings == ("Cells of different versions of einops stand in one table: 0.0, 0.1.",)


def test_code_of_another_launch_is_flagged_through_the_attempts_launch(tmp_path: Path) -> None:
    spec = spec_of(("fsg", "ste"), (0,))
    cells = cells_of(spec)
    ledger = launched(tmp_path / "x", spec, cells)
    ledger.record_launch(ledger.launches()[0] | {"fsg_source_sha256": "e" * 64})
    for number, cell in enumerate(cells, start=1):
        attempt = ledger.claim(cell.id, {"launch": number, "device": "cpu"})
        attempt.weights("final.pt", b"weights")
        attempt.finish("done")
    (warning,) = [one for one in build(ledger).warnings if "stand in one table" in one]
    assert warning.startswith("Cells of different training code")


def test_orphans_are_left_out_and_counted(tmp_path: Path) -> None:
    spec = spec_of(seeds=(0,))
    ledger = launched(tmp_path / "x", spec, cells_of(spec, numerics=1))
    for cell in cells_of(spec, numerics=1):
        finish(ledger, cell, 0.1)
    launched(tmp_path / "x", spec, cells_of(spec, numerics=2))
    for cell in cells_of(spec, numerics=2):
        finish(ledger, cell, 0.8)
    report = build(ledger)
    assert line(report, "fsg").values == {0: 0.8}
    assert any("(orphans): 2" in warning for warning in report.warnings)


def test_papers_protocol_has_a_column_of_its_own(tmp_path: Path) -> None:
    spec = spec_of(("fsg", "ste"), (0, 1), epochs=12, validation=0)
    report = build(trained(tmp_path / "x", spec))
    cells = [cell for cell in cells_of(spec) if cell.variant == "fsg"]
    name = "papers_protocol/test_accuracy"
    means = [np.mean([row.values[name] for row in rows_of(cell) if name in row.values][-10:]) for cell in cells]
    assert line(report, "fsg").papers_protocol.mean == pytest.approx(np.mean(means))
    _, page = page_of(report)
    assert "papers' protocol" in page.words
    assert f"{100 * np.mean(means):.2f} ({1e4 * np.var(means, ddof=1):.3f})" in page.words
    assert "test accuracy (%)" in page.words
    assert "papers' protocol" not in _Page(page_of(build(trained(tmp_path / "y", spec_of())))[0]).words


def test_grid_points_are_lines_compared_to_the_baseline_at_the_same_point(tmp_path: Path) -> None:
    spec = spec_of(("fsg", "ste"), (0, 1), {"optimizer.lr": [0.1, 0.01]})
    cells = cells_of(spec)
    ledger = launched(tmp_path / "x", spec, cells)
    for cell in cells:
        gain = {0.1: 0.02, 0.01: 0.04}[cell.grid["optimizer.lr"]] if cell.variant == "fsg" else 0.0
        finish(ledger, cell, 0.7 + gain + cell.grid["optimizer.lr"] + 0.01 * cell.seed * (cell.variant == "fsg"))
    report = build(ledger)
    assert [(one.variant, one.grid) for one in report.lines] == [
        ("fsg", "optimizer.lr=0.1"),
        ("fsg", "optimizer.lr=0.01"),
        ("ste", "optimizer.lr=0.1"),
        ("ste", "optimizer.lr=0.01"),
    ]
    assert line(report, "fsg", "optimizer.lr=0.1").comparison.mean == pytest.approx(0.025)  # type: ignore[union-attr]
    assert line(report, "fsg", "optimizer.lr=0.01").comparison.mean == pytest.approx(0.045)  # type: ignore[union-attr]
    assert "3.50 points higher test accuracy than ste over 2 paired seeds, averaged over 2 grid points" in (
        report.verdict.sentence
    )
    assert len(report.panels) == 2
    assert "fsg · lr=0.01" in printed(report)


def test_curve_is_the_mean_with_a_band_from_lowest_to_highest_seed(tmp_path: Path) -> None:
    spec = spec_of(("fsg", "ste"), (0, 1, 2))
    report = build(trained(tmp_path / "x", spec))
    cells = [cell for cell in cells_of(spec) if cell.variant == "fsg"]
    values = np.array(
        [
            [row.values["validation/accuracy"] for row in rows_of(c) if "validation/accuracy" in row.values]
            for c in cells
        ]
    )
    assert report.warnings == (), "one commit and one device are not flagged"
    (curve,) = [curve for curve in report.panels[0][1].curves if curve.label == "fsg"]
    np.testing.assert_allclose(curve.x, [1, 2, 3, 4])
    np.testing.assert_allclose(curve.mean, values.mean(0))
    np.testing.assert_allclose(curve.low, values.min(0))
    np.testing.assert_allclose(curve.high, values.max(0))


def test_long_trainings_are_thinned_by_averaging_neighbours(tmp_path: Path) -> None:
    spec = spec_of(("fsg", "ste"), (0,), epochs=400)
    report = build(trained(tmp_path / "x", spec))
    losses = [row.values["train/loss"] for row in rows_of(cells_of(spec)[0]) if "train/loss" in row.values]
    (curve,) = [curve for curve in report.panels[0][0].curves if curve.label == "fsg"]
    assert len(curve.x) == 150
    assert curve.mean[0] == pytest.approx(np.mean(losses[:6]))  # 800 rows in 150 parts


def test_page_stands_alone_and_is_small(tmp_path: Path, drawn: None) -> None:
    text, page = page_of(build(trained(tmp_path / "x", spec_of(ABLATION, epochs=80))))
    assert page.elsewhere == []
    assert not re.search(r"@import|url\((?!#)", text)
    assert re.findall("<script.*?>", text) == [
        "<script>",
        '<script type="application/json" id="marks">',
        '<script type="module">',
    ]
    assert not re.search(r"fetch\(|XMLHttpRequest|WebSocket|import\(|sendBeacon", text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert len(text.encode()) < 2_000_000
    assert (text.count('aria-label="Training loss: '), text.count('aria-label="Validation accuracy: ')) == (1, 1)


def test_page_says_question_command_and_provenance_and_is_the_same_when_made_again(tmp_path: Path, drawn: None) -> None:
    spec = spec_of(profile="quick")
    ledger = trained(tmp_path / "x", spec)
    report = build(ledger)
    _, page = page_of(report)
    first = {path: path.read_bytes() for path in ledger.folder.glob("**/*") if path.is_file()}
    for said in (
        spec.question,
        "ablation · quick",
        "fsg launch configs/ablation.yaml",
        spec.sha256(),
        "torch 2.14.1",
        "A CPU",
    ):
        assert said in page.words
    assert report.verdict.sentence in page.words
    markdown = (tmp_path / "x" / "report.md").read_text()
    assert report.verdict.sentence in markdown
    for name in ("convergence-training-loss", "convergence-validation-accuracy", "differences"):
        assert f"](figures/{name}.svg)" in markdown
        svg = (tmp_path / "x" / "figures" / f"{name}.svg").read_bytes()
        assert svg.startswith(b"<?xml")
        assert len(svg) > 1000
    assert {path: path.read_bytes() for path in write(build(ledger))}.items() <= first.items()


def test_markdown_table_has_as_many_columns_in_every_line(tmp_path: Path) -> None:
    write(build(trained(tmp_path / "x", spec_of(ABLATION, (0,)))))
    text = (tmp_path / "x" / "report.md").read_text()
    tables = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)]
    assert len(tables[0]) == 2 + len(ABLATION)
    assert len(tables) >= 3
    assert all(len({one.count("|") for one in lines}) == 1 for lines in tables)


def test_what_a_spec_says_cannot_become_markup(tmp_path: Path) -> None:
    spec = spec_of()
    cells = cells_of(spec)
    ledger = launched(tmp_path / "x", spec, cells)
    record = ledger.launches()[0]
    ledger.record_launch(record | {"spec": record["spec"] | {"question": "<script>alert(1)</script>"}})
    text, page = page_of(build(ledger))
    assert "<script>alert" not in text
    assert "<script>alert(1)</script>" in page.words


def test_table_fits_80_columns_with_every_variant_on_one_line(tmp_path: Path) -> None:
    for validation, seeds in ((1000, 2), (0, 10)):
        spec = spec_of(ABLATION, range(seeds), validation=validation)
        lines = printed(build(trained(tmp_path / str(seeds), spec))).splitlines()
        assert max(map(len, lines)) <= 80
        assert [one.split()[0] for one in lines[2 : 2 + len(ABLATION)]] == list(ABLATION)
        assert all(re.match(r"[*★]", one) for one in lines[2 + len(ABLATION) :])


def test_row_of_no_interest_is_ignored(tmp_path: Path) -> None:
    spec = spec_of(("fsg", "ste"), (0,))
    cells = cells_of(spec)
    ledger = launched(tmp_path / "x", spec, cells)
    attempt = ledger.claim(cells[0].id, {"device": "cpu"})
    attempt.record([Row(1, {"own/metric": float("nan")})])
    attempt.weights("final.pt", b"weights")
    attempt.finish("done")
    assert line(build(ledger), "fsg").values == {}


def test_published_figures_stand_beside_with_their_source_and_in_no_test(tmp_path: Path) -> None:
    spec = spec_of(("fsg", "a", "ste"), (0, 1), epochs=12, validation=0)
    stated = {
        "a": Published(
            mean=80.745, variance=2.113, runs=5, source="Table 2 of <their paper>", protocol={"data.validation": 0}
        ),
        "ste": Published(mean=79.5, sd=0.4, source="Table 2 of <their paper>"),
    }
    report = build(trained(tmp_path / "x", replace(spec, report=replace(spec.report, published=stated))))
    _, page = page_of(report)
    assert "80.75 (2.113)" in page.words
    assert "79.50\u00a0±\u00a00.40" in page.words
    assert page.words.count("Table 2 of <their paper>") >= 1
    assert "of 5 runs" in page.words
    assert "The runs have the figures' own data.validation." in page.words
    assert "No protocol is stated for ste: the conditions may be others." in page.words
    plain = build(trained(tmp_path / "y", spec))
    assert plain.verdict == report.verdict
    assert "Published" not in page_of(plain)[1].words


def test_a_published_figure_may_be_of_one_grid_point(tmp_path: Path) -> None:
    spec = spec_of(("fsg", "ste"), (0,), {"optimizer.lr": [0.1, 0.01]})
    stated = {"fsg · optimizer.lr=0.1": Published(mean=91.5, source="them")}
    report = build(trained(tmp_path / "x", replace(spec, report=replace(spec.report, published=stated))))
    of = {line.label: report.published(line) for line in report.lines}
    assert [label for label, figure in of.items() if figure] == ["fsg · optimizer.lr=0.1"]


def test_seeds_added_after_a_launch_are_labelled_exploratory_in_every_table(tmp_path: Path) -> None:
    ledger = trained(tmp_path / "x", spec_of(seeds=range(6)))
    before = build(ledger)
    more = spec_of(seeds=range(8))
    for cell in cells_of(more):
        ledger.add(cell)
    ledger.record_launch(ledger.launches()[0] | {"spec": more.resolved(), "cells": [c.id for c in cells_of(more)]}
                         | {"started": time.time_ns() // 1_000_000 + 1})  # fmt: skip
    for cell in cells_of(more):
        if cell.seed >= 6:
            finish(ledger, cell, 0.99)
    report = build(ledger)
    assert report.verdict == before.verdict
    assert line(report, "fsg").metric == line(before, "fsg").metric
    assert line(report, "fsg").explored.n == 8  # type: ignore[union-attr]
    text, page = page_of(report)
    assert "Exploratory: seeds 6, 7 were added when results could be seen." in page.words
    assert "fsg, exploratory: 8 seeds" in page.words
    assert text.count(", exploratory</title>") == 4
    assert "fsg, exploratory: 8 seeds" in (ledger.folder / "report.md").read_text()
    assert "fsg, exploratory: 8 seeds" in (ledger.folder / "report.tex").read_text()
    cells = (ledger.folder / "report.cells.csv").read_text().splitlines()
    assert sum(",yes," in row for row in cells) == 4
    assert "6/6+2" in printed(report)
    assert "+2 exploratory" in printed(report)


def test_convergence_is_counted_and_tested(tmp_path: Path) -> None:
    spec = spec_of(seeds=range(6), epochs=4)
    spec = replace(spec, report=replace(spec.report, reach=[0.7, 0.99]))
    report = build(trained(tmp_path / "x", spec))
    area, epochs, seconds, never, _ = report.measured[1:]
    assert [m.unit.name for m in (area, epochs, seconds)] == [
        "area under the loss curve, an epoch", "epochs to 70\u00a0%", "seconds to 70\u00a0%"]  # fmt: skip
    cell = next(cell for cell in cells_of(spec) if (cell.variant, cell.seed) == ("fsg", 3))
    losses = [row.values["train/loss"] for row in rows_of(cell) if "train/loss" in row.values]
    assert area.lines[0].values[3] == pytest.approx(np.mean(losses))
    first = next(row.step for row in rows_of(cell) if row.values.get("validation/accuracy", 0) >= 0.7)
    assert epochs.lines[0].values[3] == first / STEPS_AN_EPOCH
    assert seconds.lines[0].values[3] == pytest.approx(0.1 * first)
    assert set(never.lines[0].values.values()) == {4.0}
    assert (epochs.family.size, epochs.contrasts[0].role) == (1, "family")
    assert "epochs to 70\u00a0%" in page_of(report)[1].words


def test_validation_accuracy_stands_at_the_end_and_at_its_best(tmp_path: Path) -> None:
    spec = spec_of(("fsg", "ste"), seeds=range(4), epochs=4)
    cells = cells_of(spec)
    ledger = launched(tmp_path / "x", spec, cells)
    before, end = {"fsg": (0.8, 0.6, 0.9), "ste": (0.7, 0.7, 0.5)}, {"fsg": 0.75, "ste": 0.5}
    for cell in cells:
        attempt = ledger.claim(cell.id, {"device": "cpu"})
        values = [*before[cell.variant], end[cell.variant]]
        attempt.record([Row(10 * n, {"epoch": n, "train/loss": 1.0, "validation/accuracy": value + cell.seed / 100})
                        for n, value in enumerate(values, 1)])  # fmt: skip
        attempt.record([Row(40, {"test/accuracy": 0.5})])
        attempt.weights("final.pt", b"the final weights")
        attempt.finish("done", digest="d" * 64, step=40, seconds=1.0)
    *_, table = convergence(build(ledger))
    rows = {row.cells[0]: row.cells[1:] for row in table.rows}
    spread = "\u00a0±\u00a01.29"
    assert rows["fsg"] == (f"76.50{spread}", "+25.00 [+25.00,\u00a0+25.00]", f"91.50{spread}",
                           "+20.00 [+20.00,\u00a0+20.00]", "3.0\u00a0±\u00a00.0")  # fmt: skip
    assert rows["ste"] == (f"51.50{spread}", "baseline", f"71.50{spread}", "baseline", "1.0\u00a0±\u00a00.0")
    once = build(trained(tmp_path / "y", spec_of(seeds=range(2), epochs=1)))
    assert [made.title for made in convergence(once)] == ["area under the loss curve, an epoch"]


def test_latex_has_as_many_columns_in_every_row_and_escapes_what_it_must(tmp_path: Path) -> None:
    spec = spec_of(("fsg", "no_history", "ste"), (0, 1))
    write(build(trained(tmp_path / "x", spec)))
    text = (tmp_path / "x" / "report.tex").read_text()
    assert r"no\_history" in text
    assert "no_history" not in text.replace(r"no\_history", "")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    for columns, body in re.findall(r"\\begin\{tabular\}\{(l r*|lr*)\}(.*?)\\end", text, flags=re.DOTALL):
        rows = [row for row in body.splitlines() if row.endswith(r"\\")]
        assert len(rows) >= 3
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}
    assert re.search(r"(?<!\\)%", text.split("\n", 1)[1].split("% Verdict")[0]) is None
    assert not re.search(r"[−±∞·–≥≤\u00a0]", text.split("% Verdict")[0].split("\n", 1)[1])


def test_cells_csv_has_every_number_to_the_last_bit(tmp_path: Path) -> None:
    report = build(trained(tmp_path / "x", spec_of(seeds=(0, 1))))
    write(report)
    rows = list(csv.DictReader((tmp_path / "x" / "report.cells.csv").open()))
    assert len(rows) == 4
    assert [float(row["test accuracy"]) for row in rows if row["variant"] == "fsg"] == list(
        line(report, "fsg").values.values()
    )


def with_diagnostics(ledger: Ledger, cell: Cell, layers: int, epochs: int) -> None:
    """Train it, with the tables that a training keeps of its layers."""
    attempt = ledger.claim(cell.id, {"device": "cpu"})
    for epoch in range(1, epochs + 1):
        terminal_table = {"epoch": epoch, "step": epoch * STEPS_AN_EPOCH, "layer": [f"layer{i}" for i in range(layers)]}
        terminal_table["flip_rate"] = [(1 + cell.seed) * 10.0**-epoch] * layers
        terminal_table["cosine_ste_applied"] = [0.5] * layers
        terminal_table["norm_ste"] = [0.0] + [2.0] * (layers - 1)
        if cell.variant != "ste":
            terminal_table["cosine_fast_slow"] = [None if cell.seed == 0 else -0.5] * layers
            terminal_table["norm_fast"] = [10.0 * epoch * (1 + cell.seed)] * layers
        attempt.diagnostics(terminal_table)
    attempt.record([*rows_of(cell), Row(STEPS_AN_EPOCH, {"system/memory_megabytes": 500.0 + cell.seed})])
    attempt.weights("final.pt", b"weights")
    attempt.finish("done", step=cell.train.epochs * STEPS_AN_EPOCH, seconds=75.0)


def test_layers_are_drawn_as_the_mean_over_seeds_where_a_variant_has_them(tmp_path: Path) -> None:
    spec = spec_of(seeds=(0, 1), epochs=3)
    cells = cells_of(spec)
    ledger = launched(tmp_path / "x", spec, cells)
    for cell in cells:
        with_diagnostics(ledger, cell, layers=5, epochs=3)
    report = build(ledger)
    flips = {each.label: each.values for each in report.layers["Flip rate a step"]}
    np.testing.assert_allclose(flips["ste"][0], [0.15, 0.015, 0.0015])
    (fast_slow,) = report.layers["Cosine of fast and slow gradient"]
    assert fast_slow.label == "fsg"
    np.testing.assert_array_equal(fast_slow.values, np.full((5, 3), -0.5))  # of the one seed in which it is defined
    (fast_ste,) = report.layers["Norm of fast over straight-through gradient"]
    assert fast_ste.label == "fsg"
    np.testing.assert_allclose(fast_ste.values[1:], np.full((4, 3), 7.5) * [1, 2, 3])
    assert np.isnan(fast_ste.values[0]).all(), "over a gradient that is zero"
    assert "Norm of slow over straight-through gradient" not in report.layers
    assert len(report.layers["Cosine of applied and straight-through gradient"]) == 2
    rows = list(csv.DictReader(layers_csv(report).splitlines()))
    assert len(rows) == 2 * 5 * 3
    (first,) = (row for row in rows if (row["line"], row["layer"], row["epoch"]) == ("fsg", "layer1", "2"))
    assert float(first["Flip rate a step"]) == pytest.approx(0.015)
    assert float(first["Norm of fast over straight-through gradient"]) == pytest.approx(15)
    assert {row["Cosine of fast and slow gradient"] for row in rows if row["line"] == "ste"} == {""}
    zero = [row["Norm of fast over straight-through gradient"] for row in rows if row["layer"] == "layer0"]
    assert zero == [""] * 6
    text, page = page_of(report)
    assert text.count('aria-label="Flip rate a step, by layer and epoch"') == 1
    markdown = (ledger.folder / "report.md").read_text()
    for name in re.findall(r"\]\((figures/.*?)\)", markdown):
        assert (ledger.folder / name).exists()
    assert markdown.count("](figures/layers-") == 4
    assert "501\u00a0MB" in page.words


def test_damaged_diagnostics_are_in_no_map_and_said(tmp_path: Path) -> None:
    spec = spec_of(seeds=(0, 1), epochs=3)
    cells = cells_of(spec)
    ledger = launched(tmp_path / "x", spec, cells)
    for cell in cells:
        with_diagnostics(ledger, cell, layers=2, epochs=3)
    assert not any("Diagnostics" in one for one in build(ledger).warnings)
    hurt = next(cell for cell in cells if cell.label == "ste · seed 1")
    (table, *_) = sorted((ledger.folder / "trials" / hurt.id / "0001").glob("diagnostics-*.json"))
    table.write_bytes(table.read_bytes()[:-20])
    report = build(Ledger(ledger.folder))
    (said,) = (one for one in report.warnings if "Diagnostics" in one)
    assert said == "Diagnostics of some epochs are damaged, and in no map of the layers: ste · seed 1."
    flips = {each.label: each.values for each in report.layers["Flip rate a step"]}
    np.testing.assert_allclose(flips["ste"][0], [0.015, 0.0015])  # no mean over fewer seeds than the line has


def test_what_networks_cost_stands_in_the_report_and_by_layer_in_the_csv(tmp_path: Path) -> None:
    spec = spec_of(seeds=(0,), epochs=2)
    cells = cells_of(spec)
    layers = (LayerCost("layer0", 120, 100, 1, 32, 4000), LayerCost("head", 80, 0, 32, 32, 160))
    networks = [NetworkOfLines(("ste", "fsg"), NetworkCost(layers, 1000, 413)), NetworkOfLines(("else",), None, "why")]
    ledger = launched(tmp_path / "x", spec, cells, networks=[one.to_dict() for one in networks])
    with_diagnostics(ledger, cells[0], layers=1, epochs=2)
    report = build(ledger)
    rows = list(csv.DictReader(layers_csv(report).splitlines()))
    names = ("parameters", "weight_bits", "activation_bits", "flops", "bops")
    found = {(row["line"], row["layer"], row["epoch"]): [row[name] for name in names] for row in rows}
    layer0, head = ["120", "1", "32", "4000", "64000"], ["80", "32", "32", "160", "81920"]
    line, other = cells[0].variant, "fsg" if cells[0].variant == "ste" else "ste"
    assert found == {
        (line, "layer0", "1"): layer0, (line, "layer0", "2"): layer0, (line, "head", ""): head,
        (other, "layer0", ""): layer0, (other, "head", ""): head,
    }  # fmt: skip
    _, page = page_of(report)
    assert "ste, fsg" in page.words
    text = "| ste, fsg | 200 | 50.0\u00a0% | 1\u00a0kB | 413\u00a0B | 4.16\u00a0k | 146\u00a0k |"
    assert text in (ledger.folder / "report.md").read_text()


def test_the_maps_of_a_large_network_stay_small(tmp_path: Path, drawn: None) -> None:
    """Five figures of four maps each are 2 MB of a page at most."""

    def figure(layers: int, epochs: int) -> Figure:
        values = np.random.default_rng(0).uniform(1e-6, 1e-1, (layers, epochs))
        names, numbers = tuple(f"layer{i}" for i in range(layers)), tuple(range(1, epochs + 1))
        return layer_maps.draw_maps("Flip rate a step", [layer_maps.Map("fsg", names, numbers, values)])

    large = drawing(figure(112, 100), "flips", "Flip rate a step, by layer and epoch")
    text = large.inline
    assert text.count("<image") == 2, "it and the scale"
    assert len(text.encode()) < 100_000
    assert drawing(figure(3, 2), "layers", "").save(tmp_path).stat().st_size > 1000


def test_page_says_the_cost_and_behind_each_cell_its_command_and_behind_the_page_its_spec_and_changes(
    tmp_path: Path,
) -> None:
    ledger = trained(tmp_path / "x", spec_of(seeds=(0,)))
    ledger.record_launch(ledger.launches()[0] | {"git_diff": "-old <b>\n+new", "git_diff_sha256": "a" * 64,
                                                 "data": {"Images": "f" * 64}})  # fmt: skip
    text, page = page_of(build(ledger))
    assert "2 min 30 s" in page.words  # two cells of 75 s
    for cell in cells_of(spec_of(seeds=(0,))):
        assert f"fsg reproduce {ledger.folder} {cell.id}" in page.words
    assert "# as it was written" in page.words
    assert "-old <b>\n+new" in page.words
    assert "<b>" not in text
    assert "f" * 64 in page.words
    assert "with changes that are not committed" in page.words


def test_the_resolved_spec_has_every_setting_of_every_line(tmp_path: Path) -> None:
    spec = spec_of()
    report = build(trained(tmp_path / "x", spec))
    write(report)
    recorded = report.launches[-1]["spec"]
    said = YAML(typ="safe").load(resolved_text(recorded, "fsg"))
    assert said["report"]["metric"] == "test/accuracy"
    assert said["seeds"] == list(spec.seeds)
    for point in recorded["points"]:
        train = copy.deepcopy(said["train"])
        for path, value in said["differences"].get(point["variant"], {}).items():
            *parents, last = path.split(".")
            functools.reduce(dict.__getitem__, parents, train)[last] = value
        assert train == point["train"], point["variant"]
    for name in ("report.md", "report.html"):
        text = html.unescape((report.folder / name).read_text())
        assert resolved_text(recorded, "fsg").strip() in text
        assert report.spec_text.strip() in text


def test_the_curves_file_has_what_the_ledger_has(tmp_path: Path) -> None:
    ledger = trained(tmp_path / "x", spec_of(seeds=(0, 1)))
    rows = list(csv.DictReader(curves_csv(build(ledger)).splitlines()))
    for name in ("train/loss", "validation/accuracy"):
        got = {(row["cell"], int(row["step"])): float(row[name]) for row in rows if row[name]}
        expected = {
            (cell.id, row.step): row.values[name]
            for cell in ledger.cells()
            for row in ledger.rows(cell.id)
            if name in row.values
        }
        assert got == expected
        assert got


def test_cells_are_grouped_by_what_they_were_trained_on(tmp_path: Path) -> None:
    spec = spec_of(seeds=(0, 1))
    cells = cells_of(spec)
    ledger = launched(tmp_path / "x", spec, cells)
    for place, cell in enumerate(cells):
        record = {"device": "A CPU", "cpu_capability": "AVX512" if place else "AVX2", "threads": "1",
                  "blas": "b" * 60, "versions": {"torch": "2.14.1"}}  # fmt: skip
        ledger.claim(cell.id, record).finish("failed", "why")
    first, others = places_of(ledger, build(ledger).trials)
    assert first == (f"1: {cells[0].label}", ("A CPU", "AVX2", "1", "–", "b" * 39 + "…", "2.14.1"))
    assert others.cells == "3: fsg · seed 1, ste · seed 0, ste · seed 1"
    assert others.determinants[1] == "AVX512"
    write(build(ledger))
    assert "| A CPU | AVX2 | 1 |" in (ledger.folder / "report.md").read_text()


def test_a_zero_is_drawn_as_zero_and_a_ratio_of_one_is_marked() -> None:
    """Grey is what is not defined alone."""
    values = np.array([[0.0, 1e-3], [np.nan, 1e-2]])
    one = layer_maps.Map("fsg", ("a", "b"), (1, 2), values)
    flips, norms = (layer_maps.draw_maps(title, [one]) for title in ("Flip rate a step", "Norm of fast over slow"))
    (image,) = flips.axes[0].images
    shown = np.ma.masked_invalid(image.get_array())
    np.testing.assert_array_equal(shown.mask, [[False, False], [True, False]])
    assert shown[0, 0] == image.norm.vmin == 1e-3
    (line,) = norms.axes[1].get_lines()
    low, high = norms.axes[1].get_ylim()
    assert (tuple(line.get_ydata()), low < 1 < high) == ((1.0, 1.0), True)
    assert "equal norms" in norms.axes[1].get_ylabel()
    assert flips.axes[1].get_lines()[:] == []


def test_differences_are_drawn_with_each_seed(tmp_path: Path) -> None:
    report = build(trained(tmp_path / "x", spec_of(ABLATION, seeds=(0, 1, 2))))
    figure = differences.draw_differences(report.lines, report.unit, "ste", "fsg")
    assert figure is not None
    points = [one.get_xdata() for one in figure.axes[0].lines if one.get_marker() == "o" and len(one.get_xdata())]
    fsg = line(report, "fsg").comparison
    assert fsg is not None
    np.testing.assert_allclose(points[0], 100 * np.array(fsg.differences))
    assert len(points) == len(ABLATION) - 1
    assert differences.draw_differences(report.lines[-1:], report.unit, "ste", "fsg") is None
