"""Middleware of Ray Serve's HTTP proxies, which receive every request before a replica does.

Serve calls `middlewares` in each proxy whose environment has the variables of `environment`. `deployment.serving` gives
them to the proxies that it starts; k8s/base/config.yaml has them too.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from groundray.image_search.http.request_body import BodyLimit, BodyLimits
from groundray.image_search.upload_limits import STALL_SECONDS
from groundray.runtime import compat

TIMEOUT = "GROUNDRAY_SERVE_TIMEOUT"  # environment variable: seconds until a stalled upload gets status 408


def environment(timeout: float) -> dict[str, str]:
    """Return the environment variables of a proxy."""
    return {compat.PROXY_CALLBACK: f"{__name__}:{middlewares.__name__}", TIMEOUT: f"{timeout:g}"}


def middlewares() -> list[Middleware]:
    """Return the middleware of a proxy; the last one is the outermost.

    Raises:
        ValueError: the environment variable TIMEOUT is not a positive number.
    """
    timeout = os.environ.get(TIMEOUT, STALL_SECONDS)
    try:
        stall_seconds = float(timeout)
    except ValueError:
        stall_seconds = 0
    if not stall_seconds > 0:
        raise ValueError(f"{TIMEOUT}: expected a positive number of seconds, got {timeout!r}")
    return [
        Middleware(WithoutHeaders, names=compat.request_option_headers()),
        Middleware(BodyLimit, limits=BodyLimits(stall_seconds=stall_seconds)),
    ]


class WithoutHeaders:
    """Middleware that drops some headers of a request: those with which any client could switch off Serve's timeout."""

    def __init__(self, app: ASGIApp, names: Collection[str]):
        self._app, self._names = app, {name.lower().encode() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0].lower() not in self._names]}
        await self._app(scope, receive, send)
