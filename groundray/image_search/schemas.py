"""What goes over the wire: the fields of requests and the shapes of answers, as OpenAPI describes them."""

from __future__ import annotations

from typing import Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field

from groundray.image_search.query import HALF, MOST_ALPHAS, MOST_CHARACTERS, MOST_RESULTS
from groundray.image_search.word_space import MOST_AXES

# what is asked


class Fields(BaseModel):
    """Fields of a request; one that is not known is refused, so that a misspelt one is not passed over."""

    model_config = ConfigDict(extra="forbid")


class SearchFields(Fields):
    text: str = Field(
        default="", max_length=MOST_CHARACTERS, description="a word or phrase; may be empty beside an image"
    )
    image: str | None = Field(default=None, description="the id of an image of the pool")
    alpha: list[float] = Field(
        default=[HALF],
        max_length=MOST_ALPHAS,
        description="from 0, the image alone, to 1, the text alone; of several, all are answered",
    )
    k: int = Field(default=24, ge=1, le=MOST_RESULTS, description="results of each answer")


class SearchForm(SearchFields):
    file: UploadFile | None = Field(default=None, description="a picture, instead of the id of one")


class MatchFields(Fields):
    text: str = Field(min_length=1, max_length=MOST_CHARACTERS, description="a word or phrase")
    image: str | None = Field(default=None, description="the id of an image of the pool")


class MatchForm(MatchFields):
    file: UploadFile | None = Field(default=None, description="a picture, instead of the id of one")


class WordsFields(Fields):
    text: str | None = Field(default=None, max_length=MOST_CHARACTERS, description="a word or phrase to be placed")
    axes: int = Field(default=3, ge=1, le=MOST_AXES, description="principal axes")
    k: int = Field(default=10, ge=1, le=MOST_RESULTS, description="neighbours of the text")


class PoolFields(Fields):
    k: int = Field(default=24, ge=1, le=MOST_RESULTS, description="images")
    seed: int = Field(default=0, ge=0, description="of the draw")


# what is answered


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    images: int = Field(description="in the pool")
    words: int = Field(description="on the axes")
    model: str = Field(description="the run that trained it")
    stages: list[str]


class Picture(BaseModel):
    id: str
    width: int
    height: int


class Found(Picture):
    score: float = Field(description="cos(Q, image), Q = (1 - alpha) Q_image + alpha Q_text at length 1")


class Asked(BaseModel):
    text: str
    image: str | None
    uploaded: bool


class Answer(BaseModel):
    alpha: float
    results: list[Found]


class Answers(BaseModel):
    query: Asked
    answers: list[Answer]
    milliseconds: float


class Pool(BaseModel):
    results: list[Picture]


class Token(BaseModel):
    text: str
    start: int
    end: int
    peak: tuple[int, int] = Field(description="row and column of the position that matches best")
    score: float
    map: list[list[float]]


class MatchMap(BaseModel):
    rows: int
    columns: int
    tokens: list[Token] = Field(description="the words of the text")
    similarity: float
    crop: tuple[float, float, float, float] = Field(
        description="what the model sees of the picture: left, top, right, bottom, as shares of it"
    )
    first: float = Field(
        description="where in the crop the first row and column look, as a share of its side; the others follow evenly"
    )


class ShownAxes(BaseModel):
    model: str
    explained: list[float] = Field(description="share of the variance along each axis")


class ShownWord(BaseModel):
    text: str
    category: str | None
    concreteness: float | None
    at: dict[str, list[float]] = Field(description="place on the axes of each model")


class ShownPhrase(BaseModel):
    text: str
    target: str


class ShownWords(BaseModel):
    models: list[str]
    axes: list[ShownAxes]
    words: list[ShownWord]
    left_out: int = Field(description="words of the norms that are not shown: too many, or unknown to the model")
    phrases: list[ShownPhrase] = Field(
        description="to try: phrases of the norms, each with the word that it stands for"
    )


class ShownNeighbour(BaseModel):
    text: str
    cosine: float


class Landed(BaseModel):
    text: str
    at: dict[str, list[float]]
    neighbours: dict[str, list[ShownNeighbour]] = Field(description="of each model; the text's own words are left out")


class Problem(BaseModel):
    detail: str = Field(description="what was expected, what came, and how to repair it")
