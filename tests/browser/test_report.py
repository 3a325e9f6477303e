"""The report's page in a browser: columns that sort, figures that answer, a dark scheme, a telephone's width, paper."""

import csv
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from simulated_search import HALVING, TRAIN, Work, study

from orchestration.report.data import build
from orchestration.report.write import write
from orchestration.spec.cells import Cell
from orchestration.spec.search_config import Random

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


# Figures that answer

LOSS, DIFFERENCES, ACCURACY = "#convergence-training-loss", "#differences", "#convergence-validation-accuracy"
OF_ALL = ("#seeds-0", DIFFERENCES, LOSS, ACCURACY, "#layers-flip-rate-a-step")


def on_screen(page: Page, figure: str, series: int, mark: int = 0) -> tuple[float, float]:
    """Where a mark of a figure is, worked out from the JSON beside it; the figure is scrolled to."""
    page.locator(figure).scroll_into_view_if_needed()
    page.locator(figure).evaluate("svg => svg.scrollIntoView({block: 'center'})")
    x, y = page.evaluate(
        """([id, series, mark]) => {
          const {figures} = JSON.parse(document.getElementById("marks").textContent);
          const {kind, x, y, log, xs, series: all, maps} = figures[id], svg = document.getElementById(id);
          let place;
          if (kind === "points") place = all[series];
          if (kind === "curves") {
            const {x: at, y: value} = all[series];
            place = {x: x[0] + x[1] * xs[at][mark], y: y[0] + y[1] * (log ? Math.log10(value[mark]) : value[mark])};
          }
          if (kind === "maps") {
            const {box: [left, top, width, height], x: epochs, layers} = maps[series];
            place = {x: left + (mark + 0.5) * width / epochs.length, y: top + 0.5 * height / layers.length};
          }
          const at = new DOMPoint(place.x, place.y).matrixTransform(svg.getScreenCTM());
          return [at.x, at.y];
        }""",
        [figure[1:], series, mark],
    )
    return float(x), float(y)


def told(page: Page) -> str:
    return page.locator("#tip").inner_text() if page.locator("#tip").is_visible() else ""


def opacity(page: Page, selector: str) -> list[float]:
    return [
        float(one)
        for one in page.locator(selector).evaluate_all("all => all.map(one => getComputedStyle(one).opacity)")
    ]


def inside(page: Page) -> bool:
    size = page.viewport_size
    box = page.locator("#tip").bounding_box()
    assert size is not None
    assert box is not None
    right, bottom = box["x"] + box["width"], box["y"] + box["height"]
    return box["x"] >= 0 and box["y"] >= 0 and right <= size["width"] and bottom <= size["height"]


def test_what_is_under_the_pointer_says_whose_it_is_and_the_command(report: Page, results: Path) -> None:
    (cells,) = results.glob("tiny*/report.cells.csv")
    ids = {(row["variant"], row["seed"]): row["cell"] for row in csv.DictReader(cells.open())}
    steps = {
        "#seeds-0": r"at step 32",
        DIFFERENCES: r"at step 32",
        "#layers-flip-rate-a-step": r"epoch 1, step 8\. Flip",
    }
    for figure in OF_ALL:
        report.mouse.move(*on_screen(report, figure, 0))
        said = told(report)
        whose = re.search(r"^(\w+)( − ste)?, (seed 0|mean of seeds 0, 1)\n", said)
        assert whose, (figure, said)
        assert whose[1] == "fsg" or figure == ACCURACY, said  # of so few images two variants may have the same
        assert re.search(
            steps.get(figure, r"epoch \d(\.\d+)?, step \d+: (Training loss|Validation accuracy) \d"), said
        ) or (figure == DIFFERENCES and "points" in said), (figure, said)
        assert f"fsg reproduce {cells.parent.relative_to(results.parent)} " in said, figure  # as it was launched
        assert ids[whose[1], "0"] in said, figure
        assert inside(report)
    report.mouse.move(5, 5)
    assert not told(report)


def test_a_click_keeps_what_is_said_until_escape(report: Page) -> None:
    report.mouse.click(*on_screen(report, LOSS, 1, 2))
    said = told(report)
    assert "step " in said
    report.mouse.move(5, 5)
    assert told(report) == said
    report.keyboard.press("Escape")
    assert not told(report)


def test_a_variant_that_is_clicked_dims_the_others_in_every_figure(report: Page) -> None:
    def dimmed(variant: str) -> set[float]:
        return {one for figure in OF_ALL[1:] for one in opacity(report, f'{figure} [data-variant="{variant}"]')}

    everybody = {variant: dimmed(variant) for variant in ("fsg", "no_history", "ste")}
    assert set.union(*everybody.values()) == {1.0}
    row = report.locator("tr[data-variant=no_history] > th > button").first
    for picking in (
        row.click,
        lambda: row.press("Enter"),
        report.locator(f"{LOSS} [role=button][aria-label=no_history]").click,
        lambda: report.locator(f"{DIFFERENCES} [role=button][aria-label=no_history]").press("Enter"),
    ):
        picking()
        assert dimmed("no_history") == {1.0}
        assert max(dimmed("fsg") | dimmed("ste")) < 0.3
        assert row.get_attribute("aria-pressed") == "true"
        assert opacity(report, "tr[data-variant=fsg] svg.seeds")[0] < 0.3
        report.emulate_media(media="print")
        assert dimmed("fsg") == {1.0}
        report.emulate_media(media="screen")
        picking()
        assert dimmed("fsg") | dimmed("ste") == {1.0}
        assert row.get_attribute("aria-pressed") == "false"
    row.click()
    report.keyboard.press("Escape")
    assert dimmed("fsg") == {1.0}


def test_arrow_keys_go_from_mark_to_mark_and_enter_picks(report: Page) -> None:
    for figure in OF_ALL:
        svg = report.locator(figure)
        svg.focus()
        seen = []
        for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft"):
            report.keyboard.press(key)
            seen.append(told(report))
            assert inside(report)
            assert report.locator("[role=status]").inner_text().split() == seen[-1].split()
        assert seen[0]
        assert len(set(seen)) > 1
        report.keyboard.press("Enter")
        assert report.locator("tr.picked").count() > 1
        report.keyboard.press("Escape")
        assert report.locator("tr.picked").count() == 0
        assert svg.get_attribute("aria-label") is not None


@pytest.fixture(scope="session")
def searches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of an experiment with eight searches whose trainings are made up."""
    names, sampler = [f"net_{number}" for number in range(8)], Random()
    studies = [study(name=name, trials=14, best=2, pruner=HALVING, sampler=sampler, seeds=(1000,)) for name in names]
    work = Work(tmp_path_factory.mktemp("searches"), *studies).go()
    default = Cell("d" * 16, "train", "default", {}, 0, TRAIN)
    work.ledger.add(default)
    work.train_whole(default)
    work.launched([default])
    write(build(work.ledger))
    return work.ledger.folder / "report.html"


def test_a_trial_of_a_search_says_its_settings_and_its_command(page: Page, searches: Path) -> None:
    assert searches.stat().st_size < 2e6
    page.goto(searches.as_uri())
    for figure in ("history", "two-settings", "rungs", "slices"):
        svg = f"#search-net_3-{figure}"
        page.mouse.move(*on_screen(page, svg, 0))
        said = told(page)
        assert re.match(r"net_3, trial \d+(, stopped early)?\n", said), (figure, said)
        assert re.search(r"validation accuracy \d\d\.\d\d %; lr [\d.e-]+, slow_weight ", said), (figure, said)
        assert ("fsg reproduce" in said) is ("stopped early" not in said)
        assert inside(page)
        page.locator(svg).focus()
        page.keyboard.press("ArrowRight")
        assert told(page).startswith("net_3, trial ")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_tap_on_a_telephone_says_it_within_the_window(chromium: Browser, results: Path, scheme: str) -> None:
    (path,) = results.glob("tiny*/report.html")
    context = chromium.new_context(
        viewport={"width": 390, "height": 844}, color_scheme="dark" if scheme == "dark" else "light", has_touch=True
    )
    page = context.new_page()
    page.goto(path.as_uri())
    for figure in OF_ALL[1:]:
        page.touchscreen.tap(*on_screen(page, figure, 0, 3 * (figure != DIFFERENCES)))
        assert "fsg reproduce" in told(page), figure
        assert inside(page)
        bright, dim = sorted(map(luminance, page.evaluate(COLOURS, "#tip code")), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5
    page.touchscreen.tap(8, 8)
    assert not told(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    context.close()


# Colours, widths, paper

COLOURS = """selector => {
  const of = (element, name) => getComputedStyle(element).getPropertyValue(name);
  let behind = document.querySelector(selector), text = of(behind, "color");
  while (of(behind, "background-color") === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
  return [text, of(behind, "background-color")];
}"""


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes_and_paper_is_white(report: Page, scheme: str) -> None:
    report.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page = luminance(report.evaluate(COLOURS, "body")[1])
    assert page > 0.9 if scheme == "light" else page < 0.1
    for selector in ("h1", ".question, h2", ".verdict p", "tbody td", "thead th", ".note", "dt", "pre"):
        bright, dim = sorted(map(luminance, report.evaluate(COLOURS, selector)), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, selector
    report.emulate_media(media="print")
    assert luminance(report.evaluate(COLOURS, "body")[1]) > 0.9


def test_a_telephone_needs_no_scrolling_sideways(chromium: Browser, results: Path) -> None:
    (path,) = results.glob("tiny*/report.html")
    page = chromium.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark").new_page()
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert path.stat().st_size < 2e6
    page.context.close()
