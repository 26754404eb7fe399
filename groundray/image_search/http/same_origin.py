"""Keeps other web sites out: which hosts and origins a request may name, and what browsers may do with a response."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
HOST = re.compile(r"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::\d+)?", re.IGNORECASE)
PATTERN = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?", re.IGNORECASE)

# Nothing from elsewhere, and no script but the files of the page; plotly writes its styles itself.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # the page's address holds the query
    "Cross-Origin-Resource-Policy": "same-site",  # other sites do not show images of the pool
}
NO_STORE = ("Cache-Control", "no-store")  # answers to a query change with the model and the pool


class SecurityHeaders:
    """Middleware that adds SECURITY_HEADERS to every response, and has no cache keep one that does not allow it."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                headers.setdefault(*NO_STORE)
            await send(message)

        await self._app(scope, receive, with_headers)


class SameOrigin:
    """Middleware that refuses requests which another web site caused.

    The Host of a request must be an IP address, `localhost`, or one of `hosts`; any other gets status 400. A site that
    has its own name resolve to this machine (DNS rebinding) sends that name; it cannot send an address.

    A request that may change or compute something (not one of SAFE_METHODS) must not come from a page of another
    origin; it gets status 403. Browsers say so in Sec-Fetch-Site, older ones in Origin; clients that are not browsers
    send neither and are let through (the algorithm of Go's `http.CrossOriginProtection`).

    Args:
        hosts: names without a port; `*.example.org` stands for all names below `example.org`, `*` for every name.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str] = ()):
        self._app, self._hosts = app, tuple(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_known(host):
            known = ", ".join(("localhost", "an IP address", *self._hosts))
            return _refuse(
                400, f"Host: expected {known}, got {host[:80]!r}: to serve under this name, add it with --allow-host"
            )
        if scope["method"] not in SAFE_METHODS and _is_cross_origin(headers, host):
            return _refuse(
                403, "expected a request from a page of this service or from a program, got one of another site"
            )
        return None

    def _is_known(self, host: str) -> bool:
        name = _name(host)
        if name is None:
            return False
        return (
            _is_address(name)
            or name == "localhost"
            or name.endswith(".localhost")
            or any(_matches(name, pattern) for pattern in self._hosts)
        )


def check_hosts(hosts: Sequence[str]) -> None:
    """Raise ValueError if one of the names is not a host's name, or has a port or a scheme."""
    for host in hosts:
        if host != "*" and not PATTERN.fullmatch(host):
            raise ValueError(
                f"--allow-host: expected the name of a host, such as search.example.org or *.example.org, got {host!r}"
            )


def _is_cross_origin(headers: Headers, host: str) -> bool:
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    try:
        return origin is not None and urlsplit(origin).netloc.lower() != host.lower()
    except ValueError:  # no URL, such as http://[
        return True


def _name(host: str) -> str | None:
    """Return the name or address of a Host header without its port and a trailing dot; None if it is neither."""
    parts = HOST.fullmatch(host)
    return (parts["ipv6"] or parts["name"].rstrip(".")).lower() if parts else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _matches(name: str, pattern: str) -> bool:
    return pattern == "*" or name == pattern or (pattern.startswith("*.") and name.endswith(pattern[1:]))


def _refuse(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status)
