"""The words of texts, and which of them are frequent enough to get a vector."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

# letters and digits, with apostrophes and hyphens between them: don't, t-shirt
WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
UNKNOWN = -1


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return WORD.findall(unicodedata.normalize("NFKC", text).lower())


@dataclass(frozen=True)
class Vocabulary:
    """Words in the order of their counts, the most frequent first (ties in alphabetical order).

    Attributes:
        counts: what each word was counted in.
        rare: number of words that were left out as too rare.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...]
    rare: int = 0

    @staticmethod
    def of(counts: Counter[str], min_count: int, what: str) -> Vocabulary:
        """Return the words that are frequent enough.

        Args:
            what: what a word has a number of, such as `images`, for the error.

        Raises:
            ValueError: there is no such word, or `min_count` is below 1.
        """
        if min_count < 1:
            raise ValueError(f"--min-count: expected at least 1, got {min_count}")
        if not counts:
            raise ValueError(f"expected {what} of words, got no word")
        kept = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
        if not kept:
            commonest = min(counts, key=lambda word: (-counts[word], word))
            raise ValueError(
                f"--min-count: expected words with at least {min_count:,} {what}, got none of {len(counts):,}: the "
                f"commonest, {commonest!r}, has {counts[commonest]:,}; give a smaller number or more data"
            )
        return Vocabulary(tuple(kept), tuple(counts[word] for word in kept), len(counts) - len(kept))

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def numbers(self, words: Iterable[str]) -> Int[np.ndarray, " word"]:
        """Return the index of each word, UNKNOWN for one that is not in the vocabulary."""
        return np.array([self._index.get(word, UNKNOWN) for word in words], dtype=np.int64)

    def incidence(self, items: Iterable[Iterable[str]]) -> csr_array:
        """Return how often each item has each word: a sparse matrix with a row for each item."""
        numbered = [self.numbers(words) for words in items]
        item = np.repeat(np.arange(len(numbered)), [len(numbers) for numbers in numbered])
        word = np.concatenate([np.zeros(0, np.int64), *numbered])
        known = word != UNKNOWN
        places = (item[known], word[known])
        return csr_array((np.ones(len(places[0])), places), shape=(len(numbered), len(self)))


@dataclass(frozen=True)
class WordVectors:
    """The vectors of words.

    Attributes:
        counts: how much was read, used and left out, by what it is.
        notes: a line for each thing that the data lack.
    """

    words: tuple[str, ...]
    vectors: Float[np.ndarray, "word dim"]
    counts: dict[str, int]
    notes: tuple[str, ...] = field(default=())

    @staticmethod
    def of(vocabulary: Vocabulary, vectors: np.ndarray, counts: dict[str, int], *notes: str) -> WordVectors:
        """Return the vectors, float32, of the words that have one: zero has no direction."""
        zero = np.all(vectors == 0, axis=1)
        words = tuple(vocabulary.words[number] for number in np.flatnonzero(~zero))
        left_out = {"words too rare": vocabulary.rare, "words whose vector is zero": int(zero.sum())}
        found = {what: count for what, count in left_out.items() if count}
        return WordVectors(words, vectors[~zero].astype(np.float32), {**counts, "words": len(words), **found}, notes)


def check_width(width: int, vocabulary: Vocabulary) -> None:
    """Raise ValueError unless there are as many words as dimensions."""
    if width > len(vocabulary):
        raise ValueError(
            f"--width: expected at most {len(vocabulary):,}, the number of words that are frequent enough, got "
            f"{width:,}: give a smaller one, a smaller --min-count or more data"
        )
