"""Middleware of Serve's proxies, as Serve calls for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.serve._private.http_util import configure_http_middlewares, parse_request_timeout_header
from ray.serve.config import HTTPOptions

from groundray.image_search.http.metrics import CountRefusals
from groundray.image_search.http.request_body import BodyLimit
from groundray.runtime import compat
from groundray.runtime.serve import proxy


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> HTTPOptions:
    """Options of a proxy with the environment of `proxy.environment`, as Serve makes them."""
    variables = proxy.environment(4.5)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(f"ray.serve._private.http_util.{compat.PROXY_CALLBACK}", variables[compat.PROXY_CALLBACK])
    return configure_http_middlewares(HTTPOptions())


def test_serve_applies_the_middleware(configured: HTTPOptions) -> None:
    assert [middleware.cls for middleware in configured.middlewares] == [proxy.WithoutHeaders, BodyLimit, CountRefusals]
    assert configured.middlewares[1].kwargs["limits"].stall_seconds == 4.5


def test_a_client_cannot_switch_the_timeout_off(configured: HTTPOptions) -> None:
    seen: dict[bytes, bytes] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope["headers"])

    middleware = configured.middlewares[0]
    headers = [(b"x-request-timeout-seconds", b"0"), (b"x-request-disconnect-disabled", b"?1"), (b"accept", b"*/*")]
    assert parse_request_timeout_header(dict(headers), 30) is None
    scope = {"type": "http", "headers": headers}
    asyncio.run(middleware.cls(app, *middleware.args, **middleware.kwargs)(scope, None, None))
    assert seen == {b"accept": b"*/*"}
    assert parse_request_timeout_header(seen, 30) == 30


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan"])
def test_a_timeout_that_is_no_number_of_seconds_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(proxy.TIMEOUT, value)
    with pytest.raises(ValueError, match=f"^{proxy.TIMEOUT}: expected a positive number of seconds, got '{value}'"):
        proxy.middlewares()
