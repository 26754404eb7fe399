"""Bodies of requests: complete before the application is called, within limits of size, time and memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from traced_memory import least_peak

from groundray.image_search.http import request_body
from groundray.image_search.http.request_body import BodyLimit, BodyLimits

LIMITS = BodyLimits(max_bytes=1000, stall_seconds=0.2, bytes_per_second=1000, buffer_bytes=1500)


class Exchange:
    """One request over ASGI: what the client sends, and what it gets.

    Attributes:
        status: status of the response; None if there was none.
        called: True if the application was called.
        received: the body that the application got.
        taken: number of chunks that were taken from the client.
    """

    def __init__(self, chunks: Iterable[bytes], *, length: int | None = None, pauses: float = 0, ends: bool = True):
        chunks = list(chunks)
        self.status, self.called, self.taken = None, False, 0
        self.received, self.body, self.headers = b"", b"", {}
        self.scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "headers": []}
        self.scope["headers"].append(
            (b"transfer-encoding", b"chunked") if length is None else (b"content-length", str(length).encode())
        )
        self._messages = [
            {"type": "http.request", "body": chunk, "more_body": not ends or number < len(chunks) - 1}
            for number, chunk in enumerate(chunks)
        ]
        self._pauses = pauses

    async def receive(self) -> Any:
        if self.taken == len(self._messages):
            await asyncio.Event().wait()
        await asyncio.sleep(self._pauses)
        self.taken += 1
        return self._messages[self.taken - 1]

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            assert self.status is None
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message["body"]

    @property
    def detail(self) -> str:
        return json.loads(self.body)["detail"]


def application(hold: Callable[[], Awaitable[Any]] | None = None) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        exchange, more = scope["exchange"], True
        exchange.called = True
        while more:
            message = await receive()
            exchange.received += message["body"]
            more = message["more_body"]
        if hold:
            await hold()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


async def answer(limit: BodyLimit, exchange: Exchange) -> Exchange:
    await limit({**exchange.scope, "exchange": exchange}, exchange.receive, exchange.send)
    return exchange


def run(exchange: Exchange, limits: BodyLimits = LIMITS) -> Exchange:
    limit = BodyLimit(application(), limits)
    answered = asyncio.run(asyncio.wait_for(answer(limit, exchange), 10))
    assert limit._buffered == 0
    return answered


@given(some.lists(some.binary(max_size=120), min_size=1, max_size=8))
def test_application_gets_the_body_as_sent(chunks: list[bytes]) -> None:
    exchange = run(Exchange(chunks))
    assert (exchange.status, exchange.received) == (200, b"".join(chunks))


def test_request_without_a_body_passes_at_once() -> None:
    exchange = Exchange([b""], length=0)
    assert run(exchange).status == 200


def test_largest_body_passes_and_one_byte_more_is_413() -> None:
    assert run(Exchange([b"x" * 1000])).status == 200
    exchange = run(Exchange([b"x" * 1000, b"x"]))
    assert (exchange.status, exchange.called) == (413, False)
    assert exchange.headers["connection"] == "close"


def test_declared_length_is_refused_before_a_byte_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "LINGER_SECONDS", 0)
    exchange = run(Exchange([b"x" * 100] * 20, length=1001))
    assert (exchange.status, exchange.called, exchange.taken) == (413, False, 0)
    assert "1,001" in exchange.detail


def test_what_a_refused_client_still_sends_is_discarded() -> None:
    """A connection that is closed earlier is reset, and the client never reads the reason."""
    exchange = run(Exchange([b"x" * 100] * 40, length=4000))
    assert (exchange.status, exchange.taken) == (413, 40)


def test_stalled_upload_is_408() -> None:
    exchange = run(Exchange([b"x" * 10], length=500, ends=False))
    assert (exchange.status, exchange.called) == (408, False)
    assert "10 of 500 bytes" in exchange.detail


def test_slow_upload_that_keeps_the_least_speed_passes() -> None:
    """It takes longer than the stall time; at a tenth of the speed it is cut off."""
    limits = BodyLimits(max_bytes=1000, stall_seconds=0.1, bytes_per_second=1000, buffer_bytes=1000)
    slow = Exchange([b"x" * 90] * 8, pauses=0.05)
    assert run(slow, limits).status == 200
    slower = run(Exchange([b"x" * 4] * 20, pauses=0.05), limits)
    assert (slower.status, slower.called) == (408, False)


def test_client_that_leaves_gets_nothing() -> None:
    exchange = Exchange([b"x"], ends=False)
    exchange._messages.append({"type": "http.disconnect"})
    assert (run(exchange).status, exchange.called) == (None, False)


def test_bodies_together_are_bounded_until_they_are_answered() -> None:
    async def scenario() -> list[Exchange]:
        release = asyncio.Event()
        limit = BodyLimit(application(release.wait), LIMITS)
        first = asyncio.create_task(answer(limit, Exchange([b"x" * 900])))
        await asyncio.sleep(0.01)
        second = await answer(limit, Exchange([b"x" * 900]))
        release.set()
        third = await answer(limit, Exchange([b"x" * 900]))
        assert limit._buffered == 0
        return [await first, second, third]

    first, second, third = asyncio.run(asyncio.wait_for(scenario(), 10))
    assert [first.status, second.status, third.status] == [200, 503, 200]
    assert int(second.headers["retry-after"]) >= 1


def test_a_body_of_single_bytes_takes_no_more_memory_than_another() -> None:
    """A client may send each byte in a packet of its own: kept apart, these took 10 MB."""
    count = 50_000
    limit = BodyLimit(application(), BodyLimits(max_bytes=count, buffer_bytes=count))

    def upload() -> None:
        exchange, sent = Exchange([]), 0

        async def receive() -> Any:
            nonlocal sent
            await asyncio.sleep(0)
            sent += 1
            return {"type": "http.request", "body": bytes([sent % 256]), "more_body": sent < count}

        asyncio.run(limit({**exchange.scope, "exchange": exchange}, receive, exchange.send))
        assert (exchange.status, len(exchange.received)) == (200, count)

    assert least_peak(upload, times=2) < 50 * count  # others of the process allocate too


def test_failure_of_the_application_gives_the_memory_back() -> None:
    async def fail() -> None:
        raise OSError("away")

    limit = BodyLimit(application(fail), LIMITS)
    with pytest.raises(OSError, match="away"):
        asyncio.run(answer(limit, Exchange([b"x" * 900])))
    assert limit._buffered == 0


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_form_without_its_end_is_refused(size: int) -> None:
    form = b'--b"1\r\nContent-Disposition: form-data; name="text"\r\n\r\nred\r\n--b"1--\r\n'

    def sent(content: bytes, kind: bytes) -> Exchange:
        exchange = Exchange([content[start : start + size] for start in range(0, len(content), size)])
        exchange.scope["headers"].append((b"content-type", kind))
        return asyncio.run(answer(BodyLimit(application(), LIMITS), exchange))

    kind = rb'Multipart/Form-Data; boundary="b\"1"'
    whole = sent(form + b"an epilogue", kind)
    assert (whole.status, whole.received) == (200, form + b"an epilogue")
    for cut in (form[: form.rindex(b"--")], form[: len(form) // 2], b"-"):
        exchange = sent(cut, kind)
        assert (exchange.status, exchange.called) == (422, False)
        assert f"{len(cut)} bytes" in exchange.detail
        assert sent(cut, b"application/octet-stream").received == cut
        assert sent(cut, b"multipart/form-data").called  # which names no boundary
