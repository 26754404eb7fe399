"""The FastAPI application of image search. OpenAPI describes it at /openapi.json."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI, HTTPException
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import HTMLResponse, PlainTextResponse

from groundray.image_search.http import match_map_routes, pool_routes, search_routes, word_routes
from groundray.image_search.http.auth_token import RequireToken
from groundray.image_search.http.backend import Backend, Batch
from groundray.image_search.http.failures import handle_errors
from groundray.image_search.http.head import HeadAsGet
from groundray.image_search.http.metrics import Metrics
from groundray.image_search.http.page_files import REVALIDATED, PageFiles
from groundray.image_search.http.rate_limit import RateLimit, TokenBuckets
from groundray.image_search.http.request_body import BodyLimit, BodyLimits
from groundray.image_search.http.same_origin import SameOrigin, SecurityHeaders
from groundray.image_search.service import Service

PAGE = Path(__file__).parent / "page"
EXPOSITION = "text/plain; version=0.0.4"  # Prometheus's text format
GZIP_BYTES, GZIP_LEVEL = 1000, 4  # a response of at least so many; level 9 takes three times as long for 5% less


def create_app(
    service: Service,
    batch: Batch | None = None,
    page: Path = PAGE,
    hosts: Sequence[str] = (),
    token: str | None = None,
    buckets: TokenBuckets | None = None,
    trust_proxy: bool = False,
    metrics: Metrics | None = None,
) -> FastAPI:
    """Create the application.

    Args:
        batch: wraps a function that has an outcome for each of several queries as a function of one query that is
            answered together with those that wait (default: each query alone).
        page: folder of the web page: `index.html`, and the files under /static.
        hosts: names that a request's Host may have besides `localhost` and addresses (see `SameOrigin`).
        token: what every request must know (see `RequireToken`); None if the service is open.
        buckets: what each client may still send (see `RateLimit`); None for no limit.
        trust_proxy: the proxy in front says in X-Forwarded-For and X-Forwarded-Proto who the client is.
        metrics: where measurements go, which are shown at /metrics; None if there are none.
    """
    app = FastAPI(
        title="groundray search",
        description="Search a pool of images by picture, by word, or by a mix of both, and see why.",
        version="1",
        docs_url=None,  # FastAPI's pages load scripts from other machines
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, limits=BodyLimits())  # the last one added is the outermost
    app.add_middleware(GZipMiddleware, minimum_size=GZIP_BYTES, compresslevel=GZIP_LEVEL)  # not of pictures
    if token is not None:
        app.add_middleware(RequireToken, token=token, trust_proxy=trust_proxy)
    if buckets is not None:
        app.add_middleware(RateLimit, buckets=buckets, trust_proxy=trust_proxy)
    app.add_middleware(SameOrigin, hosts=hosts)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(HeadAsGet)
    handle_errors(app)

    backend = Backend(service, batch, metrics)
    for routes in (search_routes, match_map_routes, word_routes, pool_routes):
        app.include_router(routes.router(backend))

    if metrics:
        metrics.show_pool(service.search.towers.name, len(service.search.index))

        @app.get("/metrics", include_in_schema=False)
        async def exposition() -> PlainTextResponse:
            return PlainTextResponse(await asyncio.to_thread(metrics.exposition), media_type=EXPOSITION)

    files = PageFiles(page)

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        content = files.index(pool_routes.pool_version(service.search.index))
        if content is None:
            raise HTTPException(404, f"no page at {page}; /openapi.json describes the requests")
        return HTMLResponse(content, headers={"Cache-Control": REVALIDATED})

    app.mount("/static", files)
    return app
