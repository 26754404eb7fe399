"""Receives the body of a request before anything else handles the request, within limits of size, time and memory.

Ray Serve's proxy passes a request to a replica as soon as its headers arrive, and keeps what arrives of its body in
memory without a limit. Clients that stall then occupy every replica, and large bodies the memory. With this middleware
in the proxy (`runtime/serve/proxy.py`), a request enters the queue once its body is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groundray.image_search import upload_limits

LINGER_SECONDS = (
    5.0  # after a refusal, what still arrives is discarded for so long, so that the client reads the reason
)
RETRY_SECONDS = 1


@dataclass(frozen=True)
class BodyLimits:
    """Limits of request bodies.

    Attributes:
        max_bytes: of one body.
        stall_seconds: time for a body to arrive; each `bytes_per_second` bytes of it give one second more.
        bytes_per_second: slowest transfer that is accepted after `stall_seconds`.
        buffer_bytes: of all bodies in this process, until their requests are answered.
    """

    max_bytes: int = upload_limits.MAX_BYTES + upload_limits.FORM_BYTES
    stall_seconds: float = upload_limits.STALL_SECONDS
    bytes_per_second: int = upload_limits.BYTES_PER_SECOND
    buffer_bytes: int = upload_limits.BUFFER_BYTES


class BodyLimit:
    """Middleware that receives a request's whole body, then calls the application.

    A body gets status 413 if it is too large, by its Content-Length or as it arrives; 408 if it stalls; 503 with
    Retry-After if the bodies of all requests take too much memory; and 422 if it is a form of parts without an end,
    whose last fields would be passed over.
    """

    def __init__(self, app: ASGIApp, limits: BodyLimits):
        self._app, self._limits, self._buffered = app, limits, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        body = _Body()
        try:
            await self._receive(body, Headers(scope=scope), receive)
        except ClientDisconnect:
            self._release(body)
        except _Refused as refused:
            self._release(body)
            await _answer_and_discard(refused.response, scope, receive, send, body.complete)
        else:
            try:
                await self._app(scope, body.replay(receive), send)
            finally:
                self._release(body)

    async def _receive(self, body: _Body, headers: Headers, receive: Receive) -> None:
        """Receive a body.

        Raises:
            ClientDisconnect: the client went away.
            _Refused: the body exceeds a limit, or is cut off.
        """
        limits, clock, declared = self._limits, asyncio.get_running_loop(), headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limits.max_bytes:
            raise _Refused(413, _too_large(int(declared)))
        start = clock.time()
        try:
            async with asyncio.timeout(limits.stall_seconds) as timer:
                while not body.complete:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    self._buffered += body.add(message)
                    if body.size > limits.max_bytes:
                        raise _Refused(413, _too_large(body.size))
                    if self._buffered > limits.buffer_bytes:
                        raise _Refused(503, "too many uploads at once", {"Retry-After": str(RETRY_SECONDS)})
                    timer.reschedule(start + limits.stall_seconds + body.size / limits.bytes_per_second)
        except TimeoutError:
            raise _Refused(
                408,
                f"the upload stalled: got {body.size:,} of {int(declared):,} bytes"
                if declared.isdigit()
                else f"the upload stalled: got {body.size:,} bytes and no end",
            ) from None
        if (end := _end_of_form(headers)) and not body.holds(end):
            raise _Refused(
                422,
                f"the form is cut off: expected its closing boundary, got {body.size:,} bytes without: send it again",
            )

    def _release(self, body: _Body) -> None:
        self._buffered -= body.size
        body.clear()


class _Body:
    """The bytes of a body that have arrived, their number, and whether it is complete."""

    def __init__(self) -> None:
        self.size, self.complete = 0, False
        self._content = bytearray()  # in a list, a message of a single byte takes 200

    def add(self, message: Message) -> int:
        """Add a message and return its size in bytes."""
        content = message.get("body", b"")
        self._content += content
        self.size += len(content)
        self.complete = not message.get("more_body", False)
        return len(content)

    def holds(self, sequence: bytes) -> bool:
        """Return whether some bytes are in the body."""
        return sequence in self._content

    def replay(self, receive: Receive) -> Receive:
        """Return a `receive` that yields the body, then what the server sends."""
        given = False

        async def replayed() -> Message:
            nonlocal given
            if given:
                return await receive()
            given, content = True, bytes(self._content)
            self._content.clear()
            return {"type": "http.request", "body": content, "more_body": False}

        return replayed

    def clear(self) -> None:
        self.size = 0
        self._content.clear()


class _Refused(Exception):
    """A body that is not accepted; holds the response."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None):
        super().__init__(detail)
        self.response = JSONResponse({"detail": detail}, status, {"Connection": "close", **(headers or {})})


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _end_of_form(headers: Headers) -> bytes | None:
    """Return the closing boundary of a form of parts (RFC 2046, 5.1.1); None for any other body, and for a form that
    names no boundary, which the application refuses."""
    kind, options = parse_options_header(headers.get("content-type"))
    boundary = options.get(b"boundary")
    return b"--%s--" % boundary if kind == b"multipart/form-data" and boundary else None


def _too_large(size: int) -> str:
    return f"expected a picture of at most {upload_limits.MAX_BYTES:,} bytes, got a request of {size:,} or more"


async def _answer_and_discard(response: Response, scope: Scope, receive: Receive, send: Send, complete: bool) -> None:
    """Send a response, and discard what still arrives of the request until its end or for LINGER_SECONDS.

    A connection that is closed while its client sends is reset, and many clients then lose the response.
    """

    async def hold_open(message: Message) -> None:
        await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

    await response(scope, receive, hold_open)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            more = not complete and response.status_code != 408  # a client that stalls sends no more
            while more:
                message = await receive()
                more = message["type"] == "http.request" and message.get("more_body", False)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
