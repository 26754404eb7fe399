"""Limits the requests of each client, so that one of them does not take the service from the others."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from groundray.image_search.http.client import client_address

BURST_SECONDS = 10  # a client that has paused may send the requests of so long at once
FREE_PATHS = ("/healthz",)
CHEAP_PATHS = ("/static/", "/thumbnails/")  # a page has dozens of them
CHEAP = 1 / 16  # what such a request counts
MAX_CLIENTS = 10_000  # whose buckets are kept; the one that was used longest ago is forgotten


class TokenBuckets:
    """A token bucket for each client: it gains tokens in the course of time, and a request takes some.

    Args:
        rate: tokens per second of one client in all processes that share the requests evenly; each gives its part.
        burst: most tokens of a bucket (default: those of BURST_SECONDS).
        replicas: number of these processes.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        rate: float,
        burst: float | None = None,
        replicas: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.rate, self._gain, self._clock = rate, rate / replicas, clock
        self._burst = max(1.0, self._gain * BURST_SECONDS) if burst is None else burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when there were so many

    def take(self, client: str, cost: float) -> float:
        """Take the tokens of a request. Returns 0, or the seconds until there are enough; then none is taken."""
        now = self._clock()
        tokens, then = self._buckets.pop(client, (self._burst, now))
        tokens = min(self._burst, tokens + self._gain * (now - then))
        enough = tokens >= cost
        self._buckets[client] = (tokens - cost if enough else tokens), now
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if enough else (cost - tokens) / self._gain


class RateLimit:
    """Middleware that answers 429 with Retry-After to a client that sends too many requests.

    Args:
        buckets: of the process; applications that follow each other in it share them. A request takes a token, one of
            CHEAP_PATHS CHEAP of one.
        trust_proxy: see `client_address`.
    """

    def __init__(self, app: ASGIApp, buckets: TokenBuckets, trust_proxy: bool = False):
        self._app, self._buckets, self._trust_proxy = app, buckets, trust_proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in FREE_PATHS:
            cost = CHEAP if scope["path"].startswith(CHEAP_PATHS) else 1.0
            if seconds := self._buckets.take(client_address(scope, self._trust_proxy), cost):
                headers = {"Retry-After": str(math.ceil(seconds))}
                told = f"expected at most {self._buckets.rate:g} requests per second from one address, got more"
                await JSONResponse({"detail": told}, 429, headers)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def check_rate(rate: float | None) -> None:
    """Raise ValueError if a rate is not a positive number."""
    if rate is not None and not 0 < rate < math.inf:
        raise ValueError(f"--rate-limit: expected a positive number of requests per second, got {rate:g}")
