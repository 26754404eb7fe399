"""Routes of /search: the images nearest to a text, a picture, or a mix of both."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Query

from groundray.image_search import query
from groundray.image_search.filters import Filter
from groundray.image_search.http.backend import Backend, choose_image, read_upload, require_form
from groundray.image_search.http.failures import REFUSALS, UPLOAD_REFUSALS
from groundray.image_search.http.schemas import (
    RankedImages,
    SearchEcho,
    SearchFields,
    SearchForm,
    SearchResponse,
    SearchResult,
)


def router(backend: Backend) -> APIRouter:
    """Return the routes of /search."""
    routes = APIRouter()

    @routes.get("/search", responses=REFUSALS)
    async def search_by_id(fields: Annotated[SearchFields, Query()]) -> SearchResponse:
        """Return the images nearest to a text, to an image of the pool, or to a mix of both."""
        return await _search(backend, fields, None)

    @routes.post("/search", responses=UPLOAD_REFUSALS, dependencies=[Depends(require_form)])
    async def search_by_file(fields: Annotated[SearchForm, Form()]) -> SearchResponse:
        """Return the images nearest to a text, to an uploaded picture, or to a mix of both."""
        return await _search(backend, fields, await read_upload(fields.file))

    return routes


async def _search(backend: Backend, fields: SearchFields, upload: bytes | None) -> SearchResponse:
    started = time.perf_counter()
    texts, without = tuple(text for given in fields.text if (text := given.strip())), fields.without.strip()
    image = choose_image(fields.image, upload)
    search = backend.service.search
    prepare = backend.compute if upload is None else backend.decode
    accepted = Filter.parse(fields.filter)
    asked = query.Query(texts, image, tuple(fields.alpha), fields.k, without, accepted, fields.offset, fields.rerank)
    prepared = await prepare(lambda: search.prepare(asked))
    answers = await backend.answer(prepared)
    return SearchResponse(
        query=SearchEcho(text=list(texts), without=without, image=fields.image or None, uploaded=upload is not None),
        answers=[
            RankedImages(
                alpha=answer.alpha,
                results=[
                    SearchResult(id=hit.id, width=hit.width, height=hit.height, score=hit.score, match=hit.match)
                    for hit in answer.hits
                ],
            )
            for answer in answers
        ],
        milliseconds=round(1000 * (time.perf_counter() - started), 2),
    )
