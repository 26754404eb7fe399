"""Errors as HTTP responses: which error becomes which status."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from groundray.data.image_decoder import UnusableImage
from groundray.image_search.errors import BadQuery, UnknownImage
from groundray.image_search.http.same_origin import NO_STORE, SECURITY_HEADERS
from groundray.image_search.http.schemas import Problem

UPLOAD_STATUS = {"too large": 413, "not an image": 415}  # by the reason that a picture is unusable; any other is 422

# what OpenAPI says of failures
REFUSALS: dict[int | str, dict[str, Any]] = {
    422: {"model": Problem, "description": "the request is invalid"},
    400: {"model": Problem, "description": "the Host of the request is unknown to the service"},
    401: {"model": Problem, "description": "the service asks for a token, which the request lacks"},
    404: {"model": Problem, "description": "no such image"},
    429: {"model": Problem, "description": "too many requests of one client: retry after Retry-After seconds"},
    503: {"description": "overloaded: retry after Retry-After seconds"},
}
UPLOAD_REFUSALS: dict[int | str, dict[str, Any]] = {
    **REFUSALS,
    403: {"model": Problem, "description": "a page of another site sent the request"},
    408: {"model": Problem, "description": "the upload stalled"},
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
        response = problem(500, "internal error: see the service's log")
        # this response is made outside of the application's middleware
        response.headers.update({**SECURITY_HEADERS, NO_STORE[0]: NO_STORE[1]})
        return response


def problem(status: int, detail: str) -> JSONResponse:
    """Return an error response, shaped as `schemas.Problem`."""
    return JSONResponse({"detail": detail}, status)


def _describe(error: Any) -> str:
    """Return one line for a validation error: the field, what was expected, what came."""
    field = ".".join(str(part) for part in error["loc"][1:])
    got = "" if error["type"] == "missing" else f", got {str(error['input'])[:80]!r}"
    return f"{field}: {error['msg'][:1].lower()}{error['msg'][1:]}{got}"
