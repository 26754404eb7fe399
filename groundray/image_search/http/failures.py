"""Errors as HTTP responses: which error becomes which status, and the limit on a request's size."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groundray.data.image_decoder import UnusableImage
from groundray.image_search.errors import BadQuery, UnknownImage
from groundray.image_search.http.schemas import Problem
from groundray.image_search.uploads import MAX_BYTES

UPLOAD_STATUS = {"too large": 413, "not an image": 415}  # by the reason that a picture is unusable; any other is 422

# what OpenAPI says of failures
REFUSALS: dict[int | str, dict[str, Any]] = {
    422: {"model": Problem, "description": "the request is invalid"},
    404: {"model": Problem, "description": "no such image"},
    503: {"description": "overloaded: retry after Retry-After seconds"},
}
UPLOAD_REFUSALS: dict[int | str, dict[str, Any]] = {
    **REFUSALS,
    413: {"model": Problem, "description": "the picture is too large"},
    415: {"model": Problem, "description": "the file is not a picture"},
}


def handle_errors(app: FastAPI) -> None:
    """Have an application answer every error with its status and a JSON `detail`."""

    @app.exception_handler(RequestValidationError)
    async def invalid_fields(request: Request, error: RequestValidationError) -> Response:
        return problem(422, "; ".join(map(_describe, error.errors())))

    @app.exception_handler(BadQuery)
    async def bad_query(request: Request, error: BadQuery) -> Response:
        return problem(422, str(error))

    @app.exception_handler(UnknownImage)
    async def unknown_image(request: Request, error: UnknownImage) -> Response:
        return problem(404, str(error))

    @app.exception_handler(UnusableImage)
    async def unusable_picture(request: Request, error: UnusableImage) -> Response:
        return problem(UPLOAD_STATUS.get(error.reason, 422), str(error))

    @app.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> Response:
        return problem(500, "internal error: see the service's log")


class BodyLimit:
    """Middleware that refuses a request whose body is too large: by its Content-Length, else while it arrives."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_bytes:
            await problem(413, self._detail(int(length)))(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(413, self._detail(received))
            return message

        await self._app(scope, counted, send)

    def _detail(self, size: int) -> str:
        return f"expected a picture of at most {MAX_BYTES:,} bytes, got a request of {size:,} or more"


def problem(status: int, detail: str) -> JSONResponse:
    """Return an error response, shaped as `schemas.Problem`."""
    return JSONResponse({"detail": detail}, status)


def _describe(error: Any) -> str:
    """Return one line for a validation error: the field, what was expected, what came."""
    field = ".".join(str(part) for part in error["loc"][1:])
    got = "" if error["type"] == "missing" else f", got {str(error['input'])[:80]!r}"
    return f"{field}: {error['msg'][:1].lower()}{error['msg'][1:]}{got}"
