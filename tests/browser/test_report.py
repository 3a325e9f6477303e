"""The report's page in a browser: columns that sort, a dark scheme, a telephone's width, paper."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

pytestmark = pytest.mark.browser


@pytest.fixture
def report(page: Page, results: Path) -> Page:
    (path,) = results.glob("tiny*/report.html")
    page.goto(path.as_uri())
    return page


def column(page: Page, index: int) -> list[str]:
    table = page.locator("table").first
    return table.locator("tbody tr").locator(f":scope > :nth-child({index})").all_inner_texts()


def number(text: str) -> float:
    return float(text.replace("−", "-").split()[0])


def test_columns_sort_by_mouse_and_keyboard_and_come_back(report: Page) -> None:
    heads = report.locator("table").first.locator("thead th")
    written = column(report, 1)
    accuracy = [number(text) for text in column(report, 3)]
    assert len(set(accuracy)) > 1
    head = heads.nth(2)
    head.locator("button").click()
    expect(head).to_have_attribute("aria-sort", "ascending")
    assert [number(text) for text in column(report, 3)] == sorted(accuracy)
    head.locator("button").focus()
    report.keyboard.press("Enter")
    expect(head).to_have_attribute("aria-sort", "descending")
    assert [number(text) for text in column(report, 3)] == sorted(accuracy, reverse=True)
    report.keyboard.press("Space")
    assert head.get_attribute("aria-sort") is None
    assert column(report, 1) == written
    heads.nth(0).locator("button").click()
    assert column(report, 1) == sorted(written)
    assert report.locator("[aria-sort]").count() == 1


@pytest.mark.parametrize(
    ("texts", "ascending"),
    [
        (["1 min 5 s", "58 s", "2 h", "–"], ["58 s", "1 min 5 s", "2 h", "–"]),
        (["1,218 MB", "25 MB", "2 GB"], ["25 MB", "1,218 MB", "2 GB"]),
        (["+1.98 [+1.34, +2.61]", "−0.2 [−1, +1]", "baseline"], ["−0.2 [−1, +1]", "+1.98 [+1.34, +2.61]", "baseline"]),
        (["history_16", "history_5", "ste"], ["history_5", "history_16", "ste"]),
    ],
)
def test_values_sort_by_what_they_mean(report: Page, texts: list[str], ascending: list[str]) -> None:
    assert report.evaluate("texts => texts.sort(compare)", texts) == ascending


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes_and_paper_is_white(report: Page, scheme: str) -> None:
    report.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    colours = """selector => {
      const of = (element, name) => getComputedStyle(element).getPropertyValue(name);
      let behind = document.querySelector(selector), text = of(behind, "color");
      while (of(behind, "background-color") === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
      return [text, of(behind, "background-color")];
    }"""
    page = luminance(report.evaluate(colours, "body")[1])
    assert page > 0.9 if scheme == "light" else page < 0.1
    for selector in ("h1", ".question, h2", ".verdict p", "tbody td", "thead th", ".note", "dt", "pre"):
        bright, dim = sorted(map(luminance, report.evaluate(colours, selector)), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, selector
    report.emulate_media(media="print")
    assert luminance(report.evaluate(colours, "body")[1]) > 0.9


def test_a_telephone_needs_no_scrolling_sideways(chromium: Browser, results: Path) -> None:
    (path,) = results.glob("tiny*/report.html")
    page = chromium.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark").new_page()
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert path.stat().st_size < 2e6
    page.context.close()
