"""Routes of /words: the words on their principal axes, and where a phrase falls among them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

from fastapi import APIRouter, Query, Response

from groundray.image_search.http.backend import Backend
from groundray.image_search.http.failures import REFUSALS
from groundray.image_search.http.schemas import (
    ModelAxes,
    PhraseExample,
    PlacedText,
    WordNeighbour,
    WordOnAxes,
    WordsFields,
    WordsOnAxes,
)
from groundray.image_search.word_space import MAX_AXES, WordSpace


def router(backend: Backend) -> APIRouter:
    """Return the routes of /words."""
    routes, space, suggested = APIRouter(), backend.service.space, backend.service.suggested

    @lru_cache(MAX_AXES)
    def all_words(axes: int) -> bytes:
        return _words_on_axes(space, suggested, axes).model_dump_json().encode()

    @routes.get("/words", responses=REFUSALS, response_model=WordsOnAxes | PlacedText)
    async def words(fields: Annotated[WordsFields, Query()]) -> Response | PlacedText:
        """Return all words on the principal axes of each model; or, given a text, its place and its neighbours."""
        if fields.text is None:
            return Response(all_words(fields.axes), media_type="application/json")
        text = fields.text.strip()
        placements = await backend.compute(lambda: space.place(text, fields.axes, fields.k))
        return PlacedText(
            text=text,
            at={model: list(placement.at) for model, placement in placements.items()},
            neighbours={
                model: [WordNeighbour(text=near.text, cosine=near.cosine) for near in placement.neighbours]
                for model, placement in placements.items()
            },
        )

    return routes


def _words_on_axes(space: WordSpace, suggested: Sequence[str], axes: int) -> WordsOnAxes:
    models, words = space.models, space.words
    return WordsOnAxes(
        models=list(models),
        axes=[ModelAxes(model=name, explained=model.explained[:axes].tolist()) for name, model in models.items()],
        words=[
            WordOnAxes(
                text=word.text,
                category=word.category,
                concreteness=word.concreteness,
                at={name: model.at[index, :axes].round(5).tolist() for name, model in models.items()},
            )
            for index, word in enumerate(words.shown)
        ],
        left_out=words.omitted,
        suggested=list(suggested),
        phrases=[PhraseExample(text=example.phrase, target=example.target) for example in words.examples],
    )
