"""Search of a pool of images by a picture, by a text, or by a mix of both.

    search = Search.open("runs/demo/model", "data/scenes/captions/val")
    for hit in search.find(text="a red heart", k=5):
        print(hit.rank, hit.id, hit.score)
    search.find(image="4012", text="blue", alpha=0.5)
    search.find(text=("a heart", "striped"), without="red", filter=["width>=640"])

Images are ranked by their cosine with Q = (1 - alpha) Q_image + alpha Q_text, scaled to length 1 (paper, image search).
Several texts have the mean of their vectors as Q_text, scaled to length 1. With a text to leave out, images are ranked
by their cosine with Q - WITHOUT Q_without, scaled to length 1. All vectors on the right have length 1. The nearest of
them are then ranked by the match map, if the model has one (`rerank.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32

from groundray.data.derived import DerivedDataset, open_derived
from groundray.image_search.checkpoint import open_reranking_matcher, open_towers
from groundray.image_search.errors import BadQuery
from groundray.image_search.explain import Matcher, WordFeatures
from groundray.image_search.filters import EVERYTHING, Filter
from groundray.image_search.index import Index, Tell, default_folder, find_index, log, make_index, open_pool
from groundray.image_search.inverted_file import MAX_EXACT, require_faiss
from groundray.image_search.neighbours import NearestNeighbours, nearest_neighbours
from groundray.image_search.positions import Positions, find_positions, make_positions
from groundray.image_search.query_vector import (
    WITHOUT,
    PartVectors,
    Vector,
    finite,
    leave_out,
    mean_vector,
    mix_vectors,
)
from groundray.image_search.rerank import Ranked, Reranker
from groundray.image_search.towers import Pixels, Towers
from groundray.image_search.uploads import checked, model_input
from groundray.storage.file_names import is_encodable
from groundray.storage.folder import Folder

DEFAULT_ALPHA = 0.5
MAX_RESULTS = 200
MAX_DEPTH = 10_000  # rank of the last image that can be asked for
MAX_ALPHAS = 101
MAX_CHARACTERS = 1000
RERANK, MAX_RERANK = 200, 1000  # images that the match map ranks again
MAX_TEXTS = 8


@dataclass(frozen=True)
class Query:
    """A query: a text or several, an image, or both; and what the images should not show.

    Attributes:
        text: a word or phrase, several that are all meant, or None.
        image: the id of an image of the pool, an encoded picture, or None.
        alphas: weights of the text, each from 0 (picture alone) to 1 (text alone). Each gets an answer. Used only if
            the query has both.
        k: images per answer.
        without: a word or phrase for what the images should not show, or None.
        filter: conditions that the images meet. As many images are found as without it, if as many meet it.
        offset: number of the nearest images to pass over: an answer begins at rank `offset` + 1.
        rerank: number of the nearest images that the match map ranks again; 0 for none, None for the search's own.

    Raises:
        BadQuery: there is neither text nor image, or a number is out of range.
    """

    text: str | tuple[str, ...] | None = None
    image: str | bytes | None = None
    alphas: tuple[float, ...] = (DEFAULT_ALPHA,)
    k: int = 10
    without: str | None = None
    filter: Filter = EVERYTHING
    offset: int = 0
    rerank: int | None = None

    def __post_init__(self) -> None:
        if self.image is None and not any(text.strip() for text in self.texts):
            raise BadQuery("expected a text, an image, or both, got neither")
        if len(self.texts) > MAX_TEXTS:
            raise BadQuery(f"text: expected at most {MAX_TEXTS} texts, got {len(self.texts)}")
        for name, texts in (("text", self.texts), ("without", (self.without or "",))):
            if (longest := max(map(len, texts), default=0)) > MAX_CHARACTERS:
                raise BadQuery(f"{name}: expected at most {MAX_CHARACTERS:,} characters, got {longest:,}")
            if garbled := [text for text in texts if not is_encodable(text)]:
                raise BadQuery(f"{name}: expected text in UTF-8, got {garbled[0][:80]!r}")
        if not 1 <= self.k <= MAX_RESULTS:
            raise BadQuery(f"k: expected 1 to {MAX_RESULTS}, got {self.k}")
        if not 0 <= self.offset <= MAX_DEPTH - self.k:
            raise BadQuery(f"offset: expected 0 to {MAX_DEPTH - self.k:,} for {self.k} images, got {self.offset:,}")
        if not 1 <= len(self.alphas) <= MAX_ALPHAS:
            raise BadQuery(f"alpha: expected 1 to {MAX_ALPHAS} values, got {len(self.alphas)}")
        check_rerank(self.rerank or 0)
        for alpha in self.alphas:
            if not 0 <= alpha <= 1:
                raise BadQuery(f"alpha: expected 0 (the image alone) to 1 (the text alone), got {alpha}")

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the query, without empty ones."""
        given = (self.text,) if isinstance(self.text, str) else self.text or ()
        return tuple(text for text in given if text)

    @property
    def effective_alphas(self) -> tuple[float, ...]:
        """The alphas that get an answer: `alphas` for a mix, else the one that applies."""
        if self.image is None:
            return (1.0,)
        return self.alphas if self.texts else (0.0,)

    @property
    def depth(self) -> int:
        """Rank of the last image of an answer."""
        return self.offset + self.k


def check_rerank(count: int) -> None:
    """Raise BadQuery if so many images cannot be ranked again."""
    if not 0 <= count <= MAX_RERANK:
        raise BadQuery(f"rerank: expected 0 (ranked by vectors alone) to {MAX_RERANK:,}, got {count}")


@dataclass(frozen=True)
class PreparedQuery:
    """A valid query, with the row of its image in the pool, or its uploaded picture as the model takes it.

    Attributes:
        accepted: which images of the pool meet the query's filter; None if it has none.
        matched: an uploaded picture as the matcher takes it; None if nothing is ranked again.
    """

    query: Query
    row: int | None = None
    pixels: Pixels | None = None
    accepted: Bool[np.ndarray, " image"] | None = None
    matched: Pixels | None = None


@dataclass(frozen=True)
class Hit:
    """A found image: its rank from 1, its cosine with the query, its size in pixels.

    Attributes:
        match: what it is ranked by, if the match map ranked it again: standard deviations above the mean of the pool
            (`rerank.py`). Images that have one come first.
    """

    rank: int
    id: str
    score: float
    width: int
    height: int
    match: float | None = None


@dataclass(frozen=True)
class Answer:
    """The images found for one alpha, best first."""

    alpha: float
    hits: tuple[Hit, ...]


Outcome = tuple[Answer, ...] | Exception  # of a query among several: an answer for each alpha, or what it failed with


@dataclass(frozen=True)
class Search:
    """A searchable pool of images.

    Attributes:
        reranker: None if images are ranked by vectors alone.
        rerank: number of the nearest images that are ranked again, unless a query says another.
    """

    towers: Towers
    index: Index
    nearest: NearestNeighbours
    reranker: Reranker | None = None
    rerank: int = RERANK

    @staticmethod
    def open(checkpoint: str, images: str, index: str | None = None, tell: Tell = log, rerank: int = RERANK) -> Search:
        """Open a pool of images for search with an exported model. A missing index is built in this process, and so are
        missing position features; of several processes that do so at once, each makes some of their parts, and one the
        files that are made of all parts.

        Args:
            checkpoint: a run's `model/` folder.
            images: folder or URL of shards with images.
            index: folder of the indexes (default: `index/` beside the model's folder).
            tell: receives lines for the user.
            rerank: number of the nearest images that the match map ranks again, if the model has the stage grounding.
                With 0, position features are neither made nor opened.

        Raises:
            FileNotFoundError, ValueError: the model lacks the retrieval stage, or the shards do not exist.
        """
        towers = open_towers(checkpoint)
        matcher = open_reranking_matcher(checkpoint, towers) if rerank else None
        return Search.of(towers, images, index or default_folder(checkpoint), tell, matcher, rerank)

    @staticmethod
    def of(
        towers: Towers,
        images: str,
        index: str,
        tell: Tell = log,
        matcher: Matcher | None = None,
        rerank: int = RERANK,
    ) -> Search:
        """Open a pool of images for search with a loaded model, as `open` does. Without a matcher, or with `rerank` 0,
        images are ranked by vectors alone."""
        check_rerank(rerank)
        pool = open_pool(images)
        require_faiss(pool.rows)
        spec = find_index(towers, pool, index)
        if open_derived(spec) is None:
            for _ in make_index(spec, towers):
                pass
        reranks = matcher is not None and rerank > 0
        search = Search.over(towers, spec, tell, reranks=reranks)
        if matcher is None or not reranks:
            return search
        features = find_positions(matcher, pool, index)
        return search.reranking(matcher, make_positions(matcher, features, tell), rerank)

    @staticmethod
    def over(
        towers: Towers, spec: DerivedDataset, tell: Tell = log, max_exact: int = MAX_EXACT, reranks: bool = False
    ) -> Search:
        """Return the search over an index whose parts are complete.

        Args:
            tell: receives lines for the user.
            max_exact: number of vectors above which the search is approximate.
            reranks: images are to be ranked again (`reranking`), which takes the vectors of all that were found: of a
                store they are copied, since each would be a request.
        """
        index = Index.open(spec, tell, keep_vectors_in_store=spec.source.rows > max_exact and not reranks)
        return Search(towers, index, nearest_neighbours(index, tell, max_exact))

    def reranking(self, matcher: Matcher, positions: Positions, rerank: int = RERANK) -> Search:
        """Return the search with the nearest images ranked again, given the pool's position features."""
        return replace(self, reranker=Reranker.of(matcher, self.index, positions, self.towers), rerank=rerank)

    @property
    def folders(self) -> list[Folder]:
        """The folders that answers are read from."""
        positions = self.reranker.positions.folder if self.reranker else None
        return [folder for folder in (self.index.folder, positions) if folder]

    def find(
        self,
        text: str | tuple[str, ...] | None = None,
        image: str | bytes | None = None,
        alpha: float = DEFAULT_ALPHA,
        k: int = 10,
        without: str | None = None,
        filter: Iterable[str] = (),
        offset: int = 0,
        rerank: int | None = None,
    ) -> tuple[Hit, ...]:
        """Find the images nearest to a text, to an image, or to a mix of both (see `Query`).

        Args:
            filter: conditions such as `width>=640` (see `filters.py`).

        Raises:
            BadQuery, UnknownImage, UnusableImage: the query is invalid; the message says why.
        """
        query = Query(text, image, (alpha,), k, without, Filter.parse(filter), offset, rerank)
        ((answer,),) = self.answer([self.prepare(query)])
        return answer.hits

    def prepare(self, query: Query) -> PreparedQuery:
        """Check a query: its text has words, and its image is in the pool or can be decoded.

        Raises:
            BadQuery, UnknownImage, UnusableImage: the query is invalid; the message says why.
        """
        if query.rerank and self.reranker is None:
            raise BadQuery(
                f"rerank: expected 0, got {query.rerank}: the model has no match maps, or the search was opened without"
            )
        prepared = prepare(query, self.towers, self.index)
        if prepared.pixels is None or not self._reranked(query):
            return prepared
        assert self.reranker
        assert isinstance(query.image, bytes)
        return replace(prepared, matched=model_input(query.image, self.reranker.matcher.preprocess))

    def answer(self, queries: Sequence[PreparedQuery]) -> list[tuple[Answer, ...]]:
        """Answer several queries at once, each for all of its alphas. They are embedded and compared together."""
        parts = embed_parts(queries, self.towers, self.index)
        found, words = self._found(queries, mixed(queries, parts)), self._words(queries)
        answers = []
        for prepared, own in zip(queries, parts, strict=True):
            query = prepared.query
            ranked = [next(found) for _ in query.effective_alphas]
            if count := self._reranked(query):
                ranked = self._rank_again(prepared, own, words, ranked, count)
            alphas = zip(query.effective_alphas, ranked, strict=True)
            answers.append(tuple(Answer(alpha, self._hits(some, query)) for alpha, some in alphas))
        return answers

    def answer_or_fail(self, queries: Sequence[PreparedQuery]) -> list[Outcome]:
        """Answer several queries at once, as `answer` does. If that fails, each is answered alone, so that a query that
        cannot be answered harms no other: it has its error in place of answers."""
        try:
            return [*self.answer(queries)]
        except Exception as error:  # noqa: BLE001  whatever it is, it is that of one query
            return [error] if len(queries) == 1 else [self.answer_or_fail([query])[0] for query in queries]

    def _found(self, queries: Sequence[PreparedQuery], mixes: Float32[np.ndarray, "answer dim"]) -> Iterator[Ranked]:
        """Return the nearest images of each answer in turn. Queries with the same filter are compared together."""
        owners = [prepared for prepared in queries for _ in prepared.query.effective_alphas]
        together: dict[Filter, list[int]] = {}
        for answer, prepared in enumerate(owners):
            together.setdefault(prepared.query.filter, []).append(answer)
        found: dict[int, Ranked] = {}
        for own in together.values():
            asked = [owners[answer].query for answer in own]
            depth = max(max(query.depth, self._reranked(query)) for query in asked)
            neighbours = self.nearest(mixes[own], depth, owners[own[0]].accepted)
            found |= dict(zip(own, map(Ranked.of, neighbours.scores, neighbours.rows), strict=True))
        return (found[answer] for answer in range(len(mixes)))

    def _reranked(self, query: Query) -> int:
        """Return how many of the nearest images of a query are ranked again."""
        if self.reranker is None:
            return 0
        return self.rerank if query.rerank is None else query.rerank

    def _words(self, queries: Sequence[PreparedQuery]) -> dict[str, WordFeatures]:
        """Return the words of each text by which images are ranked again. All are embedded together."""
        if self.reranker is None:
            return {}
        texts = _texts(prepared.query for prepared in queries if self._reranked(prepared.query))
        return dict(zip(texts, self.reranker.matcher.word_features_of(texts), strict=True)) if texts else {}

    def _rank_again(
        self,
        prepared: PreparedQuery,
        vectors: PartVectors,
        words: Mapping[str, WordFeatures],
        nearest: Sequence[Ranked],
        count: int,
    ) -> list[Ranked]:
        """Return the images found at each alpha of a query, the first `count` of them ordered by the match map."""
        reranker, query = self.reranker, prepared.query
        assert reranker is not None
        image = text = without = description = None
        matched = prepared.matched
        features = None if matched is None else reranker.matcher.position_features(matched[None])[0]
        if vectors.image is not None:
            image = reranker.image_part(vectors.image, features, prepared.row)
        if vectors.text is not None:
            text = reranker.text_part([words[text] for text in query.texts], vectors.text)
        if vectors.image is not None and text is not None:
            description = reranker.description(vectors.image, features, prepared.row)
        if query.without and vectors.without is not None:
            without = reranker.text_part([words[query.without]], vectors.without)
        return reranker.rank(nearest, query.effective_alphas, count, image, text, without, WITHOUT, description)

    def _hits(self, ranked: Ranked, query: Query) -> tuple[Hit, ...]:
        shown = ranked.between(query.offset, query.depth)
        return tuple(
            Hit(rank, self.index.ids[row], score, *self.index.sizes[row].tolist(), match=match)
            for rank, (row, score, match) in enumerate(shown, start=query.offset + 1)
        )


def prepare(query: Query, towers: Towers, index: Index | None = None) -> PreparedQuery:
    """Check a query: its text has words, and its image is in the pool or can be decoded.

    Args:
        index: the pool's, None if there is no pool. Then the image must be an encoded picture.

    Raises:
        BadQuery, UnknownImage, UnusableImage: the query is invalid; the message says why.
    """
    for text in (*query.texts, *((query.without,) if query.without else ())):
        towers.check_text(text)
    row = pixels = None
    if isinstance(query.image, bytes):
        pixels = model_input(checked(query.image), towers.preprocess)
    elif query.image is not None:
        if index is None:
            raise BadQuery(f"image: expected an encoded picture, got the id {query.image!r} and no pool of images")
        row = index.row(query.image)
    return PreparedQuery(query, row, pixels, None if index is None else index.accepted(query.filter))


def embed(
    queries: Sequence[PreparedQuery], towers: Towers, index: Index | None = None
) -> Float32[np.ndarray, "answer dim"]:
    """Return the vectors of length 1 of several queries, one for each of a query's alphas in turn. A text or a picture
    of several queries is embedded once.

    Args:
        index: has the vectors of the images of the pool; None if no query refers to one.
    """
    return mixed(queries, embed_parts(queries, towers, index))


def embed_parts(queries: Sequence[PreparedQuery], towers: Towers, index: Index | None) -> list[PartVectors]:
    """Return the vectors of the parts of several queries. Arguments as of `embed`."""
    asked = [prepared.query for prepared in queries]
    texts = _texts(asked)
    said = dict(zip(texts, finite(towers.embed_texts(texts), "vectors of texts"), strict=True)) if texts else {}
    uploads = {prepared.query.image: prepared.pixels for prepared in queries if prepared.pixels is not None}
    shown: dict[str | bytes | None, Vector] = {
        prepared.query.image: index.vector(prepared.row)
        for prepared in queries
        if index is not None and prepared.row is not None
    }
    if uploads:
        vectors = finite(towers.embed_pixels(np.stack(list(uploads.values()))), "vectors of pictures")
        shown |= dict(zip(uploads, vectors, strict=True))
    return [
        PartVectors(
            shown.get(query.image), mean_vector([said[text] for text in query.texts]), said.get(query.without or "")
        )
        for query in asked
    ]


def _texts(queries: Iterable[Query]) -> list[str]:
    """Return each text of some queries, also those to leave out, once."""
    return list(dict.fromkeys(text for query in queries for text in (*query.texts, query.without) if text))


def mixed(queries: Sequence[PreparedQuery], parts: Sequence[PartVectors]) -> Float32[np.ndarray, "answer dim"]:
    """Return the vectors of several queries, one for each of a query's alphas in turn."""
    return np.stack(
        [
            leave_out(mix_vectors(image, text, alpha), without)
            for prepared, (image, text, without) in zip(queries, parts, strict=True)
            for alpha in prepared.query.effective_alphas
        ]
    )
