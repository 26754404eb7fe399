"""Search of a pool of images by a picture, by a text, or by a mix of both.

    search = Search.open("runs/demo/model", "data/scenes/captions/val")
    for hit in search.find(text="a red heart", k=5):
        print(hit.rank, hit.id, hit.score)
    search.find(image="4012", text="blue", alpha=0.5)

Images are ranked by their cosine with Q = (1 - alpha) Q_image + alpha Q_text, scaled to length 1 (paper, image search).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from groundray.data.derived import DerivedDataset, check_room, finalize, make_missing, open_derived
from groundray.image_search.errors import BadQuery
from groundray.image_search.index import Index, IndexEncoder, Tell, default_folder, find_index, log, open_pool
from groundray.image_search.inverted_file import MAX_EXACT, require_faiss
from groundray.image_search.neighbours import NearestNeighbours, nearest_neighbours
from groundray.image_search.towers import Towers
from groundray.image_search.uploads import checked, model_input

Vector = Float32[np.ndarray, " dim"]

DEFAULT_ALPHA = 0.5
MAX_RESULTS = 200
MAX_ALPHAS = 101
MAX_CHARACTERS = 1000


@dataclass(frozen=True)
class Query:
    """A query: a text, an image, or both.

    Attributes:
        text: a word or phrase, or None.
        image: the id of an image of the pool, an encoded picture, or None.
        alphas: weights of the text, each from 0 (picture alone) to 1 (text alone). Each gets an answer. Used only if
            the query has both.
        k: images per answer.

    Raises:
        BadQuery: there is neither text nor image, or a number is out of range.
    """

    text: str | None = None
    image: str | bytes | None = None
    alphas: tuple[float, ...] = (DEFAULT_ALPHA,)
    k: int = 10

    def __post_init__(self) -> None:
        if self.image is None and not (self.text or "").strip():
            raise BadQuery("expected a text, an image, or both, got neither")
        if len(self.text or "") > MAX_CHARACTERS:
            raise BadQuery(f"text: expected at most {MAX_CHARACTERS:,} characters, got {len(self.text or ''):,}")
        if not 1 <= self.k <= MAX_RESULTS:
            raise BadQuery(f"k: expected 1 to {MAX_RESULTS}, got {self.k}")
        if not 1 <= len(self.alphas) <= MAX_ALPHAS:
            raise BadQuery(f"alpha: expected 1 to {MAX_ALPHAS} values, got {len(self.alphas)}")
        for alpha in self.alphas:
            if not 0 <= alpha <= 1:
                raise BadQuery(f"alpha: expected 0 (the image alone) to 1 (the text alone), got {alpha:g}")

    @property
    def effective_alphas(self) -> tuple[float, ...]:
        """The alphas that get an answer: `alphas` for a mix, else the one that applies."""
        if self.image is None:
            return (1.0,)
        return self.alphas if self.text else (0.0,)


@dataclass(frozen=True)
class PreparedQuery:
    """A valid query, with the row of its image in the pool, or the pixels of its uploaded picture."""

    query: Query
    row: int | None = None
    pixels: UInt8[np.ndarray, "3 side side"] | None = None


@dataclass(frozen=True)
class Hit:
    """A found image: its rank from 1, its cosine with the query, its size in pixels."""

    rank: int
    id: str
    score: float
    width: int
    height: int


@dataclass(frozen=True)
class Answer:
    """The images found for one alpha, best first."""

    alpha: float
    hits: tuple[Hit, ...]


@dataclass(frozen=True)
class Search:
    """A searchable pool of images."""

    towers: Towers
    index: Index
    nearest: NearestNeighbours

    @staticmethod
    def open(checkpoint: str, images: str, index: str | None = None, tell: Tell = log) -> Search:
        """Open a pool of images for search with an exported model. A missing index is built in this process; of several
        processes that do so at once, each makes some of its parts, and one the files that are made of all parts.

        Args:
            checkpoint: a run's `model/` folder.
            images: folder or URL of shards with images.
            index: folder of the indexes (default: `index/` beside the model's folder).
            tell: receives lines for the user.

        Raises:
            FileNotFoundError, ValueError: the model lacks the retrieval stage, or the shards do not exist.
        """
        return Search.of(Towers.load(checkpoint), images, index or default_folder(checkpoint), tell)

    @staticmethod
    def of(towers: Towers, images: str, index: str, tell: Tell = log) -> Search:
        """Open a pool of images for search with loaded towers, as `open` does."""
        pool = open_pool(images)
        require_faiss(pool.rows)
        spec = find_index(towers, pool, index)
        if open_derived(spec) is None:
            check_room(spec)
            for _ in make_missing(spec, IndexEncoder(towers, str(pool.folder))):
                pass
            finalize(spec)
        return Search.over(towers, spec, tell)

    @staticmethod
    def over(towers: Towers, spec: DerivedDataset, tell: Tell = log, max_exact: int = MAX_EXACT) -> Search:
        """Return the search over an index whose parts are complete.

        Args:
            tell: receives lines for the user.
            max_exact: number of vectors above which the search is approximate.
        """
        index = Index.open(spec, tell, keep_vectors_in_store=spec.source.rows > max_exact)
        return Search(towers, index, nearest_neighbours(index, tell, max_exact))

    def find(
        self, text: str | None = None, image: str | bytes | None = None, alpha: float = DEFAULT_ALPHA, k: int = 10
    ) -> tuple[Hit, ...]:
        """Find the images nearest to a text, to an image, or to a mix of both (see `Query`).

        Raises:
            BadQuery, UnknownImage, UnusableImage: the query is invalid; the message says why.
        """
        ((answer,),) = self.answer([self.prepare(Query(text, image, (alpha,), k))])
        return answer.hits

    def prepare(self, query: Query) -> PreparedQuery:
        """Check a query: its text has words, and its image is in the pool or can be decoded.

        Raises:
            BadQuery, UnknownImage, UnusableImage: the query is invalid; the message says why.
        """
        return prepare(query, self.towers, self.index)

    def answer(self, queries: Sequence[PreparedQuery]) -> list[tuple[Answer, ...]]:
        """Answer several queries at once, each for all of its alphas. They are embedded and compared together."""
        mixes = embed(queries, self.towers, self.index)
        neighbours = self.nearest(mixes, max(prepared.query.k for prepared in queries))
        ranked = iter(zip(neighbours.scores, neighbours.rows, strict=True))
        return [
            tuple(
                Answer(alpha, self._hits(*next(ranked), prepared.query.k)) for alpha in prepared.query.effective_alphas
            )
            for prepared in queries
        ]

    def _hits(self, scores: Float32[np.ndarray, " k"], rows: Int64[np.ndarray, " k"], k: int) -> tuple[Hit, ...]:
        valid = rows[:k][rows[:k] >= 0]  # an inverted file may find fewer than k
        return tuple(
            Hit(rank, self.index.ids[row], float(score), *self.index.sizes[row].tolist())
            for rank, (row, score) in enumerate(zip(valid.tolist(), scores.tolist(), strict=False), start=1)
        )


def prepare(query: Query, towers: Towers, index: Index | None = None) -> PreparedQuery:
    """Check a query: its text has words, and its image is in the pool or can be decoded.

    Args:
        index: the pool's, None if there is no pool. Then the image must be an encoded picture.

    Raises:
        BadQuery, UnknownImage, UnusableImage: the query is invalid; the message says why.
    """
    if query.text:
        towers.check_text(query.text)
    if isinstance(query.image, bytes):
        return PreparedQuery(query, pixels=model_input(checked(query.image), towers.crop))
    if query.image is None:
        return PreparedQuery(query)
    if index is None:
        raise BadQuery(f"image: expected an encoded picture, got the id {query.image!r} and no pool of images")
    return PreparedQuery(query, row=index.row(query.image))


def embed(
    queries: Sequence[PreparedQuery], towers: Towers, index: Index | None = None
) -> Float32[np.ndarray, "answer dim"]:
    """Return the vectors of length 1 of several queries, one for each of a query's alphas in turn. A text or a picture
    of several queries is embedded once.

    Args:
        index: has the vectors of the images of the pool; None if no query refers to one.
    """
    texts = list(dict.fromkeys(prepared.query.text for prepared in queries if prepared.query.text))
    said = dict(zip(texts, towers.embed_texts(texts), strict=True)) if texts else {}
    uploads = {prepared.query.image: prepared.pixels for prepared in queries if prepared.pixels is not None}
    shown: dict[str | bytes | None, Vector] = {
        prepared.query.image: index.vector(prepared.row) for prepared in queries if index and prepared.row is not None
    }
    if uploads:
        shown |= dict(zip(uploads, towers.embed_pixels(np.stack(list(uploads.values()))), strict=True))
    return np.stack(
        [
            mix_vectors(shown.get(prepared.query.image), said.get(prepared.query.text or ""), alpha)
            for prepared in queries
            for alpha in prepared.query.effective_alphas
        ]
    )


def mix_vectors(image: Vector | None, text: Vector | None, alpha: float) -> Vector:
    """Return Q = (1 - alpha) Q_image + alpha Q_text, scaled to length 1.

    At alpha 0 it is exactly the image's vector, at alpha 1 the text's. If one of them is None, it is the other.
    """
    if image is None or text is None:
        vector = text if image is None else image
        assert vector is not None
        return _unit(vector)
    return _unit(np.float32(1 - alpha) * image + np.float32(alpha) * text)


def _unit(vector: Vector) -> Vector:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
