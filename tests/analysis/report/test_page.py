"""The report in a browser: sorted by click and by key, pictures enlarged, moved and closed, readable on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up import MODELS, analyses

from groundray.analysis.report.document import Report, files

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.thorough,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on the PATH"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("report")
    made = Report("demo", dict.fromkeys(MODELS, "somewhere"), analyses()[:1])
    for name, content in files(made):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return f"file://{folder}/report.html"


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(url)
    yield page
    assert said == []
    assert requested == [url]
    context.close()


def column(page: Any, number: int) -> list[str]:
    rows = page.locator("#comparison tbody tr").all()
    return [row.locator("th, td").nth(number).get_attribute("data-sort") for row in rows]


def test_tables_are_sorted_by_click_and_by_key(page: Any) -> None:
    heading = page.locator("#comparison thead tr").last.locator("th").nth(4)  # grounded
    assert column(page, 4) == ["0.4", "0.5", ""]
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(page, 4) == ["0.5", "0.4", ""]  # what is missing stays last
    first = page.locator("#comparison thead tr").last.locator("th").first
    first.locator("button").press(" ")
    assert heading.get_attribute("aria-sort") == "none"
    assert column(page, 0) == sorted(column(page, 0))


def scale(page: Any) -> float:
    return page.evaluate("new DOMMatrix(getComputedStyle(document.querySelector('.stage svg')).transform).a")


def moved(page: Any) -> float:
    return page.evaluate("new DOMMatrix(getComputedStyle(document.querySelector('.stage svg')).transform).e")


def test_a_picture_is_enlarged_moved_and_closed(page: Any) -> None:
    picture = page.locator(".zoom").first
    picture.click()
    assert page.locator("dialog").is_visible()
    assert scale(page) == 1
    page.mouse.move(600, 400)
    page.mouse.wheel(0, -500)
    page.wait_for_function("new DOMMatrix(getComputedStyle(document.querySelector('.stage svg')).transform).a > 1.5")
    before = moved(page)
    page.mouse.down()
    page.mouse.move(650, 400)
    page.mouse.up()
    assert moved(page) == pytest.approx(before + 50)
    page.keyboard.press("0")
    assert scale(page) == 1
    page.keyboard.press("+")
    page.keyboard.press("ArrowLeft")
    assert scale(page) == pytest.approx(1.4)
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    picture.locator("svg").wait_for()  # put back by the dialog's `close` event, which comes after it is hidden
    assert picture.evaluate("element => element === document.activeElement")


def test_two_fingers_enlarge(page: Any) -> None:
    page.locator(".zoom").first.click()
    page.evaluate("""() => {
        const stage = document.querySelector('.stage');
        stage.setPointerCapture = () => {};
        const tell = (kind, id, x) => stage.dispatchEvent(
            new PointerEvent(kind, {pointerId: id, clientX: x, clientY: 300, bubbles: true}));
        tell('pointerdown', 11, 500); tell('pointerdown', 12, 600); tell('pointermove', 12, 700);
    }""")
    assert scale(page) == pytest.approx(2)
    page.keyboard.press("Escape")


def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Any, url: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740})
    page = context.new_page()
    page.goto(url)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_are_seen_on_both_backgrounds(browser: Any, url: str, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(url)
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        ".map(colour => colour.match(/[0-9]+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 3)"
    )
    assert abs(ink - paper) > 180
    assert (ink > paper) == (scheme == "dark")
    context.close()
