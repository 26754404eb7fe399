"""The search of a pool: exact, or with FAISS in a large one, whose file is made once."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
from jaxtyping import Float16, Float32

from groundray.data.derived import DerivedDataset
from groundray.data.earlier_parts import LINEAGE, earlier_datasets
from groundray.data.schema import Dataset
from groundray.image_search import compact, inverted_file
from groundray.image_search.compact import open_compact
from groundray.image_search.index import Index, Tell, make_compact
from groundray.image_search.inverted_file import (
    MAX_EXACT,
    InvertedFileSearch,
    centres_of,
    check_inverted_file,
    open_inverted_file,
    write_inverted_file,
)
from groundray.image_search.knn import ExactSearch
from groundray.storage.folder import Folder
from groundray.storage.made_once import made_once

NearestNeighbours = ExactSearch | InvertedFileSearch  # finds the `k` nearest, or the whole pool if it is smaller
Read = TypeVar("Read")


def nearest_neighbours(index: Index, tell: Tell, max_exact: int = MAX_EXACT) -> NearestNeighbours:
    """Return the search of a pool: exact, or above `max_exact` vectors with an inverted file, which is made if need be.

    Raises:
        ValueError: FAISS is needed and not installed, or the disk has no room for its file.
    """
    if len(index.ids) <= max_exact:
        return ExactSearch(np.asarray(index.vectors))
    made_of = index.dataset.fingerprint
    return _made(index.folder, index.dataset, tell, lambda: open_inverted_file(index.folder, made_of))


def make_missing_files(spec: DerivedDataset, tell: Tell, max_exact: int = MAX_EXACT) -> str:
    """Make what an index with complete parts has beside them, unless it is there. What is there is not read. Returns in
    a few words how the pool is searched.

    Raises:
        ValueError: as `nearest_neighbours` and `Index.open`.
    """
    dataset = make_compact(spec, tell)
    if dataset.rows <= max_exact:
        return "exact search"
    measured, *_ = _made(spec.folder, dataset, tell, lambda: check_inverted_file(spec.folder, dataset.fingerprint))
    return f"FAISS, {measured}"


def _made(folder: Folder, dataset: Dataset, tell: Tell, read: Callable[[], Read]) -> Read:
    """Return what `read` reads of the inverted file; it is made first if need be."""

    def make() -> None:
        started = time.monotonic()
        tell(f"FAISS's file of {dataset.rows:,} vectors is built once, in {folder}")
        with _local_vectors(folder, dataset) as vectors:
            measured = write_inverted_file(vectors, folder, dataset.fingerprint, _earlier_centres(folder, dataset))
        tell(f"FAISS's file is built in {time.monotonic() - started:.0f} s, {measured}")

    return made_once(folder, "ivf", inverted_file.FILES, read, make, tell)


def _earlier_centres(folder: Folder, dataset: Dataset) -> Float32[np.ndarray, "cell dim"] | None:
    """Return the centres of the cells of the largest earlier index, of which this one has taken over vectors."""
    if not (lineage := dataset.source.get(LINEAGE)):
        return None
    earlier = sorted(earlier_datasets(folder, dataset.kind, lineage), key=lambda other: -other.rows)
    return next((centres for other in earlier if (centres := centres_of(other.folder)) is not None), None)


@contextlib.contextmanager
def _local_vectors(folder: Folder, dataset: Dataset) -> Iterator[Float16[np.ndarray, "image dim"]]:
    """Yield the vectors of a compact file, mapped from this folder or from a temporary copy."""
    if folder.local:
        yield np.asarray(open_compact(dataset, folder).vectors)
        return
    with tempfile.TemporaryDirectory() as temporary:
        local = Folder.at(temporary)
        folder.copy(compact.FILES, local, flush=False)
        yield np.asarray(open_compact(dataset, local).vectors)
