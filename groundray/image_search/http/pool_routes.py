"""Routes of the pool: what is served, its images page by page, their labels, their thumbnails and their files."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from starlette.convertors import PathConvertor, register_url_convertor

from groundray.data.image_decoder import decode, format_of
from groundray.image_search.filters import Filter
from groundray.image_search.http.backend import Backend
from groundray.image_search.http.failures import REFUSALS
from groundray.image_search.http.page_files import FOR_GOOD, REVALIDATED
from groundray.image_search.http.renewal import UPDATE
from groundray.image_search.http.schemas import Health, Pool, PoolFields, PoolImage, PoolLabels
from groundray.image_search.index import Index

BROWSER_FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}

ROUNDS = 6  # of the network that puts the pool in a random order


class AnyId(PathConvertor):
    """An id in a path: any characters, slashes and line breaks among them."""

    regex = "(?s:.*)"


def router(backend: Backend) -> APIRouter:
    """Return the routes of /healthz, /pool, /thumbnails and /images."""
    register_url_convertor("id", AnyId())
    routes, search = APIRouter(), backend.service.search
    index = search.index
    version = pool_version(index)

    @routes.get("/healthz")
    async def healthz(request: Request) -> Health:
        """Return that the service is up, and what it serves."""
        return Health(
            index=index.folder.name,
            update=getattr(request.state, UPDATE, ""),
            images=len(index),
            words=len(backend.service.space.words.shown),
            model=search.towers.name,
            kind=search.towers.kind,
            stages=list(search.towers.stages),
            recall=search.nearest.recall,
        )

    @routes.get("/pool", responses=REFUSALS)
    async def pool(fields: Annotated[PoolFields, Query()]) -> Pool:
        """Return a page of the images that meet a filter, in a random order that the seed fixes."""
        accepted = Filter.parse(fields.filter)
        mask = await backend.compute(lambda: index.accepted(accepted)) if accepted else index.present
        among = None if mask is None else np.flatnonzero(mask)
        total = len(index) if among is None else len(among)
        places = page_of(total, fields.k, fields.seed, fields.offset)
        rows = places if among is None else among[places].tolist()
        end = fields.offset + len(rows)
        return Pool(
            results=[
                PoolImage(id=index.ids[row], width=width, height=height)
                for row, (width, height) in zip(rows, index.sizes[rows].tolist(), strict=True)
            ],
            total=total,
            next=end if end < total else None,
        )

    @routes.get("/labels")
    async def labels() -> PoolLabels:
        """Return the labels that a filter may name; none if the images have no labels."""
        return PoolLabels(labels=list(index.labels.names))

    @routes.get("/thumbnails/{id:id}", responses=REFUSALS, response_class=Response)
    async def thumbnail(id: str, request: Request) -> Response:
        """Return a small JPEG of an image."""
        row = index.row(id)
        return await _cacheable(request, version, row, lambda: (index.thumbnails[row], "image/jpeg"))

    @routes.get("/images/{id:id}", responses=REFUSALS, response_class=Response)
    async def image(id: str, request: Request) -> Response:
        """Return an image in full size."""
        row = index.row(id)
        return await _cacheable(request, version, row, lambda: for_browser(index.pictures[row]))

    return routes


def page_of(count: int, k: int, seed: int, offset: int = 0) -> list[int]:
    """Return places `offset` to `offset` + `k` of a random order of `count` rows, or as many as there are.

    Takes time and memory for `k`, not for `count`: the order is a Feistel network over the smallest power of four that
    has room, and a place that falls beyond the rows is passed through it again (Black and Rogaway 2002, "Ciphers with
    arbitrary finite domains").
    """
    half = ((count - 1).bit_length() + 1) // 2 if count > 1 else 1

    def passed(place: int) -> int:
        left, right = place >> half, place & ((1 << half) - 1)
        for turn in range(ROUNDS):
            digest = hashlib.blake2b(b"%d,%d,%d" % (seed, turn, right), digest_size=16).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & ((1 << half) - 1))
        return left << half | right

    rows = []
    for place in range(min(offset, count), min(offset + k, count)):
        row = passed(place)
        while row >= count:
            row = passed(row)
        rows.append(row)
    return rows


def pool_version(index: Index) -> str:
    """Return a name of the pool's pictures: any other picture, and any other order of them, has another."""
    return index.folder.name


def for_browser(encoded: bytes) -> tuple[bytes, str]:
    """Return an encoded image in a format that browsers show, and its media type; others than BROWSER_FORMATS become
    JPEG."""
    format = format_of(encoded)
    if format in BROWSER_FORMATS:
        return encoded, BROWSER_FORMATS[format]
    file = io.BytesIO()
    decode(encoded).save(file, "JPEG", quality=90)
    return file.getvalue(), "image/jpeg"


async def _cacheable(request: Request, version: str, row: int, read: Callable[[], tuple[bytes, str]]) -> Response:
    """Return a picture that a browser alone keeps: for good if its address names the version of the pool as `v`, else
    revalidated by its ETag."""
    kept = FOR_GOOD if request.query_params.get("v") == version else REVALIDATED
    headers = {"ETag": f'"{version}-{row}"', "Cache-Control": f"private, {kept}"}
    if _is_known(headers["ETag"], request.headers.getlist("if-none-match")):
        return Response(status_code=304, headers=headers)
    content, media_type = await asyncio.to_thread(read)
    return Response(content, media_type=media_type, headers=headers)


def _is_known(etag: str, lines: Sequence[str]) -> bool:
    """Return whether a client has what bears an ETag, by the lines of If-None-Match: `*`, or tags that may be weak, as
    a proxy that compresses makes them (RFC 9110, 13.1.2)."""
    tags = [tag.strip().removeprefix("W/") for line in lines for tag in line.split(",")]
    return "*" in tags or etag in tags
