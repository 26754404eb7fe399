"""The vectors of a pool that lie nearest to a query: by one matrix product, or by FAISS where a pool is very large.

Measured at 41,620 vectors of 768 on one core of a Zen 4: the product 3.9 ms, FAISS's flat index 4.9 ms. Time and memory
grow with the pool (a million vectors: 3 GB), so that beyond EXACT_MOST an inverted file is searched instead: k-means
cells, of which a query looks into so many of the nearest that it misses little. How little is measured when it is made.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64

from groundray.storage.folder import Folder

EXACT_MOST = 1_000_000
FILE, ABOUT = "ivf.faiss", "ivf.json"
RECALL = 0.97  # of the ten nearest, that an inverted file is set to find
PROBED = 500  # queries that measure it
TRAINED_A_CELL = 64  # vectors that k-means sees for each cell


class Found(NamedTuple):
    """The nearest vectors of each query, the nearest first: their cosines and their rows."""

    scores: Float32[np.ndarray, "query k"]
    rows: Int64[np.ndarray, "query k"]


@dataclass(frozen=True)
class Exact:
    """By one matrix product. Of vectors that are equally near, those of lower rows come first.

    Attributes:
        vectors: of length 1.
    """

    vectors: Float32[np.ndarray, "image dim"]

    def __call__(self, queries: Float32[np.ndarray, "query dim"], k: int) -> Found:
        # torch's product: numpy's own takes as many threads as there are cores, whatever the process may use
        scores = (torch.from_numpy(self.vectors) @ torch.from_numpy(queries).T).T.contiguous().numpy()
        rows = np.stack([_highest(of_query, min(k, len(self.vectors))) for of_query in scores])
        return Found(np.take_along_axis(scores, rows, axis=1), rows)


def _highest(scores: Float32[np.ndarray, " image"], k: int) -> Int64[np.ndarray, " k"]:
    """The rows of the `k` highest scores, the highest first; of equal ones the first."""
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero(scores >= least)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:k]


@dataclass(frozen=True)
class Approximate:
    """By an inverted file of FAISS.

    Attributes:
        recall: of the ten nearest, measured against the exact ones.
    """

    index: Any
    recall: float

    def __call__(self, queries: Float32[np.ndarray, "query dim"], k: int) -> Found:
        return Found(*self.index.search(queries, min(k, self.index.ntotal)))


Nearest = Exact | Approximate  # finds the `k` nearest of the pool, or all of it where it is smaller


def inverted_file(vectors: Float32[np.ndarray, "image dim"], cells: int | None = None) -> Approximate:
    """An inverted file over vectors of length 1, set to find RECALL of the ten nearest.

    Args:
        cells: of k-means (default: four times the root of the number of vectors).
    """
    faiss = _faiss()
    count, width = vectors.shape
    cells = cells or max(1, min(count // TRAINED_A_CELL, 4 * round(count**0.5)))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
    drawn = np.random.default_rng(0).permutation(count)
    index.train(vectors[np.sort(drawn[: TRAINED_A_CELL * cells])])
    index.add(vectors)
    queries = _probes(vectors, drawn[:PROBED])
    exact = Exact(vectors)(queries, 10)
    index.nprobe, found = 1, 0.0
    while (found := recall(Found(*index.search(queries, 10)), exact)) < RECALL and index.nprobe < cells:
        index.nprobe = min(cells, 2 * index.nprobe)
    return Approximate(index, found)


def _probes(
    vectors: Float32[np.ndarray, "image dim"], rows: Int64[np.ndarray, " row"]
) -> Float32[np.ndarray, "row dim"]:
    """Queries as people ask them: half of the way from an image to another, where no image need be."""
    mixed = vectors[rows] + vectors[np.roll(rows, 1)]
    return mixed / np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), 1e-12)


def recall(found: Found, exact: Found) -> float:
    """The share of the exact rows that were found, over all queries."""
    hits = [len(np.intersect1d(some, others)) for some, others in zip(found.rows, exact.rows, strict=True)]
    return sum(hits) / exact.rows.size


def nearest(folder: Folder, count: int, matrix: Callable[[], np.ndarray], exact_most: int = EXACT_MOST) -> Nearest:
    """What searches a pool: exactly, or beyond `exact_most` by the inverted file that lies in its index's folder, which
    is made where there is none.

    Args:
        count: of vectors.
        matrix: reads them.

    Raises:
        ValueError: FAISS is needed and not installed.
    """
    if count <= exact_most:
        return Exact(matrix())
    if not folder.exists(ABOUT):
        made = inverted_file(matrix())
        folder.write_bytes(FILE, _faiss().serialize_index(made.index).tobytes())
        folder.write_json(ABOUT, {"recall": made.recall, "cells": made.index.nlist, "probed": made.index.nprobe})
        return made
    faiss, told = _faiss(), folder.read_json(ABOUT)
    if folder.local:  # mapped: replicas on a machine share it
        return Approximate(faiss.read_index(folder.locate(FILE), faiss.IO_FLAG_MMAP), told["recall"])
    with tempfile.TemporaryDirectory() as here:
        file = Path(here, FILE)
        file.write_bytes(folder.read_bytes(FILE))
        return Approximate(faiss.read_index(str(file)), told["recall"])


def _faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise ValueError(
            f"a pool of more than {EXACT_MOST:,} images is searched by FAISS: run `pip install groundray[search]`"
        ) from None
