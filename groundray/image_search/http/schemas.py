"""Fields of requests and shapes of responses, as OpenAPI describes them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field

from groundray.image_search.calibration import Presence
from groundray.image_search.filters import MAX_CONDITIONS
from groundray.image_search.query import (
    DEFAULT_ALPHA,
    MAX_ALPHAS,
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_RERANK,
    MAX_RESULTS,
    MAX_TEXTS,
    WITHOUT,
)
from groundray.image_search.word_space import MAX_AXES

# requests


class Fields(BaseModel):
    """Fields of a request. An unknown field is refused, so that a misspelt one is not ignored."""

    model_config = ConfigDict(extra="forbid")


FILTER: list[str] = Field(
    default=[],
    max_length=MAX_CONDITIONS,
    description="conditions that each image meets: width or height, in pixels, by >= <= > < = or !=; orientation, id "
    "(a pattern with * and ?) or label, by = or !=. Of several = of one field one is enough",
    examples=[["width>=640", "orientation=landscape", "id=birds/*"]],
)


class SearchFields(Fields):
    text: list[Annotated[str, Field(max_length=MAX_CHARACTERS)]] = Field(
        default=[],
        max_length=MAX_TEXTS,
        description="word or phrase, or several, whose vectors' mean is Q_text; may be empty if there is an image",
    )
    without: str = Field(
        default="", max_length=MAX_CHARACTERS, description="word or phrase for what the images should not show"
    )
    image: str | None = Field(default=None, description="id of an image of the pool")
    alpha: list[float] = Field(
        default=[DEFAULT_ALPHA],
        max_length=MAX_ALPHAS,
        description="weight of the text, from 0 (image alone) to 1 (text alone); each value gets an answer",
    )
    k: int = Field(default=24, ge=1, le=MAX_RESULTS, description="results per answer")
    offset: int = Field(default=0, ge=0, description=f"nearest results to pass over; with k at most {MAX_DEPTH:,}")
    filter: list[str] = FILTER
    rerank: int | None = Field(
        default=None,
        ge=0,
        le=MAX_RERANK,
        description="number of the nearest images that the match map ranks again; 0: none (default: the service's own "
        "number, 0 if the model has no match maps)",
    )


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
    seed: int = Field(default=0, ge=0, description="seed of the order; versions may have different ones")
    offset: int = Field(default=0, ge=0, description="images of the order to pass over: `next` of the page before")
    filter: list[str] = FILTER


# responses


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    images: int = Field(description="images in the pool")
    words: int = Field(description="words on the axes")
    model: str = Field(description="name of the model: of the run that trained it, or of its folder")
    kind: str = Field(description="`groundray`, or transformers' type of the model, such as `clip`")
    stages: list[str] = Field(description="stages that groundray trained the model in")
    recall: float = Field(description="fraction of the 10 nearest images that a search finds: 1 if it is exact")
    index: str = Field(description="name of the index: another one with every other model or other images")
    update: str = Field(description="a changed model, or changed images, that are being opened or cannot be; or empty")


class PoolImage(BaseModel):
    id: str
    width: int
    height: int


class SearchResult(PoolImage):
    score: float = Field(
        description="cos(Q, image), where Q = (1 - alpha) Q_image + alpha Q_text at length 1; with a text to leave "
        f"out, cos(Q - {WITHOUT:g} Q_without, image)"
    )
    match: float | None = Field(
        description="what the image is ranked by if the match map ranked it again: the weighted mean of its cosine (a "
        "third) and of its best matching positions, each in standard deviations above the mean of the pool, of picture "
        "and text apart, mixed by alpha; null for images that are ranked by `score`, which come after those"
    )


class SearchEcho(BaseModel):
    text: list[str]
    without: str
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
    total: int = Field(description="images that meet the filter")
    next: int | None = Field(description="offset of the next page, None after the last one")


class PoolLabels(BaseModel):
    labels: list[str]


class Token(BaseModel):
    text: str
    start: int
    end: int
    peak: tuple[int, int] = Field(description="row and column of the best matching position")
    score: float = Field(description="match at the peak: the word's best match")
    map: list[list[float]]
    presence: Presence = Field(
        description="present: the best match is above what 95 % of the pool's images without the word give, as "
        "estimated from a sample of them; absent: half of the pool's images match better, and those that have the word "
        "if they are more than half; unclear: between the two, a word that matches all images nearly alike, or "
        "punctuation"
    )
    percentile: float = Field(description="percentage of the sampled images on which the word's best match is lower")
    absent_below: float | None = Field(description="best match below which the word counts as absent; null: never")
    present_from: float | None = Field(description="best match from which on it counts as present; null: never")


class Scale(BaseModel):
    low: float = Field(description="95 % of random words' matches at random positions of the pool's images are lower")
    high: float = Field(description="99 % of random words' best matches on the pool's images are lower")


class MatchMap(BaseModel):
    rows: int
    columns: int
    tokens: list[Token] = Field(description="words of the text, without special tokens")
    mean: float = Field(description="mean of the words' scores")
    similarity: float = Field(
        description="similarity of picture and text on which the model was trained; it may count special tokens, such "
        "as [CLS] and [SEP], or compare one vector of each"
    )
    scale: Scale = Field(description="ends of the colours: the same on all pictures of this model and pool")
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
    suggested: list[str] = Field(description="words to try: of the norms, or else of the pool's classes or captions")
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
