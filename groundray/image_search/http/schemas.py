"""Fields of requests and shapes of responses, as OpenAPI describes them."""

from __future__ import annotations

from typing import Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field

from groundray.image_search.query import DEFAULT_ALPHA, MAX_ALPHAS, MAX_CHARACTERS, MAX_RESULTS
from groundray.image_search.word_space import MAX_AXES

# requests


class Fields(BaseModel):
    """Fields of a request. An unknown field is refused, so that a misspelt one is not ignored."""

    model_config = ConfigDict(extra="forbid")


class SearchFields(Fields):
    text: str = Field(
        default="", max_length=MAX_CHARACTERS, description="word or phrase; may be empty if there is an image"
    )
    image: str | None = Field(default=None, description="id of an image of the pool")
    alpha: list[float] = Field(
        default=[DEFAULT_ALPHA],
        max_length=MAX_ALPHAS,
        description="weight of the text, from 0 (image alone) to 1 (text alone); each value gets an answer",
    )
    k: int = Field(default=24, ge=1, le=MAX_RESULTS, description="results per answer")


class SearchForm(SearchFields):
    file: UploadFile | None = Field(default=None, description="picture, in place of the id of one")


class MatchFields(Fields):
    text: str = Field(min_length=1, max_length=MAX_CHARACTERS, description="word or phrase")
    image: str | None = Field(default=None, description="id of an image of the pool")


class MatchForm(MatchFields):
    file: UploadFile | None = Field(default=None, description="picture, in place of the id of one")


class WordsFields(Fields):
    text: str | None = Field(default=None, max_length=MAX_CHARACTERS, description="word or phrase to place")
    axes: int = Field(default=3, ge=1, le=MAX_AXES, description="number of principal axes")
    k: int = Field(default=10, ge=1, le=MAX_RESULTS, description="neighbours of the text")


class PoolFields(Fields):
    k: int = Field(default=24, ge=1, le=MAX_RESULTS, description="number of images")
    seed: int = Field(default=0, ge=0, description="seed of the sample; versions may draw different ones")


# responses


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    images: int = Field(description="images in the pool")
    words: int = Field(description="words on the axes")
    model: str = Field(description="name of the run that trained the model")
    stages: list[str]
    recall: float = Field(description="fraction of the 10 nearest images that a search finds: 1 if it is exact")


class PoolImage(BaseModel):
    id: str
    width: int
    height: int


class SearchResult(PoolImage):
    score: float = Field(description="cos(Q, image), where Q = (1 - alpha) Q_image + alpha Q_text at length 1")


class SearchEcho(BaseModel):
    text: str
    image: str | None
    uploaded: bool


class RankedImages(BaseModel):
    alpha: float
    results: list[SearchResult]


class SearchResponse(BaseModel):
    query: SearchEcho
    answers: list[RankedImages]
    milliseconds: float


class Pool(BaseModel):
    results: list[PoolImage]


class Token(BaseModel):
    text: str
    start: int
    end: int
    peak: tuple[int, int] = Field(description="row and column of the best matching position")
    score: float
    map: list[list[float]]


class MatchMap(BaseModel):
    rows: int
    columns: int
    tokens: list[Token] = Field(description="words of the text")
    similarity: float
    crop: tuple[float, float, float, float] = Field(
        description="part of the picture that the model sees: left, top, right, bottom, as fractions of the picture"
    )
    first: float = Field(description="centre of the first row and column within the crop, as a fraction of its side")
    step: float = Field(description="distance from one row or column to the next, as a fraction of the crop's side")


class ModelAxes(BaseModel):
    model: str
    explained: list[float] = Field(description="fraction of the variance along each axis")


class WordOnAxes(BaseModel):
    text: str
    category: str | None
    concreteness: float | None
    at: dict[str, list[float]] = Field(description="coordinates on the axes of each model")


class PhraseExample(BaseModel):
    text: str
    target: str


class WordsOnAxes(BaseModel):
    models: list[str]
    axes: list[ModelAxes]
    words: list[WordOnAxes]
    left_out: int = Field(description="words of the norms that are not shown: too many, or unknown to the model")
    phrases: list[PhraseExample] = Field(
        description="phrases of the norms to try, each with the word that it describes"
    )


class WordNeighbour(BaseModel):
    text: str
    cosine: float


class PlacedText(BaseModel):
    text: str
    at: dict[str, list[float]]
    neighbours: dict[str, list[WordNeighbour]] = Field(
        description="nearest words in each model, without the text's own words"
    )


class Problem(BaseModel):
    detail: str = Field(description="what was expected, what came, and the repair")
