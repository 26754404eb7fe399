"""Vectors of words as a file is read: the first of each word, and what is left out with its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

# reasons to leave a word out
NOT_FINITE = "words with numbers that are not finite"
ZERO = "words whose numbers are all 0"  # which have no direction, and a cosine with nothing
REPEATED = "repeated words"
WORDLESS = "rows without a word"
VECTORLESS = "words without a vector"
UNDECODABLE = "words that are not UTF-8"

Vectors = Float32[np.ndarray, "word dim"]


class LeftOut(NamedTuple):
    """How many words were left out, and where the first of them stands."""

    number: int
    first: str


@dataclass(frozen=True)
class FoundVectors:
    """Vectors of words that a file has.

    Attributes:
        words: distinct, in the file's order.
        vectors: finite, none of them 0.
        rows: number of the file's words, the others included.
        layout: the file's format, such as `Parquet`.
        left_out: words that were asked for and left out, by reason.
        metadata: what the writer says of the vectors.
    """

    words: tuple[str, ...]
    vectors: Vectors
    rows: int
    layout: str
    left_out: Mapping[str, LeftOut] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Gathering:
    """Gathers vectors of words while a file is read: the first of each word, if it is finite and not 0."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._words: list[str] = []
        self._parts: list[Vectors] = []
        self._left_out: dict[str, LeftOut] = {}

    def add(self, words: list[str], vectors: Vectors, places: Sequence[str]) -> None:
        """Add words with their vectors.

        Args:
            places: location of each word, such as `line 17`.
        """
        finite: list[bool] = np.all(np.isfinite(vectors), axis=1).tolist()
        directed: list[bool] = np.any(vectors != 0, axis=1).tolist()
        kept: list[int] = []
        for row, (word, place) in enumerate(zip(words, places, strict=True)):
            if word in self._seen:
                self.leave_out(REPEATED, place)
                continue
            self._seen.add(word)
            if not finite[row]:
                self.leave_out(NOT_FINITE, place)
            elif not directed[row]:
                self.leave_out(ZERO, place)
            else:
                kept.append(row)
        self._words.extend(words[row] for row in kept)
        self._parts.append(vectors[kept])

    def leave_out(self, what: str, place: str) -> None:
        """Count a word that is left out."""
        number, first = self._left_out.get(what, (0, place))
        self._left_out[what] = LeftOut(number + 1, first)

    def found(self, width: int, rows: int, layout: str, metadata: Mapping[str, Any] | None = None) -> FoundVectors:
        """Return all that was added."""
        vectors = np.concatenate(self._parts) if self._parts else np.zeros((0, width), dtype=np.float32)
        return FoundVectors(tuple(self._words), vectors, rows, layout, self._left_out, metadata or {})
