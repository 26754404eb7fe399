"""The FastAPI application of image search. OpenAPI describes it at /openapi.json."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from groundray.image_search.http import match_map_routes, pool_routes, search_routes, word_routes
from groundray.image_search.http.backend import Backend, Batch
from groundray.image_search.http.failures import handle_errors
from groundray.image_search.http.request_body import BodyLimit, BodyLimits
from groundray.image_search.http.same_origin import SameOrigin, SecurityHeaders
from groundray.image_search.service import Service

PAGE = Path(__file__).parent / "page"


def create_app(service: Service, batch: Batch | None = None, page: Path = PAGE, hosts: Sequence[str] = ()) -> FastAPI:
    """Create the application.

    Args:
        batch: wraps a function of several queries as a function of one query that is answered together with those
            that wait (default: each query alone).
        page: folder of the web page: `index.html`, and the files under /static.
        hosts: names that a request's Host may have besides `localhost` and addresses (see `SameOrigin`).
    """
    app = FastAPI(
        title="groundray search",
        description="Search a pool of images by picture, by word, or by a mix of both, and see why.",
        version="1",
        docs_url=None,  # FastAPI's pages load scripts from other machines
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, limits=BodyLimits())  # the last one added is the outermost
    app.add_middleware(SameOrigin, hosts=hosts)
    app.add_middleware(SecurityHeaders)
    handle_errors(app)

    backend = Backend(service, batch)
    for routes in (search_routes, match_map_routes, word_routes, pool_routes):
        app.include_router(routes.router(backend))

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        if not (page / "index.html").is_file():
            raise HTTPException(404, f"no page at {page}; /openapi.json describes the requests")
        return FileResponse(page / "index.html")

    @app.get("/static/plotly.min.js", include_in_schema=False)
    async def plotly() -> FileResponse:
        return FileResponse(plotly_script(), media_type="text/javascript")

    app.mount("/static", StaticFiles(directory=page, check_dir=False))
    return app


def plotly_script() -> Path:
    """Return the path of plotly's script in the installed package."""
    package = importlib.util.find_spec("plotly")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "package_data" / "plotly.min.js"
