"""Fixtures: the service over a trained model and drawn scenes, and its page in Chromium, driven by Playwright."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import SmallWorld

from groundray.data.scenes.scene import Scene, make_scene

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
LAUNCH = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",  # a camera
)
TIMEOUT_MS = 20_000  # of every step, on a busy machine
REFUSED = re.compile(r"Failed to load resource: .*(status of (404|415|422|503)|ERR_FAILED)")


@dataclass(frozen=True)
class Served:
    """A running service: its address, and the scenes of its pool by their ids."""

    address: str
    scenes: dict[str, Scene]


@pytest.fixture(scope="session")
def served(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve the application in a thread, without Ray Serve. Its pool is the small world's 72 training scenes, which
    the model has not seen."""
    import teacher
    import uvicorn

    from groundray.image_search.http.app import create_app
    from groundray.image_search.service import Service

    model = tmp_path_factory.mktemp("taught") / "model"
    model.mkdir()
    teacher.teach(model, world)
    pool = str(world.shards / "captions" / "train")
    app = create_app(Service.open(str(model), pool, norms=str(world.source / "norms")))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the service did not start"
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    scenes = {str(index): make_scene(0, "train", index, index) for index in range(72)}
    yield Served(f"http://127.0.0.1:{port}/", scenes)
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, one per module: while open, Playwright keeps an event loop running in this thread."""
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no chromium at {CHROMIUM}: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=LAUNCH)
        yield found
        found.close()


class Tab:
    """A page in a browser, and the errors that the browser reported.

    Attributes:
        refusals: True if responses of 404, 415, 422 and 503 are expected; the browser reports those as errors.
    """

    def __init__(self, browser: Any, served: Served, **options: Any):
        self.served, self.refusals = served, False
        self.complaints: list[str] = []
        self.asked: list[str] = []  # addresses, in order
        self._pending: set[Any] = set()  # requests
        self._context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
        self._context.set_default_timeout(TIMEOUT_MS)
        self.page = self._context.new_page()
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(f"{error}\n{error.stack}"))
        self.page.on("request", self._asks)
        for end in ("requestfinished", "requestfailed"):
            self.page.on(end, lambda request: self._pending.discard(request))

    def open(self, view: str = "") -> Any:
        """Load the page at a view, as if its address had been shared, and wait until it rests."""
        self.page.goto("about:blank")
        self.page.goto(f"{self.served.address}{view}")
        return self.rest()

    def rest(self) -> Any:
        """Wait until nothing is loading, which is when nothing was asked for a while."""
        end, calm = time.monotonic() + TIMEOUT_MS / 1000, 0
        while calm < 3:
            assert time.monotonic() < end, f"waited {TIMEOUT_MS / 1000:g} s for {[one.url for one in self._pending]}"
            self.page.wait_for_timeout(40)
            busy = self._pending or self.page.evaluate("document.querySelector('[aria-busy=true]') !== null")
            calm = 0 if busy else calm + 1
        return self.page

    def until(self, condition: str) -> None:
        """Wait until a condition (JavaScript) holds. Playwright's own `wait_for_function` evaluates it within the page,
        which the page's content security policy forbids."""
        end = time.monotonic() + TIMEOUT_MS / 1000
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, f"waited {TIMEOUT_MS / 1000:g} s for {condition}"
            self.page.wait_for_timeout(25)

    def close(self) -> None:
        """End it. Raises AssertionError where it complained or asked another host."""
        self._context.close()
        assert self.complaints == []
        hosts = {urlsplit(url).netloc for url in self.asked if not url.startswith(("blob:", "data:", "about:"))}
        assert hosts <= {urlsplit(self.served.address).netloc}

    def _asks(self, request: Any) -> None:
        self.asked.append(request.url)
        self._pending.add(request)

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning") and not (self.refusals and REFUSED.search(message.text)):
            self.complaints.append(f"{message.type}: {message.text}")


@pytest.fixture
def tab(browser: Any, served: Served) -> Iterator[Tab]:
    """A page on a desktop."""
    one = Tab(browser, served)
    yield one
    one.close()


@pytest.fixture(params=["light", "dark"])
def phone(browser: Any, served: Served, request: pytest.FixtureRequest) -> Iterator[Tab]:
    """A page on a small phone, in both colour schemes, for people who ask for less movement."""
    one = Tab(
        browser,
        served,
        viewport={"width": 360, "height": 740},
        has_touch=True,
        is_mobile=True,
        color_scheme=request.param,
        reduced_motion="reduce",
    )
    yield one
    one.close()
