"""The words on their principal axes, before and after grounding, and where a phrase lands among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.decomposition import PCA

from groundray.analysis.inputs.catalog import CATEGORIES, CONCRETENESS, Norms
from groundray.analysis.inputs.embedding import Embedder
from groundray.analysis.inputs.norm_tables import read_categories, read_phrases, read_ratings
from groundray.image_search.errors import BadQuery
from groundray.model import export
from groundray.storage.folder import Folder

STREAMS = {"ungrounded": f"{export.LANGUAGE}-ungrounded", "grounded": export.LANGUAGE}
MOST_WORDS = 5_000
MOST_PHRASES = 12
MOST_AXES = 10
FROM_VOCABULARY = 3_000  # words, where there are no norms


@dataclass(frozen=True)
class Word:
    """A word and what people say of it, as far as the norms tell."""

    text: str
    category: str | None = None
    concreteness: float | None = None


@dataclass(frozen=True)
class Example:
    """A phrase, and the word that it stands for."""

    phrase: str
    target: str


@dataclass(frozen=True)
class Words:
    """The words that are shown, how many more the norms have, and phrases to try."""

    listed: tuple[Word, ...]
    left_out: int = 0
    examples: tuple[Example, ...] = ()

    @staticmethod
    def of_norms(folder: str) -> Words:
        """The words of a folder's categories and ratings of concreteness (`Norms.at`); one of them will do. Its first
        phrases, where it has any, are examples.

        A word of several categories is shown in its first. Of more than MOST_WORDS, those with a category come first.

        Raises:
            FileNotFoundError, ValueError: neither file is there, or one cannot be read.
        """
        norms = Norms.at(folder)
        if not (norms.categories or norms.concreteness):
            raise FileNotFoundError(f"--norms: expected {CATEGORIES[0]} or {CONCRETENESS} in {folder}, found neither")
        rated = read_ratings(norms.concreteness).of if norms.concreteness else {}
        words: dict[str, Word] = {}
        if norms.categories:
            rows = read_categories(norms.categories)
            for category, text, rating in zip(rows.category, rows.word, rows.concreteness.tolist(), strict=True):
                known = rated.get(text, None if np.isnan(rating) else rating)
                words.setdefault(text, Word(text, category, known))
        for text, rating in rated.items():
            words.setdefault(text, Word(text, None, rating))
        examples: tuple[Example, ...] = ()
        if norms.phrases:
            rows = read_phrases(norms.phrases)
            examples = tuple(map(Example, rows.phrase, rows.target))[:MOST_PHRASES]
        return Words(tuple(words.values())[:MOST_WORDS], max(0, len(words) - MOST_WORDS), examples)

    @staticmethod
    def of_vocabulary(pieces: Mapping[str, int]) -> Words:
        """The whole words among a tokenizer's pieces, in the order of their ids: the most frequent first."""
        ordered = sorted(pieces, key=lambda piece: pieces[piece])
        whole = [piece for piece in ordered if len(piece) > 1 and piece.isalpha()]
        return Words(tuple(Word(piece) for piece in whole[:FROM_VOCABULARY]), max(0, len(whole) - FROM_VOCABULARY))


@dataclass(frozen=True)
class Model:
    """A language stream, the vectors of all words, and their principal axes.

    Attributes:
        directions: the vectors at length 1.
    """

    embedder: Embedder
    directions: Float[np.ndarray, "word dim"]
    at: Float[np.ndarray, "word axis"]
    centre: Float[np.ndarray, " dim"]
    axes: Float[np.ndarray, "axis dim"]
    explained: Float[np.ndarray, " axis"]

    @staticmethod
    def of(embedder: Embedder, words: Sequence[Word]) -> Model:
        """The axes of the words' centred vectors. Each points to where the concreteness of the rated words rises."""
        vectors = embedder.embed([word.text for word in words]).astype(np.float64)
        pca: Any = PCA(min(MOST_AXES, *vectors.shape), svd_solver="full").fit(vectors)
        rated = [place for place, word in enumerate(words) if word.concreteness is not None]
        ratings = np.array([words[place].concreteness for place in rated], dtype=np.float64)
        scores = pca.transform(vectors)
        rises = scores[rated].T @ (ratings - ratings.mean()) if rated else np.ones(len(pca.components_))
        signs = np.where(rises < 0, -1.0, 1.0)
        lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return Model(
            embedder,
            vectors / lengths,
            scores * signs,
            pca.mean_,
            pca.components_ * signs[:, None],
            pca.explained_variance_ratio_,
        )


@dataclass(frozen=True)
class Neighbour:
    """A word that lies near, and its cosine."""

    text: str
    cosine: float


@dataclass(frozen=True)
class Landing:
    """Where a text lands: its place on the axes, and the words next to it, its own words aside."""

    at: tuple[float, ...]
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True)
class Space:
    """Words as the language streams of an export see them, by the stream's name in STREAMS."""

    words: Words
    models: dict[str, Model]

    @staticmethod
    def open(checkpoint: str, norms: str | None, pieces: Mapping[str, int]) -> Space:
        """The words of some norms as an exported model sees them; without norms, those of its tokenizer's pieces.

        Raises:
            FileNotFoundError, ValueError: the norms cannot be used.
        """
        there = [name for name, stream in STREAMS.items() if Folder.at(checkpoint).exists(stream)]
        embedders = {name: Embedder.load(f"{checkpoint}/{STREAMS[name]}") for name in there}
        words = Words.of_norms(norms) if norms else Words.of_vocabulary(pieces)
        known = np.all([one.known([word.text for word in words.listed]) for one in embedders.values()], axis=0)
        listed = tuple(word for word, fine in zip(words.listed, known.tolist(), strict=True) if fine)
        if not listed:
            raise ValueError(f"expected words that the model knows in {norms or 'its tokenizer'}, got none")
        left_out = words.left_out + len(words.listed) - len(listed)
        words = replace(words, listed=listed, left_out=left_out)
        return Space(words, {name: Model.of(one, listed) for name, one in embedders.items()})

    def land(self, text: str, axes: int, k: int) -> dict[str, Landing]:
        """Where a word or phrase lands in each model.

        Raises:
            BadQuery: it has no word that the models know, or too many.
        """
        for model in self.models.values():
            try:
                model.embedder.batches([text])
            except ValueError:  # it tells of folders, which are nobody's business here
                raise BadQuery(
                    f"text: expected a word or phrase that the model knows and can take whole, got {text[:80]!r}"
                ) from None
        own = {text.lower(), *text.lower().split()}
        others = np.array([word.text.lower() not in own for word in self.words.listed])
        found = {}
        for name, model in self.models.items():
            vector = model.embedder.embed([text])[0].astype(np.float64)
            cosines = model.directions @ vector / max(float(np.linalg.norm(vector)), 1e-12)
            best = np.argsort(-np.where(others, cosines, -np.inf), kind="stable")[: min(k, int(others.sum()))]
            at = model.axes[:axes] @ (vector - model.centre)
            nearest = tuple(Neighbour(self.words.listed[place].text, float(cosines[place])) for place in best.tolist())
            found[name] = Landing(tuple(at.tolist()), nearest)
        return found
