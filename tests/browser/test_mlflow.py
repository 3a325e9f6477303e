"""MLflow's pages of an ablation, in a real browser: every run is there, curves are drawn, artifacts open."""

import json
import re
import urllib.parse

import pytest
from playwright.sync_api import Locator, Page, expect
from tiny_ablation import CELLS

pytestmark = pytest.mark.browser
VARIANTS = ("fsg", "no_history", "ste")


def table(address: str) -> str:
    return address.replace("compareRunsMode=CHART", "compareRunsMode=TABLE")


def link(page: Page, name: str) -> Locator:
    return page.get_by_role("link", name=name, exact=True)


def card(page: Page, metric: str) -> Locator:
    """A metric's chart, scrolled to: what cannot be seen is not drawn."""
    expect(page.get_by_test_id("experiment-view-compare-runs-card").first).to_be_visible()
    found = page.get_by_test_id("experiment-view-compare-runs-card").filter(has_text=metric).first
    page.mouse.move(1100, 600)
    for _ in range(60):
        if found.locator(".js-plotly-plot").count():
            break
        page.mouse.wheel(0, 200)
        page.wait_for_timeout(500)
    return found


def close_assistant(page: Page) -> None:
    """MLflow's panel that takes a third of the window."""
    page.locator("[data-component-id='mlflow.assistant.chat_panel.close']").click()


def test_table_has_every_run_with_variant_and_seed(page: Page, address: str) -> None:
    page.goto(table(address))
    close_assistant(page)
    for variant in VARIANTS:
        expect(page.get_by_text(f"Group: {variant}", exact=True)).to_be_visible()
    for variant, seed in CELLS:
        expect(link(page, f"{variant} · seed {seed}")).to_be_visible()
    found = []
    for row in page.locator(".ag-center-cols-container .ag-row").all():
        cells = [row.locator(f"[col-id='tags.`{tag}`']") for tag in ("variant", "seed", "outcome")]
        found.append(tuple(cell.inner_text() for cell in cells))
    assert sorted(one for one in found if one[0]) == [(variant, str(seed), "done") for variant, seed in CELLS]


def test_comparison_opens_with_a_curve_for_each_variant(page: Page, address: str) -> None:
    page.goto(address)
    close_assistant(page)
    bars = card(page, "test/accuracy").locator(".barlayer .point path")
    expect(bars).to_have_count(len(VARIANTS))
    for metric in ("validation/accuracy", "train/loss", "weights/flip_rate"):
        chart = card(page, metric)
        for variant in VARIANTS:
            expect(chart.get_by_text(variant).first).to_be_attached()
        lines = chart.locator(".scatterlayer path.js-line[d]")
        expect(lines.nth(len(VARIANTS) - 1)).to_be_attached()
    page.mouse.wheel(0, -10_000)
    page.mouse.move(5, 5)
    page.wait_for_timeout(1000)


def test_two_runs_are_compared(page: Page, address: str) -> None:
    page.goto(table(address))
    expect(link(page, "ste · seed 0")).to_be_visible()
    runs = [str(link(page, f"{v} · seed 0").get_attribute("href")).split("/runs/")[1] for v in ("fsg", "ste")]
    server, _, place = address.partition("/#/experiments/")
    query = {"runs": json.dumps(runs), "experiments": json.dumps([place.split("/")[0]])}
    page.goto(f"{server}/#/compare-runs?{urllib.parse.urlencode(query)}")
    expect(page.get_by_text("Comparing 2 Runs").first).to_be_visible()
    expect(page.get_by_text("estimator.name", exact=True).first).to_be_attached()
    expect(page.get_by_text("test/accuracy", exact=True).first).to_be_attached()


def test_artifacts_open(page: Page, address: str) -> None:
    page.goto(table(address))
    expect(link(page, "fsg · seed 0")).to_be_visible()
    server = address.split("/#/")[0]
    run = str(link(page, "fsg · seed 0").get_attribute("href"))
    page.goto(f"{server}/{run}/artifacts/diagnostics.json")
    expect(page.get_by_role("columnheader", name="flip_rate")).to_be_visible()
    expect(page.get_by_text("layer1.0.conv1").first).to_be_visible()
    page.goto(f"{server}/{run}")
    parent = page.locator("a[href*='/runs/']").filter(has_text="tiny_ablation").first
    page.goto(f"{server}/{parent.get_attribute('href')}/artifacts/report/report.md")
    expect(page.get_by_text("Does the history of the gradient help?").first).to_be_visible()


def test_every_final_network_is_a_model_that_is_ready(page: Page, address: str) -> None:
    page.goto(address.split("/runs?")[0] + "/models?workflowType=machine_learning")
    for variant, seed in CELLS:
        expect(link(page, f"{variant} · seed {seed}").first).to_be_visible()
    expect(page.get_by_text("Ready", exact=True)).to_have_count(len(CELLS))
    link(page, "fsg · seed 0").first.click()
    expect(page.get_by_text("test/accuracy").first).to_be_visible()


def test_page_of_two_hundred_runs_stays_usable(page: Page, two_hundred_runs: list[str], address: str) -> None:
    page.goto(address.split("/#/")[0] + "/#/experiments?workflowType=machine_learning")
    place = str(link(page, "two_hundred").get_attribute("href")).split("?")[0].removesuffix("/runs")
    page.goto(f"{address.split('/#/')[0]}/{place}/runs?{address.split('/runs?')[1]}")
    close_assistant(page)
    expect(page.get_by_text("Group: variant_1", exact=True)).to_be_visible()
    chart = card(page, "validation/accuracy")
    expect(chart.locator(".scatterlayer path.js-line[d]").nth(7)).to_be_attached()
    page.goto(table(page.url))
    expect(page.get_by_text("matching runs")).to_have_text(re.compile("20[01]"))
    seen: set[str] = set()
    page.mouse.move(700, 600)
    for _ in range(200):
        names = page.locator(".ag-pinned-left-cols-container a").all_inner_texts()
        seen |= set(names)
        if seen >= set(two_hundred_runs):
            break
        page.mouse.wheel(0, 500)
        page.wait_for_timeout(100)
    assert seen >= set(two_hundred_runs)
