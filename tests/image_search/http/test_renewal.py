"""A service that takes up a new model and other images: every request is answered, each by one of the two."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import SmallWorld
from fastapi.testclient import TestClient
from search_fixtures import SearchPaths, write_model

from groundray.image_search.http import renewal
from groundray.image_search.http.app import create_app
from groundray.image_search.http.renewal import RenewedApp
from groundray.image_search.query import Search
from groundray.image_search.service import Service, state_of
from groundray.storage.folder import Folder


@pytest.fixture(scope="module")
def other_model(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("other") / "model", world, seed=1)


@dataclass
class Served:
    """A model in a folder, which another one may replace, and the services that were opened."""

    place: SearchPaths
    root: Path
    opened: list[weakref.ref[Service]] = field(default_factory=list)
    before_opening: Callable[[], None] = lambda: None

    @property
    def search(self) -> Search:
        """The search of the service that was opened last."""
        service = self.opened[-1]()
        assert service
        return service.search

    @property
    def checkpoint(self) -> str:
        return str(self.root / "model")

    def put(self, model: str) -> None:
        Folder.at(self.checkpoint).delete(".")
        Folder.at(self.checkpoint).upload(Path(model))

    def open(self) -> Any:
        self.before_opening()
        places = self.checkpoint, self.place.images, str(self.root / "index"), self.place.norms
        service = Service.open(*places, rerank=0)
        self.opened.append(weakref.ref(service))
        return create_app(service)

    def renewed(self, seconds: float | None = None) -> RenewedApp:
        return RenewedApp(lambda: state_of(self.checkpoint, self.place.images), self.open, seconds)


@pytest.fixture
def served(place: SearchPaths, tmp_path: Path) -> Served:
    found = Served(place, tmp_path)
    found.put(place.checkpoint)
    return found


@pytest.fixture
def app(served: Served) -> RenewedApp:
    return served.renewed()


@pytest.fixture
def client(app: RenewedApp) -> Iterator[TestClient]:
    with TestClient(app, "http://localhost") as client:
        yield client


def answer(client: TestClient) -> tuple[int, str]:
    """Status and scores of a search."""
    response = client.get("/search", params={"text": "a red star", "k": 20})
    return response.status_code, str([(hit["id"], hit["score"]) for hit in response.json()["answers"][0]["results"]])


def test_requests_meet_the_old_or_the_new_model_and_none_fails(
    served: Served, app: RenewedApp, client: TestClient, other_model: str
) -> None:
    before, health = answer(client), client.get("/healthz").json()
    assert not app.renew()
    ended, met = threading.Event(), list[tuple[int, str]]()

    def ask() -> None:
        while not ended.is_set():
            met.append(answer(client))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    served.put(other_model)
    renewed = app.renew()
    after = answer(client)
    ended.set()
    for thread in threads:
        thread.join()
    assert renewed
    assert before != after
    assert set(met) <= {before, after}
    assert before in met
    now = client.get("/healthz").json()
    assert (now["update"], now["images"]) == ("", 20)
    assert now["index"] != health["index"]
    etags = client.get("/thumbnails/80").headers["etag"], client.get("/images/80").headers["etag"]
    assert all(now["index"] in etag for etag in etags)
    assert not app.renew()


@pytest.mark.thorough
def test_the_old_model_is_let_go(served: Served, app: RenewedApp, client: TestClient, other_model: str) -> None:
    answer(client)
    served.put(other_model)
    assert app.renew()
    app.let_go()
    assert [service() is None for service in served.opened] == [True, False]


@pytest.mark.thorough
def test_every_old_model_is_let_go_when_its_last_request_has_ended(
    served: Served,
    app: RenewedApp,
    client: TestClient,
    other_model: str,
    place: SearchPaths,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, ended, answer_all = threading.Event(), threading.Event(), Search.answer_or_fail
    first = id(served.search)

    def slowly(search: Search, queries: Any) -> Any:
        if id(search) == first:
            begun.set()
            assert ended.wait(60)
        return answer_all(search, queries)

    monkeypatch.setattr(Search, "answer_or_fail", slowly)
    request = threading.Thread(target=answer, args=[client])
    request.start()
    assert begun.wait(60)
    gc.disable()  # what is let go does not wait for Python's own collection, which comes late where much is in memory
    try:
        for model in (other_model, place.checkpoint):
            served.put(model)
            assert app.renew()
            app.let_go()
        assert [service() is None for service in served.opened] == [False, True, False]
        ended.set()
        request.join()
        app.let_go()
        assert [service() is None for service in served.opened] == [True, True, False]
    finally:
        gc.enable()


@pytest.mark.thorough
def test_a_request_that_has_begun_ends_with_its_own_model(served: Served, app: RenewedApp, other_model: str) -> None:
    """An upload is received before the swap and answered after it."""
    first, met = app._app, list[Any]()

    async def noted(scope: Any, receive: Any, send: Any) -> None:
        served.put(other_model)
        assert app.renew()
        met.append(scope["path"])
        await first(scope, receive, send)

    app._app = noted
    with TestClient(app, "http://localhost") as client:
        during, after = client.get("/healthz").json(), client.get("/healthz").json()
    assert met == ["/healthz"]
    assert during["index"] != after["index"]


@pytest.mark.thorough
@pytest.mark.parametrize("failure", ["no model", "no stage", "disk"])
def test_what_cannot_be_opened_leaves_the_old_model_serving(
    served: Served,
    app: RenewedApp,
    client: TestClient,
    world: SmallWorld,
    other_model: str,
    failure: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = answer(client)

    def full() -> None:
        raise OSError(28, "No space left on device", "index")

    if failure == "no model":
        Folder.at(served.checkpoint).delete(".")
    elif failure == "no stage":
        served.put(write_model(tmp_path / "grounding", world, stages=("grounding",)))
    else:
        served.put(other_model)
        served.before_opening = full
    assert not app.renew()
    told = client.get("/healthz").json()
    assert told["status"] == "ok"
    assert {"no model": "cannot be opened", "no stage": "search needs stage retrieval", "disk": "No space left"}[
        failure
    ] in told["update"]
    assert answer(client) == before
    served.before_opening = lambda: None
    served.put(other_model)
    assert app.renew()
    assert client.get("/healthz").json()["update"] == ""
    assert answer(client) != before


def test_a_process_that_is_started_anew_begins_with_an_earlier_model_if_the_newest_cannot_be_opened() -> None:
    working = False

    def named(name: str) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            met.append((name, scope["state"][renewal.UPDATE]))

        return app

    async def unused(*_: Any) -> Any:
        raise AssertionError("the applications neither receive nor send")

    def open() -> Any:
        if not working:
            raise OSError(28, "No space left on device")
        return named("newest")

    with pytest.raises(OSError, match="No space"):
        RenewedApp(lambda: "newest", open, None)
    app, met = RenewedApp(lambda: "newest", open, None, lambda: named("earlier")), list[tuple[str, str]]()

    def ask() -> tuple[str, str]:
        asyncio.run(app({"type": "http"}, unused, unused))
        return met.pop()

    name, told = ask()
    assert (name, "No space left" in told) == ("earlier", True)
    assert not app.renew()
    working = True
    assert app.renew()
    assert ask() == ("newest", "")
    assert not app.renew()


def test_a_failed_attempt_is_repeated_later_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, attempts, state = [0.0], list[float](), "first"
    asleep = threading.Event()
    asleep_time = SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda seconds: asleep.wait())
    monkeypatch.setattr(renewal, "time", asleep_time)

    def open() -> Any:
        if state == "first":
            return object()
        attempts.append(clock[0])
        raise ValueError("broken")

    app = RenewedApp(lambda: state, open, seconds=10)
    state = "second"
    while clock[0] < 200:
        assert not app.renew()
        clock[0] += 10
    assert attempts == [0, 20, 60, 140]


@pytest.mark.thorough
def test_the_thread_takes_up_a_model(served: Served, other_model: str) -> None:
    with TestClient(served.renewed(seconds=0.05), "http://localhost") as client:
        before = client.get("/healthz").json()["index"]
        served.put(other_model)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if client.get("/healthz").json()["index"] != before:
                break
        else:
            pytest.fail("the new model is not served")


@pytest.mark.thorough
@pytest.mark.parametrize("seconds", [-1e9, 1e9], ids=["back", "forward"])
def test_a_model_is_taken_up_although_the_clock_was_set(
    served: Served, other_model: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TestClient(served.renewed(seconds=0.05), "http://localhost") as client:
        before, now = client.get("/healthz").json()["index"], time.time
        monkeypatch.setattr(time, "time", lambda: now() + seconds)
        served.put(other_model)
        met = set[int]()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            met.add(answer(client)[0])
            if client.get("/healthz").json()["index"] != before:
                break
        else:
            pytest.fail("the new model is not served")
        assert met == {200}
