"""Routes of /match-map: how well each position of a picture matches each word of a text."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, HTTPException, Query

from groundray.image_search.calibration import explain
from groundray.image_search.errors import BadQuery
from groundray.image_search.explain import DecodedPicture
from groundray.image_search.http.backend import Backend, choose_image, read_upload, require_form
from groundray.image_search.http.failures import REFUSALS, UPLOAD_REFUSALS
from groundray.image_search.http.schemas import MatchFields, MatchForm, MatchMap, Scale, Token
from groundray.image_search.uploads import checked


def router(backend: Backend) -> APIRouter:
    """Return the routes of /match-map."""
    routes = APIRouter()

    @routes.get("/match-map", responses=REFUSALS)
    async def match_map_by_id(fields: Annotated[MatchFields, Query()]) -> MatchMap:
        """Return how well each position of an image of the pool matches each word of a text."""
        return await _match_map(backend, fields, None)

    @routes.post("/match-map", responses=UPLOAD_REFUSALS, dependencies=[Depends(require_form)])
    async def match_map_by_file(fields: Annotated[MatchForm, Form()]) -> MatchMap:
        """Return how well each position of an uploaded picture matches each word of a text."""
        return await _match_map(backend, fields, await read_upload(fields.file))

    return routes


async def _match_map(backend: Backend, fields: MatchFields, upload: bytes | None) -> MatchMap:
    matcher, calibration, pool = backend.service.matcher, backend.service.calibration, backend.service.search.index
    image = choose_image(fields.image, upload)
    if matcher is None or calibration is None:
        raise HTTPException(409, "match maps come from the grounding stage, which this model lacks: serve one with it")
    if image is None:
        raise BadQuery("expected an image beside the text: image (an id of the pool) or file (a picture)")

    def decode() -> DecodedPicture:
        return matcher.decode(checked(image) if isinstance(image, bytes) else pool.pictures[pool.row(image)])

    picture = await backend.decode(decode)
    match, presences = await backend.compute(lambda: explain(matcher, calibration, fields.text, picture))
    rows, columns = match.words[0].map.shape
    return MatchMap(
        rows=rows,
        columns=columns,
        tokens=[
            Token(
                text=word.text,
                start=word.start,
                end=word.end,
                peak=word.peak,
                score=word.score,
                map=word.map.astype(float).round(5).tolist(),
                **vars(presence),
            )
            for word, presence in zip(match.words, presences, strict=True)
        ],
        mean=match.mean,
        similarity=match.similarity,
        scale=Scale(low=calibration.low, high=calibration.high),
        crop=match.crop,
        first=match.first,
        step=match.step,
    )
