"""The Search tab: several words, a word to leave out, filters, pages of results, the camera, and what it saves."""

from __future__ import annotations

import contextlib
import io
import json
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from browsing import Tab

pytest_plugins = ["browsing"]
pytestmark = pytest.mark.browser


def nearest(tab: Tab, k: int = 24, **fields: Any) -> list[str]:
    """Return the ids that the service finds, without the query picture."""
    query = urllib.parse.urlencode({"k": k + 1, **fields}, doseq=True)
    with urllib.request.urlopen(f"{tab.served.address}search?{query}") as response:
        (found,) = json.load(response)["answers"]
    return [one["id"] for one in found["results"] if one["id"] != fields.get("image")][:k]


def order(page: Any) -> list[str]:
    """Return the ids of the pictures in the grid."""
    return page.locator("#search .grid [data-key]").evaluate_all("items => items.map(item => item.dataset.key)")


def typed(tab: Tab, field: Any, text: str) -> None:
    """Type into a field, and wait for the answer."""
    field.fill(text)
    tab.page.wait_for_timeout(400)  # it waits for the end of typing
    tab.rest()


def test_several_words_and_one_to_leave_out(tab: Tab) -> None:
    page = tab.open("#search?image=12&text=circle&alpha=0.5")
    page.get_by_role("button", name="Add another word").click()
    typed(tab, page.get_by_label("Another word or phrase"), "striped")
    assert order(page) == nearest(tab, image="12", text=["circle", "striped"], alpha=0.5)
    page.get_by_text("Leave out, or only some pictures").click()
    typed(tab, page.get_by_label("Without"), "red")
    expected = nearest(tab, image="12", text=["circle", "striped"], without="red", alpha=0.5)
    assert order(page) == expected != nearest(tab, image="12", text=["circle", "striped"], alpha=0.5)
    assert "without “red”" in page.locator("#search .equation").inner_text()
    assert page.url.endswith("#search?image=12&text=circle&text=striped&without=red&alpha=0.5")
    links = page.locator("#search .grid .open").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert links == [f"#why?image={id}&text=circle+striped+red" for id in expected]
    page.get_by_role("button", name="Remove this word").click()
    tab.rest()
    assert order(page) == nearest(tab, image="12", text="circle", without="red", alpha=0.5)
    assert page.evaluate("document.activeElement.id") == "search-text"


def test_an_address_restores_words_and_filters(tab: Tab) -> None:
    view = "#search?text=circle&text=striped&without=red&width=50&orientation=square&id=1*"
    page = tab.open(view)
    assert page.url.endswith(view)
    wanted = {"text": ["circle", "striped"], "without": "red"}
    assert order(page) == nearest(tab, **wanted, filter=["width>=50", "orientation=square", "id=1*"])
    assert page.get_by_label("Without").input_value() == "red"
    assert page.get_by_label("Another word or phrase").input_value() == "striped"
    assert page.locator("#search .set").inner_text().replace("\xa0", " ") == "without “red”, 3 conditions"


def test_filters_limit_what_is_found(tab: Tab) -> None:
    page = tab.open("#search?text=red")
    page.get_by_text("Leave out, or only some pictures").click()
    typed(tab, page.get_by_label("Id begins with"), "1")
    assert order(page) == nearest(tab, text="red", filter="id=1*")
    assert 0 < len(order(page)) < 24
    assert all(id.startswith("1") for id in order(page))
    page.get_by_label("Orientation").select_option("portrait")
    page.get_by_text("No picture meets these conditions.").wait_for()
    page.get_by_label("Orientation").select_option("")
    page.locator("#search .grid [data-key]").first.wait_for()
    assert not page.locator("#search [name=label]").is_visible()  # these images have none


def test_more_adds_a_page_and_moves_the_focus_to_it(tab: Tab) -> None:
    page = tab.open("#search?image=12&text=red&alpha=0.5")
    more = page.get_by_role("button", name="More pictures")
    more.press("Enter")
    tab.rest()
    assert order(page) == nearest(tab, 71, image="12", text="red", alpha=0.5)  # all but the query picture
    assert page.evaluate("[...document.querySelectorAll('#search .open')].indexOf(document.activeElement)") == 24
    assert not more.is_visible()
    asked = [url for url in tab.asked if "/search?" in url]
    assert "offset=25" in asked[-1]
    page.locator("#alpha").press("End")
    assert len(order(page)) == 24  # of another step the first are there
    assert more.is_visible()


def test_long_words_wrap_on_a_phone(phone: Tab) -> None:
    long = "a+young+man+wearing+an+uncharacteristically+white+shirt"
    page = phone.open(f"#search?image=12&text={long}&text={long}&without={'x' * 60}")
    edges = page.evaluate(
        "[...document.querySelectorAll('#search .equation, #search .equation *, #search .under *')]"
        ".filter(one => one.checkVisibility()).map(one => one.getBoundingClientRect().right)"
    )
    assert max(edges) <= 360
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_every_result_is_a_link_to_its_match_maps(tab: Tab) -> None:
    page = tab.open("#search?text=circle&text=striped")
    links = page.locator("#search .grid a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert links == [f"#why?image={id}&text=circle+striped" for id in order(page)]
    page.locator("#search .grid a").nth(2).press("Enter")
    tab.rest()
    assert page.url.endswith(links[2])
    assert page.locator("#why .token .word").all_inner_texts() == ["circle", "striped"]


def saved(tab: Tab, button: Any) -> Image.Image:
    with tab.page.expect_download() as download:
        button.click()
    assert download.value.suggested_filename.endswith(".png")
    return Image.open(io.BytesIO(download.value.path().read_bytes())).convert("RGB")


def thumbnail(tab: Tab, id: str, side: int) -> np.ndarray:
    with urllib.request.urlopen(f"{tab.served.address}thumbnails/{id}") as response:
        picture = Image.open(io.BytesIO(response.read())).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(picture, float)


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_the_strip_and_the_results_are_saved_as_pictures(tab: Tab, colours: str) -> None:
    """Each place of the picture holds the thumbnail that belongs there."""
    tab.page.emulate_media(color_scheme=colours)
    page = tab.open("#search?image=12&text=red&alpha=0.5")
    strip, grid = (
        np.asarray(saved(tab, page.get_by_role("button", name="Save as PNG").nth(number)), float) for number in (0, 1)
    )
    assert strip.shape == (2 * (24 + 72 + 16 + 240 + 12 + 24), 2 * (48 + 21 * 80 - 8), 3)
    paper = np.array([250, 248, 244] if colours == "light" else [22, 22, 20])
    places = []
    for step in (0, 13, 20):
        first = nearest(tab, 3, image="12", text="red", alpha=step / 20)
        places += [(strip, 24 + 80 * step, 112 + 80 * rank, 72, first[rank]) for rank in (0, 2)]
    found = nearest(tab, image="12", text="red", alpha=0.5)
    places += [(grid, 24 + 128 * (rank % 8), 112 + 148 * (rank // 8), 120, found[rank]) for rank in (0, 7, 8, 23)]
    places.append((strip, 24, 24, 72, "12"))
    for image, left, top, side, id in places:
        np.testing.assert_array_equal(image[2 * top - 4, 2 * left + side], paper)
        shown = image[2 * top : 2 * (top + side), 2 * left : 2 * (left + side)]
        own = np.abs(shown - thumbnail(tab, id, 2 * side)).mean()
        other = np.abs(shown - thumbnail(tab, "40" if id != "40" else "41", 2 * side)).mean()
        assert own < 4 < other, (id, own, other)


def test_the_pool_is_paged_in_the_dialog(tab: Tab) -> None:
    page = tab.open("#search?text=red")
    page.get_by_role("button", name="Picture none").click()
    pool, more = page.locator("#chooser .pool button"), page.locator("#chooser").get_by_role("button", name="More pict")
    pool.first.wait_for()
    for pages in (1, 2):
        assert pool.count() == 24 * pages
        more.press("Enter")
        tab.rest()
        assert page.evaluate(
            "[...document.querySelectorAll('#chooser .pool button')].indexOf(document.activeElement)"
        ) == (24 * pages)
    assert not more.is_visible()
    labels = pool.evaluate_all("buttons => buttons.map(button => button.ariaLabel)")
    assert sorted(labels) == sorted(f"Picture {id}" for id in tab.served.scenes)


def test_pages_of_the_pool_that_arrive_late_are_neither_repeated_nor_mixed(tab: Tab) -> None:
    page = tab.open("#search?text=red")
    held: list[Any] = []
    page.route("**/pool?*", lambda route: held.append(route))
    page.get_by_role("button", name="Picture none").click()
    others = page.get_by_role("button", name="Show others")
    others.click()
    others.click()
    while len(held) < 3:
        page.wait_for_timeout(20)
    for route in reversed(held):
        with contextlib.suppress(Exception):  # one that the page has given up
            route.continue_()
    page.unroute("**/pool?*")
    pool, more = page.locator("#chooser .pool button"), page.locator("#chooser").get_by_role("button", name="More pict")
    pool.first.wait_for()
    tab.rest()
    page.evaluate("const more = document.querySelector('[data-part=more-pool]'); more.click(); more.click()")
    tab.rest()
    assert more.is_visible()
    shown = pool.evaluate_all("buttons => buttons.map(button => button.ariaLabel)")
    with urllib.request.urlopen(f"{tab.served.address}pool?k=48&seed=2") as response:
        assert shown == [f"Picture {one['id']}" for one in json.load(response)["results"]]


def test_more_is_of_the_query_that_was_answered_and_shows_no_picture_twice(tab: Tab) -> None:
    page = tab.open("#search?text=red")

    def of_another_model(route: Any) -> None:
        response = route.fetch()
        told = response.json()
        told["answers"][0]["results"][0] = first
        route.fulfill(response=response, json=told)

    with urllib.request.urlopen(f"{tab.served.address}search?text=red&k=1") as response:
        first = json.load(response)["answers"][0]["results"][0]
    page.route("**/search?*offset=*", of_another_model)
    page.evaluate(
        "const text = document.getElementById('search-text'); text.value = 'blue';"
        "text.dispatchEvent(new Event('input', { bubbles: true }));"
        "document.querySelector('#search [data-part=more]').click()"
    )
    tab.until("document.querySelectorAll('#search .grid [data-key]').length > 24")
    (asked,) = [url for url in tab.asked if "offset=25" in url]
    assert "text=red" in asked
    expected = nearest(tab, 72, text="red")
    assert order(page) in ([id for id in expected if id != expected[25]], nearest(tab, text="blue"))


def test_pasted_pictures_of_one_name_stay_apart(tab: Tab) -> None:
    """Browsers call each of them image.png."""
    page = tab.open("#search?text=red")
    first = {}
    for id in ("7", "9"):
        page.evaluate(
            """async (id) => {
                const blob = await (await fetch(`images/${id}`)).blob();
                const data = new DataTransfer();
                data.items.add(new File([blob], "image.png", { type: blob.type }));
                document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
            }""",
            id,
        )
        tab.rest()
        page.locator("#alpha").press("Home")
        first[page.url] = order(page)[0]
    assert list(first.values()) == ["7", "9"]
    page.go_back()
    tab.rest()
    page.locator("#alpha").press("Home")
    assert order(page)[0] == "7"


def test_pictures_that_a_busy_service_refused_are_loaded_again(tab: Tab) -> None:
    tab.refusals, refused = True, set[str]()

    def busy(route: Any) -> None:
        if route.request.url in refused:
            route.continue_()
        else:
            refused.add(route.request.url)
            route.fulfill(status=503, headers={"Retry-After": "1"})

    tab.page.route("**/thumbnails/*", busy)
    tab.open("#search?image=12&text=red&alpha=0.5")
    assert refused
    for place in ("#search .strip img", "#search .grid li:nth-child(-n+8) img"):
        tab.until(f"[...document.querySelectorAll('{place}')].every(one => one.naturalWidth > 0)")


def test_a_still_from_the_camera_is_searched_with(browser: Any, served: Any) -> None:
    from browsing import Tab  # its module is rewritten by pytest first

    tab = Tab(browser, served, permissions=["camera"])
    page = tab.open("#search?text=red")
    page.get_by_role("button", name="Picture none").click()
    page.get_by_role("button", name="Take a picture").click()
    page.get_by_role("button", name="Take it").wait_for()
    tab.until(
        "document.querySelector('#chooser video').videoWidth > 0 && document.activeElement.dataset.part === 'still'"
    )
    page.keyboard.press("Enter")
    page.locator("#search .strip").wait_for()
    tab.rest()
    assert len(order(page)) == 24
    assert page.locator("#search-picture-name").inner_text().startswith("camera ")
    assert page.evaluate("document.querySelector('#chooser video').srcObject === null")  # the camera is off
    tab.close()


@pytest.mark.parametrize(
    ("media", "told"),
    [
        ("{ getUserMedia: () => Promise.reject(new DOMException('', 'NotAllowedError')) }", "The camera was refused"),
        ("{ getUserMedia: () => Promise.reject(new DOMException('', 'NotFoundError')) }", "This device has no camera"),
        ("{ getUserMedia: () => Promise.reject(new DOMException('', 'NotReadableError')) }", "Close what else uses it"),
        ("undefined", "only to pages at https or localhost"),
    ],
)
def test_a_camera_that_cannot_be_used_is_told(tab: Tab, media: str, told: str) -> None:
    tab.page.add_init_script(f"Object.defineProperty(navigator, 'mediaDevices', {{ value: {media} }})")
    page = tab.open("#search?text=red")
    page.get_by_role("button", name="Picture none").click()
    page.get_by_role("button", name="Take a picture").click()
    assert told in page.get_by_role("alert").inner_text()
    assert not page.locator("#chooser video").is_visible()


def test_a_phone_takes_pictures_with_its_own_camera(phone: Tab) -> None:
    page = phone.open("#search?text=red")
    page.get_by_role("button", name="Picture none").click()
    assert page.locator("#chooser input[capture]").get_attribute("capture") == "environment"
    assert page.get_by_text("Take a picture").filter(visible=True).count() == 1
    own = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": photo(phone)}
    page.locator("#chooser input[capture]").set_input_files([own])
    page.locator("#search .strip").wait_for()
    phone.rest()
    page.locator("#alpha").press("Home")
    assert order(page)[0] == "7"


def photo(tab: Tab) -> bytes:
    with urllib.request.urlopen(f"{tab.served.address}images/7") as response:
        return response.read()
