"""What a picture of many searches asks, and what it shows: one query over alpha, or several images by several words.

    asked = GridQuery((NamedImage.read("4012"),), ("blue",), ALPHAS, k=5)
    grid = ask(asked, search)

Over alpha (one image and one text), each found image has the alphas at which it is among the `k` nearest. By words,
each image and each text is searched alone too: the first row has the texts alone, the first column the images alone
(paper, slides on continuous image search).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from groundray.image_search.errors import BadQuery
from groundray.image_search.filters import EVERYTHING, Filter
from groundray.image_search.named_image import NamedImage
from groundray.image_search.query import DEFAULT_ALPHA, Hit, PreparedQuery, Query, Search

ALPHAS = tuple(step / 20 for step in range(21))  # of one query over alpha: 0 to 1 by .05 (paper)
K_OVER_ALPHA, K_IN_CELL = 5, 3  # images found, unless others are asked for
# what can be read: the nearest images at one alpha, those at all of them, thumbnails beside and below each other
MAX_K, MAX_BARS, MAX_ACROSS, MAX_DOWN = 20, 420, 20, 40


@dataclass(frozen=True)
class GridQuery:
    """The queries of a picture.

    Attributes:
        images: the images to search by; their margins show them.
        texts: words or phrases to search by.
        alphas: weights of the text, in ascending order: any number for one image and one text, else one.
        k: images at each alpha, or in each cell.
        without: a word or phrase for what no found image should show, or None.
        filter: conditions that all found images meet.

    Raises:
        BadQuery: there is neither image nor text, a number is out of range, or the picture could not be read.
    """

    images: tuple[NamedImage, ...]
    texts: tuple[str, ...]
    alphas: tuple[float, ...]
    k: int
    without: str | None = None
    filter: Filter = EVERYTHING

    def __post_init__(self) -> None:
        if not self.images and not self.texts:
            raise BadQuery("grid: expected images, texts, or both to search by, got neither")
        for text in self.texts:
            Query(text, None, self.alphas, self.k, self.without)
        for image in self.images:
            Query(None, image.name, self.alphas, self.k, self.without)
        if list(self.alphas) != sorted(set(self.alphas)):
            raise BadQuery(
                f"alpha: expected ascending values, each once, got {' '.join(f'{a:g}' for a in self.alphas)}"
            )
        (self._check_bars if self.over_alpha else self._check_cells)()

    @staticmethod
    def of(
        images: Sequence[NamedImage],
        texts: Sequence[str],
        alphas: Sequence[float] | None = None,
        k: int | None = None,
        without: str | None = None,
        filter: Filter = EVERYTHING,
    ) -> GridQuery:
        """Return the queries of a picture, with alphas and `k` by default as its kind has them: alpha 0 to 1 by .05 for
        one image and one text, else .5.

        Raises:
            BadQuery: as of the class.
        """
        single = len(images) == len(texts) == 1
        chosen = tuple(sorted(set(alphas or (ALPHAS if single else (DEFAULT_ALPHA,)))))
        default = K_OVER_ALPHA if single and len(chosen) > 1 else K_IN_CELL
        return GridQuery(tuple(images), tuple(texts), chosen, default if k is None else k, without, filter)

    @property
    def over_alpha(self) -> bool:
        """True for one image and one text at several alphas."""
        return len(self.images) == len(self.texts) == 1 and len(self.alphas) > 1

    @property
    def rows(self) -> tuple[NamedImage | None, ...]:
        """The image of each row of cells; None for the row of the texts alone."""
        return (*((None,) if self.texts else ()), *self.images)

    @property
    def columns(self) -> tuple[str | None, ...]:
        """The text of each column of cells; None for the column of the images alone."""
        return (*((None,) if self.images else ()), *self.texts)

    def _check_bars(self) -> None:
        most = min(MAX_K, MAX_BARS // len(self.alphas))
        if self.k > most:
            raise BadQuery(
                f"k: expected at most {most} images at each of {len(self.alphas)} alphas, more cannot be read in one "
                f"picture, got {self.k}"
            )

    def _check_cells(self) -> None:
        if len(self.alphas) > 1:
            shape = f"{len(self.images)} images by {len(self.texts)} texts"
            raise BadQuery(
                f"alpha: expected one value for a picture of {shape}, got {len(self.alphas)}: several are drawn for "
                "one image with one text"
            )
        if self._fits(self.k):
            return
        shape = f"{len(self.images)} images by {len(self.texts)} texts"
        room = f"{MAX_ACROSS} thumbnails across and {MAX_DOWN} down can be read"
        if not self._fits(1):
            raise BadQuery(f"grid: expected fewer images or texts, {room}, got {shape}: draw several pictures")
        most = max(k for k in range(1, self.k) if self._fits(k))
        raise BadQuery(f"k: expected at most {most} in each cell of {shape}, {room}, got {self.k}")

    def _fits(self, k: int) -> bool:
        across, down = cell_shape(k)
        return 1 + across * len(self.columns) <= MAX_ACROSS and 1 + down * len(self.rows) <= MAX_DOWN


@dataclass(frozen=True)
class GridAnswer:
    """The images found for one query of a picture, best first.

    Attributes:
        image: name of the query's image, None for a text alone.
        text: the query's text, None for an image alone.
    """

    image: str | None
    text: str | None
    alpha: float
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class Found:
    """A found image, and its rank, from 1, at each of the alphas at which it is among the nearest, by their number."""

    id: str
    ranks: dict[int, int]


@dataclass(frozen=True)
class Grid:
    """The answers of a picture and the small JPEGs that it shows.

    Attributes:
        answers: over alpha one at each alpha; else one in each cell, row by row, without the one that has neither image
            nor text.
        pool: number of images that were searched: of the pool, those that meet the filter.
        query_thumbnails: of the query's images, in their order.
        thumbnails: of the found images, by id.
    """

    query: GridQuery
    answers: tuple[GridAnswer, ...]
    pool: int
    query_thumbnails: tuple[bytes, ...]
    thumbnails: dict[str, bytes]

    @property
    def ranked_again(self) -> bool:
        """True if the match map has ranked the images again that vectors found."""
        return any(hit.match is not None for answer in self.answers for hit in answer.hits)


def ask(asked: GridQuery, search: Search) -> Grid:
    """Answer all queries of a picture in one pass. Each picture is decoded once.

    Raises:
        BadQuery, UnknownImage, UnusableImage: a query is invalid; the message says why.
    """
    index = search.index

    def prepared_alone(text: str | None, image: str | bytes | None) -> PreparedQuery:
        return search.prepare(Query(text, image, k=asked.k, without=asked.without, filter=asked.filter))

    texts = {text: prepared_alone(text, None) for text in asked.texts}
    images = {image: prepared_alone(None, image.query(index)) for image in asked.images}
    prepared, named = [], []
    for image in asked.images if asked.over_alpha else asked.rows:
        for text in asked.texts if asked.over_alpha else asked.columns:
            if image is not None:
                shown = images[image]
                prepared.append(replace(shown, query=replace(shown.query, text=text, alphas=asked.alphas)))
            elif text is not None:
                prepared.append(texts[text])
            else:
                continue
            named.append((image and image.name, text))
    answers = tuple(
        GridAnswer(image, text, answer.alpha, answer.hits)
        for (image, text), found in zip(named, search.answer(prepared), strict=True)
        for answer in found
    )
    rows = sorted({index.row(hit.id) for answer in answers for hit in answer.hits})  # in the order of the row groups
    return Grid(
        asked,
        answers,
        len(index) if (accepted := prepared[0].accepted) is None else int(np.count_nonzero(accepted)),
        tuple(image.thumbnail(index) for image in asked.images),
        {index.ids[row]: index.thumbnails[row] for row in rows},
    )


def found_over_alpha(answers: Sequence[GridAnswer]) -> tuple[Found, ...]:
    """Return each image that is found once, in the order of the first alpha at which it is, and of its rank there."""
    ranks: dict[str, dict[int, int]] = {}
    for number, answer in enumerate(answers):
        for hit in answer.hits:
            ranks.setdefault(hit.id, {})[number] = hit.rank
    return tuple(Found(id, at) for id, at in ranks.items())


def cell_shape(k: int) -> tuple[int, int]:
    """Return how many thumbnails are beside and below each other in a cell: up to three in a line, else a square."""
    across = k if k <= 3 else math.isqrt(k - 1) + 1
    return across, -(-k // across)
