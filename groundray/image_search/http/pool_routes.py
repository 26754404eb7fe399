"""Routes of the pool: what is served, a sample of its images, their thumbnails and their files."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from groundray.data.image_decoder import decode, format_of
from groundray.image_search.http.backend import Backend
from groundray.image_search.http.failures import REFUSALS
from groundray.image_search.http.schemas import Health, Pool, PoolFields, PoolImage

BROWSER_FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}


def router(backend: Backend) -> APIRouter:
    """Return the routes of /healthz, /pool, /thumbnails and /images."""
    routes, search = APIRouter(), backend.service.search
    index = search.index

    @routes.get("/healthz")
    async def healthz() -> Health:
        """Return that the service is up, and what it serves."""
        return Health(
            images=len(index),
            words=len(backend.service.space.words.shown),
            model=search.towers.run_name,
            stages=list(search.towers.stages),
            recall=search.nearest.recall,
        )

    @routes.get("/pool", responses=REFUSALS)
    async def pool(fields: Annotated[PoolFields, Query()]) -> Pool:
        """Return a random sample of the pool, fixed by the seed."""
        rows = sample(len(index), fields.k, fields.seed)
        return Pool(
            results=[
                PoolImage(id=index.ids[row], width=width, height=height)
                for row, (width, height) in zip(rows, index.sizes[rows].tolist(), strict=True)
            ]
        )

    @routes.get("/thumbnails/{id:path}", responses=REFUSALS, response_class=Response)
    async def thumbnail(id: str, request: Request) -> Response:
        """Return a small JPEG of an image."""
        row = index.row(id)
        return await _cacheable(request, f"{index.folder.name}-{row}", lambda: (index.thumbnails[row], "image/jpeg"))

    @routes.get("/images/{id:path}", responses=REFUSALS, response_class=Response)
    async def image(id: str, request: Request) -> Response:
        """Return an image in full size."""
        row = index.row(id)
        return await _cacheable(request, f"{index.folder.name}-{row}", lambda: for_browser(index.pictures[row]))

    return routes


def sample(count: int, k: int, seed: int) -> list[int]:
    """Return `k` of `count` rows in random order, or all if there are fewer. Takes time for `k`, not for `count`."""
    # Floyd's algorithm, unless k is more than a fiftieth of more than 10,000 rows: MAX_RESULTS is not
    return np.random.default_rng(seed).choice(count, min(k, count), replace=False).tolist()


def for_browser(encoded: bytes) -> tuple[bytes, str]:
    """Return an encoded image in a format that browsers show, and its media type; others than BROWSER_FORMATS become
    JPEG."""
    format = format_of(encoded)
    if format in BROWSER_FORMATS:
        return encoded, BROWSER_FORMATS[format]
    file = io.BytesIO()
    decode(encoded).save(file, "JPEG", quality=90)
    return file.getvalue(), "image/jpeg"


async def _cacheable(request: Request, tag: str, read: Callable[[], tuple[bytes, str]]) -> Response:
    """Return a picture that a browser keeps, and revalidates by its ETag."""
    headers = {"ETag": f'"{tag}"', "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    content, media_type = await asyncio.to_thread(read)
    return Response(content, media_type=media_type, headers=headers)
