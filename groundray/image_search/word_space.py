"""Words on their principal axes, before and after grounding, and the place of a phrase among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.decomposition import PCA
from tokenizers import Tokenizer

from groundray.analysis.inputs.catalog import CATEGORIES, CONCRETENESS, Norms
from groundray.analysis.inputs.embedding import Embedder
from groundray.analysis.inputs.norm_tables import read_categories, read_phrases, read_ratings
from groundray.data.tokenization import whole_words
from groundray.image_search.checkpoint import is_dual_encoder
from groundray.image_search.errors import BadQuery
from groundray.model import export
from groundray.storage.folder import Folder

UNGROUNDED = f"{export.LANGUAGE}-ungrounded"
MAX_WORDS = 5_000
MAX_PHRASES = 12
MAX_AXES = 10
VOCABULARY_WORDS = 3_000  # words of the tokenizer that are shown without norms


@dataclass(frozen=True)
class Word:
    """A word, with its category and its concreteness if the norms have them."""

    text: str
    category: str | None = None
    concreteness: float | None = None


@dataclass(frozen=True)
class Example:
    """A phrase, and the word that it describes."""

    phrase: str
    target: str


@dataclass(frozen=True)
class Words:
    """The words to show, the number of omitted words, and phrases to try.

    Attributes:
        passed_over: a line for each file beside the norms that was not read.
    """

    shown: tuple[Word, ...]
    omitted: int = 0
    examples: tuple[Example, ...] = ()
    passed_over: tuple[str, ...] = ()

    @staticmethod
    def of_norms(folder: str) -> Words:
        """Read the words of a folder of norms (`Norms.at`): its categories, its concreteness ratings, or both.

        The first of its phrases, if any, become examples.

        A word of several categories is shown in its first. Above MAX_WORDS, words with a category take precedence.

        Raises:
            FileNotFoundError, ValueError: both files are missing, or one cannot be read.
        """
        norms = Norms.at(folder)
        if not (norms.categories or norms.concreteness):
            raise FileNotFoundError(
                f"--norms: expected {CATEGORIES[0]}.csv or {CONCRETENESS}.csv in {folder}, found neither"
            )
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
            examples = tuple(map(Example, rows.phrase, rows.target))[:MAX_PHRASES]
        return Words(tuple(words.values())[:MAX_WORDS], max(0, len(words) - MAX_WORDS), examples, norms.passed_over)

    @staticmethod
    def of_vocabulary(tokenizer: Tokenizer) -> Words:
        """Return the whole words among a tokenizer's pieces, ordered by id: the most frequent first."""
        whole = whole_words(tokenizer)
        return Words(tuple(map(Word, whole[:VOCABULARY_WORDS])), max(0, len(whole) - VOCABULARY_WORDS))


@dataclass(frozen=True)
class WordModel:
    """A language stream, the vectors of all words, and their principal axes.

    Attributes:
        directions: the vectors, scaled to length 1.
        at: the words' coordinates on the axes.
        centre: mean of the vectors.
        explained: fraction of the variance along each axis.
    """

    embedder: Embedder
    directions: Float[np.ndarray, "word dim"]
    at: Float[np.ndarray, "word axis"]
    centre: Float[np.ndarray, " dim"]
    axes: Float[np.ndarray, "axis dim"]
    explained: Float[np.ndarray, " axis"]

    @staticmethod
    def of(embedder: Embedder, words: Sequence[Word]) -> WordModel:
        """Compute the axes of the words' centred vectors. Each points to higher concreteness of the rated words."""
        vectors = embedder.embed([word.text for word in words]).astype(np.float64)
        with np.errstate(invalid="ignore"):  # of a single word, or of words that are all alike, which explain nothing
            pca: Any = PCA(min(MAX_AXES, *vectors.shape), svd_solver="full").fit(vectors)
        rated = [index for index, word in enumerate(words) if word.concreteness is not None]
        ratings = np.array([words[index].concreteness for index in rated], dtype=np.float64)
        scores = pca.transform(vectors)
        rises = scores[rated].T @ (ratings - ratings.mean()) if rated else np.ones(len(pca.components_))
        signs = np.where(rises < 0, -1.0, 1.0)
        lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return WordModel(
            embedder,
            vectors / lengths,
            scores * signs,
            pca.mean_,
            pca.components_ * signs[:, None],
            np.nan_to_num(pca.explained_variance_ratio_),
        )


@dataclass(frozen=True)
class Neighbour:
    """A nearby word, and its cosine."""

    text: str
    cosine: float


@dataclass(frozen=True)
class Placement:
    """Coordinates of a text on the axes, and its nearest words, without its own."""

    at: tuple[float, ...]
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True)
class WordSpace:
    """The words in two language streams of an exported model: `grounded`, its last, and `ungrounded` if it has one. A
    dual encoder has one, its text tower with its projection: `text tower`."""

    words: Words
    models: dict[str, WordModel]

    @staticmethod
    def open(checkpoint: str, norms: str | None, tokenizer: Tokenizer) -> WordSpace:
        """Open the word space of a model: the words of the norms, or else of its tokenizer.

        Raises:
            FileNotFoundError, ValueError: the norms cannot be used.
        """
        if is_dual_encoder(checkpoint):
            streams = {"text tower": checkpoint}
        else:
            before = {"ungrounded": UNGROUNDED} if Folder.at(checkpoint).exists(UNGROUNDED) else {}
            kept = {**before, "grounded": export.last_stream(checkpoint)}
            streams = {name: f"{checkpoint}/{stream}" for name, stream in kept.items()}
        embedders = {name: Embedder.load(stream) for name, stream in streams.items()}
        words = Words.of_norms(norms) if norms else Words.of_vocabulary(tokenizer)
        texts = [word.text for word in words.shown]
        known = np.all([embedder.known(texts) for embedder in embedders.values()], axis=0)
        shown = tuple(word for word, is_known in zip(words.shown, known.tolist(), strict=True) if is_known)
        if not shown:
            raise ValueError(f"expected words that the model knows in {norms or 'its tokenizer'}, got none")
        words = replace(words, shown=shown, omitted=words.omitted + len(words.shown) - len(shown))
        return WordSpace(words, {name: WordModel.of(embedder, shown) for name, embedder in embedders.items()})

    def place(self, text: str, axes: int, k: int) -> dict[str, Placement]:
        """Return the placement of a word or phrase in each model.

        Raises:
            BadQuery: the text has no known word, or too many words.
        """
        for model in self.models.values():
            try:
                model.embedder.batches([text])
            except ValueError:  # its message names folders of the server
                raise BadQuery(
                    f"text: expected a word or phrase that the model knows and can take whole, got {text[:80]!r}"
                ) from None
        own = {text.lower(), *text.lower().split()}
        others = np.array([word.text.lower() not in own for word in self.words.shown])
        placements = {}
        for name, model in self.models.items():
            vector = model.embedder.embed([text])[0].astype(np.float64)
            cosines = model.directions @ vector / max(float(np.linalg.norm(vector)), 1e-12)
            best = np.argsort(-np.where(others, cosines, -np.inf), kind="stable")[: min(k, int(others.sum()))]
            at = model.axes[:axes] @ (vector - model.centre)
            nearest = tuple(Neighbour(self.words.shown[index].text, float(cosines[index])) for index in best.tolist())
            placements[name] = Placement(tuple(at.tolist()), nearest)
        return placements
