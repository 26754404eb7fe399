"""Nearest neighbours of queries in a pool of vectors, exactly: by matrix products, block by block.

Float16 vectors are compared in float32: a block of them is converted and multiplied while it is in the processor's
cache. On one core of a Zen 4, 41,620 vectors of width 768 take 8.3 ms so, and 10.9 ms if they are float32 at first,
since half as much is read. Memory: BLOCK_VALUES and twice BLOCK_SCORES of float32, 36 MB, for a pool of any size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64

BLOCK_VALUES = 2**19  # of float32: 2 MB
BLOCK_SCORES = 2**22  # of float32: 16 MB, and as much for their transpose
BLOCK_QUERIES = 2**11  # that are compared in one pass over the vectors
# of the vectors: if no more are accepted, these are copied and compared, else all are. CPU time of a query of 41,620
# vectors of width 768, busy core: all 18 ms; .9 of them copied 34 ms, compared 19; .3 copied 11 ms, compared 21
FEW = 0.4


class Neighbours(NamedTuple):
    """The nearest vectors of each query, nearest first: their cosines and their rows."""

    scores: Float32[np.ndarray, "query k"]
    rows: Int64[np.ndarray, "query k"]


class Nearest(NamedTuple):
    """The nearest vectors of one query so far: scores, highest first, and rows. Ties are ordered by row."""

    scores: Float32[np.ndarray, " k"]
    rows: Int64[np.ndarray, " k"]

    def merge(self, scores: Float32[np.ndarray, " image"], first: int, k: int) -> Nearest:
        """Return the `k` nearest of these and of further rows, from row `first` on."""
        if len(self.scores) < k:
            rows = _highest(scores, min(k, len(scores)))
        else:
            # a later row with the same score as the last one here loses the tie
            rows = np.flatnonzero(scores > self.scores[-1])
            rows = rows[_highest(scores[rows], min(k, len(rows)))] if len(rows) else rows
        if not len(rows):
            return self
        joined = np.concatenate([self.scores, scores[rows]])
        order = np.argsort(-joined, kind="stable")[:k]
        return Nearest(joined[order], np.concatenate([self.rows, rows + first])[order])


@dataclass(frozen=True)
class Chosen:
    """Some rows of vectors, of which a slice at a time is copied."""

    vectors: Float[np.ndarray, "image dim"]
    rows: Int64[np.ndarray, " row"]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.vectors.shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> Float[np.ndarray, "row dim"]:
        return self.vectors[self.rows[part]]


@dataclass(frozen=True)
class ExactSearch:
    """Exact search by matrix products. Ties are ordered by row.

    Attributes:
        vectors: vectors of length 1.
        block_values: maximum number of values of the vectors that are converted at once; a vector may have more.
        block_scores: maximum number of scores in memory at once; BLOCK_QUERIES scores of a vector may be more.
    """

    vectors: Float[np.ndarray, "image dim"] | Chosen
    block_values: int = BLOCK_VALUES
    block_scores: int = BLOCK_SCORES
    recall: float = 1.0  # as of an inverted file

    def __call__(
        self, queries: Float32[np.ndarray, "query dim"], k: int, accepted: Bool[np.ndarray, " image"] | None = None
    ) -> Neighbours:
        """Return the `k` nearest vectors of each query, or all if there are fewer.

        Args:
            accepted: which vectors may be found (default: all).
        """
        count = len(self.vectors) if accepted is None else int(np.count_nonzero(accepted))
        if accepted is not None and count <= FEW * len(self.vectors):
            assert isinstance(self.vectors, np.ndarray)
            rows = np.flatnonzero(accepted)
            found = replace(self, vectors=Chosen(self.vectors, rows))(queries, k)
            return Neighbours(found.scores, rows[found.rows])
        k = min(k, count)
        nearest: list[Nearest] = []
        for start in range(0, len(queries), BLOCK_QUERIES):
            nearest += self._nearest(queries[start : start + BLOCK_QUERIES], k, accepted)
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        for query, found in enumerate(nearest):
            scores[query], rows[query] = found
        return Neighbours(scores, rows)

    def _nearest(
        self, queries: Float32[np.ndarray, "query dim"], k: int, accepted: Bool[np.ndarray, " image"] | None
    ) -> list[Nearest]:
        nearest = [Nearest(np.empty(0, np.float32), np.empty(0, np.int64))] * len(queries)
        step = max(1, self.block_scores // len(queries))
        for first in range(0, len(self.vectors), step):
            part = slice(first, min(len(self.vectors), first + step))
            left_out = None if accepted is None else ~accepted[part]
            # not named: the scores of one block would stay in memory while the next are computed
            nearest = [
                found.merge(some, first, k)
                for found, some in zip(nearest, self._scores(queries, part.start, part.stop, left_out), strict=True)
            ]
        return nearest

    def _scores(
        self,
        queries: Float32[np.ndarray, "query dim"],
        first: int,
        stop: int,
        left_out: Bool[np.ndarray, " image"] | None,
    ) -> Float32[np.ndarray, "query image"]:
        """Return the scores of a block of vectors; -inf for those that are left out."""
        # torch, since numpy's product uses one thread a core, whatever the process is limited to, and converts slowly
        step = min(stop - first, max(1, self.block_values // self.vectors.shape[1]))
        transposed = torch.from_numpy(queries).T
        scores, converted = torch.empty(stop - first, len(queries)), torch.empty(step, self.vectors.shape[1])
        for start in range(first, stop, step):
            vectors = torch.from_numpy(self.vectors[start : min(stop, start + step)])
            if vectors.dtype != torch.float32:
                vectors = converted[: len(vectors)].copy_(vectors)
            torch.mm(vectors, transposed, out=scores[start - first : start - first + len(vectors)])
        if left_out is not None:
            scores[torch.from_numpy(left_out)] = -torch.inf
        return scores.T.contiguous().numpy()


def _highest(scores: Float32[np.ndarray, " image"], k: int) -> Int64[np.ndarray, " k"]:
    """Return the rows of the `k` highest scores, highest first; ties are ordered by row."""
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero(scores >= threshold)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:k]


def recall(found: Neighbours, exact: Neighbours) -> float:
    """Return the fraction of the exact rows that were found, over all queries."""
    hits = [len(np.intersect1d(some, others)) for some, others in zip(found.rows, exact.rows, strict=True)]
    return sum(hits) / exact.rows.size
