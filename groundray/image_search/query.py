"""Searching a pool of images by a picture, by a text, or by a mix of both.

    search = Search.open("runs/demo/model", "data/scenes/captions/val")
    for hit in search.find(text="a red heart", k=5):
        print(hit.rank, hit.id, hit.score)
    search.find(image="4012", text="blue", alpha=0.5)

Q = (1 - alpha) Q_image + alpha Q_text, at length 1 (paper, image search); images are ranked by their cosine with Q.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from groundray.image_search.errors import BadQuery
from groundray.image_search.index import Index, finish, index_parts, make_here, open_pool, place_beside
from groundray.image_search.knn import Nearest, nearest
from groundray.image_search.towers import Towers
from groundray.image_search.uploads import checked, picture

Vector = Float32[np.ndarray, " dim"]

HALF = 0.5  # of the way, where nobody says otherwise
MOST_RESULTS = 200
MOST_ALPHAS = 101
MOST_CHARACTERS = 1000


@dataclass(frozen=True)
class Query:
    """What somebody looks for.

    Attributes:
        text: a word or phrase, or None.
        image: the id of an image of the pool, or an encoded picture, or None.
        alphas: each from 0, the picture alone, to 1, the text alone; all are answered. They matter where there is both.
        k: images of each answer.

    Raises:
        BadQuery: there is nothing to look for, or a number is out of its range.
    """

    text: str | None = None
    image: str | bytes | None = None
    alphas: tuple[float, ...] = (HALF,)
    k: int = 10

    def __post_init__(self) -> None:
        if self.image is None and not (self.text or "").strip():
            raise BadQuery("expected a text, an image, or both, got neither")
        if len(self.text or "") > MOST_CHARACTERS:
            raise BadQuery(f"text: expected at most {MOST_CHARACTERS:,} characters, got {len(self.text or ''):,}")
        if not 1 <= self.k <= MOST_RESULTS:
            raise BadQuery(f"k: expected 1 to {MOST_RESULTS}, got {self.k}")
        if not 1 <= len(self.alphas) <= MOST_ALPHAS:
            raise BadQuery(f"alpha: expected 1 to {MOST_ALPHAS} of them, got {len(self.alphas)}")
        for alpha in self.alphas:
            if not 0 <= alpha <= 1:
                raise BadQuery(f"alpha: expected 0 (the image alone) to 1 (the text alone), got {alpha:g}")

    @property
    def asked(self) -> tuple[float, ...]:
        """The alphas that are answered: those asked for, or the only one where there is no mix."""
        if self.image is None:
            return (1.0,)
        return self.alphas if self.text else (0.0,)


@dataclass(frozen=True)
class Prepared:
    """A query that can be answered, with the row of its image in the pool or the pixels of a picture brought along."""

    query: Query
    row: int | None = None
    pixels: UInt8[np.ndarray, "3 side side"] | None = None


@dataclass(frozen=True)
class Hit:
    """An image that was found: its rank from 1, its cosine with the query, its size in pixels."""

    rank: int
    id: str
    score: float
    width: int
    height: int


@dataclass(frozen=True)
class Answer:
    """What was found for one alpha, the best first."""

    alpha: float
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class Search:
    """A pool of images that can be searched."""

    towers: Towers
    index: Index
    nearest: Nearest

    @staticmethod
    def open(checkpoint: str, images: str, index: str | None = None) -> Search:
        """The search of these images with an exported model. An index that is not there yet is made, in this process.

        Args:
            checkpoint: a run's `model/` folder.
            images: folder or URL of shards that have images.
            index: where indexes are kept (default: `index/` beside the model's folder).

        Raises:
            FileNotFoundError, ValueError: it is no model that can search, or there are no such shards.
        """
        towers, pool = Towers.load(checkpoint), open_pool(images)
        one = index_parts(towers, pool, index or place_beside(checkpoint))
        if one.made() is None:
            one.check_room()
            for _ in make_here(one, towers):
                pass
            finish(one)
        return Search.over(towers, Index(one))

    @staticmethod
    def over(towers: Towers, index: Index) -> Search:
        """The search of an index that is made."""
        return Search(towers, index, nearest(index.folder, len(index), index.matrix))

    def find(
        self, text: str | None = None, image: str | bytes | None = None, alpha: float = HALF, k: int = 10
    ) -> tuple[Hit, ...]:
        """What lies nearest to a text, to an image, or to a mix of both (see `Query`).

        Raises:
            BadQuery, UnknownImage, Unusable: the query cannot be used; the message says why.
        """
        ((found,),) = self.answer([self.prepare(Query(text, image, (alpha,), k))])
        return found.hits

    def prepare(self, query: Query) -> Prepared:
        """A query that can be answered: its text has words, its image is one of the pool or can be decoded.

        Raises:
            BadQuery, UnknownImage, Unusable: it cannot; the message says why.
        """
        if query.text:
            self.towers.check(query.text)
        if isinstance(query.image, bytes):
            return Prepared(query, pixels=picture(checked(query.image), self.towers.cut))
        return Prepared(query, row=None if query.image is None else self.index.row(query.image))

    def answer(self, queries: Sequence[Prepared]) -> list[tuple[Answer, ...]]:
        """What was found for each of some queries, for each alpha: they are embedded and compared together."""
        texts, images = self._texts(queries), self._images(queries)
        mixes = [
            mixed(images.get(place), texts.get(place), alpha)
            for place, one in enumerate(queries)
            for alpha in one.query.asked
        ]
        found = self.nearest(np.stack(mixes), max(one.query.k for one in queries))
        rows = iter(zip(found.scores, found.rows, strict=True))
        return [
            tuple(Answer(alpha, self._hits(*next(rows), one.query.k)) for alpha in one.query.asked) for one in queries
        ]

    def _texts(self, queries: Sequence[Prepared]) -> dict[int, Vector]:
        """The vectors of the queries' texts, by the place of the query."""
        texts = {place: one.query.text for place, one in enumerate(queries) if one.query.text}
        return dict(zip(texts, self.towers.of_texts(list(texts.values())), strict=True)) if texts else {}

    def _images(self, queries: Sequence[Prepared]) -> dict[int, Vector]:
        """The vectors of the queries' images: as they are in the index, or of pixels that somebody brings along."""
        found = {place: self.index.vector(one.row) for place, one in enumerate(queries) if one.row is not None}
        brought = {place: one.pixels for place, one in enumerate(queries) if one.pixels is not None}
        if brought:
            found |= dict(zip(brought, self.towers.of_pixels(np.stack(list(brought.values()))), strict=True))
        return found

    def _hits(self, scores: Float32[np.ndarray, " k"], rows: Int64[np.ndarray, " k"], k: int) -> tuple[Hit, ...]:
        there = rows[:k][rows[:k] >= 0]  # an inverted file may find fewer than it was asked for
        return tuple(
            Hit(rank, self.index.ids[row], float(score), *self.index.sizes[row].tolist())
            for rank, (row, score) in enumerate(zip(there.tolist(), scores.tolist(), strict=False), start=1)
        )


def mixed(image: Vector | None, text: Vector | None, alpha: float) -> Vector:
    """Q = (1 - alpha) Q_image + alpha Q_text, at length 1; alpha 0 is exactly the image's query, and 1 the text's.

    Where one of them is missing, the other one's query.
    """
    if image is None or text is None:
        one = text if image is None else image
        assert one is not None
        return _unit(one)
    return _unit(np.float32(1 - alpha) * image + np.float32(alpha) * text)


def _unit(vector: Vector) -> Vector:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
