"""Each client has its own limit, whatever it says of itself."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from groundray.image_search.http import rate_limit
from groundray.image_search.http.client import client_address
from groundray.image_search.http.rate_limit import RateLimit, TokenBuckets, check_rate


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def request(client: str = "192.0.2.1", path: str = "/search", **headers: str) -> dict[str, Any]:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "GET", "path": path, "client": (client, 1234), "headers": named}


def status(limit: RateLimit, scope: dict[str, Any]) -> tuple[int, str | None]:
    """Status and Retry-After of the answer to a request."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    asyncio.run(limit(scope, receive, send))  # type: ignore[arg-type]
    headers = dict(sent[0].get("headers", []))
    return sent[0]["status"], headers.get(b"retry-after", b"").decode() or None


def limited(clock: Clock, rate: float = 2, replicas: int = 1, **options: Any) -> RateLimit:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    return RateLimit(app, TokenBuckets(rate, replicas=replicas, clock=clock), **options)


def test_a_client_may_send_a_burst_and_then_the_rate() -> None:
    clock = Clock()
    limit = limited(clock)
    burst = 2 * rate_limit.BURST_SECONDS
    assert [status(limit, request())[0] for _ in range(burst + 2)] == [200] * burst + [429] * 2
    assert status(limit, request()) == (429, "1")
    clock.now = 0.49
    assert status(limit, request())[0] == 429
    clock.now = 0.5
    assert [status(limit, request())[0] for _ in range(2)] == [200, 429]
    clock.now = 1000
    assert [status(limit, request())[0] for _ in range(burst + 1)] == [200] * burst + [429]


def test_a_slow_rate_tells_when_to_retry() -> None:
    clock = Clock()
    limit = limited(clock, rate=0.1)
    assert status(limit, request())[0] == 200
    assert status(limit, request()) == (429, "10")
    clock.now = 7.5
    assert status(limit, request()) == (429, "3")


def test_any_number_of_requests_gets_what_the_definition_says() -> None:
    """Against a bucket that is filled in small steps."""
    clock = Clock()
    buckets, tokens, refused = TokenBuckets(3, 5, clock=clock), 5.0, 0
    for step in range(4000):
        clock.now = step / 64
        tokens = min(5.0, tokens + 3 / 64)
        if step % 7 and step % 300 < 200:
            took = buckets.take("a", 1) == 0
            assert took == (tokens >= 1)
            tokens, refused = tokens - took, refused + (not took)
    assert refused > 100


def test_many_clients_do_not_limit_each_other() -> None:
    clock = Clock()
    limit = limited(clock, rate=0.1)
    for number in range(300):
        assert status(limit, request(f"192.0.2.{number % 250}"))[0] == (200 if number < 250 else 429)


def test_forgotten_clients_are_those_of_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "MAX_CLIENTS", 3)
    buckets = TokenBuckets(1, 1, clock=Clock())
    assert [buckets.take(client, 1) for client in "abca"] == [0, 0, 0, 1]
    assert buckets.take("d", 1) == 0  # b is forgotten
    assert [buckets.take(client, 1) for client in "acdb"] == [1, 1, 1, 0]


def test_a_forged_address_is_ignored_unless_a_proxy_is_trusted() -> None:
    limit = limited(Clock(), rate=0.1)
    assert status(limit, request(x_forwarded_for="203.0.113.1"))[0] == 200
    for number in range(5):
        assert status(limit, request(x_forwarded_for=f"203.0.113.{number}"))[0] == 429


def test_behind_a_proxy_the_client_is_the_last_that_it_names() -> None:
    limit = limited(Clock(), rate=0.1, trust_proxy=True)
    proxy = "10.0.0.1"
    assert status(limit, request(proxy, x_forwarded_for="203.0.113.1"))[0] == 200
    assert status(limit, request(proxy, x_forwarded_for="203.0.113.2"))[0] == 200
    for forged in ("198.51.100.7, 203.0.113.1", "a, b,203.0.113.1 ", "203.0.113.1:5000"):
        assert status(limit, request(proxy, x_forwarded_for=forged))[0] == 429


@pytest.mark.parametrize(
    ("client", "forwarded", "expected"),
    [
        ("192.0.2.1", None, "192.0.2.1"),
        ("192.0.2.1", "nonsense", "192.0.2.1"),
        ("192.0.2.1", "203.0.113.9, unknown", "192.0.2.1"),
        ("192.0.2.1", "", "192.0.2.1"),
        ("2001:db8:1:2:3::4", None, "2001:db8:1:2::/64"),
        ("192.0.2.1", "[2001:db8:1:2:ffff::1]:443", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", None, "192.0.2.1"),
        ("testclient", None, "unknown"),
    ],
)
def test_client_addresses(client: str, forwarded: str | None, expected: str) -> None:
    headers = {} if forwarded is None else {"x_forwarded_for": forwarded}
    assert client_address(request(client, **headers), trust_proxy=True) == expected
    assert client_address({"headers": [], "client": None}, trust_proxy=True) == "unknown"


def test_probes_are_free_and_thumbnails_cheap() -> None:
    limit = limited(Clock(), rate=0.1)
    assert {status(limit, request(path="/healthz"))[0] for _ in range(100)} == {200}
    statuses = [status(limit, request(path="/thumbnails/80"))[0] for _ in range(30)]
    assert statuses == [200] * 16 + [429] * 14


def test_an_application_that_follows_another_goes_on_with_its_limits() -> None:
    """As when a new model is taken up: else each of its clients could send another burst."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    buckets = TokenBuckets(0.1, clock=Clock())
    assert [status(RateLimit(app, buckets), request())[0] for _ in range(2)] == [200, 429]


def test_replicas_share_the_rate() -> None:
    clock = Clock()
    replicas = [limited(clock, rate=4, replicas=2) for _ in range(2)]
    answered = sum(status(limit, request())[0] == 200 for limit in replicas for _ in range(100))
    assert answered == 4 * rate_limit.BURST_SECONDS
    clock.now = 3
    answered = sum(status(limit, request())[0] == 200 for limit in replicas for _ in range(100))
    assert answered == 4 * 3


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_is_no_positive_number_is_an_error(rate: float) -> None:
    with pytest.raises(ValueError, match="--rate-limit: expected a positive number"):
        check_rate(rate)
