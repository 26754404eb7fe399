"""Accessibility rules of axe-core on every view, and the colours: the system's, or those that are chosen."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from browsing import Tab

pytest_plugins = ["browsing"]
pytestmark = pytest.mark.browser

AXE = (files("axe_playwright_python") / "axe.min.js").read_text()
VIEWS = (
    "#search?image=12&text=red&alpha=0.5",
    "#search?text=circle&text=striped&without=red&width=50",
    "#search?text=red&id=none",
    "#why?image=12&text=a+red+circle",
    "#space?model=both&text=striped+circle",
)
WIDTHS = {"desktop": {}, "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}}


def violations(page: Any) -> list[str]:
    """Return what axe-core finds, a line for each rule and element. All of its rules but the experimental ones run."""
    session = page.context.new_cdp_session(page)  # the page's content security policy forbids scripts of others
    session.send("Runtime.evaluate", {"expression": AXE})
    run = "axe.run(document, { resultTypes: ['violations'] }).then(found => found.violations)"
    told = session.send("Runtime.evaluate", {"expression": run, "awaitPromise": True, "returnByValue": True})
    assert "exceptionDetails" not in told, told
    return [f"{rule['id']}: {node['html'][:120]}" for rule in told["result"]["value"] for node in rule["nodes"]]


@pytest.mark.parametrize("view", [*VIEWS, "dialog"])
@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("kind", WIDTHS)
def test_axe_finds_nothing(browser: Any, served: Any, kind: str, colours: str, view: str) -> None:
    from browsing import Tab  # its module is rewritten by pytest first

    tab = Tab(browser, served, color_scheme=colours, reduced_motion="reduce", **WIDTHS[kind])
    page = tab.open("#search?text=red" if view == "dialog" else view)
    if view == "dialog":
        page.get_by_role("button", name="Picture none").click()
        page.locator("#chooser .pool button").first.wait_for()
    assert violations(page) == []
    tab.close()


def test_axe_finds_what_is_wrong(tab: Tab) -> None:
    page = tab.open("#search?text=red")
    page.evaluate("document.getElementById('theme').removeAttribute('aria-label')")
    page.evaluate("document.querySelector('#search .status').style.color = '#ddd'")
    assert {line.partition(":")[0] for line in violations(page)} == {"color-contrast", "button-name"}


def paper(page: Any) -> tuple[str, str, str]:
    """Return the colour of the page, of the plot's labels, and what is told of the button."""
    return page.evaluate(
        """() => [
          getComputedStyle(document.body).backgroundColor,
          document.querySelector("#space .plot").layout?.font.color,
          document.getElementById("theme").ariaPressed,
        ]"""
    )


LIGHT, DARK = ["rgb(250, 248, 244)", "#625e56", "false"], ["rgb(22, 22, 20)", "#a8a498", "true"]


def test_colours_follow_the_system_until_others_are_chosen_which_is_remembered(tab: Tab) -> None:
    tab.page.emulate_media(color_scheme="dark")
    page = tab.open("#space?text=red")
    assert paper(page) == DARK
    page.emulate_media(color_scheme="light")
    tab.rest()
    assert paper(page) == LIGHT
    page.get_by_role("button", name="Dark colours").press("Enter")
    tab.rest()
    assert paper(page) == DARK
    tab.open("#space?text=blue")
    assert paper(page) == DARK
    page.get_by_role("button", name="Dark colours").click()  # the system's again: they are followed
    tab.rest()
    assert paper(page) == LIGHT
    page.emulate_media(color_scheme="dark")
    tab.rest()
    assert paper(page) == DARK
