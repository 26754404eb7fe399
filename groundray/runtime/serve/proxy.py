"""Middleware of Ray Serve's HTTP proxies, which receive every request before a replica does.

Serve calls `middlewares` in each proxy whose environment has the variables of `environment`. `deployment.serving` gives
them to the proxies that it starts; k8s/base/config.yaml has them too.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import partial

from ray.util.metrics import Counter
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from groundray.image_search.http.metrics import CountRefusals
from groundray.image_search.http.request_body import BodyLimit, BodyLimits
from groundray.image_search.upload_limits import STALL_SECONDS
from groundray.runtime import compat
from groundray.runtime.serve import metrics

FORWARDED = "FORWARDED_ALLOW_IPS"  # environment variable of uvicorn: addresses that may say who the client is
TIMEOUT = "GROUNDRAY_SERVE_TIMEOUT"  # environment variable: seconds until a stalled upload gets status 408


def environment(timeout: float) -> dict[str, str]:
    """Return the environment variables of a proxy.

    A proxy then asks replicas by gRPC instead of by calls of actors, and from the event loop that receives requests
    instead of another thread's: a request takes 12 ms of CPU time instead of 16, in all processes together. An answer
    of any size arrives; gRPC's own limit is 4 MB.

    By default uvicorn takes the address of a client on this machine from its X-Forwarded-For. The application does so,
    if it is told to trust a proxy.
    """
    return {
        compat.PROXY_CALLBACK: f"{__name__}:{middlewares.__name__}",
        compat.PROXY_GRPC: "1",
        compat.ROUTER_LOOP: "0",
        compat.GRPC_BYTES: str(2**31 - 1),
        TIMEOUT: f"{timeout:g}",
        FORWARDED: "",
    }


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
        Middleware(CountRefusals, count=partial(_count, metrics.refusals())),
    ]


def _count(refusals: Counter, reason: str) -> None:
    refusals.inc(tags={"reason": reason})


class WithoutHeaders:
    """Middleware that drops some headers of a request: those with which any client could switch off Serve's timeout."""

    def __init__(self, app: ASGIApp, names: Collection[str]):
        self._app, self._names = app, {name.lower().encode() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0].lower() not in self._names]}
        await self._app(scope, receive, send)
